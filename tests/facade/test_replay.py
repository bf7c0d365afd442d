"""Recorded exchanges: read strictly, sent byte for byte, compared in words."""

import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from callboard.fake_answers import RawPiece, UpstreamAnswer
from callboard.replay import ExpectedRequest, RecordedExchange, departures, load_exchange, replay
from callboard.testing import FakeUpstream

EXCHANGE: dict[str, Any] = {
    "provider": "vllm",
    "fact": "it speaks",
    "asked": {"messages": [{"role": "user", "content": "hello"}]},
    "response": {"pieces": ["data: [DONE]\n\n"]},
    "expect": {},
}
TARGET = "/v1/chat/completions"


def exchange_of(*pieces: Any, **response: Any) -> RecordedExchange:
    return msgspec.convert({**EXCHANGE, "response": {"pieces": pieces, **response}}, RecordedExchange)


@pytest.mark.parametrize(
    ("piece", "raw"),
    [
        (": hi\n", RawPiece(b": hi\n")),
        ({"text": "é", "after_s": 0.5}, RawPiece(b"\xc3\xa9", 0.5)),
        ({"data": {"a": [1]}}, RawPiece(b'data: {"a":[1]}\n\n')),
        ({"hex": "efbb", "after_s": 1}, RawPiece(b"\xef\xbb", 1)),
        ({"json": {"a": None}}, RawPiece(b'{"a":null}')),
        ({"json": None}, RawPiece(b"null")),
    ],
)
def test_each_form_of_a_piece_gives_its_bytes(piece: Any, raw: RawPiece) -> None:
    assert replay(exchange_of(piece)).raw == (raw,)


@pytest.mark.parametrize("piece", [7, {}, {"dta": 1}, {"hex": "ef", "later": 1}, {"hex": 1}, {"data": 1, "json": 1}])
def test_a_piece_of_no_known_form_is_refused(piece: Any) -> None:
    with pytest.raises(ValueError, match="a piece of a recorded response"):
        replay(exchange_of(piece))


def test_a_misspelt_field_of_a_file_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(msgspec.json.encode({**EXCHANGE, "expect": {"txt": "a"}}))

    with pytest.raises(ValueError, match=r"txt.*\$\.expect"):
        load_exchange(path)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ({}, []),
        ({"body": {"a": {"b": [1, {"c": 2}]}}}, []),
        ({"headers": {"x": "1"}}, []),
        ({"target": "/other"}, [f"went to {TARGET}, not /other"]),
        ({"headers": {"x": "2", "y": "3"}}, ["header x is '1', not '2'", "header y is None, not '3'"]),
        ({"body": {"a": {"b": [1]}}}, ["a.b has 2 items, not 1"]),
        ({"body": {"a": {"b": [1, {"c": 3, "d": 4}]}}}, ["a.b.1.c is 2, not 3", "a.b.1.d is missing"]),
        ({"body": {"z": None}}, ["z is missing"]),
        ({"body": {"a": []}}, ["a is {'b': [1, {'c': 2}]}, not []"]),
        ({"absent": ["z", "a.z", "a.b.7", "a.b.x", "a.b.0.c"]}, []),
        ({"absent": ["a.b.1.c", "n"]}, ["a.b.1.c is there", "n is there"]),
    ],
)
def test_departures_say_what_is_not_as_it_must_be(expected: dict[str, Any], found: list[str]) -> None:
    body = {"a": {"b": [1, {"c": 2}]}, "n": None}

    assert departures(msgspec.convert(expected, ExpectedRequest), TARGET, {"x": "1"}, body) == found


def fetch(port: int) -> bytes:
    """What the server sends for one request until it closes, or until its last chunk."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connected:
        connected.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        got = b""
        while not got.endswith(b"0\r\n\r\n") and (received := connected.recv(1000)):
            got += received
        return got


@pytest.mark.parametrize(
    ("response", "bytes_sent"),
    [
        (
            {"framing": "chunked", "headers": {"x": "1"}},
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx: 1\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        ),
        (
            {"framing": "length", "status": 404, "headers": {"connection": "close"}},
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        ),
        ({"framing": "close"}, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"),
    ],
)
async def test_a_response_is_sent_byte_for_byte_in_its_framing(response: dict[str, Any], bytes_sent: bytes) -> None:
    step: UpstreamAnswer = replay(exchange_of("ab", "", {"text": "c", "after_s": 0.01}, **response))
    async with FakeUpstream([step]) as upstream:
        port = int(upstream.url.rpartition(":")[2].partition("/")[0])
        with anyio.fail_after(5):
            got = await anyio.to_thread.run_sync(fetch, port)

    assert got == bytes_sent
