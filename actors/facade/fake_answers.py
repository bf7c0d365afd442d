"""What a fake model server says: scripted answers, and their JSON in chat completions' two forms. Pure.

    answer(...) · refuse(...) · fault(...) ── UpstreamAnswer ── completion: one body · stream_events: a stream's data

`callboard.fake_upstream` sends it.

Source: OpenAI API reference, chat completions; FACTS.md, "Faults", for the list of what can go wrong.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

__all__ = [
    "UPSTREAM_ERROR",
    "Body",
    "FaultKind",
    "Framing",
    "RawPiece",
    "Script",
    "ScriptStep",
    "UpstreamAnswer",
    "answer",
    "completion",
    "echo",
    "embeddings",
    "fault",
    "refuse",
    "stream_events",
    "to_json",
    "words_of",
]

to_json = msgspec.json.Encoder().encode

UPSTREAM_ERROR: dict[str, dict[str, str | int]] = {
    "error": {"message": "the upstream's engine has failed", "type": "server_error", "code": 500}
}
"""What the fault "error_in_stream" says."""

EMBEDDING_DIMENSIONS = 256
"""Of a vector, unless the request says otherwise: few enough to be quick, so many that two words seldom meet in one."""

Body: TypeAlias = dict[str, Any]
"""A request's JSON, decoded."""

FaultKind = Literal[
    "reset",
    "close",
    "reset_mid_stream",
    "close_mid_stream",
    "close_mid_unframed_stream",
    "error_in_stream",
    "malformed_json",
    "invalid_utf8",
    "no_done",
    "no_finish_reason",
    "hang",
    "hang_mid_stream",
    "slow_loris",
    "comments_only",
    "close_after_answer",
    "html",
    "not_http",
]
"""What can go wrong:

reset, close: before any byte of a response. reset_mid_stream (RST), close_mid_stream (FIN, chunked framing),
close_mid_unframed_stream (FIN where the body's end is the connection's: looks like a regular end): after half of the
pieces.
error_in_stream: an error event in a 200. malformed_json, invalid_utf8: in a body or an event. no_done: all but [DONE].
no_finish_reason: all but the finish_reason. hang: no response. hang_mid_stream: silence after half of the pieces.
slow_loris: a response byte by byte, for ever. comments_only: keep-alive comments, for ever. close_after_answer: a
good answer, then the connection closes without a word, as a server does whose keep-alive time is over. html: a 200
page of HTML. not_http: other bytes.
"""


Framing = Literal["chunked", "length", "close"]
"""How the end of a body is told: by its last chunk, by a Content-Length before it, by the end of the connection."""


class RawPiece(Struct, frozen=True):
    """Bytes of a body that are sent together, `after_s` seconds after what came before."""

    data: bytes
    after_s: float = 0.0


class UpstreamAnswer(Struct, frozen=True, kw_only=True):
    """What to send for one request; made by `answer`, `refuse`, `fault` and `callboard.replay.replay`.

    Where there is `raw`, the body is that and nothing else: piece by piece, in the given framing.
    """

    text: str = ""
    pieces: tuple[str, ...] = ()
    tool_calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""
    usage: dict[str, int] | None = None
    finish_reason: str | None = None
    delay_s: float = 0.0
    piece_delay_s: float = 0.0
    status: int = 200
    headers: dict[str, str] = {}
    body: bytes | None = None
    events: tuple[bytes, ...] | None = None
    raw: tuple[RawPiece, ...] | None = None
    framing: Framing = "chunked"
    fault: FaultKind | None = None


ScriptStep: TypeAlias = UpstreamAnswer | str
Script: TypeAlias = Iterable[ScriptStep] | Callable[[Body], ScriptStep]
"""Answers in order (after the last one: the echo), or a function of the request's body. A plain text is its answer."""


def answer(
    text: str = "",
    *,
    tool_calls: Iterable[tuple[str, Mapping[str, Any] | str]] = (),
    pieces: Iterable[str] = (),
    reasoning: str = "",
    usage: Mapping[str, int] | None = None,
    finish_reason: str | None = None,
    delay_s: float = 0.0,
    piece_delay_s: float = 0.0,
    headers: Mapping[str, str] | None = None,
    events: Iterable[bytes | Mapping[str, Any]] | None = None,
) -> UpstreamAnswer:
    """A good answer.

    Args:
        text: what the model says.
        tool_calls: (name, arguments) of each call that it asks for, side by side.
        pieces: how a stream cuts the text; None: into words. Joined they are the text.
        reasoning: sent as `reasoning_content`.
        usage: the usage object's counts; None: one token per word.
        finish_reason: None: "tool_calls" where there are some, else "stop".
        delay_s: before the response.
        piece_delay_s: before each piece of a stream.
        headers: added to the response.
        events: the whole stream's data, event by event, in place of all that; [DONE] is part of it.
    """
    pieces = tuple(pieces)
    encoded = tuple((name, args if isinstance(args, str) else to_json(args).decode()) for name, args in tool_calls)
    return UpstreamAnswer(
        text=text or "".join(pieces),
        pieces=pieces,
        tool_calls=encoded,
        reasoning=reasoning,
        usage=dict(usage) if usage is not None else None,
        finish_reason=finish_reason,
        delay_s=delay_s,
        piece_delay_s=piece_delay_s,
        headers=dict(headers or {}),
        events=None if events is None else tuple(to_json(e) if isinstance(e, Mapping) else e for e in events),
    )


def refuse(
    status: int,
    message: str = "refused by the script",
    *,
    code: str | int | None = None,
    kind: str | None = None,
    retry_after: float | str | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    delay_s: float = 0.0,
) -> UpstreamAnswer:
    """An error response: `refuse(429, retry_after=2)`, `refuse(400, code="context_length_exceeded")`.

    Args:
        status: 100 to 599; 200 gives an error inside a good response.
        message: the error object's message.
        code: its code.
        kind: its type.
        retry_after: the Retry-After header, in seconds or as a date.
        headers: added to the response.
        body: the whole body, in place of an error object.
        delay_s: before the response.
    """
    if body is None:
        body = to_json({"error": {"message": message, "type": kind, "param": None, "code": code}})
    added = dict(headers or {})
    if retry_after is not None:
        added["retry-after"] = str(retry_after)
    return UpstreamAnswer(status=status, body=body, headers=added, delay_s=delay_s)


def fault(kind: FaultKind, text: str = "one two three four", *, delay_s: float = 0.0) -> UpstreamAnswer:
    """An answer that goes wrong; `FaultKind` says what each kind does. `text` is what it would have been."""
    if kind not in get_args(FaultKind):
        raise ValueError(f"no fault {kind!r}: there are {', '.join(get_args(FaultKind))}")
    return UpstreamAnswer(text=text, fault=kind, delay_s=delay_s)


def stream_events(step: UpstreamAnswer, body: Body) -> Iterator[bytes]:
    """The data of each event of a stream, [DONE] included."""
    if step.events is not None:
        yield from step.events
        return
    for facts in _facts(step, body):
        yield to_json({"id": "chatcmpl-fake", "object": "chat.completion.chunk", "model": _model(body), **facts})
    if step.fault not in ("no_done", "no_finish_reason"):
        yield b"[DONE]"


def _facts(step: UpstreamAnswer, body: Body) -> Iterator[dict[str, Any]]:
    yield {"choices": [_choice({"role": "assistant", "content": None if step.tool_calls else ""})]}
    if step.reasoning:
        yield {"choices": [_choice({"reasoning_content": step.reasoning})]}
    for piece in step.pieces or words_of(step.text):
        yield {"choices": [_choice({"content": piece})]}
    for index, call in enumerate(_calls(step)):
        function = call["function"]
        opening: dict[str, Any] = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield {"choices": [_choice({"tool_calls": [opening]})]}
        for start in range(0, len(function["arguments"]), 8):
            part = {"index": index, "function": {"arguments": function["arguments"][start : start + 8]}}
            yield {"choices": [_choice({"tool_calls": [part]})]}
    if step.fault != "no_finish_reason":
        yield {"choices": [_choice({}, _finish_reason(step))]}
    if "include_usage" in (body.get("stream_options") or ()):
        yield {"choices": [], "usage": _usage(step, body)}


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def echo(body: Body) -> UpstreamAnswer:
    """The answer where no script says otherwise. Deterministic: names the last user message."""
    for message in reversed(_messages(body)):
        if message.get("role") == "user":
            return UpstreamAnswer(text=f"echo: {_text(message.get('content'))}")
    return UpstreamAnswer(text="echo:")


def embeddings(body: Body) -> UpstreamAnswer:
    """Vectors for the texts of an embeddings request. Deterministic: texts are near each other that share words."""
    given = body.get("input")
    texts: list[Any] = [given] if isinstance(given, str) else given or []
    vectors = [_vector(str(text), int(body.get("dimensions") or EMBEDDING_DIMENSIONS)) for text in texts]
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    return UpstreamAnswer(body=to_json({"object": "list", "model": body.get("model"), "data": data}))


def _vector(text: str, dimensions: int) -> list[float]:
    """How many words fall into each dimension, by a hash; and a little of the first, so that none is without length."""
    vector = [0.01] + [0.0] * (dimensions - 1)
    for word in re.findall(r"\w+", text.casefold()):
        vector[zlib.crc32(word.encode()) % dimensions] += 1.0
    return vector


def _messages(body: Body) -> list[dict[str, Any]]:
    return body.get("messages") or []


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = content or []
    return "".join(part.get("text", "") for part in parts)


def completion(step: UpstreamAnswer, body: Body) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": step.text if step.text or not step.tool_calls else None}
    if step.reasoning:
        message["reasoning_content"] = step.reasoning
    if step.tool_calls:
        message["tool_calls"] = _calls(step)
    return to_json(
        {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 0,
            "model": _model(body),
            "choices": [{"index": 0, "message": message, "finish_reason": _finish_reason(step)}],
            "usage": _usage(step, body),
        }
    )


def _calls(step: UpstreamAnswer) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{position}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for position, (name, arguments) in enumerate(step.tool_calls, start=1)
    ]


def _finish_reason(step: UpstreamAnswer) -> str:
    return step.finish_reason or ("tool_calls" if step.tool_calls else "stop")


def _usage(step: UpstreamAnswer, body: Body) -> dict[str, int]:
    """One token per word said and per word of the request's JSON: plausible, cheap, repeatable."""
    if step.usage is not None:
        return step.usage
    prompt = sum(str(message.get("content")).count(" ") + 1 for message in _messages(body))
    completion = step.text.count(" ") + 1 + len(step.tool_calls)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _model(body: Body) -> str:
    return str(body.get("model", "fake"))


def words_of(text: str) -> list[str]:
    """The text in pieces that end before each space; joined they are the text."""
    first, *rest = text.split(" ")
    return [piece for piece in (first, *(f" {word}" for word in rest)) if piece]
