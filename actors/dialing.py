"""From an address to a connection that can carry requests: through a proxy where the environment names one, with TLS.

    http:    connect ─────────────────────────► requests for the path
             connect to the proxy ────────────► requests for the whole URL
    https:   connect ── handshake ────────────► requests for the path
             connect to the proxy ── CONNECT ── handshake ──► requests for the path

Certificates are loaded once a process and the environment's proxies looked up once an origin, since either costs
milliseconds.

Source: RFC 9110, 9.3.6 (CONNECT); RFC 9112, 3.2 (forms of the target).
"""

import ssl
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from typing import TypeAlias
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import anyio
import httpx
from anyio.streams.tls import TLSStream
from msgspec import Struct

from .http1 import HttpError, ResponseParser, encode_head
from .socket_stream import SocketStream, connect

__all__ = ["Proxy", "Route", "Wire", "dial", "environment_proxy", "proxy_at", "request_head", "route_to"]

Wire: TypeAlias = SocketStream | TLSStream
"""What carries the bytes of requests and responses."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Proxy(Struct, frozen=True):
    """An HTTP proxy; `authorization` is the value of the header Proxy-Authorization, b"" where it wants none."""

    host: str
    port: int
    authorization: bytes = b""


class Route(Struct, frozen=True):
    """The way to an origin."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None

    @property
    def is_forwarded(self) -> bool:
        """Whether a proxy reads the requests themselves, which then name the whole URL."""
        return self.proxy is not None and self.scheme == "http"


def request_head(route: Route, method: bytes, url: httpx.URL, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request's head as this route wants it: a proxy that forwards needs the whole URL, and its own credentials.

    Raises:
        HttpError: see encode_head.
    """
    if not route.is_forwarded or route.proxy is None:
        return encode_head(method, url.raw_path, headers)
    if route.proxy.authorization:
        headers = [*headers, (b"proxy-authorization", route.proxy.authorization)]
    return encode_head(method, url.raw_scheme + b"://" + url.netloc + url.raw_path, headers)


def route_to(url: httpx.URL, *, trust_env: bool, proxy: Proxy | None = None) -> Route:
    """The way to the URL's origin: through `proxy`, else through the environment's where that is trusted.

    Raises:
        httpx.UnsupportedProtocol: it is neither http nor https, or the environment names a proxy that is not http.
    """
    if url.scheme not in _DEFAULT_PORTS:
        raise httpx.UnsupportedProtocol(f"the URL must begin with http:// or https://, not {url.scheme!r}")
    if proxy is None and trust_env:
        proxy = environment_proxy(url)
    return Route(url.scheme, url.raw_host.decode("ascii"), url.port or _DEFAULT_PORTS[url.scheme], proxy)


def environment_proxy(url: httpx.URL) -> Proxy | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY give the URL.

    Raises:
        httpx.UnsupportedProtocol: it is not an http proxy.
    """
    proxies = getproxies()
    # With the port: a name in NO_PROXY may have one.
    if not proxies or proxy_bypass(f"{url.host}:{url.port or _DEFAULT_PORTS[url.scheme]}"):
        return None
    text = proxies.get(url.scheme) or proxies.get("all")
    try:
        return proxy_at(text if "://" in text else f"http://{text}") if text else None
    except ValueError as error:
        raise httpx.UnsupportedProtocol(f"the environment's proxy: {error}") from None


def proxy_at(text: str) -> Proxy:
    """The proxy at this address, as in "http://user:password@proxy.example:3128".

    Raises:
        ValueError: it is no address of an http proxy. The text does not repeat it: it may hold a password.
    """
    try:
        proxy = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        raise ValueError("a proxy's address must look like http://proxy.example:3128") from None
    if proxy.scheme != "http" or not proxy.host or "%" in proxy.host:
        raise ValueError(
            f"only http proxies are known here, as in http://proxy.example:3128, not {proxy.scheme}: "
            "for others give transport=httpx.AsyncHTTPTransport(proxy=...)"
        )
    authorization = b""
    if proxy.userinfo:
        authorization = b"Basic " + b64encode(unquote(proxy.userinfo.decode()).encode())
    return Proxy(proxy.raw_host.decode("ascii"), proxy.port or _DEFAULT_PORTS["http"], authorization)


async def dial(route: Route, *, ssl_context: ssl.SSLContext | None = None) -> tuple[Wire, SocketStream]:
    """A new connection: what carries the bytes, and the socket below it.

    Raises:
        httpx.ConnectError: nobody answered there, or the handshake failed.
        httpx.ProxyError: the proxy refused.

    Cancellation: the socket is closed.
    """
    proxy = route.proxy
    try:
        plain = await connect(proxy.host if proxy else route.host, proxy.port if proxy else route.port)
    except OSError as error:
        if proxy is not None:
            raise httpx.ProxyError(f"{proxy.host}:{proxy.port}, the proxy: {error}") from error
        raise httpx.ConnectError(str(error)) from error
    if route.scheme == "http":
        return plain, plain
    try:
        if proxy is not None:
            await _open_tunnel(plain, route, proxy)
        context = ssl_context or _process_ssl_context()
        return await TLSStream.wrap(plain, hostname=route.host, ssl_context=context, standard_compatible=False), plain
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:  # ssl's errors are OSErrors
        plain.close()
        raise httpx.ConnectError(f"the TLS handshake failed: {error or 'the server closed the connection'}") from error
    except BaseException:
        plain.close()
        raise


async def _open_tunnel(plain: SocketStream, route: Route, proxy: Proxy) -> None:
    host = f"[{route.host}]" if ":" in route.host else route.host
    target = f"{host}:{route.port}".encode("ascii")
    credentials = b"proxy-authorization: " + proxy.authorization + b"\r\n" if proxy.authorization else b""
    await plain.send(b"CONNECT " + target + b" HTTP/1.1\r\nhost: " + target + b"\r\n" + credentials + b"\r\n")
    parser = ResponseParser()
    try:
        while parser.head is None:
            # A byte at a time: what comes behind the head is the tunnel's already.
            parser.feed(await plain.receive(1))
    except (HttpError, anyio.EndOfStream, OSError) as error:
        raise httpx.ProxyError(f"no answer that can be read to CONNECT ({type(error).__name__})") from error
    if not 200 <= parser.head.status < 300:
        raise httpx.ProxyError(f"the proxy answered {parser.head.status} to CONNECT")


@cache
def _process_ssl_context() -> ssl.SSLContext:
    """The one of the process: to load the certificates costs 10 to 30 ms. SSL_CERT_FILE is read here, once."""
    return httpx.create_ssl_context()
