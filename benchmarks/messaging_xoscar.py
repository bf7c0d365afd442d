"""xoscar in the rows of bench_messaging.py: an actor pool in this process, on asyncio.

The references are those of `actor_ref` ("local reference"): they call the actor in place, under its lock, and serialise
nothing. What `create_actor` itself gives is 15 times slower, and stands beside it in the row `ask` as "message".
"""

import asyncio
import importlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from messaging_load import Figures, Load, Measure, alternating_us, repeated, together_us

__all__ = ["measures"]

# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
xoscar: Any = importlib.import_module("xoscar")
xoscar_ports: Any = importlib.import_module("xoscar.utils")


class Echo(xoscar.Actor):
    def echo(self, number: int) -> int:
        return number

    async def echo_async(self, number: int) -> int:
        return number

    async def echo_waiting(self, number: int) -> int:
        await asyncio.sleep(0)
        return number


class Board(xoscar.Actor):
    """What many agents append to and read from."""

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType] - of a base that is imported by name
        self._texts: list[str] = []

    def append(self, text: str) -> int:
        self._texts.append(text)
        return len(self._texts)

    def read(self, count: int) -> list[str]:
        return self._texts[-count:]


class Counting(xoscar.Actor):
    """Says when so many messages were handled."""

    def begin(self, count: int, done: asyncio.Event) -> None:
        self._left = count
        self._done = done

    def count(self, number: int) -> None:
        self._left -= number
        if not self._left:
            self._done.set()


@asynccontextmanager
async def opened() -> AsyncGenerator[str]:
    """The address of a pool without processes of its own."""
    pool = await xoscar.create_actor_pool(f"127.0.0.1:{xoscar_ports.get_next_port()}", n_process=0)
    async with pool:
        yield pool.external_address


async def create_actor(address: str, kind: type, name: str) -> Any:
    await xoscar.create_actor(kind, uid=name, address=address)
    ref = await xoscar.actor_ref(address, name)
    assert type(ref).__name__ == "LocalActorRef"
    return ref


def asking(method: Callable[[int], Awaitable[int]]) -> Callable[[int], Awaitable[None]]:
    async def ask(times: int) -> None:
        for _ in range(times):
            await method(1)

    return ask


async def ask(load: Load) -> Figures:
    async with opened() as address:
        local = await create_actor(address, Echo, "one")
        by_message = await xoscar.create_actor(Echo, uid="two", address=address)
        ways = {"ask_us": asking(local.echo), "message_ask_us": asking(by_message.echo)}
        return await alternating_us(load.seconds, ways)


async def ask_async(load: Load) -> Figures:
    async with opened() as address:
        ref = await create_actor(address, Echo, "one")
        return await alternating_us(load.seconds, {"async_us": asking(ref.echo_async)})


async def ask_waiting(load: Load) -> Figures:
    async with opened() as address:
        ask = asking((await create_actor(address, Echo, "one")).echo_waiting)
        alone = await alternating_us(load.seconds, {"waits_us": ask})
        crowd = partial(together_us, [partial(ask, 5)] * 50, operations=50 * 5)
        return {**alone, "waits_50_callers_us": await repeated(load.seconds, crowd)}


async def many(load: Load) -> Figures:
    async with opened() as address:
        refs = [await create_actor(address, Echo, f"actor-{number}") for number in range(1000)]

        async def caller(first: int) -> None:
            for number in range(first, first + 50):
                await refs[number % 1000].echo(first)

        callers = [partial(caller, number) for number in range(1000)]
        for ref in refs:
            await ref.echo(0)
        return {"many_us": await repeated(load.seconds, partial(together_us, callers, operations=1000 * 50))}


async def tells(load: Load) -> Figures:
    async with opened() as address:
        ref = await create_actor(address, Counting, "one")
        done = asyncio.Event()

        async def send() -> None:
            tell = ref.count.tell
            for _ in range(100):
                await tell(1)

        async def receive() -> None:
            await done.wait()

        async def once() -> float:
            done.clear()
            await ref.begin(100 * 100, done)
            return await together_us([receive, *[send] * 100], operations=100 * 100)

        return {"tell_us": await repeated(load.seconds, once)}


async def create(load: Load) -> Figures:
    async with opened() as address:

        async def first_messages() -> None:
            for number in range(load.created):
                ref = await create_actor(address, Echo, f"actor-{number}")
                await ref.echo(1)

        return {"create_us": await together_us([first_messages], operations=load.created)}


async def hot(load: Load) -> Figures:
    async with opened() as address:
        board = await create_actor(address, Board, "one")

        async def agent() -> None:
            append, read = board.append, board.read
            for _ in range(50):
                await append("a line of text")
                await read(10)

        return {"hot_us": await repeated(load.seconds, partial(together_us, [agent] * 50, operations=50 * 100))}


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return {
        "ask": ask,
        "async": ask_async,
        "waits": ask_waiting,
        "many": many,
        "tells": tells,
        "create": create,
        "hot": hot,
    }
