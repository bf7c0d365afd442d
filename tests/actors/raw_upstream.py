"""RawUpstream: a server that sends the bytes of a response exactly as it is told to, in segments of its own choosing.

`FakeUpstream` speaks for a whole server; this is for responses that it has no word for: other line ends and framing,
characters cut in two, a keep-alive that ends a millisecond after the answer.
"""

import socket
import struct
from collections import deque
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import anyio
from anyio.abc import SocketAttribute, SocketStream

Ending = Literal["keep", "close", "reset"]


@dataclass(frozen=True, slots=True)
class Take:
    """One response: its segments, head included, each sent `pause_s` after the one before; then the connection is
    kept, closed (FIN) or reset (RST) after `linger_s`."""

    segments: tuple[bytes, ...]
    ending: Ending = "keep"
    pause_s: float = 0.0
    linger_s: float = 0.0


def head(*headers: str, status: str = "200 OK") -> bytes:
    """The head of a response: `head("content-length: 3")`."""
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, "")).encode("latin-1")


def chunked(data: bytes) -> bytes:
    """The data as one chunk, without the last one that ends a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def cut(data: bytes, size_bytes: int) -> tuple[bytes, ...]:
    """The data in segments of this size."""
    return tuple(data[start : start + size_bytes] for start in range(0, len(data), size_bytes))


class RawUpstream:
    """The server: `async with RawUpstream([...]) as upstream:`. After the last take it answers 503.

    Attributes:
        request_count: whole requests that have come.
        connections_open, connections_total: TCP connections now and ever.
    """

    def __init__(self, takes: Iterable[Take]) -> None:
        self._takes = deque(takes)
        self.request_count = 0
        self.connections_open = 0
        self.connections_total = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            opening.push_async_callback(listener.aclose)
            self.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/v1"
            self._tasks = await opening.enter_async_context(anyio.create_task_group())
            self._tasks.start_soon(listener.serve, self._serve)
            self._exit = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._exit.__aexit__(kind, error, traceback)

    async def _serve(self, stream: SocketStream) -> None:
        self.connections_open += 1
        self.connections_total += 1
        try:
            async with stream:
                while await _read_request(stream):
                    self.request_count += 1
                    take = self._takes.popleft() if self._takes else Take((head(status="503 No"),), "close")
                    if not await _play(stream, take):
                        return
        except anyio.BrokenResourceError:
            pass  # the client went away
        finally:
            self.connections_open -= 1


async def _read_request(stream: SocketStream) -> bool:
    """Read one request; False where the client has closed."""
    received = b""
    length = None
    while length is None or len(received) < length:
        try:
            received += await stream.receive()
        except anyio.EndOfStream:
            return False
        if length is None and (end := received.find(b"\r\n\r\n")) >= 0:
            lines = received[:end].lower().split(b"\r\n")
            (body,) = (int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
            length = end + 4 + body
    return True


async def _play(stream: SocketStream, take: Take) -> bool:
    """Send the take; returns whether the connection stays."""
    for number, segment in enumerate(take.segments):
        if number:
            await anyio.sleep(take.pause_s)
        await stream.send(segment)
    if take.ending == "keep":
        return True
    await anyio.sleep(take.linger_s)
    if take.ending == "reset":
        raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False
