"""Ten minutes of weather over ten thousand actors, in real time and on a real LMDB store: `make soak`, or

    python tests/simulation/storms.py [--backend trio] [--minutes 10] [--actors 10000]

Clients ask and tell; crashes and cancellations come one by one and in storms; idle actors leave memory and come back.
Every ten seconds one JSON line says how it is. In the end it is calm, and must hold: no more tasks than in the first
calm, next to no CPU, no ask without its end, every acknowledged addition stored and none twice; then the runtime closes
over handlers that do not end, and must do so within its deadline. The status is 1 where one of these does not hold.
"""

import argparse
import asyncio
import json
import logging
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import trio

from callboard.runtime import (
    Actor,
    Backoff,
    ChildEnded,
    Context,
    Request,
    RestartPolicy,
    Runtime,
    Ticket,
    handles,
)
from callboard.runtime.runtime import CANCEL_GRACE_S
from callboard.store import CallboardError
from callboard.store.lmdb_store import LmdbStore

CLIENTS = 200
STORM_EVERY_S = 3.0
STORM_ASKS = 1000
LOOK_EVERY_S = 10.0
CALM_S = 5.0
CALM_CPU_SHARE_MAX = 0.02
DRAIN_TIMEOUT_S = 3.0


class Add(Request[int], frozen=True):
    pass


class Total(Request[int], frozen=True):
    pass


class Sleep(Request[int], frozen=True):
    seconds: float


class SleepOn(Request[int], frozen=True):
    """The same, whatever becomes of its caller."""

    seconds: float


class Later(Request[int], frozen=True):
    seconds: float


class Crash(Request[None], frozen=True):
    pass


class CrashAgain(Request[None], frozen=True):
    """May be tried again, and crashes each time."""


class Weathered(Actor):
    """Counts additions in the store, sleeps, owes replies and crashes."""

    def load(self, context: Context) -> None:
        self.total = int(context.stored.head or b"0") if context.stored is not None else 0
        self.owed: dict[int, Ticket] = {}
        self.count = 0

    @handles(Add)
    def add(self, _message: Add, context: Context) -> int:
        self.total += 1
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Total)
    def tell_total(self, _message: Total, _context: Context) -> int:
        return self.total

    @handles(Sleep, on_cancel="cancel")
    async def sleep(self, message: Sleep, _context: Context) -> int:
        await anyio.sleep(message.seconds)
        return self.total

    @handles(SleepOn)
    async def sleep_on(self, message: SleepOn, _context: Context) -> int:
        await anyio.sleep(message.seconds)
        return self.total

    @handles(Later, on_cancel="cancel")
    def later(self, message: Later, context: Context) -> Ticket:
        self.count += 1
        self.owed[self.count] = context.defer()
        context.spawn(partial(anyio.sleep, message.seconds), tag=self.count)
        return self.owed[self.count]

    @handles(ChildEnded)
    def child_ended(self, signal: ChildEnded, _context: Context) -> None:
        ticket = self.owed.pop(signal.tag, None)
        if ticket is not None:
            ticket.reply(self.total)

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise ZeroDivisionError

    @handles(CrashAgain, retryable=True)
    def crash_again(self, _message: CrashAgain, _context: Context) -> None:
        raise ZeroDivisionError


def tasks_now() -> int:
    if trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


class Weather:
    """One soak; `faults` says what did not hold."""

    def __init__(self, runtime: Runtime, *, actors: int, seconds: float) -> None:
        self.runtime = runtime
        self.actors = actors
        self.until_s = time.monotonic() + seconds
        self.began_s = time.monotonic()
        self.random = random.Random(0)
        self.outcomes: Counter[str] = Counter()
        self.begun = 0
        self.acknowledged: Counter[int] = Counter()
        self.unsure: Counter[int] = Counter()
        self.faults: list[str] = []

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until_s

    def must(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)

    async def blow(self) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(CLIENTS):
                tasks.start_soon(self.client)
            tasks.start_soon(self.storms)
            tasks.start_soon(self.look)
        await self.resume_failed()

    async def client(self) -> None:
        while not self.over:
            number = self.random.randrange(self.actors)
            dice = self.random.random()
            if dice < 0.5:
                await self.add(number)
            elif dice < 0.6:
                await self.ask(number, Sleep(self.random.choice([0.0, 0.001, 0.02])), self.random.choice([0.01, 10.0]))
            elif dice < 0.7:
                await self.ask(number, Later(self.random.choice([0.0, 0.01])), self.random.choice([0.005, 10.0]))
            elif dice < 0.71:
                await self.ask(number, self.random.choice([Crash(), CrashAgain()]), 10.0)
            else:
                await self.ask(number, Total(), 10.0)
            await anyio.sleep(self.random.choice([0.0, 0.0, 0.01]))

    async def add(self, number: int) -> None:
        outcome = await self.ask(number, Add(), 30.0)
        if outcome == "reply":
            self.acknowledged[number] += 1
        elif outcome in ("Unknown", "left"):
            self.unsure[number] += 1

    async def ask(self, number: int, message: Request[Any], patience_s: float) -> str:
        outcome = "left"
        self.begun += 1
        try:
            with anyio.move_on_after(patience_s):
                await self.runtime.actor("weathered", f"actor-{number}").ask(message)
                outcome = "reply"
        except CallboardError as error:
            outcome = type(error).__name__
        finally:
            self.outcomes[outcome] += 1
        return outcome

    async def storms(self) -> None:
        while not self.over:
            await anyio.sleep(STORM_EVERY_S)
            numbers = self.random.sample(range(self.actors), min(STORM_ASKS, self.actors))
            async with anyio.create_task_group() as tasks:
                for number in numbers:
                    tasks.start_soon(self.ask, number, self.random.choice([Sleep(1.0), SleepOn(0.1), Later(1.0)]), 60.0)
                await anyio.sleep(self.random.choice([0.0, 0.05, 0.5]))
                tasks.cancel_scope.cancel()
            for number in numbers[: STORM_ASKS // 2]:
                await self.ask(number, Crash(), 0.001)
            await self.resume_failed()

    async def resume_failed(self) -> None:
        if self.runtime.statistics().failed:
            for number in range(self.actors):
                self.runtime.resume("weathered", f"actor-{number}")

    async def look(self) -> None:
        while not self.over:
            await anyio.sleep(LOOK_EVERY_S)
            self.show("weather")

    def show(self, name: str, **more: object) -> None:
        statistics = self.runtime.statistics()
        line = {
            "soak": name,
            "second": round(time.monotonic() - self.began_s),
            "tasks": tasks_now(),
            "active": statistics.active,
            "handled": statistics.handled,
            "crashes": statistics.crashes,
            "blocks": sys.getallocatedblocks(),
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **self.outcomes,
            **more,
        }
        print(json.dumps(line), flush=True)

    async def calm(self, name: str) -> int:
        """Wait until nothing moves; the number of tasks then."""
        await self.runtime.wait_quiet(timeout_s=60.0)
        await anyio.sleep(1.0)
        began_cpu_s = time.process_time()
        await anyio.sleep(CALM_S)
        share = (time.process_time() - began_cpu_s) / CALM_S
        self.show(name, cpu_share=round(share, 4))
        self.must(share <= CALM_CPU_SHARE_MAX, f"{name}: {share:.1%} of a core while nothing is asked")
        return tasks_now()

    async def check_totals(self) -> None:
        self.must(self.begun == sum(self.outcomes.values()), "an ask has not ended")
        for number in range(self.actors):
            total = await self.runtime.actor("weathered", f"actor-{number}").ask(Total())
            least = self.acknowledged[number]
            if not least <= total <= least + self.unsure[number]:
                self.faults.append(f"actor-{number} holds {total}, acknowledged were {least}")

    async def leave_some(self) -> None:
        for number in range(100):
            self.runtime.actor("weathered", f"actor-{number}").ask_nowait(SleepOn(1000.0))


async def soak(folder: Path, options: argparse.Namespace) -> list[str]:
    runtime = Runtime(lambda: LmdbStore(folder), drain_timeout_s=DRAIN_TIMEOUT_S)
    policy = RestartPolicy(restarts_max=5, window_s=10.0, backoff=Backoff(first_s=0.01, max_s=0.1))
    runtime.register("weathered", Weathered, restart=policy, idle_s=20.0)
    async with runtime:
        first = Weather(runtime, actors=options.actors, seconds=min(options.minutes * 6, 30.0))
        await first.blow()
        tasks_first = await first.calm("first calm")
        weather = Weather(runtime, actors=options.actors, seconds=options.minutes * 60)
        weather.acknowledged, weather.unsure = first.acknowledged, first.unsure
        await weather.blow()
        tasks_last = await weather.calm("last calm")
        weather.must(
            tasks_last <= tasks_first, f"{tasks_last} tasks after the last storm, {tasks_first} after the first"
        )
        await weather.check_totals()
        await weather.leave_some()
        left_s = time.monotonic()
    closing_s = time.monotonic() - left_s
    weather.must(closing_s <= DRAIN_TIMEOUT_S + CANCEL_GRACE_S, f"closing took {closing_s:.1f} s")
    print(json.dumps({"soak": "closed", "closing_s": round(closing_s, 2), "cut": len(runtime.cut)}), flush=True)
    return first.faults + weather.faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Ten minutes of weather over ten thousand actors.")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--actors", type=int, default=10_000)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what crashes on purpose is logged, at length
    with tempfile.TemporaryDirectory() as folder:
        faults = anyio.run(soak, Path(folder), options, backend=options.backend)
    for fault in faults[:20]:
        print(f"does not hold: {fault}")
    print("the soak failed" if faults else "the soak passed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
