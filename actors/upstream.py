"""The way to a model's server: a request's JSON out, a response's bytes in. Two ways, which to the exchange are one.

    PooledUpstream   our pool, requests as bytes with prepared headers: no object of httpx on the hot path, 0.1 ms less
    HttpxUpstream    a client or a transport of the user's own, with its auth, proxies, hooks

Both raise httpx's errors.

Source: FACTS.md, "The client that follows from it" (Bypass).
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Protocol

import anyio
import httpx

from .dialing import Proxy, Route, request_head, route_to
from .http_connection import WRITE_TIMEOUT_S
from .pool import CONNECT_TIMEOUT_S, ConnectionPool, PooledResponse
from .pooled_transport import PooledBody

__all__ = ["HttpxUpstream", "PooledUpstream", "Upstream", "UpstreamResponse"]

CLOSE_WITHIN_S = 1.0
"""Seconds that an orderly close may take under its shield before the socket is dropped."""


class UpstreamResponse(Protocol):
    """A response that is being read."""

    @property
    def status(self) -> int: ...

    def get(self, name: str, /) -> str | None:
        """The value of the header of this name in lower case; None where there is none."""
        ...

    @property
    def headers(self) -> httpx.Headers:
        """All headers. Costs 10 us: for errors."""
        ...

    async def receive(self) -> bytes:
        """The next bytes of the body, decoded, as many as have come; b"" at its end."""
        ...

    async def aclose(self) -> None:
        """Have done with it. One that was not read to its end costs its connection: that is closed, never drained.

        Cancellation: shielded, at most a second.
        """
        ...


class Upstream(Protocol):
    """Where requests go."""

    async def post(self, body: bytes) -> UpstreamResponse:
        """Send the JSON, and read the head of the response.

        Cancellation: the connection is closed.
        """
        ...


class PooledUpstream:
    """One address, reached through our own connections."""

    def __init__(
        self, url: httpx.URL, headers: httpx.Headers, *, pool: ConnectionPool, proxy: Proxy | None = None
    ) -> None:
        self._url = url
        self._headers = headers
        self._pool = pool
        self._proxy = proxy
        self._way: tuple[Route, bytes] | None = None

    async def post(self, body: bytes) -> UpstreamResponse:
        route, head = self._way or self._find_way()
        response = await self._pool.send(route, head + b"%d\r\n\r\n" % len(body) + body)
        coding = response.head.get(b"content-encoding")
        if coding is None or coding.lower() == b"identity":
            return _Direct(response)
        # Nobody asked for it. httpx has the decoders.
        stream = PooledBody(response)
        return _Through(httpx.Response(response.head.status, headers=response.head.headers, stream=stream))

    def _find_way(self) -> tuple[Route, bytes]:
        """The route, and a head up to the body's length. Once: to look the environment's proxies up takes long."""
        url, route = self._url, route_to(self._url, trust_env=True, proxy=self._proxy)
        head = request_head(route, b"POST", url, [(b"host", url.netloc), *self._headers.raw])
        self._way = route, head.removesuffix(b"\r\n") + b"content-length: "
        return self._way


class _Direct:
    """A response from our own connection."""

    __slots__ = ("_response", "receive", "status")

    def __init__(self, response: PooledResponse) -> None:
        self._response = response
        self.receive = response.receive
        self.status = response.head.status

    def get(self, name: str, /) -> str | None:
        value = self._response.head.get(name.encode("ascii"))
        return None if value is None else value.decode("latin-1")

    @property
    def headers(self) -> httpx.Headers:
        return httpx.Headers(self._response.head.headers)

    async def aclose(self) -> None:
        self._response.close()


class HttpxUpstream:
    """One address, reached through httpx."""

    def __init__(
        self, url: httpx.URL, headers: httpx.Headers, *, way: httpx.AsyncClient | httpx.AsyncBaseTransport
    ) -> None:
        self._url = url
        self._headers = headers
        self._way = way

    async def post(self, body: bytes) -> UpstreamResponse:
        timeouts = {"connect": CONNECT_TIMEOUT_S, "write": WRITE_TIMEOUT_S, "read": None, "pool": None}
        extensions: dict[str, Any] = {"timeout": timeouts}
        given: dict[str, Any] = {"content": body, "headers": self._headers, "extensions": extensions}
        try:
            if isinstance(self._way, httpx.AsyncClient):
                return _Through(await self._way.send(self._way.build_request("POST", self._url, **given), stream=True))
            return _Through(await self._way.handle_async_request(httpx.Request("POST", self._url, **given)))
        except httpx.HTTPStatusError as error:  # of a hook that calls raise_for_status: to us a response as others
            return _Through(error.response)
        except OSError as error:
            raise httpx.TransportError(str(error)) from error


class _Through:
    """A response of httpx."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] = response.aiter_bytes()
        self._ended = False
        self.status = response.status_code

    def get(self, name: str, /) -> str | None:
        value: str | None = self._response.headers.get(name)
        return value

    @property
    def headers(self) -> httpx.Headers:
        return self._response.headers

    async def receive(self) -> bytes:
        try:
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        except OSError as error:
            raise httpx.ReadError(str(error)) from error
        self._ended = True  # httpx closed the response with its last byte
        return b""

    async def aclose(self) -> None:
        if self._ended:
            return
        with anyio.move_on_after(CLOSE_WITHIN_S, shield=True), suppress(httpx.TransportError):
            await self._response.aclose()
        await _exhaust(self._chunks)


async def _exhaust(chunks: AsyncIterator[bytes]) -> None:
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
