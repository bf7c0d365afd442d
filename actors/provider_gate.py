"""ProviderGate: what all calls to one provider share. Each call passes it for each of its requests.

    call ── enter: a slot, in order of arrival ── attempt ── answer
                ▲                                    │
                └── a wait (a repeat), or the gate ◄─┴─ ModelError: retry.Tries decides
                    closed for all (a 429)

Whoever has been through before goes ahead of newcomers, so that no call starves; else first come, first served. A 429
closes the gate for all for as long as the server says, and `Throttle` lets fewer in at once afterwards. A waiting call
holds no slot, and no timeout of its request runs meanwhile.

There is no task behind the gate. While it is closed the first of those that wait keeps its own timer and opens it; when
that one goes away, the next one is woken to keep its own. A slot is taken and given back in places without an await,
and whoever is let in and cancelled at the same moment hands the slot on, so that none is lost.

State belongs to an event loop: one gate in several loops is as many gates.

Source: anyio's CapacityLimiter (hand-over of slots); the rest as retry.py and throttle.py say.
"""

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

import anyio
from msgspec import Struct

from ..runtime.options import check_count
from ..runtime.waking import Waker, current_backend
from .errors import ModelError, RateLimited
from .per_loop import PerLoop
from .retry import NextTry, RetryBudget, RetryPolicy, Tries
from .throttle import Throttle

__all__ = ["GateStatistics", "ProviderGate"]

AnswerT = TypeVar("AnswerT")


class GateStatistics(Struct, frozen=True):
    """What a gate holds now, in the running event loop, and what it has seen.

    Attributes:
        limit: requests at once that are allowed now.
        in_use: requests under way.
        waiting: calls that wait to be let in.
        closed_s: seconds until the gate opens again; 0 where it is open.
        retry_budget: retries that may be made before one is earned again.
        calls: calls that ever began.
        retries: requests that repeated a failed one.
        rate_limited: requests that ended in a RateLimited.
    """

    limit: int
    in_use: int
    waiting: int
    closed_s: float
    retry_budget: float
    calls: int
    retries: int
    rate_limited: int


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call that waits. `number` is its request's once it is let in; `keeps_time` once it is to open the gate."""

    waker: Waker
    number: int | None = None
    keeps_time: bool = False


_Queue = OrderedDict[_Waiter, None]
"""Not a dict, whose first key is slow to find once many before it are gone."""


@dataclass(slots=True, eq=False)
class _Door:
    """The gate in one event loop."""

    throttle: Throttle
    budget: RetryBudget = field(default_factory=RetryBudget)
    in_use: int = 0
    returning: _Queue = field(default_factory=lambda: _Queue())
    newcomers: _Queue = field(default_factory=lambda: _Queue())
    calls: int = 0
    retries: int = 0
    rate_limited: int = 0

    def enter_nowait(self) -> int | None:
        """Take a slot; the request's number, or None where the call must wait. For newcomers."""
        if self.in_use >= self.throttle.limit or self.newcomers or self.returning or self.is_closed():
            return None
        self.in_use += 1
        return self.throttle.let_in()

    async def enter(self, queue: _Queue, *, until: float = inf) -> int | None:
        """Wait for a slot; the request's number, or None where there is none `until` then.

        Cancellation: the place in the queue is given up, or the slot is passed on.
        """
        waiter = _Waiter(current_backend().waker())
        queue[waiter] = None
        try:
            self.admit()
            while waiter.number is None and self._may_open(until):
                with anyio.CancelScope(deadline=self._wakes_at(waiter, until)):
                    await waiter.waker.wait()
                self.admit()
        except BaseException:
            if waiter.number is not None:
                self.leave()
            raise
        finally:
            if waiter.number is None:
                del queue[waiter]
                self.admit()  # or nobody would keep the time now
        return waiter.number

    def _may_open(self, until: float) -> bool:
        opens_at = self.throttle.opens_at
        return anyio.current_time() < until and (opens_at is None or opens_at <= until)

    def _wakes_at(self, waiter: _Waiter, until: float) -> float:
        opens_at = self.throttle.opens_at
        if opens_at is None:
            waiter.keeps_time = False  # or, closed anew, the gate would be left to a waiter without a timer
        return until if opens_at is None or not waiter.keeps_time else opens_at

    def leave(self) -> None:
        """Give a slot back."""
        assert self.in_use > 0, "a slot was given back twice"
        self.in_use -= 1
        self.admit()

    def admit(self) -> None:
        """Let in whom there is room for, in order; while the gate is closed, make the first one keep the time."""
        while queue := self.returning or self.newcomers:
            first = next(iter(queue))
            if self.is_closed():
                if not first.keeps_time:
                    first.keeps_time = True
                    first.waker.wake()
                return
            if self.in_use >= self.throttle.limit:
                return
            del queue[first]
            self.in_use += 1
            first.number = self.throttle.let_in()
            first.waker.wake()

    def is_closed(self) -> bool:
        """Whether nobody may be let in now."""
        # The clock is read only where the gate was closed: that costs as much as all the rest.
        return self.throttle.opens_at is not None and self.throttle.is_closed(anyio.current_time())


class ProviderGate:
    """Bounds the requests at once to one provider, repeats those that failed, and slows all down when it says so.

    Args:
        connections_max: requests at once, per event loop.
        policy: what is repeated, and how long calls wait.

    Cost: 3 us a call that has neither to wait nor to be repeated (5 on asyncio).
    """

    def __init__(self, *, connections_max: int = 1000, policy: RetryPolicy | None = None) -> None:
        check_count("connections_max", connections_max, least=1)
        self._policy = policy or RetryPolicy()
        self._doors = PerLoop(lambda: _Door(Throttle(connections_max)))

    async def call(
        self, attempt: Callable[[], Awaitable[AnswerT]], *, shown: Callable[[], bool] = lambda: False
    ) -> AnswerT:
        """The answer of the first attempt that has one.

        Args:
            attempt: makes one request; called anew for each, while a slot is held for it.
            shown: whether the present attempt has handed out a piece of its answer; no other is made then.

        Raises:
            ModelError: the last attempt's, with all `tries` counted.
            Exception: what else an attempt raised; none is made after it.

        Cancellation: the attempt is cancelled, and the slot or the place in the queue is free.
        """
        door = self._doors.get()
        door.calls += 1
        door.budget.earn()
        tries: Tries | None = None
        failure: ModelError | None = None
        number = door.enter_nowait()
        if number is None:
            number = await door.enter(door.newcomers)
        while number is not None:
            try:
                answer = await attempt()
                door.throttle.succeeded()
                return answer
            except ModelError as error:
                tries = tries or Tries(self._policy, door.budget)
                following = self._judge(door, tries, error, number=number, shown=shown())
                if following is None:
                    raise
                failure = error
            finally:
                door.leave()
            if following.delay_s:
                await anyio.sleep(following.delay_s)
            number = await door.enter(door.returning, until=following.gives_up_at)
        assert failure is not None, "a newcomer waits without end"
        raise failure

    def _judge(self, door: _Door, tries: Tries, error: ModelError, *, number: int, shown: bool) -> NextTry | None:
        """What follows from a failed attempt. No await from here until its slot is given back: a 429 closes the gate
        before anybody else can be let in."""
        now, chance = anyio.current_time(), random.random()
        following = tries.failed(error, shown=shown, now=now, chance=chance)
        error.tries = tries.made
        if isinstance(error, RateLimited):
            door.rate_limited += 1
            door.throttle.struck(number, in_use=door.in_use)
            pause_s = tries.pause_s(error, strikes=door.throttle.strikes, chance=chance)
            if pause_s > 0:
                door.throttle.close(now + pause_s)
        elif following is not None:
            door.retries += 1
        return following

    def statistics(self) -> GateStatistics:
        """See `GateStatistics`."""
        door = self._doors.get()
        opens_at = door.throttle.opens_at
        return GateStatistics(
            limit=door.throttle.limit,
            in_use=door.in_use,
            waiting=len(door.newcomers) + len(door.returning),
            closed_s=0.0 if opens_at is None else max(0.0, opens_at - anyio.current_time()),
            retry_budget=door.budget.tokens,
            calls=door.calls,
            retries=door.retries,
            rate_limited=door.rate_limited,
        )
