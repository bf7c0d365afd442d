"""The model server of bench_model_path.py: so lean that what is measured is the client, and never it.

`callboard.fake_upstream` decodes each request and encodes each answer; this one knows both beforehand. It finds out
where a request ends, what model it asks for, and sends bytes that are ready:

    whole-D    one body, after D milliseconds
    burst-D    a stream of 200 tokens, after D milliseconds: head and events in one write, each event a chunk
    paced-G    the same stream, G milliseconds before each event

The events are as long as OpenAI's (`logprobs`, `usage` and `obfuscation` included), with [DONE] and a report of usage
at their end. `/statistics` says what came and what it cost; `/reset` has it count anew how many come at once.

Source: OpenAI API reference, chat completions; RFC 9112.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from http.client import HTTPConnection
from itertools import cycle, islice
from typing import Any

import httpx
import msgspec
from closed_loop import allow_open_files, serving

__all__ = ["ANSWER", "ANSWER_TOKENS", "WHOLE", "Statistics", "ask_statistics", "open_model_server"]

ANSWER_TOKENS = 200
WORDS = "I have looked at your invoice, and the second position is right but for its currency."
PIECES = [f"{word} " for word in islice(cycle(WORDS.split()), ANSWER_TOKENS)]
ANSWER = "".join(PIECES)

USAGE = {"prompt_tokens": 57, "completion_tokens": ANSWER_TOKENS, "total_tokens": 57 + ANSWER_TOKENS}
COMMON = {"id": "chatcmpl-CfQ2kP9vXJ1bY7rT0mWn4aSdE6hGu", "created": 1763900000, "model": "gpt-4o-mini-2024-07-18"}
REQUESTED = re.compile(rb'"model"\s*:\s*"([a-z]+)-(\d+)"')
LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
HEADS_MAX = 10_000
"""A client's requests differ little in their heads: so many are remembered, with the length of the body behind them."""


class Statistics(msgspec.Struct, frozen=True):
    """What the server has had.

    Attributes:
        requests: for answers of a model, since it began.
        in_flight_max: the most of them at once, since it was last reset.
        connections: that are open, the one that asks included.
        cpu_s: of its process.
    """

    requests: int
    in_flight_max: int
    connections: int
    cpu_s: float


def as_response(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def whole() -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": ANSWER, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return as_response(
        msgspec.json.encode({**COMMON, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    )


def events() -> list[bytes]:
    """The stream's data, event by event."""
    deltas = [{"role": "assistant", "content": "", "refusal": None}, *({"content": piece} for piece in PIECES), {}]
    common = {**COMMON, "object": "chat.completion.chunk", "service_tier": "default", "system_fingerprint": "fp_1"}
    made: list[bytes] = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None if delta else "stop"}
        chunk = {**common, "choices": [choice], "usage": None, "obfuscation": "qk3Vb9"}
        made.append(msgspec.json.encode(chunk))
    return [*made, msgspec.json.encode({**common, "choices": [], "usage": USAGE}), b"[DONE]"]


def as_chunk(event: bytes) -> bytes:
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = whole()
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-request-id: req_1\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
CHUNKS = [as_chunk(event) for event in events()]
CHUNKS[-1] += b"0\r\n\r\n"
BURST = STREAM_HEAD + b"".join(CHUNKS)


class Server:
    """What all connections share: the counts, the heads."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.requests = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self.connections = 0
        self.body_bytes_of: dict[bytes, int] = {}

    def statistics(self) -> bytes:
        cpu_s = time.process_time()
        counts = Statistics(self.requests, self.in_flight_max, self.connections, cpu_s)
        return as_response(msgspec.json.encode(counts))

    def body_bytes(self, head: bytes) -> int:
        """How long the body behind this head is."""
        known = self.body_bytes_of.get(head)
        if known is None:
            found = LENGTH.search(head)
            known = int(found[1]) if found else 0
            if len(self.body_bytes_of) < HEADS_MAX:
                self.body_bytes_of[head] = known
        return known


class Connection(asyncio.Protocol):
    """One client's connection, which carries one request after another."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = b""
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        self._end()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        end = received.find(b"\r\n\r\n") + 4
        if end < 4 or len(received) < (size := end + self._server.body_bytes(received[:end])):
            self._received = received
            return
        self._received = received[size:]
        self._answer(received[:end], received[end:size])

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET "):
            if head.startswith(b"GET /reset"):
                self._server.in_flight_max = self._server.in_flight
            self._transport.write(self._server.statistics())
            return
        asked = REQUESTED.search(body)
        assert asked is not None, "the request names no model"
        kind, milliseconds = asked[1], int(asked[2])
        server = self._server
        server.requests += 1
        server.in_flight += 1
        server.in_flight_max = max(server.in_flight_max, server.in_flight)
        self._answering = True
        if kind == b"paced":
            self._transport.write(STREAM_HEAD)
            began_s = server.loop.time()
            self._pace(began_s, milliseconds / 1000, 0)
        else:
            self._later(milliseconds / 1000, partial(self._send, WHOLE if kind == b"whole" else BURST))

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        if delay_s:
            self._timer = self._server.loop.call_later(delay_s, act)
        else:
            act()

    def _send(self, response: bytes) -> None:
        self._end()
        self._transport.write(response)

    def _pace(self, began_s: float, gap_s: float, place: int) -> None:
        """Have the chunk of this place sent when its time has come, and then the others."""

        def send() -> None:
            if place == len(CHUNKS) - 1:
                self._send(CHUNKS[place])
            else:
                self._transport.write(CHUNKS[place])
                self._pace(began_s, gap_s, place + 1)

        self._timer = self._server.loop.call_at(began_s + gap_s * (place + 1), send)

    def _end(self) -> None:
        if self._answering:
            self._answering = False
            self._server.in_flight -= 1


async def serve() -> None:
    """Print the URL and serve until the standard input ends."""
    loop = asyncio.get_running_loop()
    server = Server()
    listener = await loop.create_server(partial(Connection, server), "127.0.0.1", 0, backlog=8192)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()


def open_model_server() -> AbstractContextManager[str]:
    """Such a server in a process of its own; the URL of its API."""
    return serving([sys.executable, __file__])


def ask_statistics(url: str, path: str = "/statistics") -> Statistics:
    """What the server has had until now. Blocks: it is asked between measurements."""
    address = httpx.URL(url)
    connection = HTTPConnection(address.host, address.port)
    connection.request("GET", path)
    counts = msgspec.json.decode(connection.getresponse().read(), type=Statistics)
    connection.close()
    return counts


if __name__ == "__main__":
    allow_open_files(16_384)
    asyncio.run(serve())
