"""Answers of the chat completions API: JSON to an answer. Pure.

    a whole body, or one event's data ── AnswerJoiner.take ── Delta ... finish ── ModelAnswer

A whole body and one event of a stream have the same shape (`message` against `delta`), and go the same way. Decoding is
lenient where servers are known to differ and drops what it does not know; nothing is indexed unguarded. What an answer
consists of (its text, a call's name and arguments) must be readable; of what stands around it (index, id, model) any
oddity is read over.

An ordinary event, one piece of text and nothing else, takes a short way of its own: a turn has hundreds.

What must be sent back to a server as it came is kept in the `extra` of the message or of its tool call.

Source: OpenAI chat completions; FACTS.md, "Wire truth", for who deviates how.
"""

from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from .limits import FACT_CHARACTERS_MAX
from .message import Message, Part
from .model import Delta, ModelAnswer
from .tool_call_joiner import CallPiece, ToolCallJoiner, UnusableAnswer
from .wire_errors import ServerError, parse_error
from .wire_usage import count_usage, decode_usage

__all__ = ["AnswerJoiner", "ServerErrorInAnswer", "UnusableAnswer"]

REASONING_FIELDS: Final = ("reasoning_content", "reasoning")
"""DeepSeek, older vLLM · vLLM since 2026, Ollama, OpenRouter."""

KEPT_FIELDS: Final = ("reasoning_details", "extra_content")
"""Kept for the way back as they come: OpenRouter's list of signed thoughts, Gemini's thought signature."""


class ServerErrorInAnswer(Exception):
    """The server put an error where an answer, or the next piece of one, should be. `error` is what it says."""

    def __init__(self, error: ServerError) -> None:
        super().__init__("an error inside a good response")
        self.error = error


class _Said(Struct, gc=False):
    """A `message` or a `delta`. What is `Any` should be a text, or an object where it is kept as it comes."""

    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    extra_content: Any = None
    refusal: Any = None
    tool_calls: list[CallPiece] | None = None


class _Choice(Struct, gc=False):
    index: Any = None
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: Any = None


class _Piece(Struct, gc=False):
    """A whole body, or one event of a stream. The last five are where servers put errors into a 200.

    `usage` stays JSON here, so that whatever is odd in it does not cost the answer.
    """

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    model: Any = None
    error: Any = None
    message: Any = None
    detail: Any = None
    object: Any = None
    code: Any = None

    @property
    def is_error(self) -> bool:
        """Whether this is an error in any of the known shapes, rather than a part of an answer."""
        return bool(self.error) or (not self.choices and bool(self.message or self.detail or self.object == "error"))


_decode = msgspec.json.Decoder(_Piece).decode
_NO_USAGE = (msgspec.Raw(), msgspec.Raw(b"null"))


def _decode_piece(data: bytes) -> _Piece:
    try:
        return _decode(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class AnswerJoiner:
    """Joins the pieces of one answer.

    Attributes:
        finish_reason: the server's word once it has come, else None. Only this proves that a stream is whole: a
            connection cut without chunked framing looks like a regular end.
        heard: True once anything of the answer itself has come.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.heard = False
        self._content: list[str | dict[str, Any]] = []
        self._refusal: list[str] = []
        self._reasoning: dict[str, list[str]] = {}
        self._kept: dict[str, Any] = {}
        self._calls = ToolCallJoiner()
        self._usage: dict[str, Any] = {}
        self._model = ""

    def take(self, data: bytes) -> list[Delta]:
        """Take a whole body, or the next event's data; returns what is new in it, to be shown.

        Raises:
            UnusableAnswer: a part of the content, or the arguments of a tool call, are nothing that can be read.
            ValueError: not UTF-8, not JSON, nested too deeply, or not of this shape; its text names the place and never
                the content.
            ServerErrorInAnswer: it is an error, or there is one beside a piece of answer, which is void then.

        Cost: 1.2 µs for an ordinary event of a stream.
        """
        piece = _decode_piece(data)
        choices = piece.choices
        if choices is not None and len(choices) == 1 and piece.error is None and piece.usage in _NO_USAGE:
            choice = choices[0]
            said = choice.delta
            if said is not None and choice.finish_reason is None and not choice.index and choice.message is None:
                text = said.content
                if type(text) is str and text and _is_text_only(said):
                    if piece.model and type(piece.model) is str:
                        self._model = piece.model
                    self._content.append(text)
                    self.heard = True
                    return [Delta("text", text)]
        if piece.is_error:
            raise ServerErrorInAnswer(parse_error(data))
        return self._add(piece)

    def _add(self, piece: _Piece) -> list[Delta]:
        usage = decode_usage(piece.usage)
        if usage is not None:
            self._usage = usage  # the last one counts: servers send running totals
        if isinstance(piece.model, str) and piece.model:
            self._model = piece.model
        deltas: list[Delta] = []
        for choice in piece.choices or ():
            if choice.index not in (0, None, "0", ""):
                continue  # a second choice, asked for with n in extra_body: this is about the first
            if choice.message is not None:
                self._add_said(choice.message, deltas, whole=True)
            elif choice.delta is not None:
                self._add_said(choice.delta, deltas, whole=False)
            if choice.finish_reason:
                self.finish_reason = _as_text(choice.finish_reason)
        self.heard = self.heard or bool(deltas)
        return deltas

    def _add_said(self, said: _Said, deltas: list[Delta], *, whole: bool) -> None:
        if isinstance(said.content, str):
            self._add_text(said.content, deltas)
        elif said.content:
            self._add_parts(said.content, deltas)
        self._add_reasoning(said, deltas)
        if said.refusal:
            refusal = _as_text(said.refusal)
            self._refusal.append(refusal)
            deltas.append(Delta("refusal", refusal))
        for name in KEPT_FIELDS:
            self._keep(name, getattr(said, name))
        for position, call in enumerate(said.tool_calls or ()):
            # Whole calls: never to be joined, whatever their ids.
            text = self._calls.add(call, at=position if whole else None)
            if text is not None:
                deltas.append(Delta("tool_call", text))

    def _add_text(self, text: str, deltas: list[Delta]) -> None:
        if text:
            self._content.append(text)
            deltas.append(Delta("text", text))

    def _add_parts(self, parts: Iterable[Any], deltas: list[Delta]) -> None:
        """Mistral's content: a list of texts and thoughts."""
        for part in parts:
            match part:
                case str(text) | {"type": "text", "text": str(text)}:
                    self._add_text(text, deltas)
                case {"type": "text"}:
                    raise UnusableAnswer("a part of the content is a text without one")
                case dict():
                    self._content.append(cast(dict[str, Any], part))
                    if thought := _thought(part):
                        deltas.append(Delta("reasoning", thought))
                case _:
                    raise UnusableAnswer("a part of the content is neither text nor an object")

    def _add_reasoning(self, said: _Said, deltas: list[Delta]) -> None:
        shown = False
        for name in REASONING_FIELDS:
            text = getattr(said, name)
            if not isinstance(text, str):
                self._keep(name, text)
            elif text:
                self._reasoning.setdefault(name, []).append(text)
                if not shown:  # a server between two names sends both
                    deltas.append(Delta("reasoning", text))
                shown = True

    def _keep(self, name: str, value: Any) -> None:
        kept = self._kept.get(name)
        if isinstance(value, list) and isinstance(kept, list):
            self._kept[name] = kept + value  # a list comes in pieces like the text, an object as a whole
        elif value:
            self._kept[name] = value

    def finish(self, *, request_id: str | None) -> ModelAnswer:
        """The whole answer. A finish_reason that never came is "": whether that will do is the caller's question.

        Raises:
            UnusableAnswer: nothing of an answer came, or a tool call without a name.
        """
        calls = self._calls.finish()
        if not self.heard and not calls and self.finish_reason is None:
            raise UnusableAnswer("neither content nor a tool call nor a finish_reason")
        if self.finish_reason == "function_call" and not calls:
            raise UnusableAnswer("the function_call of old instead of tool_calls")
        extra: dict[str, Any] = self._kept | {name: "".join(texts) for name, texts in self._reasoning.items()}
        if self._refusal:
            extra["refusal"] = "".join(self._refusal)
        content = _join_content(self._content)
        message = Message(
            role="assistant",
            content=None if calls and not content else content,
            tool_calls=calls,
            extra=extra,
        )
        finish_reason = (self.finish_reason or "")[:FACT_CHARACTERS_MAX]
        model = self._model[:FACT_CHARACTERS_MAX]
        return ModelAnswer(message, finish_reason, count_usage(self._usage), model, request_id)


def _is_text_only(said: _Said) -> bool:
    return not (
        said.tool_calls
        or said.reasoning_content
        or said.reasoning
        or said.refusal
        or said.reasoning_details
        or said.extra_content
    )


def _as_text(value: Any) -> str:
    """A text, or the JSON of what should have been one."""
    try:
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    except (ValueError, OverflowError, RecursionError):  # the stack is higher here than it was for the decoder
        raise UnusableAnswer("a huge number, or an endless nest, stands where a text should be") from None


class _Thinking(Struct, tag="thinking"):
    """Mistral's part for thoughts."""

    thinking: list[dict[str, Any]]


def _thought(part: Any) -> str:
    try:
        thinking = msgspec.convert(part, _Thinking).thinking
    except (msgspec.ValidationError, RecursionError):
        return ""  # a part of another type: kept, not shown
    texts = (piece.get("text") for piece in thinking)
    return "".join(text for text in texts if isinstance(text, str))


def _join_content(pieces: list[str | dict[str, Any]]) -> str | list[Part]:
    """Text where there is nothing but text, else a list of parts with neighbours of the same kind joined."""
    texts = [piece for piece in pieces if isinstance(piece, str)]
    if len(texts) == len(pieces):
        return "".join(texts)
    parts: list[Part] = []
    for piece in pieces:
        part: Part = {"type": "text", "text": piece} if isinstance(piece, str) else piece
        last = parts[-1] if parts else {}
        kind = part.get("type")
        if kind in ("text", "thinking") and last.get("type") == kind and _both_join(last.get(kind), part.get(kind)):
            parts[-1] = {**last, **part, kind: last[kind] + part[kind]}
        else:
            parts.append(part)
    return parts


def _both_join(first: Any, second: Any) -> bool:
    return (isinstance(first, str) and isinstance(second, str)) or (
        isinstance(first, list) and isinstance(second, list)
    )
