"""The pool over real sockets: which connection a request takes, what it does when that is dead, what is left of it."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel
import httpx
import pytest
from both_backends import on_both_backends, run_on
from pool_server import Peer, Server, chunked, client_context, open_sockets, response, serve, server_context, until

from callboard.actors import pool as pool_module
from callboard.actors.dialing import Route
from callboard.actors.pool import SWEEP_MAX, ConnectionPool, PooledResponse

NAME = "127.0.0.1"


def route_of(server: Server, *, tls: bool = False) -> Route:
    return Route("https" if tls else "http", NAME, server.port)


def request_of(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def rest_of(got: PooledResponse) -> bytes:
    pieces = list[bytes]()
    while piece := await got.receive():
        pieces.append(piece)
    return b"".join(pieces)


async def fetch(pool: ConnectionPool, server: Server, body: bytes = b"hello", *, tls: bool = False) -> bytes:
    return await rest_of(await pool.send(route_of(server, tls=tls), request_of(body)))


async def open_idle(pool: ConnectionPool, server: Server, count: int, *, tls: bool = False) -> None:
    """So many connections in use at once, given back in the order in which they were opened."""
    route = route_of(server, tls=tls)
    used = [await pool.send(route, request_of(b"%d" % number)) for number in range(count)]
    for each in used:
        await rest_of(each)


async def echoes(peer: Peer) -> None:
    while heard := await peer.request():
        await peer.send(response(heard.body))


def dies(how: Callable[[Peer], Awaitable[None]], *, at: set[tuple[int, int]]) -> Callable[[Peer], Awaitable[None]]:
    """Echoes, but does `how` instead for these requests (connection, place on it)."""

    async def talk(peer: Peer) -> None:
        while heard := await peer.request():
            if (heard.connection, heard.place) in at:
                return await how(peer)
            await peer.send(response(heard.body))

    return talk


# Which connection.


@on_both_backends
async def test_the_connection_that_was_used_last_is_taken_first() -> None:
    pool = ConnectionPool()
    async with serve(echoes) as server:
        await open_idle(pool, server, 3)
        await fetch(pool, server)
        held = [await pool.send(route_of(server), request_of(b"held")) for _ in range(3)]
        for each in held:
            await rest_of(each)
        counts = pool.counts()
        pool.close_idle()

        assert [heard.connection for heard in server.heard] == [0, 1, 2, 2, 2, 1, 0]
        assert counts == (0, 3)
        assert server.connections_total == 3


@on_both_backends
async def test_each_origin_has_connections_of_its_own() -> None:
    pool = ConnectionPool()
    async with serve(echoes) as one, serve(echoes) as other:
        for _ in range(3):
            await fetch(pool, one, b"one")
            await fetch(pool, other, b"other")
        pool.close_idle()

        assert {heard.body for heard in one.heard} == {b"one"}
        assert (one.connections_total, other.connections_total) == (1, 1)


@on_both_backends
async def test_a_connection_goes_back_with_the_last_byte_and_not_before() -> None:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await go_on.wait()
            await peer.send(b"cd")

    go_on = anyio.Event()
    pool = ConnectionPool()
    async with serve(talk) as server:
        got = await pool.send(route_of(server), request_of(b""))
        pieces = [await got.receive()]
        half = pool.counts()
        go_on.set()
        pieces.append(await got.receive())
        whole = pool.counts()
        after = [await got.receive(), await got.receive()]
        got.close()
        pool.close_idle()

        assert pieces == [b"ab", b"cd"]
        assert (half, whole) == ((1, 0), (0, 1))
        assert after == [b"", b""]
        assert pool.counts() == (0, 0)


@on_both_backends
async def test_a_response_that_is_closed_before_its_end_costs_the_connection_and_can_be_read_no_more() -> None:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.send(response(b"four")[:-1])

    pool = ConnectionPool()
    async with serve(talk) as server:
        got = await pool.send(route_of(server), request_of(b""))
        got.close()
        got.close()
        await until(lambda: server.connections_open == 0)

        assert pool.counts() == (0, 0)
        with pytest.raises(httpx.StreamClosed):
            await got.receive()


@on_both_backends
async def test_a_response_that_has_come_whole_gives_its_connection_back_unread() -> None:
    pool = ConnectionPool()
    async with serve(echoes) as server:
        for _ in range(3):
            got = await pool.send(route_of(server), request_of(b""))
            got.close()
        pool.close_idle()

        assert server.connections_total == 1


@pytest.mark.parametrize(
    "answer",
    [
        response(b"a", "Connection: close"),
        response(b"a").replace(b"HTTP/1.1", b"HTTP/1.0"),
        response(b"a") + b"more",
        chunked(b"a") + response(b"another's"),
    ],
)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_connection_that_may_not_be_used_again_is_closed(answer: bytes, backend: str) -> None:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.send(answer)

    async def body() -> None:
        pool = ConnectionPool()
        async with serve(talk) as server:
            texts = [await fetch(pool, server) for _ in range(3)]
            await until(lambda: server.connections_open == 0)

            assert texts == [b"a"] * 3
            assert server.connections_total == 3
            assert pool.counts() == (0, 0)

    run_on(body, backend)


@on_both_backends
async def test_what_a_server_says_behind_a_response_under_tls_answers_no_other_request() -> None:
    record_bytes = 16 * 1024

    async def talk(peer: Peer) -> None:
        while heard := await peer.request():
            padding = record_bytes - len(response(heard.body, "X: "))
            first = response(heard.body, "X: " + "x" * padding)
            # One segment, two records: when the first response is done the second has been received and not yet read.
            await peer.send(first + response(b"another's"))

    pool = ConnectionPool(ssl_context=client_context(NAME))
    async with serve(talk, tls=server_context(NAME)) as server:
        texts = [await fetch(pool, server, b"%d" % number, tls=True) for number in range(10)]
        pool.close_idle()

        assert texts == [b"%d" % number for number in range(10)]


# Idle ones.


@on_both_backends
async def test_idle_connections_past_their_time_are_not_used_and_closed_a_few_with_each_request() -> None:
    pool = ConnectionPool(idle_s=0.5)
    async with serve(echoes) as server:
        await open_idle(pool, server, SWEEP_MAX + 3)
        await anyio.sleep(0.55)
        await fetch(pool, server)
        first = pool.counts()
        await fetch(pool, server)
        second = pool.counts()
        await until(lambda: server.connections_open == 1)
        pool.close_idle()

        assert (first, second) == ((0, 3 + 1), (0, 1))
        assert server.connections_total == SWEEP_MAX + 4


@on_both_backends
async def test_connections_are_closed_when_their_time_has_come_and_not_before() -> None:
    pool = ConnectionPool(idle_s=0.5)
    async with serve(echoes) as server:
        await open_idle(pool, server, 20)
        pool.close_expired()
        young = pool.counts()
        await anyio.sleep(0.55)
        pool.close_expired()
        old = pool.counts()
        await until(lambda: server.connections_open == 0)

        assert (young, old) == ((0, 20), (0, 0))


def test_by_default_idle_connections_are_closed_before_common_servers_do() -> None:
    assert pool_module.IDLE_S < 5


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_connections_that_the_server_has_closed_meanwhile_are_passed_over(tls: bool, backend: str) -> None:
    async def talk(peer: Peer) -> None:
        heard = await peer.request()
        assert heard is not None
        await peer.send(response(heard.body))
        if peer.number > 0:
            await go_on.wait()
            return await peer.close()
        await echoes(peer)

    async def body() -> None:
        nonlocal go_on
        go_on = anyio.Event()
        pool = ConnectionPool(ssl_context=client_context(NAME))
        async with serve(talk, tls=server_context(NAME) if tls else None) as server:
            await open_idle(pool, server, 4, tls=tls)
            go_on.set()
            await until(lambda: server.connections_open == 1)
            await anyio.sleep(0.01)
            await fetch(pool, server, b"again", tls=tls)
            pool.close_idle()

            assert (server.heard[-1].body, server.heard[-1].connection) == (b"again", 0)
            assert len(server.heard) == 5

    go_on: anyio.Event
    run_on(body, backend)


# The free retry.


async def after_a_while(how: Callable[[Peer], Awaitable[None]], peer: Peer) -> None:
    await anyio.sleep(0.005)
    await how(peer)


ENDINGS: list[Callable[[Peer], Awaitable[None]]] = [
    Peer.close,
    Peer.reset,
    partial(after_a_while, Peer.close),
    partial(after_a_while, Peer.reset),
]
IDS = ["close", "reset", "close later", "reset later"]


@pytest.mark.parametrize("how", ENDINGS, ids=IDS)
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_reused_connection_that_dies_before_the_first_byte_costs_one_request_more(
    how: Callable[[Peer], Awaitable[None]], tls: bool, backend: str
) -> None:
    async def body() -> None:
        pool = ConnectionPool(ssl_context=client_context(NAME))
        async with serve(dies(how, at={(0, 1)}), tls=server_context(NAME) if tls else None) as server:
            texts = [await fetch(pool, server, text, tls=tls) for text in (b"one", b"two", b"three")]
            counts = pool.counts()
            pool.close_idle()

            assert texts == [b"one", b"two", b"three"]
            assert [(heard.body, heard.connection) for heard in server.heard] == [
                *((b"one", 0), (b"two", 0), (b"two", 1), (b"three", 1))
            ]
            assert counts == (0, 1)

    run_on(body, backend)


@pytest.mark.parametrize("how", ENDINGS, ids=IDS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_it_is_one_and_goes_out_on_a_fresh_connection_though_others_lie_idle(
    how: Callable[[Peer], Awaitable[None]], backend: str
) -> None:
    async def body() -> None:
        pool = ConnectionPool()
        at = {(0, 1), (1, 1), (2, 1), (3, 0)}
        async with serve(dies(how, at=at)) as server:
            await open_idle(pool, server, 3)
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await fetch(pool, server)
            counts = pool.counts()
            pool.close_idle()

            assert [heard.connection for heard in server.heard] == [0, 1, 2, 2, 3]
            assert counts == (0, 2)

    run_on(body, backend)


@pytest.mark.parametrize("how", ENDINGS, ids=IDS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_first_use_is_not_repeated(how: Callable[[Peer], Awaitable[None]], backend: str) -> None:
    async def body() -> None:
        pool = ConnectionPool()
        async with serve(dies(how, at={(0, 0)})) as server:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await fetch(pool, server)

            assert len(server.heard) == 1
            assert pool.counts() == (0, 0)

    run_on(body, backend)


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"garbled", response(b"four")[:-1]])
@pytest.mark.parametrize("how", [Peer.close, partial(after_a_while, Peer.reset)], ids=["close", "reset later"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_after_the_first_byte_nothing_is_repeated(
    how: Callable[[Peer], Awaitable[None]], start: bytes, backend: str
) -> None:
    async def starts(peer: Peer) -> None:
        await peer.send(start)
        await how(peer)

    async def body() -> None:
        pool = ConnectionPool()
        async with serve(dies(starts, at={(0, 1)})) as server:
            await fetch(pool, server)
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await fetch(pool, server)

            assert len(server.heard) == 2
            assert pool.counts() == (0, 0)

    run_on(body, backend)


@on_both_backends
async def test_a_server_that_is_gone_when_the_retry_comes_is_a_connect_error() -> None:
    pool = ConnectionPool()
    async with serve(echoes) as server:
        await fetch(pool, server)

    with pytest.raises(httpx.ConnectError):
        await fetch(pool, server)

    assert pool.counts() == (0, 0)


# Cancellation.


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_cancelled_at_every_moment_it_leaves_no_socket_and_counts_right(reused: bool, tls: bool, backend: str) -> None:
    async def talk(peer: Peer) -> None:
        while heard := await peer.request():
            data = chunked(heard.body)
            await peer.send(*(data[at : at + 15] for at in range(0, len(data), 15)))

    async def cancelled_after(ticks: int, pool: ConnectionPool, server: Server) -> bool:
        """Whether the request had come to its end before so many rounds of the loop."""

        async def cancel() -> None:
            for _ in range(ticks):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel)
            done = await fetch(pool, server, b"x" * 40, tls=tls) == b"x" * 40
            tasks.cancel_scope.cancel()
            return done
        return False

    async def body() -> None:
        pool = ConnectionPool(ssl_context=client_context(NAME))
        before = open_sockets()
        async with serve(talk, tls=server_context(NAME) if tls else None) as server:
            listening = open_sockets() - before
            ticks, ended = 0, 0
            while ended < 3:  # a round of the loop is no fixed time: be sure that the end was reached
                if reused:
                    await fetch(pool, server, tls=tls)
                ended += await cancelled_after(ticks, pool, server)
                ticks += 1
                in_use, idle = pool.counts()

                assert in_use == 0
                assert idle <= 1
                if not reused:
                    pool.close_idle()
            pool.close_idle()
            await until(lambda: server.connections_open == 0)

            assert ticks > 3
            assert open_sockets() == before + listening

    run_on(body, backend)


@on_both_backends
async def test_a_server_that_does_not_answer_the_handshake_is_given_up() -> None:
    async def talk(peer: Peer) -> None:
        await peer.wait_closed()

    pool = ConnectionPool(ssl_context=client_context(NAME))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "CONNECT_TIMEOUT_S", 0.05)
        async with serve(talk) as server:
            with pytest.raises(httpx.ConnectTimeout):
                await fetch(pool, server, tls=True)
            await until(lambda: server.connections_open == 0)

            assert pool.counts() == (0, 0)
