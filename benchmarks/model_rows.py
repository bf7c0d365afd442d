"""The rows of bench_model_path.py, over any client.

CPU time is the process's own, of all its threads and in the kernel as well; what the server takes is counted there.
"""

import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from closed_loop import Caller, closed_loop, steady_loop
from model_cancelling import cancel, together
from model_load import Load, Measure, Opener, Wanted, Way, figures_of, streamed
from model_upstream import ask_statistics
from system_process import Figures

__all__ = ["measures_with"]

CALLERS = 10
"""Of the rows `post`, `burst` and `paced`."""

HUNDRED = 100
"""Callers of the row `hundred`, and connections that are few beside the row `connections`'s many."""

CALLS_PER_S = 2_000
"""Of the row `connections`: as many with few as with many, so that only their number differs. A third of a core."""

BATCH = 20
"""Calls with idle connections between which the clock is read, in turn with as many without."""


async def counted(load: Load, way: Way, model: str, **options: float) -> Figures:
    """A closed loop of so many `callers` that ask for this model, which the server counts as well.

    Their first calls, which connect, are short ones.
    """
    callers = [way(number, model) for number in range(int(options.pop("callers")))]
    connecting = [way(number, "burst-0" if model.startswith("paced") else "whole-0") for number in range(len(callers))]
    gc.collect()
    before = ask_statistics(load.url)
    done = await closed_loop(callers, first=connecting, **options)
    after = ask_statistics(load.url)
    calls = len(done.latencies_s) + len(callers)
    assert after.requests - before.requests == calls, f"the server had {after.requests - before.requests}, not {calls}"
    return {**figures_of(done), "server_us": (after.cpu_s - before.cpu_s) / calls * 1e6}


def wanted(load: Load, connections: int | None = None) -> Wanted:
    return Wanted(load.url, load.folder, connections)


async def post(opener: Opener, load: Load) -> Figures:
    async with opener(wanted(load)) as way:
        return await counted(load, way, "whole-0", callers=CALLERS, seconds=load.seconds)


async def hundred(opener: Opener, load: Load) -> Figures:
    async with opener(wanted(load, HUNDRED)) as way:
        return await counted(load, way, "whole-0", callers=HUNDRED, seconds=load.seconds)


async def burst(opener: Opener, load: Load) -> Figures:
    async with opener(wanted(load)) as way:
        return streamed(await counted(load, way, "burst-0", callers=CALLERS, seconds=load.seconds))


async def paced(opener: Opener, load: Load) -> Figures:
    """Each caller begins a stream for as long as the others' figures are taken; it is as long as it is."""
    gap_s = load.gap_ms / 1000
    async with opener(wanted(load)) as way:
        paced = partial(counted, load, way, f"paced-{load.gap_ms}")
        return streamed(await paced(callers=CALLERS, seconds=load.seconds, spread_s=gap_s))


def at_once(model: str) -> Callable[[Opener, int, Load], Awaitable[Figures]]:
    """A row with a figure for each number of callers."""

    async def row(opener: Opener, at_once_max: int, load: Load) -> Figures:
        figures: Figures = {}
        for callers in (number for number in load.at_once if number <= at_once_max):
            async with opener(wanted(load, callers)) as way:
                taken = await counted(load, way, model, callers=callers, seconds=load.seconds)
            figures |= {f"{callers}_{name}": value for name, value in taken.items()}
        return figures

    return row


async def connections(opener: Opener, at_once_max: int, load: Load) -> Figures:
    """As many calls a second over few connections as over many, all in use: the server takes its time."""
    figures: Figures = {}
    for name, number in (("few", HUNDRED), ("many", min(load.connections, at_once_max))):
        delay_s = number / CALLS_PER_S
        async with opener(wanted(load, number)) as way:
            callers = [way(caller, f"whole-{delay_s * 1000:.0f}") for caller in range(number)]
            gc.collect()
            ask_statistics(load.url, "/reset")
            seconds = 1.5 * load.connections / CALLS_PER_S
            # No connection is idle long enough to be closed: the first calls end when the last ones begin.
            done = await steady_loop(callers, seconds=seconds, warm_s=2 * delay_s, spread_s=delay_s)
            in_use = ask_statistics(load.url).in_flight_max
        assert in_use > number * 0.9, f"{in_use} connections were in use, not {number}"
        figures |= {f"{name}_{figure}": value for figure, value in figures_of(done).items()}
    return figures


async def idle(opener: Opener, at_once_max: int, load: Load) -> Figures:
    """One call after another beside many idle connections, and by a client that has no other, in turn."""
    number = min(load.idle, at_once_max)
    async with opener(wanted(load, number)) as crowded, opener(wanted(load, number)) as alone:
        beside, without = crowded(0, "whole-0"), alone(0, "whole-0")
        await without()
        await together([crowded(caller, "whole-500") for caller in range(number)])
        gc.collect()
        took = await in_turn({"beside_idle": beside, "without_idle": without}, seconds=load.seconds)
        there = ask_statistics(load.url).connections
    assert there >= number, f"{there} connections were there at the end, not {number}"
    return took


async def in_turn(callers: Mapping[str, Caller], *, seconds: float) -> Figures:
    """The lower quartile of batches, per call: time, and CPU time."""
    took: dict[str, list[float]] = {}
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        for name, caller in callers.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            for _ in range(BATCH):
                await caller()
            took.setdefault(f"{name}_us", []).append((time.perf_counter() - wall_s) / BATCH * 1e6)
            took.setdefault(f"{name}_cpu_us", []).append((time.process_time() - cpu_s) / BATCH * 1e6)
    return {name: sorted(values)[len(values) // 4] for name, values in took.items()}


def measures_with(opener: Opener, *, at_once_max: int = 1_000_000) -> dict[str, Measure]:
    """By row.

    Args:
        at_once_max: so many callers at most, where more would take too long.
    """
    return {
        "post": partial(post, opener),
        "hundred": partial(hundred, opener),
        "burst": partial(burst, opener),
        "paced": partial(paced, opener),
        "many": partial(at_once("whole-0"), opener, at_once_max),
        "streams": partial(at_once("burst-0"), opener, at_once_max),
        "connections": partial(connections, opener, at_once_max),
        "idle": partial(idle, opener, at_once_max),
        "cancel": partial(cancel, opener),
    }
