"""The chat completions API on the wire: requests to JSON, JSON to answers. Pure.

    ModelRequest ── encode_request ── bytes
    a body of 200       ── decode_body ── Piece ─┐
    one event's data    ── decode_event ─ Piece ─┴─ AnswerJoiner.add ── Delta ... finish ── ModelAnswer

A whole body and one event of a stream have the same shape (`message` against `delta`), and go the same way. Decoding is
lenient where servers are known to differ and drops what it does not know; nothing is indexed unguarded.

What must be sent back to a server as it came is kept in the `extra` of the message or of its tool call.

Source: OpenAI chat completions; FACTS.md, "Wire truth", for who deviates how.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias, cast
from uuid import uuid4

import msgspec
from msgspec import Struct

from .limits import FACT_CHARACTERS_MAX
from .message import COUNT_MAX, Message, Part, ToolCall, Usage
from .model import Delta, ModelAnswer, ModelRequest, ModelSettings, ToolSchema

__all__ = [
    "AnswerJoiner",
    "Dialect",
    "MaxTokensField",
    "Piece",
    "UnusableAnswer",
    "decode_piece",
    "encode_message",
    "encode_request",
]

MaxTokensField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]

REASONING_FIELDS: Final = ("reasoning_content", "reasoning")
"""DeepSeek, older vLLM · vLLM since 2026, Ollama, OpenRouter."""

KEPT_FIELDS: Final = ("reasoning_details", "extra_content")
"""Kept for the way back as they come: OpenRouter's list of signed thoughts, Gemini's thought signature."""


class UnusableAnswer(ValueError):
    """What came has the API's shape and cannot be used."""


class Dialect(Struct, frozen=True):
    """How a server wants its requests.

    Attributes:
        max_tokens_field: the newer name, which OpenAI's reasoning models insist on, or the older one that others know.
        stream_usage: whether to ask for usage in streams; a few servers refuse the field that asks.
        send_extra: whether `Message.extra` goes back to the server. Off where sessions move between providers.
    """

    max_tokens_field: MaxTokensField = "max_tokens"
    stream_usage: bool = True
    send_extra: bool = True


# --- requests ---------------------------------------------------------------------------------------------------------


def encode_request(request: ModelRequest, settings: ModelSettings, *, dialect: Dialect, stream: bool) -> bytes:
    """The request's JSON. `settings` are the effective ones; their `extra_body` is merged last and wins.

    Raises:
        TypeError, ValueError: something in it is not JSON (a lone surrogate, an object of your own).
    """
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [encode_message(message, send_extra=dialect.send_extra) for message in request.messages],
    }
    optional = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        dialect.max_tokens_field: settings.max_tokens,
        "stop": list(settings.stop) or None,
        "seed": settings.seed,
    }
    body.update({name: value for name, value in optional.items() if value is not None})
    if request.tools:
        # Without tools the other two are refused by OpenAI.
        body["tools"] = [_encode_tool(tool) for tool in request.tools]
        if settings.tool_choice is not None:
            body["tool_choice"] = _encode_tool_choice(settings.tool_choice)
        if settings.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = settings.parallel_tool_calls
    if stream:
        body["stream"] = True
        if dialect.stream_usage:
            body["stream_options"] = {"include_usage": True}
    body.update(settings.extra_body)
    return msgspec.json.encode(body)


def encode_message(message: Message, *, send_extra: bool = True) -> dict[str, Any]:
    """One message as the API has it; what only a session needs (author, run, times) stays here."""
    content = message.content
    if content is None and not message.tool_calls:
        content = ""  # null is allowed beside tool calls only
    encoded: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        encoded["name"] = message.name
    if message.tool_call_id is not None:
        encoded["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        encoded["tool_calls"] = [_encode_call(call, send_extra=send_extra) for call in message.tool_calls]
    return {**message.extra, **encoded} if send_extra else encoded


def _encode_call(call: ToolCall, *, send_extra: bool) -> dict[str, Any]:
    # "" means {} in our records; some servers parse what they get back, and "" is no JSON.
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {**(call.extra if send_extra else {}), "id": call.id, "type": "function", "function": function}


def _encode_tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _encode_tool_choice(choice: str) -> str | dict[str, Any]:
    if choice in ("none", "auto", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


# --- answers ----------------------------------------------------------------------------------------------------------


class _Function(Struct):
    name: str | None = None
    arguments: Any = None  # text; from some servers an object


class _Call(Struct):
    index: int | None = None
    id: str | int | None = None
    function: _Function | None = None
    extra_content: Any = None


class _Said(Struct):
    """A `message` or a `delta`."""

    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: Any = None
    extra_content: Any = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct):
    index: int | None = None
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None


class Piece(Struct):
    """A whole body, or one event of a stream. The last five are where servers put errors into a 200.

    `usage` stays JSON here, so that whatever is odd in it does not cost the answer.
    """

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    model: str | None = None
    error: Any = None
    message: Any = None
    detail: Any = None
    object: Any = None
    code: Any = None

    @property
    def is_error(self) -> bool:
        """Whether this is an error in any of the known shapes, rather than a part of an answer."""
        return bool(self.error) or (not self.choices and bool(self.message or self.detail or self.object == "error"))


_decoder = msgspec.json.Decoder(Piece)


def decode_piece(data: bytes) -> Piece:
    """Decode a body or an event's data.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or not of this shape; its text names the place and never
            the content.
    """
    try:
        return _decoder.decode(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _PartialCall:
    __slots__ = ("arguments", "extra", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.extra: dict[str, Any] = {}


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
        self._calls = _CallJoiner()
        self._usage: dict[str, Any] = {}
        self._model = ""

    def add(self, piece: Piece) -> list[Delta]:
        """Take the next piece; returns what is new in it, to be shown.

        Raises:
            UnusableAnswer: a part of the content, or the arguments of a tool call, are nothing that can be read.
        """
        usage = _usage_object(piece.usage)
        if usage is not None:
            self._usage = usage  # the last one counts: servers send running totals
        if piece.model:
            self._model = piece.model
        deltas: list[Delta] = []
        for choice in piece.choices or ():
            if choice.index:
                continue  # a second choice, asked for with n in extra_body: this is about the first
            if choice.message is not None:
                self._add_said(choice.message, deltas, whole=True)
            elif choice.delta is not None:
                self._add_said(choice.delta, deltas, whole=False)
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
        self.heard = self.heard or bool(deltas)
        return deltas

    def _add_said(self, said: _Said, deltas: list[Delta], *, whole: bool) -> None:
        if isinstance(said.content, str):
            self._add_text(said.content, deltas)
        elif said.content:
            self._add_parts(said.content, deltas)
        self._add_reasoning(said, deltas)
        if said.refusal:
            self._refusal.append(said.refusal)
            deltas.append(Delta("refusal", said.refusal))
        for name in KEPT_FIELDS:
            self._keep(name, getattr(said, name))
        for position, call in enumerate(said.tool_calls or ()):
            if whole:
                call.index = position  # whole calls: never to be joined, whatever their ids
            text = self._calls.add(call)
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
                case dict():
                    self._content.append(cast(dict[str, Any], part))
                    if thought := _thought(part):
                        deltas.append(Delta("reasoning", thought))
                case _:
                    raise UnusableAnswer("a part of the content is neither text nor an object")

    def _add_reasoning(self, said: _Said, deltas: list[Delta]) -> None:
        shown = False
        for name in REASONING_FIELDS:
            text: str | None = getattr(said, name)
            if text:
                self._reasoning.setdefault(name, []).append(text)
                if not shown:  # a server between two names sends both
                    deltas.append(Delta("reasoning", text))
                shown = True

    def _keep(self, name: str, value: Any) -> None:
        kept = self._kept.get(name)
        if isinstance(value, list) and isinstance(kept, list):
            self._kept[name] = kept + value  # a list comes in pieces like the text, an object as a whole
        elif value is not None:
            self._kept[name] = value

    def finish(self, *, request_id: str | None) -> ModelAnswer:
        """The whole answer. A finish_reason that never came is "": whether that will do is the caller's question.

        Raises:
            UnusableAnswer: nothing of an answer came, or a tool call without a name.
        """
        calls = self._calls.finish()
        if not self.heard and not calls and self.finish_reason is None:
            raise UnusableAnswer("neither content nor a tool call nor a finish_reason")
        extra: dict[str, Any] = {name: "".join(texts) for name, texts in self._reasoning.items()} | self._kept
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
        return ModelAnswer(message, finish_reason, _decode_usage(self._usage), model, request_id)


class _CallJoiner:
    """Joins tool calls from pieces by the rules that all known servers can live with.

    - A piece belongs to the call of its index; another id at the same index is a new call (Ollama gives all index 0).
    - Without an index: a known id continues its call, a new id opens one, no id continues the last; a second name
      opens one (Gemini sends whole calls with neither index nor id).
    - id and name come once; arguments are concatenated, an object stands for its JSON. A call without an id is given
      one.
    """

    def __init__(self) -> None:
        self._calls: list[_PartialCall] = []
        self._by_index: dict[int, _PartialCall] = {}

    def add(self, piece: _Call) -> str | None:
        """Take a piece; returns its part of the arguments, or None where the piece says nothing at all."""
        call_id = "" if piece.id is None else str(piece.id)
        name = (piece.function and piece.function.name) or ""
        arguments = _arguments_text(piece.function.arguments if piece.function else None)
        if not (call_id or name or arguments or piece.extra_content):
            return None
        call = self._find(piece.index, call_id, name)
        if call is None:
            call = _PartialCall()
            self._calls.append(call)
        if piece.index is not None:
            self._by_index[piece.index] = call
        call.id = call.id or call_id
        call.name = call.name or name
        if arguments:
            call.arguments.append(arguments)
        if piece.extra_content is not None:
            call.extra["extra_content"] = piece.extra_content
        return arguments

    def _find(self, index: int | None, call_id: str, name: str) -> _PartialCall | None:
        if index is not None:
            call = self._by_index.get(index)
            if call is None or not call_id or call.id in ("", call_id):
                return call
            return self._with_id(call_id)
        if call_id:
            return self._with_id(call_id)
        last = self._calls[-1] if self._calls else None
        return None if last is not None and name and last.name else last

    def _with_id(self, call_id: str) -> _PartialCall | None:
        return next((call for call in self._calls if call.id == call_id), None)

    def finish(self) -> tuple[ToolCall, ...]:
        """The calls in the order in which they began."""
        calls: list[ToolCall] = []
        used: set[str] = set()
        for partial in self._calls:
            if not partial.name:
                raise UnusableAnswer("a tool call without a name")
            call_id = partial.id
            if not call_id or call_id in used:
                # Nine letters and digits: Mistral takes no other form back.
                call_id = uuid4().hex[:9]
            used.add(call_id)
            calls.append(ToolCall(call_id, partial.name, "".join(partial.arguments), partial.extra))
        return tuple(calls)


def _arguments_text(arguments: Any) -> str:
    if arguments is None:
        return ""
    try:
        return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    except (ValueError, OverflowError, RecursionError):  # the stack is higher here than it was for the decoder
        raise UnusableAnswer("the arguments of a tool call hold a huge number or are nested too deeply") from None


class _Thinking(Struct, tag="thinking"):
    """Mistral's part for thoughts."""

    thinking: list[dict[str, Any]]


def _thought(part: Any) -> str:
    try:
        thinking = msgspec.convert(part, _Thinking).thinking
    except (msgspec.ValidationError, RecursionError):
        return ""  # a part of another type: kept, not shown
    return "".join(str(piece.get("text", "")) for piece in thinking)


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
        if kind in ("text", "thinking") and last.get("type") == kind and type(last.get(kind)) is type(part.get(kind)):
            parts[-1] = {**last, kind: last[kind] + part[kind]}
        else:
            parts.append(part)
    return parts


_usage_decoder = msgspec.json.Decoder(dict[str, Any] | None)


def _usage_object(usage: msgspec.Raw) -> dict[str, Any] | None:
    """The usage of a piece, or None where there is none or its JSON cannot be read, as with a number of 400 digits."""
    try:
        return _usage_decoder.decode(usage) if bytes(usage) else None
    except (ValueError, RecursionError):
        return None


def _decode_usage(usage: dict[str, Any]) -> Usage:
    """Tokens as reported, 0 for what is missing or odd. One request was made in any case."""
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens") or _count(usage.get("prompt_cache_hit_tokens"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=_count(usage.get("total_tokens")) or _count(prompt + completion),
        cached_tokens=cached,
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
        requests=1,
    )


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else 0  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] # JSON


def _count(value: object) -> int:
    """A whole number that can be stored; anything else counts as not reported."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= COUNT_MAX:
        return 0
    return int(value) if value == int(value) else 0
