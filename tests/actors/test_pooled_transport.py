"""The pool as an httpx transport, over real sockets: its slots, its order, and all that httpx may ask of it."""

import random
import threading
from collections.abc import AsyncIterator, Callable

import anyio
import httpx
import pytest
from both_backends import on_both_backends, run_on
from pool_server import Peer, chunked, client_context, response, serve, server_context, until

from callboard.actors.pooled_transport import STARTED, PooledTransport, PoolStatistics
from callboard.testing import FakeUpstream, answer, fault

EMPTY = PoolStatistics(in_use=0, waiting=0, idle=0)


def request_to(upstream: FakeUpstream, *, stream: bool = False) -> httpx.Request:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    return httpx.Request("POST", f"{upstream.url}/chat/completions", json=body)


async def post(
    pool: PooledTransport,
    upstream: FakeUpstream,
    *,
    stream: bool = False,
    started: Callable[[], None] = lambda: None,
) -> bytes:
    request = request_to(upstream, stream=stream)
    request.extensions[STARTED] = started
    response = await pool.handle_async_request(request)
    try:
        return await response.aread()
    finally:
        await response.aclose()


@on_both_backends
async def test_one_after_the_other_they_share_one_connection() -> None:
    pool = PooledTransport()
    async with FakeUpstream() as upstream:
        for _ in range(10):
            assert b"echo: hello" in await post(pool, upstream)
        kept = pool.statistics()
        await pool.aclose()
        await until(lambda: upstream.connections_open == 0)

        assert kept == PoolStatistics(in_use=0, waiting=0, idle=1)
        assert pool.statistics() == EMPTY
        assert upstream.connections_total == 1


@on_both_backends
async def test_a_thousand_cancelled_requests_leave_no_slot_and_no_socket_in_use() -> None:
    pool = PooledTransport(connections_max=5)
    chance = random.Random(7)

    async def give_up(delay_s: float, *, stream: bool) -> None:
        with anyio.move_on_after(delay_s):
            await post(pool, upstream, stream=stream)

    script = answer("one two three", delay_s=0.002, piece_delay_s=0.001)
    async with FakeUpstream(lambda _: script) as upstream:
        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    delay_s = chance.choice([0, 0.001, 0.003, 0.01, 0.05]) * chance.random()
                    tasks.start_soon(lambda d=delay_s: give_up(d, stream=chance.random() < 0.5))
        after = pool.statistics()
        still_works = await post(pool, upstream)
        await pool.aclose()
        await until(lambda: upstream.connections_open == 0)

        assert (after.in_use, after.waiting) == (0, 0)
        assert after.idle <= 5
        assert b"one two three" in still_works
        assert pool.statistics() == EMPTY


@on_both_backends
async def test_a_request_cancelled_while_it_waits_for_a_slot_takes_nothing() -> None:
    pool = PooledTransport(connections_max=1)
    seen: list[PoolStatistics] = []
    async with FakeUpstream([fault("hang")]) as upstream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post, pool, upstream)
            await until(lambda: upstream.in_flight == 1)
            with anyio.move_on_after(0.01):
                await post(pool, upstream)
            seen.append(pool.statistics())
            tasks.cancel_scope.cancel()

        assert seen[0] == PoolStatistics(in_use=1, waiting=0, idle=0)
        assert pool.statistics() == EMPTY
        assert upstream.request_count == 1


@on_both_backends
async def test_no_more_requests_run_at_once_than_the_limit_and_all_get_their_turn() -> None:
    pool = PooledTransport(connections_max=3)
    async with FakeUpstream(lambda _: answer("a", delay_s=0.005)) as upstream:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(post, pool, upstream)
        await pool.aclose()

        assert (upstream.request_count, upstream.in_flight_max, upstream.connections_total) == (20, 3, 3)


@on_both_backends
async def test_started_is_called_when_the_slot_is_there_and_not_before() -> None:
    pool = PooledTransport(connections_max=1)
    seen: list[str] = []
    async with FakeUpstream([fault("hang")]) as upstream, anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def hold_the_slot() -> None:
            with first:
                await post(pool, upstream)

        tasks.start_soon(hold_the_slot)
        await until(lambda: upstream.in_flight == 1)
        tasks.start_soon(lambda: post(pool, upstream, started=lambda: seen.append("started")))
        await until(lambda: pool.statistics().waiting == 1)
        seen.append("the slot is free")
        first.cancel()
        await until(lambda: upstream.request_count == 2)

    await pool.aclose()

    assert seen == ["the slot is free", "started"]


@on_both_backends
async def test_a_body_that_is_not_read_to_its_end_costs_the_connection() -> None:
    pool = PooledTransport()
    async with FakeUpstream([fault("hang_mid_stream")]) as upstream:
        response = await pool.handle_async_request(request_to(upstream, stream=True))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        first = await anext(aiter(response.stream))
        in_use = pool.statistics()
        await response.aclose()
        await response.aclose()
        await until(lambda: upstream.connections_open == 0)

        assert first.startswith(b"data: ")
        assert in_use == PoolStatistics(in_use=1, waiting=0, idle=0)
        assert pool.statistics() == EMPTY


@on_both_backends
async def test_a_connection_that_the_server_closed_after_its_answer_is_replaced_without_an_error() -> None:
    pool = PooledTransport()
    async with FakeUpstream(lambda _: fault("close_after_answer")) as upstream:
        for _ in range(50):
            await post(pool, upstream)
        await pool.aclose()

        assert upstream.connections_total == 50
        assert upstream.request_count == 50


@pytest.mark.parametrize("kind", ["reset", "close"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_reused_connection_that_dies_before_the_response_costs_one_free_retry(kind: str, backend: str) -> None:
    async def body() -> None:
        pool = PooledTransport()
        dying = fault("reset") if kind == "reset" else fault("close")
        async with FakeUpstream(["first", dying, "second"]) as upstream:
            await post(pool, upstream)
            retried = await post(pool, upstream)
            await pool.aclose()

            assert b"second" in retried
            assert (upstream.request_count, upstream.connections_total) == (3, 2)

    run_on(body, backend)


@on_both_backends
async def test_the_free_retry_is_one() -> None:
    pool = PooledTransport()
    async with FakeUpstream(["first", fault("close"), fault("close")]) as upstream:
        await post(pool, upstream)
        with pytest.raises(httpx.RemoteProtocolError):
            await post(pool, upstream)

        assert upstream.request_count == 3
        assert pool.statistics() == EMPTY


@on_both_backends
async def test_a_fresh_connection_that_dies_is_not_retried() -> None:
    pool = PooledTransport()
    async with FakeUpstream([fault("reset")]) as upstream:
        with pytest.raises(httpx.TransportError):
            await post(pool, upstream)

        assert upstream.request_count == 1
        assert pool.statistics() == EMPTY


@on_both_backends
async def test_after_the_first_bytes_of_a_response_nothing_is_retried() -> None:
    pool = PooledTransport()
    async with FakeUpstream(["first", fault("not_http"), "never sent"]) as upstream:
        await post(pool, upstream)
        with pytest.raises(httpx.RemoteProtocolError):
            await post(pool, upstream)

        assert upstream.request_count == 2
        assert pool.statistics() == EMPTY


@on_both_backends
async def test_a_body_that_comes_as_a_stream_is_sent_whole_and_again() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b'{"model": "fake", "messages": '
        yield b'[{"role": "user", "content": "hello"}]}'

    pool = PooledTransport()
    async with FakeUpstream(["first", fault("close"), "second"]) as upstream:
        await post(pool, upstream)
        request = httpx.Request("POST", f"{upstream.url}/chat/completions", content=content())
        response = await pool.handle_async_request(request)
        text = await response.aread()
        await pool.aclose()

        assert b"second" in text


@on_both_backends
async def test_an_idle_connection_past_its_time_is_closed_by_the_next_request() -> None:
    pool = PooledTransport(idle_s=0.02)
    async with FakeUpstream() as upstream:
        await post(pool, upstream)
        await anyio.sleep(0.03)
        await post(pool, upstream)
        await until(lambda: upstream.connections_open == 1)
        kept = pool.statistics()
        await pool.aclose()

        assert upstream.connections_total == 2
        assert kept.idle == 1


@on_both_backends
async def test_a_server_that_is_not_there_leaves_nothing_behind() -> None:
    pool = PooledTransport()
    async with FakeUpstream() as upstream:
        pass

    with pytest.raises(httpx.ConnectError):
        await post(pool, upstream)

    assert pool.statistics() == EMPTY


def test_one_pool_serves_one_event_loop_after_the_other() -> None:
    pool = PooledTransport()

    async def body() -> int:
        async with FakeUpstream() as upstream:
            await post(pool, upstream)
            idle = pool.statistics().idle
            await pool.aclose()
            return idle

    assert [anyio.run(body, backend=backend) for backend in ("trio", "asyncio", "trio")] == [1, 1, 1]


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="connections_max"):
        PooledTransport(connections_max=0)


# As httpx uses it.


@on_both_backends
async def test_who_waits_for_a_slot_gets_it_in_the_order_of_asking() -> None:
    pool = PooledTransport(connections_max=1)
    order: list[int] = []
    async with FakeUpstream(lambda _: answer("a", delay_s=0.001)) as upstream:
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(lambda n=number: post(pool, upstream, started=lambda: order.append(n)))
                await until(lambda n=number: pool.statistics().waiting + len(order) > n)
        await pool.aclose()

        assert order == list(range(30))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PUT", "PATCH"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_every_method_goes_its_way(method: str, backend: str) -> None:
    async def talk(peer: Peer) -> None:
        while heard := await peer.request():
            data = response(heard.line.encode())
            await peer.send(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else data)

    async def body() -> None:
        async with serve(talk) as server, httpx.AsyncClient(transport=PooledTransport()) as client:
            for _ in range(2):
                got = await client.request(method, f"http://127.0.0.1:{server.port}/a?b=c")

                assert got.text == ("" if method == "HEAD" else f"{method} /a?b=c HTTP/1.1")
            assert server.connections_total == 1
            assert {heard.headers.get("content-length") for heard in server.heard} == {
                "0" if method in ("PUT", "PATCH") else None
            }

    run_on(body, backend)


@pytest.mark.parametrize("stage", ["head", "body"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_httpx_read_timeout_holds_for_each_read(stage: str, backend: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        if stage == "body":
            await peer.send(response(b"four")[:-1])
        await peer.wait_closed()

    async def body() -> None:
        transport = PooledTransport()
        async with serve(talk) as server, httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get(f"http://127.0.0.1:{server.port}/", timeout=httpx.Timeout(5, read=0.03))
            await until(lambda: server.connections_open == 0)

            assert transport.statistics() == EMPTY

    run_on(body, backend)


@on_both_backends
async def test_a_body_that_keeps_coming_is_not_timed_out() -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        head, _, body = chunked(b"steady", b"and", b"slow").partition(b"\r\n\r\n")
        await peer.send(head + b"\r\n\r\n")
        for byte in body:
            await anyio.sleep(0.02)
            await peer.send(bytes((byte,)))

    async with serve(talk) as server, httpx.AsyncClient(transport=PooledTransport()) as client:
        got = await client.get(f"http://127.0.0.1:{server.port}/", timeout=0.5)

        assert got.text == "steadyandslow"
        assert got.elapsed.total_seconds() > 0.5


@on_both_backends
async def test_a_line_break_in_a_header_goes_to_no_server() -> None:
    pool = PooledTransport()
    async with FakeUpstream() as upstream:
        request = request_to(upstream)
        request.headers["x-evil"] = "a\r\nx-more: b"
        with pytest.raises(httpx.LocalProtocolError):
            await pool.handle_async_request(request)

        assert upstream.request_count == 0
        assert pool.statistics() == EMPTY


def test_one_pool_serves_event_loops_in_several_threads_at_once() -> None:
    pool = PooledTransport(connections_max=2)
    totals: list[int] = []

    async def body() -> None:
        async with FakeUpstream() as upstream:
            async with anyio.create_task_group() as tasks:
                for _ in range(30):
                    tasks.start_soon(post, pool, upstream)
            await pool.aclose()
            await until(lambda: upstream.connections_open == 0)
            totals.append(upstream.connections_total)

            assert pool.statistics() == EMPTY

    threads = [threading.Thread(target=run_on, args=(body, backend)) for backend in ("trio", "asyncio") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert totals == [2] * 4


@on_both_backends
async def test_certificates_of_the_users_own_are_trusted() -> None:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.send(response(b"safe"))

    async with serve(talk, tls=server_context("127.0.0.1")) as server:
        url = f"https://127.0.0.1:{server.port}/"
        async with httpx.AsyncClient(transport=PooledTransport(ssl_context=client_context("127.0.0.1"))) as client:
            texts = [(await client.get(url)).text for _ in range(3)]
        async with httpx.AsyncClient(
            transport=PooledTransport(ssl_context=client_context("another.example"))
        ) as client:
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                await client.get(url)

        assert texts == ["safe"] * 3
        assert len(server.heard) == 3
        assert {heard.connection for heard in server.heard} == {0}


@on_both_backends
async def test_a_proxy_that_is_given_goes_before_the_environments() -> None:
    async def proxy(peer: Peer) -> None:
        while heard := await peer.request():
            await peer.send(response(heard.headers["proxy-authorization"].encode()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTP_PROXY", "http://127.0.0.9:9")
        patch.setenv("NO_PROXY", "far.example")
        async with serve(proxy) as server:
            transport = PooledTransport(proxy=f"http://me:secret@127.0.0.1:{server.port}")
            async with httpx.AsyncClient(transport=transport) as client:
                got = await client.get("http://far.example/a")

    assert got.text == "Basic bWU6c2VjcmV0"
    assert server.heard[0].line == "GET http://far.example/a HTTP/1.1"
