"""PooledTransport: keeps HTTP/1.1 connections to model servers open between requests, and loses none.

httpx 0.28.1's own pool walks over every connection for every request (quadratic: 10.8 ms CPU a request with 100 in
use) and loses slots when requests are cancelled while it is contended (httpcore issue 1093), until every request ends
in PoolTimeout. So httpx stays the API and its pool is replaced behind `httpx.AsyncBaseTransport`:

    one origin = a limit of requests at once + a stack of idle connections, the last used on top
    one connection = an httpx.AsyncHTTPTransport that holds one connection; all share the process's SSL context

A request takes a slot, then a connection, and gives both back in one place (`_Slot.finish`) whatever happens. A
connection goes back on the stack only when its response was read to the end and the server did not say "close"; else
it is closed.

What is not promised: there is no background task, so idle connections past their time are closed when the next
request to the same origin comes or goes, a few at a time, or by `aclose`. A pool that gets no further request keeps its
idle sockets: make one and share it.

Source: httpcore's connection pool for the rules of reuse; FACTS.md, section httpx, for the figures.
"""

import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any, TypeAlias, cast
from urllib.request import getproxies, proxy_bypass

import anyio
import httpx
from anyio.lowlevel import RunVar
from msgspec import Struct

__all__ = ["STARTED", "PoolStatistics", "PooledTransport"]

STARTED = "callboard_started"
"""Extension of a request: a plain function, called when the request has got its slot. Deadlines start there, so that a
queue of our own making is never taken for a stalled server."""

CONNECTIONS_MAX = 1000
"""Requests at once per origin; openai's own client has the same. Most systems allow a process 1024 open files."""

IDLE_S = 4.0
"""Seconds that a connection may lie idle. llama.cpp, uvicorn and Node close theirs after 5 s: be first."""

CLOSE_WITHIN_S = 1.0
"""Seconds that an orderly close may take under its shield before the socket is dropped."""

SWEEP_MAX = 8
"""Idle connections that one request closes at most, so that no request pays for a burst that is long over."""

_DROPPED = (httpx.ReadError, httpx.WriteError)
_NO_RESPONSE = "Server disconnected without sending a response."
"""httpcore's words for an end of file instead of a response. Its other RemoteProtocolErrors mean that bytes had
come."""

_OriginKey: TypeAlias = tuple[str, str, int | None]
_pool_numbers = count(1)


class PoolStatistics(Struct, frozen=True):
    """Counts over all origins of the running event loop: requests in progress, requests that wait, idle connections."""

    in_use: int
    waiting: int
    idle: int


@dataclass(slots=True)
class _Idle:
    connection: httpx.AsyncHTTPTransport
    since_s: float


@dataclass(slots=True)
class _Origin:
    """What is kept per scheme, host and port."""

    limiter: anyio.CapacityLimiter
    open_connection: Callable[[], httpx.AsyncHTTPTransport]
    idle: deque[_Idle] = field(default_factory=deque[_Idle])

    def take_idle(self, idle_s: float) -> httpx.AsyncHTTPTransport | None:
        if self.idle and time.monotonic() - self.idle[-1].since_s < idle_s:
            return self.idle.pop().connection
        return None

    async def sweep(self, idle_s: float, *, closed_max: int = SWEEP_MAX) -> None:
        """Close the oldest idle connections that are past their time."""
        oldest_s = time.monotonic() - idle_s
        for _ in range(closed_max):
            if not self.idle or self.idle[0].since_s > oldest_s:
                return
            await _close(self.idle.popleft().connection)


@dataclass(slots=True, eq=False)
class _Slot:
    """The right to one request at an origin, and the connection that serves it."""

    origin: _Origin
    connection: httpx.AsyncHTTPTransport | None = None

    async def finish(self, body: "_Body | None" = None) -> None:
        """Give slot and connection back. Nothing is lost on cancellation: closing is shielded, the slot goes in any
        case."""
        connection, self.connection = self.connection, None
        try:
            if connection is not None and (body is None or not await body.settle()):
                await _close(connection)
                connection = None
        finally:
            # No await between: whoever waits for the slot finds the connection on the stack.
            if connection is not None and body is not None and body.settled:
                self.origin.idle.append(_Idle(connection, time.monotonic()))
            self.origin.limiter.release_on_behalf_of(self)


class _Body(httpx.AsyncByteStream):
    """A response's body that knows whether it was read to its end, and gives the slot back when closed."""

    def __init__(self, stream: httpx.AsyncByteStream, slot: _Slot, *, keep_alive: bool) -> None:
        self._stream = stream
        self._slot = slot
        self._keep_alive = keep_alive
        self._chunks: AsyncIterator[bytes] | None = None
        self._whole = False
        self._closed = False
        self.settled = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._chunks is None:
            self._chunks = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        if self._closed or self._chunks is None:
            raise httpx.StreamClosed
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            self._whole = True
            raise

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._slot.finish(self)
        finally:
            if not self._whole and self._chunks is not None:
                await exhaust(self._chunks)

    async def settle(self) -> bool:
        """Whether the connection can serve another request; its response is then over and done with."""
        if self._whole and self._keep_alive:
            with anyio.move_on_after(CLOSE_WITHIN_S, shield=True), suppress(httpx.TransportError):
                await self._stream.aclose()
                self.settled = True
        return self.settled


class _Once:
    """Yields one chunk. Not a generator: httpcore drops its iterator half-way when a request is cancelled while it is
    being sent, and a dropped async generator ends in the garbage collector.
    """

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> "_Once":
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, b""
        if not content:
            raise StopAsyncIteration
        return content


class _Content(httpx.AsyncByteStream):
    """A request's body that is all there, so that it can be sent again."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content)


async def exhaust(chunks: AsyncIterator[Any]) -> None:
    """Run the iterator of a closed response to its end, so that no async generator inside is left half-way.

    A generator that is dropped half-way ends in the garbage collector, which trio rightly warns of. After its
    connection is closed the next read raises, and the whole chain unwinds. What it had buffered comes first; the loop
    is bounded all the same.
    """
    with (
        anyio.move_on_after(CLOSE_WITHIN_S, shield=True),
        suppress(StopAsyncIteration, httpx.HTTPError, httpx.StreamError),
    ):
        for _ in range(10_000):
            await anext(chunks)


async def _close(connection: httpx.AsyncHTTPTransport) -> None:
    """Close the socket, in order if that can be done quickly. A socket that is broken already is closed all the
    same."""
    with anyio.move_on_after(CLOSE_WITHIN_S, shield=True), suppress(httpx.TransportError):
        await connection.aclose()


@cache
def _ssl_context() -> ssl.SSLContext:
    """The one of the process: to load the certificates costs 10 to 30 ms. SSL_CERT_FILE is read here, once."""
    return httpx.create_ssl_context()


@cache
def _unused_ssl_context() -> ssl.SSLContext:
    """For plain HTTP, where httpx wants one too but never uses it: without certificates it costs nothing."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class PooledTransport(httpx.AsyncBaseTransport):
    """An httpx transport that reuses connections; for trio and asyncio, also one object in several event loops.

    Args:
        connections_max: requests at once per origin; further ones wait in order, without a timeout of their own.
        idle_s: seconds after which an idle connection is not used again.
        trust_env: whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY hold. Read once per origin.

    One retry is free: when a connection that was used before is dropped before the first byte of a response has come,
    the server closed it while the request was on its way, and the request goes out again on a fresh connection. At
    once, once.

    Cost: about 0.6 ms CPU a request, the same with 1 000 connections.
    """

    def __init__(
        self, *, connections_max: int = CONNECTIONS_MAX, idle_s: float = IDLE_S, trust_env: bool = True
    ) -> None:
        if connections_max < 1:
            raise ValueError(f"connections_max must be at least 1, not {connections_max}")
        self._connections_max = connections_max
        self._idle_s = idle_s
        self._trust_env = trust_env
        # Sockets belong to an event loop, a transport may outlive it. The name is unique because anyio before 4.9
        # keys by it.
        self._origins: RunVar[dict[_OriginKey, _Origin]] = RunVar(f"callboard.pool.{next(_pool_numbers)}")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the slot and the connection are held until the response's stream is closed.

        Raises:
            httpx.TransportError: as httpx's own transport; never PoolTimeout.

        Cancellation: the connection is closed and the slot is free.
        """
        origin = self._origin(request.url)
        slot = _Slot(origin)
        if isinstance(request.stream, httpx.ByteStream):
            request.stream = _Content(request.content)
        await origin.limiter.acquire_on_behalf_of(slot)
        try:
            if started := request.extensions.get(STARTED):
                started()
            response = await self._send(slot, request)
        except BaseException:
            await slot.finish()
            raise
        stream = cast(httpx.AsyncByteStream, response.stream)
        response.stream = _Body(stream, slot, keep_alive=_says_keep_alive(response))
        return response

    async def _send(self, slot: _Slot, request: httpx.Request) -> httpx.Response:
        origin = slot.origin
        slot.connection = origin.take_idle(self._idle_s)
        await origin.sweep(self._idle_s)
        if slot.connection is not None:
            response = await self._send_on_reused(slot.connection, request)
            if response is not None:
                return response
            await _close(slot.connection)
        slot.connection = origin.open_connection()
        return await slot.connection.handle_async_request(request)

    async def _send_on_reused(
        self, connection: httpx.AsyncHTTPTransport, request: httpx.Request
    ) -> httpx.Response | None:
        """The response, or None where the server had dropped the connection and the request may go out once more."""
        reconnected = False

        async def notice(event: str, _facts: dict[str, Any]) -> None:
            nonlocal reconnected
            reconnected = reconnected or event == "connection.connect_tcp.started"

        # httpcore looks before it sends: a connection that the server had closed by then is replaced without a word,
        # and then this is a first use. Only its trace tells.
        traced = "trace" not in request.extensions
        if traced:
            request.extensions = {**request.extensions, "trace": notice}
        try:
            return await connection.handle_async_request(request)
        except (*_DROPPED, httpx.RemoteProtocolError) as error:
            silent = isinstance(error, _DROPPED) or str(error) == _NO_RESPONSE
            if reconnected or not silent or not isinstance(request.stream, _Content):
                raise
            return None
        finally:
            if traced:
                request.extensions.pop("trace", None)

    def _known(self) -> dict[_OriginKey, _Origin]:
        try:
            return self._origins.get()
        except LookupError:
            origins: dict[_OriginKey, _Origin] = {}
            self._origins.set(origins)
            return origins

    def _origin(self, url: httpx.URL) -> _Origin:
        origins = self._known()
        key = (url.scheme, url.host, url.port)
        if key not in origins:
            origins[key] = _Origin(anyio.CapacityLimiter(self._connections_max), self._opener(url))
        return origins[key]

    def _opener(self, url: httpx.URL) -> Callable[[], httpx.AsyncHTTPTransport]:
        proxy = _environment_proxy(url) if self._trust_env else None
        plain = url.scheme == "http" and proxy is None
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=self._idle_s)

        def open_connection() -> httpx.AsyncHTTPTransport:
            context = _unused_ssl_context() if plain else _ssl_context()
            return httpx.AsyncHTTPTransport(verify=context, limits=limits, proxy=proxy)

        return open_connection

    def statistics(self) -> PoolStatistics:
        """What the running event loop's part of the pool holds now."""
        origins = self._known().values()
        limiters = [origin.limiter.statistics() for origin in origins]
        return PoolStatistics(
            in_use=sum(limiter.borrowed_tokens for limiter in limiters),
            waiting=sum(limiter.tasks_waiting for limiter in limiters),
            idle=sum(len(origin.idle) for origin in origins),
        )

    async def aclose(self) -> None:
        """Close the idle connections of the running event loop. Requests in progress go on; the transport stays usable.

        Cancellation: shielded, at most a second a connection.
        """
        for origin in self._known().values():
            while origin.idle:
                await _close(origin.idle.pop().connection)


def _says_keep_alive(response: httpx.Response) -> bool:
    """Whether the server will read another request from this connection (RFC 9112, 9.3)."""
    if response.extensions.get("http_version") != b"HTTP/1.1":
        return False
    return "close" not in response.headers.get("connection", "").lower()


def _environment_proxy(url: httpx.URL) -> str | None:
    proxies = getproxies()
    if not proxies or proxy_bypass(url.host):
        return None
    return proxies.get(url.scheme) or proxies.get("all")
