"""The ways to a server: our own pool, and a client or transport of the user's, with all that theirs brings along.

What a way must do is asked of each of them in the same tests; what only httpx has follows.
"""

import base64
import gzip
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from both_backends import on_both_backends, run_on
from pool_server import Peer, Server, chunked, client_context, open_sockets, response, serve, server_context, until

from callboard import Message, ModelRequest, ModelUnavailable, OpenAIChat, RetryPolicy
from callboard.actors import upstream as upstream_module
from callboard.actors.pool import ConnectionPool
from callboard.actors.pooled_transport import PooledTransport
from callboard.actors.upstream import HttpxUpstream, PooledUpstream, Upstream, UpstreamResponse
from callboard.testing import FakeUpstream, fault, refuse

NAME = "127.0.0.1"
HEADERS = httpx.Headers({"content-type": "application/json", "authorization": "Bearer key"})
WAYS = ["pool", "pooled transport", "httpx's transport", "httpx's client"]


@asynccontextmanager
async def way_to(server: Server, kind: str) -> AsyncGenerator[Upstream]:
    url = httpx.URL(f"http://{NAME}:{server.port}/v1/chat/completions?api-version=1")
    if kind == "pool":
        pool = ConnectionPool()
        yield PooledUpstream(url, HEADERS, pool=pool)
        pool.close_idle()
    elif kind == "httpx's client":
        async with httpx.AsyncClient() as client:
            yield HttpxUpstream(url, HEADERS, way=client)
    else:
        transport = PooledTransport() if kind == "pooled transport" else httpx.AsyncHTTPTransport()
        async with transport:
            yield HttpxUpstream(url, HEADERS, way=transport)


async def rest_of(got: UpstreamResponse) -> bytes:
    pieces = list[bytes]()
    while piece := await got.receive():
        pieces.append(piece)
    return b"".join(pieces)


def says(data: bytes) -> Callable[[Peer], Awaitable[None]]:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.send(data)

    return talk


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_request_goes_out_once_with_its_head_and_its_body(kind: str, backend: str) -> None:
    async def body() -> None:
        async with serve(says(response(b"{}"))) as server, way_to(server, kind) as way:
            for _ in range(2):
                got = await way.post(b'{"model": "m"}')
                await rest_of(got)
                await got.aclose()

            assert server.connections_total == 1
            assert [(heard.line, heard.body) for heard in server.heard] == [
                ("POST /v1/chat/completions?api-version=1 HTTP/1.1", b'{"model": "m"}')
            ] * 2
            for heard in server.heard:
                assert heard.headers["host"] == f"{NAME}:{server.port}"
                assert heard.headers["content-length"] == "14"
                assert heard.headers["authorization"] == "Bearer key"

    run_on(body, backend)


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_status_headers_and_body_come_back(kind: str, backend: str) -> None:
    answer = chunked(b"one ", b"two").replace(b"200 OK\r\n", b"429 Slow\r\nRetry-After: 3\r\nX-Id: a\r\nx-id: b\r\n")

    async def body() -> None:
        async with serve(says(answer)) as server, way_to(server, kind) as way:
            got = await way.post(b"{}")
            text = await rest_of(got)
            await got.aclose()

            assert (got.status, text) == (429, b"one two")
            assert (got.get("retry-after"), got.get("x-id"), got.get("x-none")) == ("3", "a, b", None)
            assert got.headers["retry-after"] == "3"

    run_on(body, backend)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity", "GZIP"])
@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_coding_that_nobody_asked_for_is_undone(kind: str, coding: str, backend: str) -> None:
    text = b"text " * 1000
    coded = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[coding.lower()](text)

    async def body() -> None:
        async with (
            serve(says(response(coded, f"Content-Encoding: {coding}"))) as server,
            way_to(server, kind) as way,
        ):
            got = await way.post(b"{}")
            read = await rest_of(got)
            await got.aclose()
            again = await way.post(b"{}")
            await again.aclose()

            assert read == text

    run_on(body, backend)


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_response_that_is_left_half_read_costs_its_connection_at_once(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "CLOSE_WITHIN_S", 600.0)  # no deadline may do what closing must

    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.send(response(b"four")[:-2])

    async def body() -> None:
        before = open_sockets()
        async with serve(talk) as server, way_to(server, kind) as way:
            got = await way.post(b"{}")
            await got.receive()
            await got.aclose()
            await got.aclose()
            await until(lambda: server.connections_open == 0)
        assert open_sockets() == before

    run_on(body, backend)


# What only httpx brings.

REQUEST = ModelRequest((Message(role="user", content="hello"),))
NO_RETRIES = RetryPolicy(retries_max=0)


def chat_of(upstream: FakeUpstream, **options: Any) -> OpenAIChat:
    return OpenAIChat(base_url=upstream.url, model="fake", retries=NO_RETRIES, **options)


class Signed(httpx.Auth):
    """Signs a request, and signs it anew after each answer."""

    requires_request_body = True

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["x-signature"] = f"{len(request.content)} bytes"
        answer = yield request
        if answer.status_code == 401:
            request.headers["x-signature"] = "again"
            yield request


@on_both_backends
async def test_the_auth_of_a_client_signs_and_asks_again() -> None:
    script = [refuse(401, "sign anew"), "done"]
    async with FakeUpstream(script) as upstream, httpx.AsyncClient(auth=Signed()) as client:
        answer = await chat_of(upstream, client=client, api_key="unused").complete(REQUEST)

        assert answer.message.text == "done"
        assert upstream.request_headers[0]["x-signature"].endswith(" bytes")
        assert upstream.request_headers[1]["x-signature"] == "again"


@on_both_backends
async def test_headers_cookies_and_hooks_of_a_client_are_in_use() -> None:
    seen: list[str] = []

    async def on_request(request: httpx.Request) -> None:
        seen.append(f"{request.method} {request.url.path}")
        request.headers["x-hook"] = "hooked"

    async def on_response(answer: httpx.Response) -> None:
        seen.append(str(answer.status_code))

    async with (
        FakeUpstream() as upstream,
        httpx.AsyncClient(
            headers={"x-mine": "1"},
            cookies={"room": "7"},
            event_hooks={"request": [on_request], "response": [on_response]},
        ) as client,
    ):
        await chat_of(upstream, client=client).complete(REQUEST)
        headers = upstream.request_headers[0]

        assert (headers["x-mine"], headers["x-hook"], headers["cookie"]) == ("1", "hooked", "room=7")
        assert seen == ["POST /v1/chat/completions", "200"]


@on_both_backends
async def test_the_proxy_of_a_client_is_asked_and_told_its_credentials() -> None:
    async def proxy(peer: Peer) -> None:
        while await peer.request():
            text = b'{"choices": [{"message": {"content": "by proxy"}, "finish_reason": "stop"}]}'
            await peer.send(response(text, "Content-Type: application/json"))

    async with serve(proxy) as server:
        url = f"http://me:secret@{NAME}:{server.port}"
        async with httpx.AsyncClient(proxy=url) as client:
            chat = OpenAIChat(base_url="http://far.example/v1", model="m", client=client, retries=NO_RETRIES)
            answer = await chat.complete(REQUEST)

        assert answer.message.text == "by proxy"
        assert server.heard[0].line == "POST http://far.example/v1/chat/completions HTTP/1.1"
        wanted = "Basic " + base64.b64encode(b"me:secret").decode()
        assert server.heard[0].headers["proxy-authorization"] == wanted


@on_both_backends
async def test_certificates_of_a_transport_are_the_users_own() -> None:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            text = b'{"choices": [{"message": {"content": "safe"}, "finish_reason": "stop"}]}'
            await peer.send(response(text, "Content-Type: application/json"))

    async with serve(talk, tls=server_context(NAME)) as server:
        url = f"https://{NAME}:{server.port}/v1"
        with pytest.raises(ModelUnavailable, match=r"(?i)certificate|connect"):
            await OpenAIChat(base_url=url, model="m", retries=NO_RETRIES).complete(REQUEST)
        async with httpx.AsyncHTTPTransport(verify=client_context(NAME)) as transport:
            answer = await OpenAIChat(base_url=url, model="m", transport=transport).complete(REQUEST)

        assert answer.message.text == "safe"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("own", ["transport", "client"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_cancelled_call_closes_the_users_connection_at_once(own: str, streamed: bool, backend: str) -> None:
    async def body() -> None:
        before = open_sockets()
        hangs = fault("hang_mid_stream" if streamed else "hang")
        async with (
            FakeUpstream(lambda _: hangs) as upstream,
            httpx.AsyncClient() as client,
            httpx.AsyncHTTPTransport() as transport,
        ):
            chat = chat_of(upstream, **{own: client if own == "client" else transport})
            for _ in range(5):
                with anyio.move_on_after(0.03) as scope:
                    await chat.complete(REQUEST, on_delta=(lambda _: None) if streamed else None)
                await until(lambda: upstream.connections_open == 0)

                assert scope.cancelled_caught
        assert open_sockets() == before

    run_on(body, backend)
