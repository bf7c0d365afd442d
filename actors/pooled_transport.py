"""PooledTransport: our connection pool as an httpx transport, for whoever talks to servers through httpx.

    httpx.Request ── bytes ──► ConnectionPool ──► PooledResponse ──► httpx.Response
       a slot of the origin is held from here ──────────────────────── to its close

Source: httpx's guide to custom transports.
"""

import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import cast

import anyio
import httpx
from msgspec import Struct

from ..runtime.options import check_count
from .dialing import Route, proxy_at, request_head, route_to
from .http1 import HttpError
from .per_loop import PerLoop
from .pool import IDLE_S, ConnectionPool, PooledResponse

__all__ = ["CONNECTIONS_MAX", "STARTED", "PoolStatistics", "PooledBody", "PooledTransport"]

STARTED = "callboard_started"
"""Extension of a request: a plain function, called when the request has got its slot. Deadlines start there, so that a
queue of our own making is never taken for a stalled server."""

CONNECTIONS_MAX = 1000
"""Requests at once per origin; openai's own client has the same. Most systems allow a process 1024 open files."""

_OURS = frozenset({b"transfer-encoding", b"content-length", b"proxy-authorization"})
"""Headers that say how the body is framed, or how to pass the proxy: not the caller's to say."""


class PoolStatistics(Struct, frozen=True):
    """Counts over all origins of the running event loop: requests in progress, requests that wait, idle connections."""

    in_use: int
    waiting: int
    idle: int


class PooledBody(httpx.AsyncByteStream):
    """A pooled response's body as httpx takes it. `release` is called once, when it is closed."""

    def __init__(
        self,
        response: PooledResponse,
        *,
        release: Callable[[], None] | None = None,
        read_timeout_s: float | None = None,
    ) -> None:
        self._response = response
        self._release = release
        self._read_timeout_s = read_timeout_s

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with _reading_within(self._read_timeout_s):
            body = await self._response.receive()
        if not body:
            raise StopAsyncIteration
        return body

    async def aclose(self) -> None:
        self._response.close()
        release, self._release = self._release, None
        if release is not None:
            release()


class PooledTransport(httpx.AsyncBaseTransport):
    """An httpx transport that reuses connections; for trio and asyncio, also one object in several event loops.

    Args:
        connections_max: requests at once per origin; further ones wait in order, without a timeout of their own.
        idle_s: seconds after which an idle connection is not used again.
        proxy: the address of an http proxy, as in "http://user:password@proxy.example:3128".
        trust_env: whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY hold where no proxy is given.
        ssl_context: for https; None: the system's certificates, or those of SSL_CERT_FILE, looked up once a process.

    Of httpx's timeouts only "read" is looked at: connecting and writing have their own, see `pool` and
    `http_connection`. A request's body is sent as one, also where it was given as a stream.
    """

    def __init__(
        self,
        *,
        connections_max: int = CONNECTIONS_MAX,
        idle_s: float = IDLE_S,
        proxy: str | None = None,
        trust_env: bool = True,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        check_count("connections_max", connections_max, least=1)
        self._trust_env = trust_env
        self._proxy = proxy_at(proxy) if proxy is not None else None
        self._pool = ConnectionPool(idle_s=idle_s, ssl_context=ssl_context)
        self._routes: dict[tuple[str, str, int | None], Route] = {}
        self._limiters = PerLoop(
            lambda: defaultdict[Route, anyio.CapacityLimiter](lambda: anyio.CapacityLimiter(connections_max))
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the slot and the connection are held until the response's stream is closed or at its end.

        Raises:
            httpx.TransportError: as httpx's own transport; never PoolTimeout.

        Cancellation: the connection is closed and the slot is free.
        """
        route = self._route(request.url)
        timeouts = cast("Mapping[str, float | None]", request.extensions.get("timeout") or {})
        content = await _encode(request, route)
        holder = object()
        limiter = self._limiter(route)
        await limiter.acquire_on_behalf_of(holder)
        try:
            started: Callable[[], None] | None = request.extensions.get(STARTED)
            if started is not None:
                started()
            with _reading_within(timeouts.get("read")):
                response = await self._pool.send(route, content, expects_body=request.method != "HEAD")
        except BaseException:
            limiter.release_on_behalf_of(holder)
            raise
        body = PooledBody(
            response, release=partial(limiter.release_on_behalf_of, holder), read_timeout_s=timeouts.get("read")
        )
        return httpx.Response(
            response.head.status,
            headers=response.head.headers,
            stream=body,
            extensions={"http_version": b"HTTP/1.1" if response.head.http11 else b"HTTP/1.0"},
            request=request,
        )

    def _route(self, url: httpx.URL) -> Route:
        key = (url.scheme, url.host, url.port)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = route_to(url, trust_env=self._trust_env, proxy=self._proxy)
        return route

    def _limiter(self, route: Route) -> anyio.CapacityLimiter:
        return self._limiters.get()[route]

    def statistics(self) -> PoolStatistics:
        """What the running event loop's part holds now."""
        limiters = [limiter.statistics() for limiter in self._limiters.get().values()]
        return PoolStatistics(
            in_use=sum(each.borrowed_tokens for each in limiters),
            waiting=sum(each.tasks_waiting for each in limiters),
            idle=self._pool.counts()[1],
        )

    async def aclose(self) -> None:
        """Close the idle connections of the running event loop; the transport stays usable, and requests go on."""
        self._pool.close_idle()


async def _encode(request: httpx.Request, route: Route) -> bytes:
    """The request as it goes over the wire."""
    content = await request.aread()
    headers = [(name, value) for name, value in request.headers.raw if name.lower() not in _OURS]
    if content or request.method in ("POST", "PUT", "PATCH"):
        headers.append((b"content-length", str(len(content)).encode("ascii")))
    try:
        return request_head(route, request.method.encode("ascii"), request.url, headers) + content
    except HttpError as error:
        raise httpx.LocalProtocolError(str(error)) from None


def _reading_within(timeout_s: float | None) -> AbstractContextManager[object]:
    return nullcontext() if timeout_s is None else _read_timeout(timeout_s)


@contextmanager
def _read_timeout(timeout_s: float) -> Generator[None]:
    try:
        with anyio.fail_after(timeout_s):
            yield
    except TimeoutError:
        raise httpx.ReadTimeout(f"nothing came for {timeout_s:g} s") from None
