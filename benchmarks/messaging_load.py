"""How the ways of bench_messaging.py are loaded and timed: the same for every system, so that only the systems differ.

The garbage collector stays as Python sets it: whoever makes more garbage pays for it. It is run before each figure.

What else the machine does only ever adds to a time. So a round's figure is a low one of many short measurements, not
their mean: the lower quartile of batches, the least of a few longer ones.
"""

import gc
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import anyio
import anyio.lowlevel
import msgspec
from system_process import Figures

__all__ = ["Figures", "Load", "Measure", "alternating_us", "repeated", "together_us"]

BATCH_S = 0.003
"""Long beside the clock's resolution, short beside what else the machine does: most batches see none of it."""


class Load(msgspec.Struct, frozen=True):
    """How much work one round of one measurement is.

    Attributes:
        seconds: about how long each of its figures is taken.
        actors: how many are "100 000 actors".
        created: how many are "10 000 actors".
    """

    seconds: float
    actors: int
    created: int


Measure: TypeAlias = Callable[[Load], Awaitable[Figures]]
"""One round of one system in one row."""


async def alternating_us(seconds: float, ways: Mapping[str, Callable[[int], Awaitable[None]]]) -> Figures:
    """What one operation of each way costs: the lower quartile of batches. The ways take turns, batch by batch.

    Args:
        seconds: for each way.
        ways: by the figure's name; called with a number, a way does its operation so many times.
    """
    gc.collect()
    sizes: dict[str, int] = {}
    for name, way in ways.items():
        await way(20)  # the first ones import, compile and allocate
        began_s = time.perf_counter()
        await way(20)
        sizes[name] = max(1, int(20 * BATCH_S / (time.perf_counter() - began_s)))
    took_us: dict[str, list[float]] = {name: [] for name in ways}
    until_s = time.perf_counter() + seconds * len(ways)
    while time.perf_counter() < until_s:
        for name, way in ways.items():
            began_s = time.perf_counter()
            await way(sizes[name])
            took_us[name].append((time.perf_counter() - began_s) / sizes[name] * 1e6)
    return {name: sorted(took)[len(took) // 4] for name, took in took_us.items()}


async def together_us(callers: Sequence[Callable[[], Awaitable[None]]], *, operations: int) -> float:
    """The cost of one of so many operations if all callers begin at once, each in a task; until the last has ended."""
    go = anyio.Event()
    ready = 0
    began_s = 0.0

    async def work(caller: Callable[[], Awaitable[None]]) -> None:
        nonlocal ready
        ready += 1
        await go.wait()
        await caller()

    gc.collect()
    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(work, caller)
        while ready < len(callers):
            await anyio.lowlevel.checkpoint()
        began_s = time.perf_counter()
        go.set()
    return (time.perf_counter() - began_s) / operations * 1e6


async def repeated(seconds: float, measure: Callable[[], Awaitable[float]]) -> float:
    """The least of as many measurements as fit, at least of one."""
    measured: list[float] = []
    until_s = time.perf_counter() + seconds
    while not measured or time.perf_counter() < until_s:
        measured.append(await measure())
    return min(measured)
