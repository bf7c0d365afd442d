"""The bare socket: connecting to names with several addresses, and bytes in and out, whatever is cancelled."""

import select
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import pytest
from both_backends import on_both_backends
from pool_server import Peer, open_sockets, serve, until

from callboard.actors import socket_stream
from callboard.actors.socket_stream import STAGGER_S, connect

NAME = "127.0.0.1"


@contextmanager
def names(**addresses: list[tuple[str, int]]) -> Generator[None]:
    """Let these names have these addresses and ports."""
    families = {".": socket.AF_INET, ":": socket.AF_INET6}

    async def look_up(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (next(family for mark, family in families.items() if mark in address), socket.SOCK_STREAM, 6, "", each)
            for address, _ in addresses[host]
            for each in [(address, dict(addresses[host])[address])]
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio, "getaddrinfo", look_up)
        yield


@contextmanager
def stagger(seconds: float) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket_stream, "STAGGER_S", seconds)
        yield


@contextmanager
def black_hole(address: str) -> Generator[socket.socket]:
    """A listener there that answers nobody: its queue of connections is full."""
    with socket.socket() as listener, socket.socket() as only:
        listener.bind((address, 0))
        listener.listen(0)  # one at a time
        only.connect(listener.getsockname())
        yield listener


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def wait_readable(listener: socket.socket) -> None:
    """Hold the whole event loop until somebody has come."""
    assert select.select([listener], [], [], 10)[0]


def refused(address: str) -> int:
    """A port there where nobody listens."""
    with socket.socket() as tried:
        tried.bind((address, 0))
        return int(tried.getsockname()[1])


async def says_where(peer: Peer) -> None:
    await peer.send(b"here")
    await peer.wait_closed()


async def heard_at(name: str) -> bytes:
    stream = await connect(name, 1)
    try:
        return await stream.receive()
    finally:
        stream.close()


@on_both_backends
async def test_an_address_that_refuses_is_passed_over_at_once() -> None:
    async with serve(says_where) as server:
        addresses = [("127.0.0.2", refused("127.0.0.2")), (NAME, server.port)]
        with names(host=addresses), stagger(60.0), anyio.fail_after(10):
            heard = await heard_at("host")

        assert heard == b"here"


@on_both_backends
async def test_an_address_that_does_not_answer_is_not_waited_for() -> None:
    before = open_sockets()
    async with serve(says_where) as server:
        with black_hole("127.0.0.2") as hole, names(host=[("127.0.0.2", port_of(hole)), (NAME, server.port)]):
            began_s = anyio.current_time()
            heard = await heard_at("host")
            took_s = anyio.current_time() - began_s

        assert heard == b"here"
        assert STAGGER_S <= took_s < 20 * STAGGER_S
    assert open_sockets() == before


@on_both_backends
async def test_of_addresses_that_all_answer_one_connection_stays() -> None:
    before = open_sockets()
    async with serve(says_where) as one, serve(says_where, host="127.0.0.2") as other:
        with names(host=[(NAME, one.port), ("127.0.0.2", other.port)]):
            await heard_at("host")
        await until(lambda: one.connections_open + other.connections_open == 0)

        assert one.connections_total == 1
    assert open_sockets() == before


@on_both_backends
async def test_of_addresses_that_answer_in_the_same_moment_one_connection_stays_and_the_others_are_closed() -> None:
    before = open_sockets()
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    with ExitStack() as stack:
        holes = [stack.enter_context(black_hole(host)) for host in hosts]
        stack.enter_context(names(host=list(zip(hosts, (port_of(hole) for hole in holes), strict=True))))
        stack.enter_context(stagger(0.0))
        connecting = open_sockets()

        async def open_them_all_at_once() -> None:
            await anyio.sleep(0.1)
            let_in = [stack.enter_context(hole.accept()[0]) for hole in holes]
            assert open_sockets() == connecting + len(hosts) + len(let_in)
            for hole in holes:  # no other task may look before all have answered: the system asks again after 1 s
                wait_readable(hole)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_them_all_at_once)
            (await connect("host", 1)).close()
    assert open_sockets() == before


@on_both_backends
async def test_where_no_address_answers_the_first_ones_error_is_told_and_the_others_below_it() -> None:
    before = open_sockets()
    ports = {address: refused(address) for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4")}
    with names(host=list(ports.items())), pytest.raises(ConnectionRefusedError) as caught:
        await connect("host", 1)

    assert "(3 sub-exceptions)" in str(caught.value.__cause__)
    assert open_sockets() == before


@on_both_backends
async def test_a_name_without_addresses_is_an_os_error() -> None:
    with pytest.raises(OSError, match="not known"):
        await connect("no-such-host.invalid", 80)


@on_both_backends
async def test_cancelled_while_it_connects_it_leaves_no_socket() -> None:
    before = open_sockets()
    with black_hole("127.0.0.2") as one, black_hole("127.0.0.3") as other:
        for addresses in ([("127.0.0.2", port_of(one))], [("127.0.0.2", port_of(one)), ("127.0.0.3", port_of(other))]):
            with names(host=addresses), anyio.move_on_after(1.2 * STAGGER_S) as scope:
                await connect("host", 1)

            assert scope.cancelled_caught
    assert open_sockets() == before


@on_both_backends
async def test_a_read_that_is_cancelled_loses_nothing() -> None:
    async def talk(peer: Peer) -> None:
        for number in range(50):
            await peer.send(b"%d," % number)
            await anyio.sleep(0.001)

    async with serve(talk) as server:
        stream = await connect(NAME, server.port)
        heard, cancelled = b"", 0
        while not heard.endswith(b"49,"):
            with anyio.move_on_after(0.0005) as scope:
                heard += await stream.receive()
            cancelled += scope.cancelled_caught
        stream.close()

        assert heard == b"".join(b"%d," % number for number in range(50))
        assert cancelled > 3


@on_both_backends
async def test_what_the_system_does_not_take_at_once_goes_out_later_and_in_order() -> None:
    sent = bytes(range(256)) * 100_000
    received = bytearray()
    done = anyio.Event()

    async def talk(peer: Peer) -> None:
        while len(received) < len(sent):
            received.extend(await peer.stream.receive())
        done.set()

    async with serve(talk) as server:
        stream = await connect(NAME, server.port)
        await stream.send(sent)
        await done.wait()
        stream.close()

        assert bytes(received) == sent
