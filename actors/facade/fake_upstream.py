"""FakeUpstream: a model server for tests and benchmarks, on 127.0.0.1, over real HTTP/1.1 and with faults to order.

    python -m callboard.fake_upstream --port 0        prints its URL, serves until stdin ends or it is killed

It speaks chat completions (whole and streamed), embeddings, /v1/models and /statistics. The HTTP is written out here
by hand, because a test of faults must be able to send any bytes, cut them anywhere and reset the connection; and
because a benchmark must measure callboard and not the server.

Source: OpenAI API reference, chat completions; RFC 9112; FACTS.md, "Faults", for the list of them.
"""

import argparse
import math
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import anyio
import anyio.to_thread
import msgspec

from .fake_answers import (
    UPSTREAM_ERROR,
    Body,
    FaultKind,
    RawPiece,
    Script,
    ScriptStep,
    UpstreamAnswer,
    answer,
    completion,
    echo,
    embeddings,
    refuse,
    stream_events,
    to_json,
)

__all__ = ["FakeUpstream"]

HEADER_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
LORIS_S: Final = 0.02
"""Between two bytes of a slow-loris, two comments of comments_only."""


class FakeUpstream:
    """The server. `async with FakeUpstream() as upstream:` serves at `upstream.url` until the block ends.

    Args:
        script: what to answer; None: "echo: " and the last user message.
        port: 0 lets the system choose.
        keep_requests: whether `requests` and `request_headers` grow; off for benchmarks.
        group_by: names the group of a request, for `in_flight_max_by`; None: its "user" field.

    Attributes:
        requests: bodies in order of arrival.
        request_headers: their headers, names in lower case.
        request_targets: their paths with their queries.
        request_count: how many there were.
        in_flight: requests that have come and are not answered yet.
        in_flight_max: the most at once.
        in_flight_max_by: the same per group.
        connections_open, connections_total: TCP connections now and ever.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        port: int = 0,
        keep_requests: bool = True,
        group_by: Callable[[Body], str] | None = None,
    ) -> None:
        self._function = script if callable(script) else None
        self._queue = deque[ScriptStep](() if callable(script) else script)
        self._embedding_queue = deque[UpstreamAnswer]()
        self._port = port
        self._keep_requests = keep_requests
        self._group_by = group_by or _user
        self.requests: list[Body] = []
        self.request_headers: list[dict[str, str]] = []
        self.request_targets: list[str] = []
        self.request_count = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self.in_flight_by: dict[str, int] = {}
        self.in_flight_max_by: dict[str, int] = {}
        self.connections_open = 0
        self.connections_total = 0

    @property
    def url(self) -> str:
        """The base URL, ending in /v1, while the server serves and afterwards."""
        return f"http://127.0.0.1:{self._port}/v1"

    def queue(self, *steps: ScriptStep) -> None:
        """Add answers to the end of the script; they go before a function."""
        self._queue.extend(steps)

    def queue_embeddings(self, *steps: UpstreamAnswer) -> None:
        """Answer the next embeddings requests with these (`refuse`, `fault`), and later ones with vectors by words."""
        self._embedding_queue.extend(steps)

    async def __aenter__(self) -> Self:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self._port))
            listener.listen(4096)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._exit = AsyncExitStack()
        self._exit.callback(listener.close)
        self._tasks = await self._exit.enter_async_context(anyio.create_task_group())
        self._tasks.start_soon(self._accept, listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._exit.__aexit__(kind, error, traceback)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                await anyio.wait_readable(listener)
                continue
            except ConnectionError:
                continue
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._tasks.start_soon(self._serve, _Wire(accepted))

    async def _serve(self, wire: "_Wire") -> None:
        self.connections_open += 1
        self.connections_total += 1
        try:
            while request := await wire.receive_request():
                if not await self._answer(wire, *request):
                    break
        except (ConnectionError, TimeoutError):
            pass  # the client went away
        finally:
            self.connections_open -= 1
            wire.close()

    async def _answer(self, wire: "_Wire", target: str, headers: dict[str, str], data: bytes) -> bool:
        """Answer one request; returns whether the connection stays open."""
        path = target.partition("?")[0]
        if not path.endswith(("/chat/completions", "/embeddings")):
            await wire.send(self._other(target))
            return True
        try:
            body: Body = msgspec.json.decode(data, type=dict[str, Any])
        except ValueError:
            await wire.send(_response(400, to_json({"error": {"message": "the request is not a JSON object"}})))
            return True
        group = self._begin(target, headers, body)
        try:
            step = self._step(body) if path.endswith("/chat/completions") else self._embedding_step(body)
            if step.delay_s:
                await anyio.sleep(step.delay_s)
            return await _send_answer(wire, step, body)
        finally:
            self.in_flight -= 1
            self.in_flight_by[group] -= 1

    def _begin(self, target: str, headers: dict[str, str], body: Body) -> str:
        self.request_count += 1
        if self._keep_requests:
            self.requests.append(body)
            self.request_headers.append(headers)
            self.request_targets.append(target)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        group = self._group_by(body)
        now = self.in_flight_by.get(group, 0) + 1
        self.in_flight_by[group] = now
        self.in_flight_max_by[group] = max(self.in_flight_max_by.get(group, 0), now)
        return group

    def _step(self, body: Body) -> UpstreamAnswer:
        try:
            step = self._queue.popleft() if self._queue else self._function(body) if self._function else echo(body)
        except Exception as error:  # noqa: BLE001 - a user's script: whoever asked is told, the server goes on
            return refuse(500, f"the script of FakeUpstream raised {type(error).__name__}: {error}")
        return answer(step) if isinstance(step, str) else step

    def _embedding_step(self, body: Body) -> UpstreamAnswer:
        return self._embedding_queue.popleft() if self._embedding_queue else embeddings(body)

    def _other(self, target: str) -> bytes:
        if target.endswith("/models"):
            return _response(200, to_json({"object": "list", "data": [{"id": "fake", "object": "model"}]}))
        if target == "/statistics":
            counts = {
                "requests": self.request_count,
                "in_flight_max": self.in_flight_max,
                "connections": self.connections_total,
            }
            return _response(200, to_json(counts))
        return _response(404, to_json({"error": {"message": f"no such path: {target}", "code": None}}))


def _user(body: Body) -> str:
    return str(body.get("user", ""))


class _Wire:
    """One connection: whole requests in, any bytes out. On the bare socket, because only it can be reset."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._received = bytearray()

    async def receive_request(self) -> tuple[str, dict[str, str], bytes] | None:
        """Target, headers and body of the next request; None where the client has closed or speaks no HTTP."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if len(self._received) > HEADER_BYTES_MAX or not await self._receive():
                return None
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            return None
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES_MAX or "transfer-encoding" in headers:
            await self.send(_response(411, to_json({"error": {"message": "a Content-Length is needed"}})))
            return None
        body_start, body_end = end + 4, end + 4 + int(length)
        if headers.get("expect", "").lower() == "100-continue":
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._received) < body_end:
            if not await self._receive():
                return None
        body = bytes(self._received[body_start:body_end])
        del self._received[:body_end]
        return words[1], headers, body

    async def _receive(self) -> bool:
        while True:
            try:
                chunk = self._socket.recv(256 * 1024)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            self._received += chunk
            return bool(chunk)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    async def wait_closed(self) -> None:
        """Return when the client has closed its side."""
        while await self._receive():
            self._received.clear()

    def reset(self) -> None:
        """RST at once: what the client has not read by now it never will."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """FIN."""
        self._socket.close()


async def _send_answer(wire: _Wire, step: UpstreamAnswer, body: Body) -> bool:
    if step.raw is not None:
        return await _send_raw(wire, step, step.raw)
    if step.body is not None:
        await wire.send(_response(step.status, step.body, step.headers))
        return True
    if step.fault in _FAULTS_BEFORE:
        await _FAULTS_BEFORE[step.fault](wire)
        return False
    if body.get("stream") or step.events is not None:
        return await _Stream(wire, step, body).send()
    data = completion(step, body)
    if step.fault in _FAULTS_MID:
        head = _response(200, data, step.headers)
        await wire.send(head[: len(head) - len(data) // 2])
        await _FAULTS_MID[step.fault](wire)
        return False
    if step.fault in _SPOILT:
        data = _SPOILT[step.fault](data)
    await wire.send(_response(step.status, data, step.headers))
    return step.fault != "close_after_answer"


async def _send_raw(wire: _Wire, step: UpstreamAnswer, pieces: tuple[RawPiece, ...]) -> bool:
    framing = {
        "chunked": {"transfer-encoding": "chunked"},
        "length": {"content-length": str(sum(len(piece.data) for piece in pieces))},
        "close": {"connection": "close"},
    }[step.framing]
    await wire.send(_head(step.status, {**framing, **step.headers}))
    for piece in pieces:
        if piece.after_s:
            await anyio.sleep(piece.after_s)
        if piece.data:
            await wire.send(_chunk(piece.data) if step.framing == "chunked" else piece.data)
    if step.framing == "chunked":
        await wire.send(_chunk(b""))
    return step.framing != "close" and step.headers.get("connection") != "close"


async def _reset(wire: _Wire) -> None:
    wire.reset()


async def _close(wire: _Wire) -> None:
    wire.close()


async def _hang(wire: _Wire) -> None:
    await wire.wait_closed()


async def _html(wire: _Wire) -> None:
    page = b"<!doctype html><title>Welcome</title><p>This is no API."
    await wire.send(_response(200, page, {"content-type": "text/html", "connection": "close"}))


async def _not_http(wire: _Wire) -> None:
    await wire.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def _loris(wire: _Wire) -> None:
    """A response that is right byte by byte and never ends."""
    await wire.send(_head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}))
    while True:
        for byte in b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"a" * 1000:
            await wire.send(_chunk(bytes((byte,))))
            await anyio.sleep(LORIS_S)


async def _comments(wire: _Wire) -> None:
    await wire.send(_head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}))
    while True:
        await wire.send(_chunk(b": keep-alive\n\n"))
        await anyio.sleep(LORIS_S)


_Ending: TypeAlias = Callable[[_Wire], Awaitable[None]]
_FAULTS_BEFORE: dict[FaultKind | None, _Ending] = {
    "reset": _reset,
    "close": _close,
    "hang": _hang,
    "html": _html,
    "not_http": _not_http,
    "slow_loris": _loris,
    "comments_only": _comments,
}
_FAULTS_MID: dict[FaultKind | None, _Ending] = {
    "reset_mid_stream": _reset,
    "close_mid_stream": _close,
    "close_mid_unframed_stream": _close,
    "hang_mid_stream": _hang,
}
_SPOILT: dict[FaultKind | None, Callable[[bytes], bytes]] = {
    "malformed_json": lambda data: data[:-3] + b"!",
    "invalid_utf8": lambda data: data.replace(b'"content":"', b'"content":"\xff'),
    "error_in_stream": lambda data: to_json(UPSTREAM_ERROR),
    "no_finish_reason": lambda data: data.replace(b'"finish_reason":"stop"', b'"finish_reason":null'),
}


class _Stream:
    """One streamed answer."""

    def __init__(self, wire: _Wire, step: UpstreamAnswer, body: Body) -> None:
        self._wire = wire
        self._step = step
        self._body = body
        self._chunked = step.fault != "close_mid_unframed_stream"

    async def send(self) -> bool:
        step = self._step
        framing = {"transfer-encoding": "chunked"} if self._chunked else {"connection": "close"}
        head = _head(200, {"content-type": "text/event-stream; charset=utf-8", **framing, **step.headers})
        events = list(stream_events(step, self._body))
        if step.fault in _FAULTS_MID or step.fault in ("error_in_stream", "malformed_json", "invalid_utf8"):
            return await self._go_wrong(head, events[: max(2, len(events) // 2)])
        if step.piece_delay_s:
            await self._wire.send(head)
            for event in events:
                await anyio.sleep(step.piece_delay_s)
                await self._wire.send(self._framed(event))
            await self._wire.send(b"0\r\n\r\n")
        else:
            await self._wire.send(head + b"".join(map(self._framed, events)) + b"0\r\n\r\n")
        return step.fault != "close_after_answer"

    async def _go_wrong(self, head: bytes, events: list[bytes]) -> bool:
        step = self._step
        if step.fault == "error_in_stream":
            events.append(to_json(UPSTREAM_ERROR))
        elif step.fault in _SPOILT:
            events[-1] = _SPOILT[step.fault](events[-1])
        await self._wire.send(head + b"".join(map(self._framed, events)))
        if step.fault in _FAULTS_MID:
            await anyio.sleep(LORIS_S)  # an RST drops what the client has not read: let it read
            await _FAULTS_MID[step.fault](self._wire)
            return False
        await self._wire.send(b"0\r\n\r\n")
        return True

    def _framed(self, event: bytes) -> bytes:
        data = b"data: " + event + b"\n\n"
        return _chunk(data) if self._chunked else data


_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Other')}\r\n{lines}\r\n".encode("latin-1")


def _response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    head = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    return _head(status, head) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve_until_stdin_ends(port: int, delay_s: float, text: str | None, *, watch_stdin: bool) -> None:
    def script(body: Body) -> UpstreamAnswer:
        return msgspec.structs.replace(echo(body) if text is None else answer(text), delay_s=delay_s)

    async with FakeUpstream(script, port=port, keep_requests=False) as upstream:
        print(upstream.url, flush=True)
        if watch_stdin:
            await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        else:
            await anyio.sleep(math.inf)


def main() -> None:
    """Serve as a process of its own; prints the URL as its first line."""
    parser = argparse.ArgumentParser(prog="python -m callboard.fake_upstream", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (default) lets the system choose")
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--text", help="the answer; default: an echo of the last user message")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="trio")
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when the parent process is gone")
    options = parser.parse_args()

    async def serve() -> None:
        await _serve_until_stdin_ends(options.port, options.delay_s, options.text, watch_stdin=options.until_stdin_ends)

    try:
        anyio.run(serve, backend=options.backend)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
