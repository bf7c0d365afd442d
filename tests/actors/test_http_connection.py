"""One connection over real sockets, plain and under TLS: what it says of a response, of its end, and of itself."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeAlias

import anyio
import httpx
import pytest
from both_backends import on_both_backends, run_on
from pool_server import Peer, Server, chunked, client_context, open_sockets, response, serve, server_context, until

from callboard.actors import http_connection
from callboard.actors.dialing import Route, dial
from callboard.actors.http_connection import HttpConnection

REQUEST = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nhi"
LARGE_BYTES = 5_000_000
ENDLESS_BYTES = 64_000_000
"""More than the system takes for a server that reads nothing: Linux lends a receiver up to 32 MiB."""
TO_THE_END = b"HTTP/1.1 200 OK\r\n\r\nall of "
NAME = "127.0.0.1"


def request_of(size_bytes: int) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size_bytes + bytes(size_bytes)


Says: TypeAlias = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def connected(says: Says, *, tls: bool = False) -> AsyncGenerator[tuple[HttpConnection, Server]]:
    """A connection to a server that does this after each request."""

    async def talk(peer: Peer) -> None:
        while await peer.request():
            await says(peer)

    async with serve(talk, tls=server_context(NAME) if tls else None) as server:
        route = Route("https" if tls else "http", NAME, server.port)
        connection = HttpConnection(*await dial(route, ssl_context=client_context(NAME) if tls else None))
        try:
            yield connection, server
        finally:
            connection.close()


async def body_of(connection: HttpConnection) -> bytes:
    pieces = list[bytes]()
    while piece := await connection.receive():
        pieces.append(piece)
    return b"".join(pieces)


def sends(*pieces: bytes) -> Says:
    return lambda peer: peer.send(*pieces)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_responses_of_every_framing_follow_each_other_on_one_connection(tls: bool, backend: str) -> None:
    large = b"0123456789" * 50_000
    answers = [
        (response(b"sized"), b"sized"),
        (chunked(b"in ", b"chunks"), b"in chunks"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (response(b""), b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"after an interim one"), b"after an interim one"),
        (response(large), large),
        (chunked(*[large[at : at + 999] for at in range(0, len(large), 999)]), large),
    ]

    async def says(peer: Peer) -> None:
        data = answers[asked][0]
        step = 7 if len(data) < 1000 else len(data)
        await peer.send(*(data[at : at + step] for at in range(0, len(data), step)))

    async def body() -> None:
        nonlocal asked
        async with connected(says, tls=tls) as (connection, server):
            got = list[bytes]()
            for number in range(len(answers)):
                asked = number
                await connection.begin(REQUEST)
                got.append(await body_of(connection))

                assert connection.ended
                assert connection.reusable
                assert connection.is_quiet

            assert got == [text for _, text in answers]
            assert server.connections_total == 1

    asked = 0
    run_on(body, backend)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_what_has_come_is_handed_out_before_the_rest_comes(tls: bool, backend: str) -> None:
    async def says(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await go_on.wait()
        await peer.send(b"3\r\none\r\n")
        await peer.wait_closed()

    async def body() -> None:
        nonlocal go_on
        go_on = anyio.Event()
        async with connected(says, tls=tls) as (connection, _):
            with anyio.fail_after(5):
                head = await connection.begin(REQUEST)
                go_on.set()
                first = await connection.receive()

            assert (head.status, first) == (200, b"one")
            assert not connection.ended
            assert not connection.reusable

    go_on: anyio.Event
    run_on(body, backend)


@on_both_backends
async def test_a_body_without_a_frame_ends_with_the_connection_which_is_then_done() -> None:
    async def says(peer: Peer) -> None:
        await peer.send(TO_THE_END, b"it")
        await peer.close()

    async with connected(says) as (connection, _):
        await connection.begin(REQUEST)
        text = await body_of(connection)

        assert text == b"all of it"
        assert connection.ended
        assert not connection.reusable


@on_both_backends
async def test_a_response_to_head_has_no_body_whatever_it_says() -> None:
    async with connected(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as (connection, _):
        await connection.begin(REQUEST, expects_body=False)
        text = await body_of(connection)

        assert text == b""
        assert connection.reusable


ENDINGS = ["close", "reset"]


async def end(peer: Peer, how: str) -> None:
    await anyio.sleep(0.01)  # an RST drops what has not been read: let it be read
    await (peer.close() if how == "close" else peer.reset())


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_connection_that_ends_before_a_byte_has_heard_nothing(tls: bool, how: str, backend: str) -> None:
    async def body() -> None:
        async with connected(lambda peer: end(peer, how), tls=tls) as (connection, _):
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await connection.begin(REQUEST)

            assert not connection.heard
            assert not connection.reusable

    run_on(body, backend)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("start", [b"H", response(b"four")[:-2], chunked(b"four")[:-7], chunked(b"four")[:-2]])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_connection_that_ends_within_a_response_is_an_error(start: bytes, how: str, tls: bool, backend: str) -> None:
    async def says(peer: Peer) -> None:
        await peer.send(start)
        await end(peer, how)

    async def body() -> None:
        async with connected(says, tls=tls) as (connection, _):
            with pytest.raises(httpx.RemoteProtocolError if how == "close" else httpx.ReadError):
                await read_all(connection)

            assert connection.heard
            assert not connection.reusable

    run_on(body, backend)


async def read_all(connection: HttpConnection) -> bytes:
    await connection.begin(REQUEST)
    return await body_of(connection)


@on_both_backends
async def test_a_reset_is_no_end_of_a_body_without_a_frame() -> None:
    async def says(peer: Peer) -> None:
        await peer.send(TO_THE_END)
        await end(peer, "reset")

    async with connected(says) as (connection, _):
        with pytest.raises(httpx.ReadError):
            await read_all(connection)


@pytest.mark.parametrize(
    "garbled",
    [b"SSH-2.0-sesame\r\n", b"HTTP/1.1 200 OK\r\nsesame\r\n\r\n", chunked(b"a").replace(b"1\r\n", b"sesame\r\n")],
)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_what_is_no_response_is_an_error_that_does_not_quote_it(garbled: bytes, backend: str) -> None:
    async def body() -> None:
        async with connected(sends(garbled)) as (connection, _):
            with pytest.raises(httpx.RemoteProtocolError) as caught:
                await read_all(connection)

            assert "sesame" not in str(caught.value)
            assert not connection.reusable

    run_on(body, backend)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_large_request_goes_out_whole(tls: bool, backend: str) -> None:
    async def body() -> None:
        async with connected(sends(response(b"ok")), tls=tls) as (connection, server):
            await connection.begin(request_of(LARGE_BYTES))
            text = await body_of(connection)

            assert text == b"ok"
            assert len(server.heard[0].body) == LARGE_BYTES

    run_on(body, backend)


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_server_that_answers_and_closes_before_it_has_read_the_request_is_heard(how: str, backend: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.stream.receive()
        await peer.send(response(b"too large", "Connection: close", status=413))
        await end(peer, how)

    async def body() -> None:
        async with serve(talk) as server:
            connection = HttpConnection(*await dial(Route("http", NAME, server.port)))
            head = await connection.begin(request_of(ENDLESS_BYTES))
            connection.close()

            assert head.status == 413

    run_on(body, backend)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_server_that_reads_nothing_is_given_up(tls: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(peer: Peer) -> None:
        await forever.wait()

    async def body() -> None:
        nonlocal forever
        forever = anyio.Event()
        async with serve(talk, tls=server_context(NAME) if tls else None) as server:
            route = Route("https" if tls else "http", NAME, server.port)
            connection = HttpConnection(*await dial(route, ssl_context=client_context(NAME)))
            with pytest.raises(httpx.WriteTimeout):
                await connection.begin(request_of(ENDLESS_BYTES))
            connection.close()

    forever: anyio.Event
    monkeypatch.setattr(http_connection, "WRITE_TIMEOUT_S", 0.05)
    run_on(body, backend)


@pytest.mark.parametrize("how", ["speaks", *ENDINGS])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_an_idle_connection_is_quiet_until_the_server_speaks_or_closes(how: str, tls: bool, backend: str) -> None:
    async def says(peer: Peer) -> None:
        await peer.send(response(b"ok"))
        await go_on.wait()
        await (peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n") if how == "speaks" else end(peer, how))

    async def body() -> None:
        nonlocal go_on
        go_on = anyio.Event()
        async with connected(says, tls=tls) as (connection, _):
            await read_all(connection)
            before = connection.is_quiet
            go_on.set()
            await until(lambda: not connection.is_quiet)

            assert before

    go_on: anyio.Event
    run_on(body, backend)


@pytest.mark.parametrize("stage", ["head", "body"])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_cancelled_and_closed_it_leaves_no_socket(stage: str, tls: bool, backend: str) -> None:
    async def says(peer: Peer) -> None:
        if stage == "body":
            await peer.send(response(b"four")[:-1])
        await peer.wait_closed()

    async def body() -> None:
        before = open_sockets()
        async with connected(says, tls=tls) as (connection, server):
            with anyio.move_on_after(0.03) as scope:
                await read_all(connection)
            connection.close()
            await until(lambda: server.connections_open == 0)

            assert scope.cancelled_caught
            assert not connection.reusable
        assert open_sockets() == before

    run_on(body, backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_server_that_breaks_off_while_the_request_goes_out_is_a_write_error(backend: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.stream.receive()
        await peer.reset()

    async def body() -> None:
        async with serve(talk) as server:
            connection = HttpConnection(*await dial(Route("http", NAME, server.port)))
            with pytest.raises(httpx.WriteError):
                await connection.begin(request_of(ENDLESS_BYTES))
            connection.close()

    run_on(body, backend)
