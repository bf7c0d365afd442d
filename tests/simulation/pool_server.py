"""A server that says what a test wants, byte by byte, on plain TCP or under TLS; and an authority for its certificate.

A test writes what the server does as a function over one connection, `Talk`: it reads requests and sends any bytes,
closes, resets. The server counts connections and remembers what it heard, in order.
"""

import datetime
import ipaddress
import itertools
import os
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from socket import SO_LINGER, SOL_SOCKET
from tempfile import NamedTemporaryFile
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

__all__ = [
    "Heard",
    "Peer",
    "Server",
    "Talk",
    "certificate",
    "chunked",
    "client_context",
    "open_sockets",
    "response",
    "serve",
    "server_context",
    "until",
]


@dataclass(frozen=True, slots=True)
class Heard:
    """A request as it came: the first line, the headers with their names in lower case, the body.

    `connection` counts the server's connections and `place` the requests on this one, both from 0.
    """

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int
    place: int


class Peer:
    """The server's side of one connection."""

    def __init__(self, stream: ByteStream, number: int, server: "Server") -> None:
        self.number = number
        self.stream = stream
        self._server = server
        self._received = b""
        self._places = itertools.count()
        self._closed = False

    async def request(self) -> Heard | None:
        """The next request, or None where either side has closed."""
        if self._closed:
            return None  # asyncio has read ahead: what came then was not heard by the server that closed
        try:
            while b"\r\n\r\n" not in self._received:
                self._received += await self.stream.receive()
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            line, *fields = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            length = int(headers.get("content-length", "0"))
            while len(self._received) < length:
                self._received += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError):
            return None
        body, self._received = self._received[:length], self._received[length:]
        heard = Heard(line, headers, body, self.number, next(self._places))
        self._server.heard.append(heard)
        return heard

    async def send(self, *pieces: bytes) -> None:
        """Send each piece as a segment of its own, as far as the system goes along with it."""
        for piece in pieces:
            await self.stream.send(piece)
            await anyio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """RST: what the client has not read by now it never will."""
        self._closed = True
        raw: Any = self.stream.extra(SocketAttribute.raw_socket)
        with suppress(OSError):  # it is closed already, where the client was first
            raw.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        await anyio.aclose_forcefully(self.stream)

    async def close(self) -> None:
        self._closed = True
        await anyio.aclose_forcefully(self.stream)

    async def wait_closed(self) -> None:
        """Return when the client has closed; what it sends until then is dropped."""
        while True:
            try:
                await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
                return


Talk: TypeAlias = Callable[[Peer], Awaitable[None]]


@dataclass(slots=True)
class Server:
    """What a server has seen. `host` and `port` are where it listens."""

    host: str
    port: int = 0
    heard: list[Heard] = field(default_factory=list[Heard])
    connections_open: int = 0
    connections_total: int = 0


@asynccontextmanager
async def serve(talk: Talk, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncGenerator[Server]:
    """Serve until the block ends. A connection is closed when `talk` returns."""
    server = Server(host)

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream, server.connections_total, server)
        server.connections_open += 1
        server.connections_total += 1
        try:
            await talk(peer)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
            pass  # the client went away
        finally:
            server.connections_open -= 1
            await anyio.aclose_forcefully(stream)

    async with await anyio.create_tcp_listener(local_host=host) as listener, anyio.create_task_group() as tasks:
        server.port = listener.extra(SocketAttribute.local_port)
        listening: Any = listener if tls is None else _QuietListener(listener, tls, standard_compatible=False)
        tasks.start_soon(listening.serve, handle)
        yield server
        tasks.cancel_scope.cancel()


class _QuietListener(TLSListener):
    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: Any) -> None:
        """No line in a log: a client that goes away during the handshake is what a test is about."""
        await anyio.aclose_forcefully(stream)


def response(body: bytes, *headers: str, status: int = 200) -> bytes:
    """A response with a length."""
    lines = [f"HTTP/1.1 {status} OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    """A response in chunks."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def open_sockets() -> int:
    """How many sockets this process has open, be they known to an object or lost."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            continue  # the listing's own
    return found


async def until(holds: Callable[[], bool]) -> None:
    """Return when it holds: counters of a server have no event. The test's own limit ends it otherwise."""
    while not holds():  # noqa: ASYNC110 - see above
        await anyio.sleep(0.001)


@cache
def certificate(*names: str) -> bytes:
    """A certificate for these names and addresses that signs itself, and its key; as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test of callboard")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(each)) if each[-1].isdigit() else x509.DNSName(each) for each in names
    ]
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private


@cache
def server_context(*names: str) -> ssl.SSLContext:
    """Of a server that is known by these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with NamedTemporaryFile() as file:
        file.write(certificate(*names))
        file.flush()
        context.load_cert_chain(file.name)
    return context


@cache
def client_context(*names: str) -> ssl.SSLContext:
    """Of a client that trusts this server and no other."""
    return ssl.create_default_context(cadata=certificate(*names).decode("ascii"))
