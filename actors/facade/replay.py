"""Recorded exchanges: what a server was sent and what it answered, byte for byte, as a file that FakeUpstream replays.

    exchange.json ── load_exchange ── RecordedExchange ─┬─ replay ── a step for FakeUpstream
                                                        └─ departures ── what of its request was not as it must be

A file says which fact about which provider it holds, what is asked, what must hold in the request as it goes out (a
part of its body is enough), what the server sends, in which pieces, and what must come of it. Pieces of a response are
one of these:

    "text"                 as it stands: `"data: {...}\\n\\n"`, `": keep-alive\\n\\n"`
    {"data": {...}}        one event of a stream with this JSON
    {"hex": "efbbbf"}      bytes that are no text, or the halves of a character
    {"json": {...}}        JSON without anything around it

Each may have "after_s": seconds before it is sent. Files that are in git are written by hand from facts about the
servers, never taken from somebody's traffic.

Source: VCR's cassettes for the form; FACTS.md, "Wire truth", for the ones in tests/actors/exchanges.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
from msgspec import Struct

from callboard.actors.model import ModelRequest

from .fake_answers import Framing, RawPiece, UpstreamAnswer, to_json

__all__ = [
    "ExpectedAnswer",
    "ExpectedError",
    "ExpectedRequest",
    "RecordedExchange",
    "RecordedResponse",
    "departures",
    "load_exchange",
    "replay",
]


class ExpectedRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What must hold in a request.

    Attributes:
        target: its path and query.
        headers: headers with their whole values, names in lower case.
        body: what its JSON must hold; objects may hold more, lists must be as long.
        absent: places in its JSON where nothing may be, as "messages.0.name".
    """

    target: str = "/v1/chat/completions"
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    absent: tuple[str, ...] = ()


class RecordedResponse(Struct, frozen=True, forbid_unknown_fields=True):
    """What the server sends. `framing` says how the body's end is told: see `Framing`."""

    pieces: tuple[Any, ...]
    status: int = 200
    headers: dict[str, str] = {}
    framing: Framing = "chunked"


class ExpectedError(Struct, frozen=True, forbid_unknown_fields=True):
    """The error that must come: its class's name, its facts, and a text that it must hold."""

    kind: str
    says: str = ""
    status: int | None = None
    request_id: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None


class ExpectedAnswer(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer that must come. A tool call is [name, arguments], and id and extra where they matter; what is not said
    must be empty."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[tuple[Any, ...], ...] = ()
    usage: dict[str, int] = {}
    finish_reason: str = ""
    extra: dict[str, Any] = {}
    model: str = ""
    request_id: str | None = None
    error: ExpectedError | None = None


class RecordedExchange(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file.

    Attributes:
        provider: a name of `PROVIDERS`, or "openai-compatible".
        fact: what is peculiar, in a sentence.
        streamed: whether the answer is asked for as a stream.
        base_path: what stands behind the server's host and port in base_url.
        asked: the request as callboard has it.
        request: what must hold in it as it goes out.
        response: what comes back.
        expect: what must come of that.
    """

    provider: str
    fact: str
    streamed: bool = True
    base_path: str = "/v1"
    asked: ModelRequest
    request: ExpectedRequest = ExpectedRequest()
    response: RecordedResponse
    expect: ExpectedAnswer


def load_exchange(path: Path) -> RecordedExchange:
    """Read a file.

    Raises:
        ValueError: it is no recorded exchange; the text says where.
    """
    return msgspec.json.decode(path.read_bytes(), type=RecordedExchange)


def replay(exchange: RecordedExchange) -> UpstreamAnswer:
    """The step with which FakeUpstream sends the exchange's response.

    Raises:
        ValueError: a piece is of no known form.
    """
    response = exchange.response
    pieces = tuple(_raw(piece) for piece in response.pieces)
    return UpstreamAnswer(status=response.status, headers=response.headers, raw=pieces, framing=response.framing)


def _raw(piece: Any) -> RawPiece:
    if isinstance(piece, str):
        return RawPiece(piece.encode())
    if _is_object(piece):
        after_s = piece.get("after_s", 0.0)
        forms = [(name, value) for name, value in piece.items() if name != "after_s"]
        if len(forms) == 1 and isinstance(after_s, int | float):
            data = _bytes_of(*forms[0])
            if data is not None:
                return RawPiece(data, after_s)
    raise ValueError(f"a piece of a recorded response is a text, or has data, hex, json or text: not {piece!r}")


def _bytes_of(form: str, value: Any) -> bytes | None:
    match form, value:
        case "data", _:
            return b"data: " + to_json(value) + b"\n\n"
        case "json", _:
            return to_json(value)
        case "hex", str():
            return bytes.fromhex(value)
        case "text", str():
            return value.encode()
        case _:
            return None


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def departures(
    expected: ExpectedRequest, target: str, headers: Mapping[str, str], body: Mapping[str, Any]
) -> list[str]:
    """What is not as it must be, in words; nothing where all is."""
    found: list[str] = []
    if target != expected.target:
        found.append(f"went to {target}, not {expected.target}")
    for name, value in expected.headers.items():
        if headers.get(name) != value:
            found.append(f"header {name} is {headers.get(name)!r}, not {value!r}")
    _compare(expected.body, body, "", found)
    for place in expected.absent:
        if _stands(place.split("."), body):
            found.append(f"{place} is there")
    return found


def _compare(expected: Any, actual: Any, place: str, found: list[str]) -> None:
    if _is_object(expected) and _is_object(actual):
        for name, value in expected.items():
            inner = f"{place}.{name}".strip(".")
            if name in actual:
                _compare(value, actual[name], inner, found)
            else:
                found.append(f"{inner} is missing")
    elif _is_list(expected) and _is_list(actual):
        if len(expected) != len(actual):
            found.append(f"{place} has {len(actual)} items, not {len(expected)}")
        for at, (value, other) in enumerate(zip(expected, actual, strict=False)):
            _compare(value, other, f"{place}.{at}", found)
    elif expected != actual:
        found.append(f"{place} is {actual!r}, not {expected!r}")


def _stands(names: list[str], value: Any) -> bool:
    for name in names:
        if _is_list(value) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif _is_object(value) and name in value:
            value = value[name]
        else:
            return False
    return True
