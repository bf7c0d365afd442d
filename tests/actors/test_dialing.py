"""The way to an origin: which it is, through which proxy, and what every wrong turn on it is called."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import httpx
import pytest
from both_backends import on_both_backends, run_on
from pool_server import Peer, client_context, open_sockets, response, serve, server_context, until

from callboard.actors.dialing import Proxy, Route, dial, route_to
from callboard.actors.http_connection import HttpConnection
from callboard.actors.pooled_transport import PooledTransport

NAME = "127.0.0.1"
ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]


@pytest.fixture(autouse=True)
def environment_without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("url", "route"),
    [
        ("http://host/v1", Route("http", "host", 80)),
        ("https://host/v1", Route("https", "host", 443)),
        ("https://host:8443/v1", Route("https", "host", 8443)),
        ("http://[::1]:8080/", Route("http", "::1", 8080)),
        ("https://bücher.example/", Route("https", "xn--bcher-kva.example", 443)),
        ("HTTP://HOST/", Route("http", "host", 80)),
    ],
)
def test_an_address_has_a_route(url: str, route: Route) -> None:
    assert route_to(httpx.URL(url), trust_env=True) == route


@pytest.mark.parametrize("url", ["ftp://host/", "//host/", "ws://host/"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        route_to(httpx.URL(url), trust_env=True)


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://host/", {"HTTP_PROXY": "http://proxy:3128"}, Proxy("proxy", 3128)),
        ("http://host/", {"http_proxy": "http://proxy:3128"}, Proxy("proxy", 3128)),
        ("http://host/", {"HTTP_PROXY": "proxy:3128"}, Proxy("proxy", 3128)),
        ("http://host/", {"HTTP_PROXY": "http://proxy"}, Proxy("proxy", 80)),
        ("http://host/", {"HTTPS_PROXY": "http://proxy:3128"}, None),
        ("https://host/", {"HTTPS_PROXY": "http://proxy:3128"}, Proxy("proxy", 3128)),
        ("https://host/", {"ALL_PROXY": "http://proxy:3128"}, Proxy("proxy", 3128)),
        ("https://host/", {"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://proxy:2"}, Proxy("proxy", 2)),
        ("https://host/", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "host"}, None),
        ("https://a.host/", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other, .host"}, None),
        ("https://host/", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, None),
        ("https://host/", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other"}, Proxy("proxy", 3128)),
        ("https://host/", {"HTTPS_PROXY": ""}, None),
        (
            "https://host/",
            {"HTTPS_PROXY": "http://me:p%40ss@proxy:3128"},
            Proxy("proxy", 3128, b"Basic bWU6cEBzcw=="),
        ),
    ],
)
def test_the_environment_names_the_proxy(
    url: str, environment: dict[str, str], proxy: Proxy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert route_to(httpx.URL(url), trust_env=True).proxy == proxy
    assert route_to(httpx.URL(url), trust_env=False).proxy is None


@pytest.mark.parametrize("proxy", ["socks5://proxy:1080", "https://proxy:3128"])
def test_a_proxy_that_is_not_http_is_refused_with_the_way_out(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)

    with pytest.raises(httpx.UnsupportedProtocol, match="give transport="):
        route_to(httpx.URL("http://host/"), trust_env=True)


# Through a proxy.


@dataclass(slots=True)
class ProxyServer:
    """An HTTP proxy that answers for the origins itself: `tunnels` are what CONNECT asked for."""

    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"

    async def talk(self, peer: Peer) -> None:
        while heard := await peer.request():
            await peer.send(self.answer if heard.line.startswith("CONNECT") else response(b"from " + heard.body))
            if heard.line.startswith("CONNECT"):
                return await self.tunnel(peer)

    async def tunnel(self, peer: Peer) -> None:
        await peer.wait_closed()


@on_both_backends
async def test_a_plain_request_goes_to_the_proxy_whole_with_its_credentials() -> None:
    async with serve(ProxyServer().talk) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HTTP_PROXY", f"http://me:secret@{NAME}:{server.port}")
            async with httpx.AsyncClient(transport=PooledTransport()) as client:
                first = await client.post("http://far.example/v1?a=b", content=b"one")
                second = await client.post("http://other.example:81/", content=b"two")

        assert (first.content, second.content) == (b"from one", b"from two")
        assert [heard.line for heard in server.heard] == [
            "POST http://far.example/v1?a=b HTTP/1.1",
            "POST http://other.example:81/ HTTP/1.1",
        ]
        assert [heard.headers["host"] for heard in server.heard] == ["far.example", "other.example:81"]
        assert {heard.headers["proxy-authorization"] for heard in server.heard} == {"Basic bWU6c2VjcmV0"}


@on_both_backends
async def test_https_goes_through_a_tunnel_in_which_the_proxy_hears_nothing() -> None:
    async def forward(peer: Peer) -> None:
        heard = await peer.request()
        assert heard is not None
        async with await anyio.connect_tcp(NAME, server.port) as onward:
            await peer.send(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pump, peer, onward)
                while True:
                    try:
                        await peer.send(await onward.receive())
                    except ENDS:
                        break
                tasks.cancel_scope.cancel()

    async def pump(peer: Peer, onward: anyio.abc.ByteStream) -> None:
        while True:
            try:
                await onward.send(await peer.stream.receive())
            except ENDS:
                return await onward.aclose()

    async def secret(peer: Peer) -> None:
        while heard := await peer.request():
            await peer.send(response(heard.headers.get("proxy-authorization", "nothing").encode()))

    async with serve(secret, tls=server_context("far.example")) as server, serve(forward) as proxy:
        route = Route("https", "far.example", server.port, Proxy(NAME, proxy.port, b"Basic bWU6c2VjcmV0"))
        wire, plain = await dial(route, ssl_context=client_context("far.example"))
        connection = HttpConnection(wire, plain)
        head = await connection.begin(b"POST / HTTP/1.1\r\nhost: far.example\r\ncontent-length: 0\r\n\r\n")
        text = await connection.receive()
        connection.close()
        await until(lambda: proxy.connections_open + server.connections_open == 0)

        assert (head.status, text) == (200, b"nothing")
        assert [heard.line for heard in proxy.heard] == [f"CONNECT far.example:{server.port} HTTP/1.1"]
        assert proxy.heard[0].headers == {
            "host": f"far.example:{server.port}",
            "proxy-authorization": "Basic bWU6c2VjcmV0",
        }


async def refuses(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


async def garbles(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"SSH-2.0 sesame\r\n\r\n")


async def closes(peer: Peer) -> None:
    await peer.request()


async def resets(peer: Peer) -> None:
    await peer.request()
    await peer.reset()


async def talks_without_end(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000)
    await peer.wait_closed()


@pytest.mark.parametrize("talk", [refuses, garbles, closes, resets, talks_without_end])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_proxy_that_opens_no_tunnel_is_a_proxy_error(talk: Callable[[Peer], Awaitable[None]], backend: str) -> None:
    async def body() -> None:
        before = open_sockets()
        async with serve(talk) as proxy:
            with pytest.raises(httpx.ProxyError) as caught:
                await dial(Route("https", "far.example", 443, Proxy(NAME, proxy.port)))
            await until(lambda: proxy.connections_open == 0)

            assert "sesame" not in str(caught.value)
        assert open_sockets() == before

    run_on(body, backend)


# Straight, and wrong.


async def answers_plainly(peer: Peer) -> None:
    await peer.stream.receive()
    await peer.send(response(b"no TLS here"))


async def closes_at_once(peer: Peer) -> None:
    await peer.close()


async def resets_at_once(peer: Peer) -> None:
    await peer.reset()


@pytest.mark.parametrize("talk", [answers_plainly, closes_at_once, resets_at_once])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_server_without_tls_is_a_connect_error(talk: Callable[[Peer], Awaitable[None]], backend: str) -> None:
    async def body() -> None:
        before = open_sockets()
        async with serve(talk) as server:
            with pytest.raises(httpx.ConnectError, match="handshake"):
                await dial(Route("https", NAME, server.port), ssl_context=client_context(NAME))
        assert open_sockets() == before

    run_on(body, backend)


@pytest.mark.parametrize("trusted", ["this", "another", "none"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_certificate_must_be_trusted_and_of_the_right_name(trusted: str, backend: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.wait_closed()

    async def body() -> None:
        before = open_sockets()
        names = {"this": NAME, "another": "another.example", "none": NAME}
        context = client_context("unknown.example") if trusted == "none" else client_context(names[trusted])
        async with serve(talk, tls=server_context(names[trusted])) as server:
            route = Route("https", NAME, server.port)
            if trusted == "this":
                _, plain = await dial(route, ssl_context=context)
                plain.close()
            else:
                with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                    await dial(route, ssl_context=context)
            await until(lambda: server.connections_open == 0)
        assert open_sockets() == before

    run_on(body, backend)


@on_both_backends
async def test_who_cannot_be_reached_is_a_connect_error() -> None:
    async def talk(_: Peer) -> None: ...

    async with serve(talk) as server:
        pass

    for route in (
        Route("http", NAME, server.port),
        Route("https", NAME, server.port),
        Route("http", "no-such-host.invalid", 80),
    ):
        with pytest.raises(httpx.ConnectError):
            await dial(route)
    with pytest.raises(httpx.ProxyError, match=f"{server.port}, the proxy"):
        await dial(Route("https", "far.example", 443, Proxy(NAME, server.port)))
