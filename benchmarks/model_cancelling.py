"""The row `cancel` of bench_model_path.py: what is left over of calls that are cancelled at any moment.

Callers contend for few connections and cancel each call after a random time: while it queues, connects, waits, streams,
or is stored. Then: is every slot there (as many calls at once as there may be connections, all of which the server must
have together), has every task ended, and, when the client was closed, every socket?
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence

import anyio
import trio
from closed_loop import Caller
from model_load import Load, Opener, Wanted, Way
from model_upstream import ask_statistics
from system_process import Figures

__all__ = ["cancel", "together"]

CALLERS = 100
CONNECTIONS = 20
PATIENCE_S = 0.3
"""The most: a call takes 0.2 s when it has its connection, and four others wait for the same."""

SLOTS_PATIENCE_S = 5.0
"""A client without slots would wait for ever."""


async def cancel(opener: Opener, load: Load) -> Figures:
    sockets_before = sockets()
    async with opener(Wanted(load.url, load.folder, CONNECTIONS)) as way:
        await way(0, "whole-0")()
        tasks_before, began_s = tasks_living(), time.perf_counter()
        cancelled = await storm(way, load.cancelled)
        figures = {"cancelled_per_s": cancelled / (time.perf_counter() - began_s), "cancelled_calls": float(cancelled)}
        figures["tasks_left"] = float(await settled(tasks_living) - tasks_before)
        figures["slots_left"] = float(CONNECTIONS - await calls_at_once(way, load.url))
    figures["sockets_left"] = float(await settled(sockets) - sockets_before)
    return figures


async def storm(way: Way, calls: int) -> int:
    """Begin calls until so many were cancelled, each after a random time; how many were."""
    cancelled = 0

    async def call_and_cancel(number: int) -> None:
        nonlocal cancelled
        moment = random.Random(number)
        caller = way(number, ("paced-1", "whole-200")[number % 2])
        while cancelled < calls:
            with anyio.move_on_after(moment.uniform(0, PATIENCE_S)) as scope:
                await caller()
            cancelled += scope.cancelled_caught

    async with anyio.create_task_group() as tasks:
        for number in range(CALLERS):
            tasks.start_soon(call_and_cancel, number)
    return cancelled


async def calls_at_once(way: Way, url: str) -> int:
    """As many calls as there may be connections: so many of them the server had at once."""
    ask_statistics(url, "/reset")
    with anyio.move_on_after(SLOTS_PATIENCE_S):
        await together([way(number, "whole-500") for number in range(CONNECTIONS)])
    return ask_statistics(url).in_flight_max


async def together(callers: Sequence[Caller]) -> None:
    """One call of each, all at once."""

    async def call(caller: Caller) -> None:
        await caller()

    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(call, caller)


async def settled(count: Callable[[], int]) -> int:
    """The least that it comes to within a second: what is cancelled may need a moment of the loop to end."""
    least = count()
    for _ in range(20):
        await anyio.sleep(0.05)
        least = min(least, count())
    return least


def tasks_living() -> int:
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


def sockets() -> int:
    """How many sockets this process has."""
    return sum(is_socket(number) for number in os.listdir("/proc/self/fd"))


def is_socket(number: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    except FileNotFoundError:  # what listed the folder
        return False
