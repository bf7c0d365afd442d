"""callboard in the rows of bench_messaging.py: what a user would write, with everything on that is on by default.

Every ask has the default deadline, save where a figure's name says otherwise.
"""

import asyncio
import gc
import inspect
import math
import tempfile
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import anyio
import trio
from messaging_load import Figures, Load, Measure, alternating_us, repeated, together_us

from callboard.runtime import Actor, ActorId, Context, Ref, Request, Runtime, handles
from callboard.store.contract import Store
from callboard.store.lmdb_store import LmdbStore
from callboard.store.memory_store import MemoryStore

__all__ = ["measures"]

SNAPSHOT = b"x" * 1000

once_around: dict[str, Callable[[], Awaitable[None]]] = {}
"""How a handler waits once, called directly as the bare ones do; set where a runtime is opened."""


class Echo(Request[int], frozen=True):
    number: int


class EchoAsync(Request[int], frozen=True):
    number: int


class EchoWaiting(Request[int], frozen=True):
    number: int


class Append(Request[int], frozen=True):
    text: str


class Read(Request[list[str]], frozen=True):
    count: int


class Keep(Request[None], frozen=True):
    pass


class Echoing(Actor):
    """Answers in each of the three ways there are."""

    @handles(Echo)
    def echo(self, message: Echo, context: Context) -> int:
        return message.number

    @handles(EchoAsync)
    async def echo_async(self, message: EchoAsync, context: Context) -> int:
        return message.number

    @handles(EchoWaiting)
    async def echo_waiting(self, message: EchoWaiting, context: Context) -> int:
        await once_around["the loop"]()
        return message.number


class Board(Actor):
    """What many agents append to and read from."""

    def load(self, context: Context) -> None:
        self.texts: list[str] = []

    @handles(Append)
    def append(self, message: Append, context: Context) -> int:
        self.texts.append(message.text)
        return len(self.texts)

    @handles(Read)
    def read(self, message: Read, context: Context) -> list[str]:
        return self.texts[-message.count :]


class Kept(Actor):
    """Has a snapshot in the store."""

    def load(self, context: Context) -> None:
        self.state = context.stored.head if context.stored is not None else b""

    @handles(Keep)
    def keep(self, message: Keep, context: Context) -> None:
        context.stage(head=SNAPSHOT)

    @handles(Echo)
    def echo(self, message: Echo, context: Context) -> int:
        return len(self.state)


@asynccontextmanager
async def opened(open_store: Callable[[], Store] = MemoryStore) -> AsyncGenerator[Runtime]:
    on_trio = trio.lowlevel.in_trio_task()
    once_around["the loop"] = trio.lowlevel.checkpoint if on_trio else partial(asyncio.sleep, 0)
    async with Runtime(open_store) as runtime:
        for kind, factory in (("echo", Echoing), ("board", Board), ("kept", Kept)):
            runtime.register(kind, factory)
        yield runtime


def asking(ref: Ref, message: Request[int], *, timeout_s: float | None = None) -> Callable[[int], Awaitable[None]]:
    """So many asks, one after the other; with the default deadline unless a timeout is given."""

    async def ask(times: int) -> None:
        for _ in range(times):
            await ref.ask(message)

    async def ask_for_at_most(times: int) -> None:
        assert timeout_s is not None
        for _ in range(times):
            await ref.ask(message, timeout_s=timeout_s)

    return ask if timeout_s is None else ask_for_at_most


# The rows -------------------------------------------------------------------------------------------------------------


async def ask(load: Load) -> Figures:
    async with opened() as runtime:
        ref = runtime.actor("echo", "one")
        ways = {"ask_us": asking(ref, Echo(1)), "ask_no_deadline_us": asking(ref, Echo(1), timeout_s=math.inf)}
        return await alternating_us(load.seconds, ways)


async def ask_async(load: Load) -> Figures:
    async with opened() as runtime:
        return await alternating_us(load.seconds, {"async_us": asking(runtime.actor("echo", "one"), EchoAsync(1))})


async def ask_waiting(load: Load) -> Figures:
    async with opened() as runtime:
        ask = asking(runtime.actor("echo", "one"), EchoWaiting(1))
        alone = await alternating_us(load.seconds, {"waits_us": ask})
        callers = [partial(ask, 5)] * 50
        crowd_us = await repeated(load.seconds, partial(together_us, callers, operations=50 * 5))
        return {**alone, "waits_50_callers_us": crowd_us}


async def many(load: Load) -> Figures:
    async with opened() as runtime:
        refs = [runtime.actor("echo", f"actor-{number}") for number in range(1000)]
        for ref in refs:
            await ref.ask(Echo(0))

        async def caller(first: int) -> None:
            message = Echo(first)
            for number in range(first, first + 50):
                await refs[number % 1000].ask(message)

        callers = [partial(caller, number) for number in range(1000)]
        return {"many_us": await repeated(load.seconds, partial(together_us, callers, operations=1000 * 50))}


class Counting(Actor):
    """Says when so many messages were handled."""

    left = 0
    done: anyio.Event

    @handles(Echo)
    def echo(self, message: Echo, context: Context) -> int:
        self.left -= 1
        if not self.left:
            self.done.set()
        return self.left


async def tells(load: Load) -> Figures:
    async with opened() as runtime:
        made: list[Counting] = []

        def make(id: ActorId) -> Counting:
            made.append(Counting(id))
            return made[-1]

        runtime.register("counting", make)
        counting = runtime.actor("counting", "one")
        await counting.ask(Echo(0))

        async def send() -> None:
            for _ in range(100):
                await counting.tell(Echo(1))

        async def receive() -> None:
            await made[0].done.wait()

        async def once() -> float:
            made[0].left, made[0].done = 100 * 100, anyio.Event()
            return await together_us([receive, *[send] * 100], operations=100 * 100)

        return {"tell_us": await repeated(load.seconds, once)}


async def memory(load: Load) -> Figures:
    """By tracemalloc: all that Python allocates for an actor that was asked once, and for what it is found by."""
    async with opened() as runtime:
        await runtime.actor("echo", "first").ask(Echo(1))
        tasks = living_tasks()
        tracemalloc.start()
        try:
            for number in range(load.actors):
                await runtime.actor("echo", f"actor-{number}").ask(Echo(1))
            figures = {
                "idle_bytes": tracemalloc.get_traced_memory()[0] / load.actors,
                "idle_tasks": (living_tasks() - tasks) / load.actors,
            }
            if passivate is not None:
                figures["passivated_bytes"] = await passivated_bytes(runtime, load.actors)
            return figures
        finally:
            tracemalloc.stop()


passivate: Any = getattr(Ref, "passivate", None)
"""None in a runtime that has no passivation yet."""


async def passivated_bytes(runtime: Runtime, actors: int) -> float:
    """What an actor that was asked and passivated leaves behind: in waves, since a dict never gives its peak back."""
    before_bytes = 0
    for wave in range(11):
        for number in range(actors // 10):
            await runtime.actor("echo", f"passing-{wave}-{number}").ask(Echo(1))
        for number in range(actors // 10):
            gone = passivate(runtime.actor("echo", f"passing-{wave}-{number}"))
            assert (await gone if inspect.isawaitable(gone) else gone) is True, "an idle actor was not passivated"
        if wave == 0:
            before_bytes = tracemalloc.get_traced_memory()[0]
    return max(0, tracemalloc.get_traced_memory()[0] - before_bytes) / actors


def living_tasks() -> int:
    if trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


async def create(load: Load) -> Figures:
    async with opened() as runtime:

        async def first_messages() -> None:
            for number in range(load.created):
                await runtime.actor("echo", f"actor-{number}").ask(Echo(1))

        return {"create_us": await together_us([first_messages], operations=load.created)}


async def live(load: Load) -> Figures:
    """An ask beside many idle actors: to the 100 that were there before, and to all of them in turn; then the end."""
    async with opened() as runtime:
        few = [runtime.actor("echo", f"few-{number}") for number in range(100)]
        figures = await alternating_us(load.seconds, {"live_100_us": asking_in_turn(few)})
        all_of_them = [*few, *(runtime.actor("echo", f"actor-{number}") for number in range(load.actors - 100))]
        await asking_in_turn(all_of_them)(len(all_of_them))
        ways = {"live_all_same_100_us": asking_in_turn(few), "live_all_in_turn_us": asking_in_turn(all_of_them)}
        figures |= await alternating_us(load.seconds, ways)
        figures["live_all_collector_us"] = await collector_us(asking_in_turn(few), 50_000)
        began_s = time.perf_counter()
    return {**figures, "stop_s": time.perf_counter() - began_s}


def asking_in_turn(refs: list[Ref]) -> Callable[[int], Awaitable[None]]:
    turn = cycle(refs)

    async def ask(times: int) -> None:
        message = Echo(1)
        for _ in range(times):
            await next(turn).ask(message)

    return ask


async def collector_us(ask: Callable[[int], Awaitable[None]], times: int) -> float:
    """What Python's garbage collector takes of an ask: its full runs look at every live actor, and last long."""
    began_s = paused_s = 0.0

    def note(phase: str, _facts: object) -> None:
        nonlocal began_s, paused_s
        if phase == "start":
            began_s = time.perf_counter()
        else:
            paused_s += time.perf_counter() - began_s

    gc.callbacks.append(note)
    try:
        await ask(times)
    finally:
        gc.callbacks.remove(note)
    return paused_s / times * 1e6


async def hot(load: Load) -> Figures:
    async with opened() as runtime:
        board = runtime.actor("board", "one")

        async def agent() -> None:
            for _ in range(50):
                await board.ask(Append("a line of text"))
                await board.ask(Read(10))

        return {"hot_us": await repeated(load.seconds, partial(together_us, [agent] * 50, operations=50 * 100))}


async def activate(load: Load) -> Figures:
    """The first ask to an actor that has a snapshot of 1 kB in the store, and to one that has none."""
    memory_store = MemoryStore()
    with tempfile.TemporaryDirectory() as folder:

        def open_lmdb() -> Store:
            return LmdbStore(Path(folder) / "store", durability="async")

        figures: Figures = {}
        for name, first, later in (
            ("memory", lambda: memory_store, memory_store.reopened),
            ("lmdb", open_lmdb, open_lmdb),
        ):
            figures |= await activation_us(name, first, later, actors=load.created // 5)
        return figures


async def activation_us(name: str, first: Callable[[], Store], later: Callable[[], Store], *, actors: int) -> Figures:
    async def keep(runtime: Runtime, number: int) -> None:
        await runtime.actor("kept", f"actor-{number}").ask(Keep())

    async def wake(runtime: Runtime, prefix: str, size_bytes: int) -> None:
        for number in range(actors):
            assert await runtime.actor("kept", f"{prefix}-{number}").ask(Echo(1)) == size_bytes

    async with opened(first) as runtime, anyio.create_task_group() as tasks:
        for number in range(actors):
            tasks.start_soon(keep, runtime, number)
    async with opened(later) as runtime:
        stored = partial(wake, runtime, "actor", len(SNAPSHOT))
        fresh = partial(wake, runtime, "other", 0)
        return {
            f"activate_{name}_us": await together_us([stored], operations=actors),
            f"activate_{name}_never_stored_us": await together_us([fresh], operations=actors),
        }


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return {
        "ask": ask,
        "async": ask_async,
        "waits": ask_waiting,
        "many": many,
        "tells": tells,
        "memory": memory,
        "create": create,
        "live": live,
        "hot": hot,
        "activate": activate,
        "ray": ask,
    }
