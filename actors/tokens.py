"""How many tokens a text, a message or a request is: exact where tiktoken is there, else an estimate that learns.

    counter    text -> tokens: TiktokenCounter (exact for OpenAI's models), or TokenEstimate
    TokenMeter messages -> tokens, for one model: a counter, a memory of what it counted, and the learnt correction

The estimate looks at the script: a Latin word is about a token, and more where it is long or in camelCase; a Chinese
character is 0.72 of one, and so on. Its weights are least squares over o200k_base on the translations of Django and
Sphinx, CPython's library and docstrings, and made-up JSON and base64. benchmarks/bench_tokens.py measures the error on
other texts. What is off for a model, and what the estimate cannot know (how its server wraps messages), is learnt:
each answer reports what the prompt was, and the sums of what was reported and of what was counted give a factor.

Source: https://github.com/openai/tiktoken; how messages are wrapped: OpenAI cookbook, "How to count tokens with
tiktoken"; an image: OpenAI, "Images and vision", 1024 x 1024 at high detail with gpt-4o.
"""

import importlib
import importlib.util
import logging
import re
from collections.abc import Iterable
from typing import Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from .message import Message, Part
from .model import OutputSchema, ToolSchema

__all__ = ["TiktokenCounter", "TokenCounter", "TokenEstimate", "TokenMeter", "TokenMeters", "counter_for"]

_log = logging.getLogger("callboard.tokens")

MESSAGE_TOKENS = 4
"""What a message costs beside its content: its role, and what parts it from the others."""

CALL_TOKENS = 8
"""What a tool call costs beside its name and its arguments; its id is usually not shown to the model."""

PART_TOKENS = 765
"""A part that is no text. An image of 1024 x 1024 costs so much; of sounds and files nobody can tell from here."""

LOAD_TIMEOUT_S = 10.0
"""tiktoken fetches an encoding from the network when it is first used on a machine. Nobody waits longer for it."""

_LEARNT_MAX = 4.0
"""The most by which learning changes a count, either way: past this, what was reported is not what was counted."""

_PRIOR_TOKENS = 500.0
"""Learning begins as if so many tokens had been counted right: one short prompt, mostly wrapping, tells little."""

_DECAY = 0.9
"""What the sums keep of themselves at each answer: the last ten answers decide."""

_REMEMBERED_MAX = 16_384

_PRESENT_MODEL = "gpt-4o"
"""Its encoding, o200k_base, is that of all later ones of OpenAI as well."""


class TokenCounter(Protocol):
    """Counts the tokens of a text. `name` says how, in what reports it; `exact` whether that is what the model sees."""

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def count(self, text: str) -> int:
        """How many tokens. Quick, and without waiting: it is called on the event loop."""
        ...


_LATIN = "A-Za-z\u00c0-\u024f"
_WORD = re.compile(f"[{_LATIN}]+")
_LONG_WORD = re.compile(f"[{_LATIN}]{{5,}}")
_ASCII_WEIGHTS: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile("[a-z](?=[A-Z])"), 1.76),  # camelCase, base64
    (re.compile("[0-9]{1,3}"), 1.3),
    (re.compile(r"[!-/:-@\[-`{-~]+"), 0.85),  # runs of ASCII punctuation
    (re.compile(r"\s*\n\s*|  +"), 1.1),  # line ends with what is blank around them, and indents
)
_SCRIPT_WEIGHTS: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile("[\u0080-\u024f]"), 0.68),  # accents, beside the words that they are in
    (re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]"), 0.72),  # Chinese characters
    (re.compile("[\u3040-\u30ff]"), 0.7),  # kana
    (re.compile("[\u3000-\u303f\uff00-\uffef]"), 0.2),  # full-width punctuation, half of it within other tokens
    (re.compile("[\uac00-\ud7af]"), 0.67),  # Hangul
    (re.compile("[\u0600-\u06ff]"), 0.33),  # Arabic
    (re.compile("[\u0590-\u05ff]"), 0.43),  # Hebrew
    (re.compile("[\u0370-\u052f]"), 0.26),  # Greek and Cyrillic
    (re.compile("[\u0900-\u0dff]"), 0.37),  # Devanagari and its kin
    (re.compile("[\u0e00-\u0eff]"), 0.37),  # Thai and Lao
)
_OTHER_WEIGHT = 1.54  # emoji and rare scripts
_WORD_WEIGHT, _LONG_WEIGHT = 0.89, 0.11  # a word; each of its letters past the fourth
_LOOKED_AT_MAX = 32_000  # characters: some 3 ms
_PIECES = 16


class TokenEstimate:
    """Tokens by the look of a text: within some per cent of o200k_base in most languages, code and JSON.

    Cost: 0.1 us a character, up to 32 000 of them; a longer text is judged by pieces of it.
    """

    name = "estimate"
    exact = False

    def count(self, text: str) -> int:
        """How many tokens, roughly; 0 for "" only."""
        if len(text) > _LOOKED_AT_MAX:
            step = len(text) // _PIECES
            pieces = "".join(
                text[start : start + _LOOKED_AT_MAX // _PIECES] for start in range(0, step * _PIECES, step)
            )
            return self.count(pieces) * len(text) // len(pieces)
        if not text:
            return 0
        words, long_words = _WORD.findall(text), _LONG_WORD.findall(text)
        tokens = _WORD_WEIGHT * len(words) + _LONG_WEIGHT * (sum(map(len, long_words)) - 4 * len(long_words))
        for pattern, weight in _ASCII_WEIGHTS:
            tokens += weight * len(pattern.findall(text))
        if not text.isascii():
            others = len(text) - len(text.encode("ascii", "ignore"))
            for pattern, weight in _SCRIPT_WEIGHTS:
                found = len(pattern.findall(text))
                tokens += weight * found
                others -= found
            tokens += _OTHER_WEIGHT * others
        return max(1, round(tokens))


class TiktokenCounter:
    """Tokens by an encoding of tiktoken, as in `TiktokenCounter(tiktoken.get_encoding("o200k_base"))`.

    Args:
        encoding: a `tiktoken.Encoding`.
        exact: False where the model has another encoding: then what is learnt corrects this one.
    """

    def __init__(self, encoding: Any, *, exact: bool = True) -> None:
        self._encoding = encoding
        self.name: str = f"tiktoken/{encoding.name}"
        self.exact = exact

    def __repr__(self) -> str:
        return f"<TiktokenCounter {self.name}>"

    def count(self, text: str) -> int:
        # As plain text, also where it looks like a special token: so the API takes it from a user.
        return len(self._encoding.encode_ordinary(text))


_counters: dict[str, TokenCounter] = {}


async def counter_for(model: str) -> TokenCounter:
    """The best counter for a model that this process has: tiktoken's encoding of it, or the estimate.

    Of a model that tiktoken does not know, it is the estimate too: an encoding of other models is no better.

    Cost: the first call for a model loads the encoding in a thread, for at most LOAD_TIMEOUT_S; on a machine that never
        used it, tiktoken fetches it from the network (TIKTOKEN_CACHE_DIR says where it is kept).
    """
    if importlib.util.find_spec("tiktoken") is None:
        return _ESTIMATE
    counter = _counters.get(model)
    if counter is None:
        with anyio.move_on_after(LOAD_TIMEOUT_S):
            counter = await anyio.to_thread.run_sync(_load_counter, model, abandon_on_cancel=True)
        if counter is None:
            counter = _ESTIMATE
            _log.warning("tiktoken has not loaded the encoding of %r within %g s: estimated", model, LOAD_TIMEOUT_S)
        if len(_counters) < 256:  # names of models, not of users
            _counters[model] = counter
    return counter


def _load_counter(model: str) -> TokenCounter:
    try:
        tiktoken: Any = importlib.import_module("tiktoken")
        return TiktokenCounter(tiktoken.encoding_for_model(model))
    except (ImportError, KeyError):
        return _ESTIMATE
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a file that is not what it should be
        _log.warning("tiktoken could not load the encoding of %r, tokens are estimated: %r", model, error)
        return _ESTIMATE


_ESTIMATE = TokenEstimate()


class TokenMeter:
    """Tokens of messages and requests, as one model counts them.

    Attributes:
        factor: what counts are multiplied by, as learnt; 1.0 at first, and always with an exact counter.
    """

    def __init__(self, counter: TokenCounter) -> None:
        self.counter = counter
        self.factor = 1.0
        self._counted = self._reported = _PRIOR_TOKENS
        self._remembered: dict[tuple[int, int], int] = {}

    @property
    def name(self) -> str:
        """How it counts: the counter's name, and the factor where one was learnt."""
        return self.counter.name if self.factor == 1.0 else f"{self.counter.name} x {self.factor:.2f}"

    def message(self, message: Message) -> int:
        """Tokens of one message, without the learnt factor."""
        return self.counted((message,))

    def counted(self, messages: Iterable[Message]) -> int:
        """Tokens of these messages, without the learnt factor."""
        total = 0
        for message in messages:
            total += MESSAGE_TOKENS
            content = message.content
            if isinstance(content, str):
                total += self._text(content)
            elif content is not None:
                total += sum(map(self._part, content))
            for call in message.tool_calls:
                total += CALL_TOKENS + self._text(call.name) + self._text(call.arguments)
            if message.name is not None:
                total += 1 + self._text(message.name)
            for value in message.extra.values():  # a reasoning text that goes back, most often
                total += self._text(value if isinstance(value, str) else msgspec.json.encode(value).decode())
        return total

    def schemas(self, tools: Iterable[ToolSchema], output: OutputSchema | None) -> int:
        """Tokens of the tools and of the form of the answer, by their JSON; without the learnt factor."""
        schemas = [msgspec.json.encode(tool).decode() for tool in tools]
        if output is not None:
            schemas.append(msgspec.json.encode(output.schema).decode())
        return sum(map(self._text, schemas))

    def learn(self, counted: int, reported: int) -> None:
        """A prompt of `counted` tokens was one of `reported` tokens, as its server said; 0 where it did not say."""
        if self.counter.exact or counted <= 0 or reported <= 0:
            return
        self._counted = _DECAY * self._counted + counted
        self._reported = _DECAY * self._reported + reported
        self.factor = min(max(self._reported / self._counted, 1 / _LEARNT_MAX), _LEARNT_MAX)

    def _part(self, part: Part) -> int:
        return self._text(part["text"]) if part.get("type") == "text" else PART_TOKENS

    def _text(self, text: str) -> int:
        # Not by the text itself, which would be kept: two that share a hash and a length may share a count.
        key = hash(text), len(text)
        tokens = self._remembered.get(key)
        if tokens is None:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            tokens = self._remembered[key] = self.counter.count(text)
        return tokens


class TokenMeters:
    """The meters of a runtime: one for each model and counter that is in use, so that all who use it learn together."""

    def __init__(self) -> None:
        self._meters: dict[tuple[str, str], TokenMeter] = {}

    async def of(self, model: str, counter: TokenCounter | None) -> TokenMeter:
        """The meter of a model; by the counter that is given, or else by the best that there is."""
        counter = counter or await counter_for(model)
        key = model, counter.name
        meter = self._meters.get(key)
        if meter is None:
            if len(self._meters) >= 256:
                self._meters.clear()
            meter = self._meters[key] = TokenMeter(counter)
        return meter

    async def of_any(self, counter: TokenCounter | None) -> TokenMeter:
        """For a prompt whose model is not known: the meter of the one that is in use, where it is only one.

        Else, without a counter, it is the encoding of a present model where tiktoken is installed, or the estimate.
        """
        used = [meter for meter in self._meters.values() if counter is None or meter.counter.name == counter.name]
        return used[0] if len(used) == 1 else TokenMeter(counter or await counter_for(_PRESENT_MODEL))
