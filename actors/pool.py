"""ConnectionPool: keeps connections to servers open between requests, and loses none.

httpx 0.28.1's own pool walks over every connection for every request (quadratic: 10.8 ms CPU a request with 100 in
use) and loses slots when requests are cancelled while it is contended (httpcore issue 1093), until every request ends
in PoolTimeout. This one is, for each origin, a stack of idle connections with the last used on top: a request looks at
the one that it takes and no other.

A connection is in one place at any time: on the stack, or with the one response that uses it. It goes back when that
response was read to its end and the server keeps the line open; else it is closed. Both are plain calls, so there is no
moment at which a cancellation could lose it.

How many requests run at once is not this room's business: see PooledTransport and ProviderGate.

What is not promised: there is no background task, so idle connections past their time are closed when the next request
to the same origin comes or goes, a few at a time, by `close_expired`, which a Runtime calls now and then for the models
of its agents, or by `aclose`.

Source: httpcore's connection pool for the rules of reuse; FACTS.md, section httpx, for the figures.
"""

import ssl
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field

import anyio
import httpx

from .dialing import Route, dial
from .http1 import ResponseHead
from .http_connection import HttpConnection
from .per_loop import PerLoop

__all__ = ["CONNECT_TIMEOUT_S", "IDLE_S", "ConnectionPool", "PooledResponse"]

CONNECT_TIMEOUT_S = 5.0
"""For a name's look-up, the connection, a proxy's answer and the TLS handshake together."""

IDLE_S = 4.0
"""Seconds that a connection may lie idle. llama.cpp, uvicorn and Node close theirs after 5 s: be first."""

SWEEP_MAX = 8
"""Idle connections that one request closes at most, so that no request pays for a burst that is long over."""


@dataclass(slots=True)
class _Origin:
    """What is kept for one route."""

    idle: deque[tuple[float, HttpConnection]] = field(default_factory=deque[tuple[float, HttpConnection]])
    """Each with the time since when, the longest idle first."""
    in_use: int = 0

    def take_idle(self, idle_s: float) -> HttpConnection | None:
        """The last used connection that is still good; others that are found broken on the way are closed."""
        oldest_s = time.monotonic() - idle_s
        while self.idle and self.idle[-1][0] > oldest_s:
            _, connection = self.idle.pop()
            if connection.is_quiet:
                return connection
            connection.close()
        return None

    def sweep(self, idle_s: float, *, closed_max: int = SWEEP_MAX) -> None:
        """Close the longest idle connections that are past their time."""
        oldest_s = time.monotonic() - idle_s
        for _ in range(closed_max):
            if not self.idle or self.idle[0][0] > oldest_s:
                return
            self.idle.popleft()[1].close()


class PooledResponse:
    """A response that is being read. It holds its connection until its end, or until `close`.

    Attributes:
        head: status and headers.
    """

    __slots__ = ("_connection", "_ended", "_origin", "head")

    def __init__(self, head: ResponseHead, connection: HttpConnection, origin: _Origin) -> None:
        self.head = head
        self._connection: HttpConnection | None = connection
        self._origin = origin
        self._ended = False

    async def receive(self) -> bytes:
        """The next bytes of the body, as many as have come; b"" at its end.

        Raises:
            httpx.ReadError, httpx.RemoteProtocolError: see HttpConnection.receive. The connection is closed.
            httpx.StreamClosed: `close` was called before the end.

        Cancellation: the connection is closed.
        """
        connection = self._connection
        if connection is None:
            if self._ended:
                return b""
            raise httpx.StreamClosed
        try:
            body = await connection.receive()
        except BaseException:
            self.close()
            raise
        if connection.ended:
            self._ended = True
            self.close()
        return body

    def close(self) -> None:
        """Have done with it: the connection goes back if the response has come to its end, else it is closed."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._origin.in_use -= 1
        if connection.reusable:
            self._origin.idle.append((time.monotonic(), connection))
        else:
            connection.close()


class ConnectionPool:
    """Connections for requests, by route; for trio and asyncio, also one object in several event loops.

    Args:
        idle_s: seconds after which an idle connection is not used again.
        ssl_context: for https; None takes the process's own, with the system's certificates.

    One retry is free: when a connection that was used before is dropped before the first byte of a response has come,
    the server closed it while the request was on its way, and the request goes out again on a fresh connection. At
    once, once.

    Cost: 25 us CPU a request beside the system's calls, the same with 1 000 connections.
    """

    def __init__(self, *, idle_s: float = IDLE_S, ssl_context: ssl.SSLContext | None = None) -> None:
        self._idle_s = idle_s
        self.ssl_context = ssl_context
        self._origins = PerLoop(lambda: defaultdict[Route, _Origin](_Origin))

    async def send(self, route: Route, request: bytes, *, expects_body: bool = True) -> PooledResponse:
        """Send a request, head and body as bytes, and read the head of its response. `expects_body`: not for HEAD.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError: there is no connection.
            httpx.TransportError: see HttpConnection.begin.

        Cancellation: the connection is closed.
        """
        origin = self._origins.get()[route]
        origin.in_use += 1
        connection: HttpConnection | None = None
        try:
            connection = origin.take_idle(self._idle_s)
            origin.sweep(self._idle_s)
            head = None
            if connection is not None:
                head = await self._begin_on_reused(connection, request, expects_body=expects_body)
            if head is None:
                connection = await self._connect(route)
                head = await connection.begin(request, expects_body=expects_body)
            assert connection is not None
            return PooledResponse(head, connection, origin)
        except BaseException:
            origin.in_use -= 1
            if connection is not None:
                connection.close()
            raise

    async def _begin_on_reused(
        self, connection: HttpConnection, request: bytes, *, expects_body: bool
    ) -> ResponseHead | None:
        """The head, or None where the server had dropped the connection and the request may go out once more."""
        try:
            return await connection.begin(request, expects_body=expects_body)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            if connection.heard:
                raise
            connection.close()
            return None

    async def _connect(self, route: Route) -> HttpConnection:
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                return HttpConnection(*await dial(route, ssl_context=self.ssl_context))
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None

    def counts(self) -> tuple[int, int]:
        """How many connections of the running event loop are in use, and how many lie idle."""
        origins = self._origins.get().values()
        return sum(origin.in_use for origin in origins), sum(len(origin.idle) for origin in origins)

    def close_expired(self) -> None:
        """Close the idle connections of the running event loop that are past their time."""
        for origin in self._origins.get().values():
            origin.sweep(self._idle_s, closed_max=len(origin.idle))

    def close_idle(self) -> None:
        """Close all idle connections of the running event loop. Requests in progress go on."""
        for origin in self._origins.get().values():
            while origin.idle:
                origin.idle.pop()[1].close()
