"""The pool over real sockets: what is taken is given back, and what is broken is never given out."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import httpx
import pytest

from callboard.actors.pooled_transport import STARTED, PooledTransport, PoolStatistics
from callboard.testing import FakeUpstream, answer, fault

EMPTY = PoolStatistics(in_use=0, waiting=0, idle=0)


def on_both_backends(body: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    async def guarded() -> None:
        with anyio.fail_after(30):
            await body()

    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    def test(backend: str) -> None:
        anyio.run(guarded, backend=backend)

    return test


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


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - counters of a server and of a pool have no event
        await anyio.sleep(0.001)


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

    anyio.run(body, backend=backend)


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
    with pytest.raises(ValueError, match="connections_max must be at least 1"):
        PooledTransport(connections_max=0)
