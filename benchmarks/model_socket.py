"""A bare socket in the rows of bench_model_path.py: what is left when a client does nothing. Whole answers only.

The request is ready beforehand, of the answer only the length is looked at, and each call is one wake-up of its task.
"""

import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager
from itertools import cycle

import anyio
import httpx
import msgspec
from closed_loop import Caller
from model_load import TALKS, Measure, Wanted, Way
from model_rows import measures_with
from model_upstream import WHOLE

__all__ = ["measures"]

HEAD = "POST {path}/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}"


def asking(connected: socket.socket, path: str, model: str) -> Caller:
    bodies = [msgspec.json.encode({"model": model, "messages": talk}) for talk in TALKS]
    requests = cycle([HEAD.format(path=path, length=len(body)).encode() + b"\r\n\r\n" + body for body in bodies])

    async def call() -> None:
        assert model.startswith("whole")
        request = next(requests)
        assert connected.send(request) == len(request)
        missing = len(WHOLE)
        while missing:
            await anyio.wait_readable(connected)
            missing -= len(connected.recv(65536))

    return call


@asynccontextmanager
async def opened(wanted: Wanted) -> AsyncGenerator[Way]:
    address = httpx.URL(wanted.url)
    assert address.port is not None
    where = (address.host, address.port)
    with ExitStack() as stack:
        sockets: dict[int, socket.socket] = {}

        def make(number: int, model: str) -> Caller:
            if number not in sockets:
                sockets[number] = stack.enter_context(socket.create_connection(where))
                sockets[number].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[number].setblocking(False)
            return asking(sockets[number], address.path, model)

        yield make


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return measures_with(opened)
