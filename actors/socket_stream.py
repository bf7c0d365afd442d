"""A TCP connection as a stream of bytes, on the bare socket: the cheapest that trio and asyncio both have.

`receive` waits until the socket is readable and then reads once: one system call and one checkpoint for what has come
together. anyio's own stream tries to read first, under a guard, and pauses the transport behind each read: some 6 us
more a piece, of which a streamed answer has hundreds. Closing is a plain call, so nothing can be lost on the way out.

Source: RFC 8305 (Happy Eyeballs) for names with several addresses; anyio.connect_tcp for how it is done.
"""

import errno
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any

import anyio
from anyio.abc import ByteStream

from ..runtime.waking import current_backend

__all__ = ["SocketStream", "connect"]

RECEIVE_BYTES = 64 * 1024
"""The most that one read takes: a burst of some 300 pieces of an answer."""

STAGGER_S = 0.25
"""Before the next address is tried beside those that have not answered yet. RFC 8305, section 8."""


class SocketStream(ByteStream):
    """One connected socket, for one task at a time.

    Errors of the system come as OSError, a closed connection as anyio.EndOfStream.
    """

    __slots__ = ("_socket", "_wait_readable")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._wait_readable = current_backend().wait_readable

    async def receive(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """What has come, at least a byte.

        Raises:
            anyio.EndOfStream: the other side has closed.
            OSError: the connection broke.
        """
        while True:
            await self._wait_readable(self._socket)
            # Nothing may come between, or a cancellation would lose what was read.
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                continue
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        """Hand all of it to the system. Waits only where the socket's buffer is full.

        Raises:
            OSError: the connection broke.
        """
        view = memoryview(self.send_nowait(item))
        while view:
            await anyio.wait_writable(self._socket)
            view = view[self._send(view) :]

    def send_nowait(self, item: bytes) -> bytes:
        """Hand to the system what it takes at once; returns the rest.

        Raises:
            OSError: the connection broke.
        """
        sent = self._send(item)
        return item[sent:] if sent < len(item) else b""

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def is_readable(self) -> bool:
        """Whether there is something to read now: bytes, the end, or an error."""
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        return bool(ready.poll(0))

    async def send_eof(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket now."""
        self._socket.close()

    async def aclose(self) -> None:
        self.close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


async def connect(host: str, port: int) -> SocketStream:
    """Connect to the first address of the name that answers.

    Raises:
        OSError: no address answered, or the name has none; of several addresses the first one's error, with those of
            the others in a group as its cause.

    Cancellation: every socket is closed.
    """
    addresses = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    targets = list(_by_turns(addresses))
    if len(targets) == 1:
        return SocketStream(await _connected(*targets[0]))
    return SocketStream(await _first_connected(targets))


def _by_turns(addresses: list[Any]) -> Iterator[tuple[int, Any]]:
    """Each family and address, the families by turns, beginning with the one that the system puts first."""
    first_family = addresses[0][0]
    first = [(each[0], each[4]) for each in addresses if each[0] == first_family]
    others = [(each[0], each[4]) for each in addresses if each[0] != first_family]
    return (each for each in chain.from_iterable(zip_longest(first, others)) if each is not None)


async def _connected(family: int, address: Any) -> socket.socket:
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = connecting.connect_ex(address)
        if code == errno.EINPROGRESS:
            await anyio.wait_writable(connecting)
            code = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, errno.errorcode.get(code, "connection failed"))
    except BaseException:
        connecting.close()
        raise
    return connecting


async def _first_connected(targets: list[tuple[int, Any]]) -> socket.socket:
    connected: list[socket.socket] = []
    errors: dict[int, OSError] = {}

    async def attempt(place: int, target: tuple[int, Any], failed: anyio.Event) -> None:
        try:
            made = await _connected(*target)
        except OSError as error:
            errors[place] = error
            failed.set()
            return
        connected.append(made)
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for place, target in enumerate(targets):
                failed = anyio.Event()
                tasks.start_soon(attempt, place, target, failed)
                with anyio.move_on_after(STAGGER_S):
                    await failed.wait()
    except BaseException:
        for made in connected:
            made.close()
        raise
    for late in connected[1:]:  # answered in the same moment
        late.close()
    if connected:
        return connected[0]
    causes = [errors[place] for place in sorted(errors)]
    raise causes[0] from ExceptionGroup("no address answered", causes)
