"""Programs in virtual time: the clock jumps to the next deadline whenever nothing else can happen.

An hour of sleeping takes no time, and only what the program does decides what comes first, never how fast the machine
is. On trio this is trio's own MockClock. On asyncio it is an event loop whose selector never waits: asked to wait, it
moves the loop's clock instead.

For programs without threads and sockets of their own, such as those over a MemoryStore with a ScriptedModel: neither
clock can know that a thread is still about to answer, and would jump past it.

A program that can never end is an error here and no hang: see `Stuck`.

Source: trio.testing.MockClock (autojump); FoundationDB's simulation testing.
"""

import asyncio
import math
import random
import selectors
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from itertools import count
from typing import Any, Literal, TypeVar, TypeVarTuple

import anyio
import trio
import trio._core._run as trio_scheduler  # its source of chance; see _seeded
import trio.testing

__all__ = ["VIRTUAL_TIME_MAX_S", "Stuck", "run_in_virtual_time"]

ResultT = TypeVar("ResultT")
ArgsT = TypeVarTuple("ArgsT")

VIRTUAL_TIME_MAX_S = 1e6
"""Eleven days. Who is still waiting then waits for something that does not come, kept going by a timer of another's."""

_TURNS_MAX = 200_000
"""Turns of the loop in which no time passes: seconds of work. What needs more of them spins."""


class Stuck(RuntimeError):
    """The program could never have ended: nothing can happen any more, it spins, or it has outlived its limit.

    It was cancelled, so that its blocks were left, before this was raised.
    """


def run_in_virtual_time(
    program: Callable[[], Awaitable[ResultT]],
    *,
    backend: Literal["trio", "asyncio"] = "trio",
    seed: int | None = None,
    limit_s: float = VIRTUAL_TIME_MAX_S,
) -> ResultT:
    """Run an async function in virtual time, from 0 s on, and return what it returns.

    Args:
        program: called without arguments; for others use functools.partial.
        backend: the event loop to run it on.
        seed: where the loop may choose who goes first, let this number choose. One seed is then one history, and many
            seeds are many. trio chooses among all runnable tasks. asyncio promises to call back in order, so that
            there is a choice only among timers that are due at the same time. None: trio as always, asyncio in the
            order in which the timers were set.
        limit_s: virtual seconds that the program may take; inf for no limit.

    Raises:
        Stuck: every task waits and no deadline is left, or the limit is passed, or no time passes although the loop
            turns. The message names the tasks that were left.
    """
    watch = _Watch(limit_s)

    async def watched() -> ResultT:
        with anyio.CancelScope() as watch.scope:
            if backend == "trio":
                watch.unshield = partial(_unshield, trio.lowlevel.current_task())
            return await program()
        raise Stuck(watch.verdict)

    chance = random.Random(seed) if seed is not None else None
    try:
        if backend == "trio":
            clock = trio.testing.MockClock(autojump_threshold=0)
            options: dict[str, Any] = {"clock": clock, "instruments": [_TrioInstrument(watch, clock)]}
            with _seeded(chance):
                result = anyio.run(watched, backend="trio", backend_options=options)
        else:
            options = {"loop_factory": lambda: _JumpingLoop(watch, chance)}
            result = anyio.run(watched, backend="asyncio", backend_options=options)
    except BaseException as error:
        if watch.verdict and not isinstance(error, Stuck):
            raise Stuck(watch.verdict) from error
        raise
    if watch.verdict:
        raise Stuck(watch.verdict)
    return result


class _Watch:
    """Decides that a program is stuck and cancels it. `verdict` says why; "" while all is well.

    `unshield` takes the shields off what did not heed the cancellation; where that was not enough, or there is none,
    Stuck is raised out of the loop itself.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._turned_at = -1.0
        self._turns = 0
        self.scope: anyio.CancelScope | None = None
        self.verdict = ""
        self.unshield: Callable[[], None] | None = None

    def turned(self, now: float) -> None:
        """The loop has made one more turn, at `now`."""
        if now != self._turned_at:
            self._turned_at, self._turns = now, 0
        self._turns += 1
        if self._turns > _TURNS_MAX:
            self._turns = 0
            self.give_up(f"the loop has turned {_TURNS_MAX} times and no time has passed")
        elif now > self._limit_s and not self.verdict:
            self.give_up(f"it has not ended within {self._limit_s:g} virtual seconds")

    def give_up(self, why: str) -> None:
        """Cancel the program, or do the next harder thing where that was done before."""
        if not self.verdict and self.scope is not None:
            names = (task.name or str(task.id) for task in anyio.get_running_tasks())
            left = ", ".join(sorted(name for name in names if not name.startswith("<"))) or "none"  # "<": trio's own
            self.verdict = f"the program is stuck: {why}. Tasks that are left: {left}"
            self.scope.cancel()
        elif self.unshield is not None:
            unshield, self.unshield = self.unshield, None
            unshield()
        else:
            raise Stuck(f"{self.verdict or why}. It was cancelled, and did not heed it")


# trio -----------------------------------------------------------------------------------------------------------------


class _TrioInstrument(trio.abc.Instrument):
    """Looks whenever trio is about to wait. Twice in a row without a step: wait_all_tasks_blocked has its turn too."""

    def __init__(self, watch: _Watch, clock: trio.testing.MockClock) -> None:
        self._watch = watch
        self._clock: Any = clock
        self._waits = 0

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._waits = 0

    def before_io_wait(self, timeout: float) -> None:
        statistics = trio.lowlevel.current_statistics()
        self._waits += 1
        idle = not statistics.tasks_runnable and not statistics.run_sync_soon_queue_size
        try:
            if idle and statistics.seconds_to_next_deadline == math.inf and self._waits > 2:
                self._watch.give_up("every task waits, and no deadline is left that could wake one")
            else:
                self._watch.turned(trio.current_time())
        except Stuck as stuck:
            # trio only logs what an instrument raises. Its clock may end it.
            self._clock.current_time = partial(_throw, stuck)


def _throw(stuck: Stuck) -> float:
    raise stuck


def _unshield(task: trio.lowlevel.Task) -> None:
    """Take the shields off all scopes below the one that `task` is in. trio has no public door for it."""
    status: Any = task
    open_ones = [status._cancel_status]
    while open_ones:
        status = open_ones.pop()
        open_ones.extend(status._children)
        status._scope.shield = False


@contextmanager
def _seeded(chance: random.Random | None) -> Generator[None, None, None]:
    """Let `chance` choose the next task of trio's scheduler, which has no public door for it.

    trio's default reverses a batch of tasks or does not. For Hypothesis it has a mode that shuffles the whole batch,
    from an order that is the same in every process; that is the one to have.
    """
    if chance is None:
        yield
        return
    scheduler: Any = trio_scheduler
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = True, chance
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = before


# asyncio --------------------------------------------------------------------------------------------------------------


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits. What it was asked to wait is added to `now`, unless a file is ready."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            self._watch.give_up("every task waits, and no timer is left that could wake one")
        elif not ready and timeout is not None and timeout > 0:
            self.now += timeout
        self._watch.turned(self.now)
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self, watch: _Watch, chance: random.Random | None) -> None:
        self._jumping = _JumpingSelector(watch)
        self._chance = chance
        self._numbers = count()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def call_at(
        self, when: float, callback: Callable[[*ArgsT], object], *args: *ArgsT, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio. Never is no time to jump to, and of those that are due at once the lot decides."""
        if when == math.inf:
            return asyncio.TimerHandle(when, callback, args, self, context)
        lot = self._chance.random() if self._chance is not None else float(next(self._numbers))
        return super().call_at(_Due(when, lot), callback, *args, context=context)


class _Due(float):
    """A time that, among equal ones, is ordered by its lot: asyncio's heap of timers compares nothing but times."""

    __slots__ = ("lot",)

    def __new__(cls, when: float, lot: float) -> "_Due":
        due = super().__new__(cls, when)
        due.lot = lot
        return due

    lot: float

    def __lt__(self, other: float) -> bool:
        if isinstance(other, _Due) and float(self) == float(other):
            return self.lot < other.lot
        return super().__lt__(other)
