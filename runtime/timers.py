"""Deadlines and delays of a whole runtime in one heap with one task.

A cancel scope for each ask would cost 4 to 7 us (FACTS.md, "Messaging"); an entry here costs about one. Cancelled
entries stay in the heap until they come up or are more than half of it.
"""

import heapq
import math
from collections.abc import Callable
from itertools import count

import anyio
import anyio.lowlevel
from msgspec import Struct

from .waking import Backend

__all__ = ["Timer", "Timers"]

_COMPACT_MIN = 1024

_FIRED_PER_CHECKPOINT = 256
"""So that many deadlines at once let others run; so does an action that sets a timer for now: it comes next round."""


class Timer(Struct, eq=False):
    """One entry. `cancel` may be called at any time, also after it has fired."""

    _timers: "Timers"
    action: Callable[[], None] | None

    def cancel(self) -> None:
        if self.action is not None:
            self.action = None
            self._timers.forgot()


class Timers:
    """Calls plain functions at times on the event loop's clock, in order of time, then of their making."""

    def __init__(self, backend: Backend) -> None:
        self.now = backend.now
        self._heap: list[tuple[float, int, Timer]] = []
        self._cancelled = 0
        self._numbers = count()
        self._waker = backend.waker()

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        """Call `action` (plain, short, must not raise) at `when`; a time that has passed means soon."""
        timer = Timer(self, action)
        if not self._heap or when < self._heap[0][0]:
            self._waker.wake()
        heapq.heappush(self._heap, (when, next(self._numbers), timer))
        return timer

    def forgot(self) -> None:
        """An entry was cancelled. For Timer."""
        self._cancelled += 1
        if self._cancelled > _COMPACT_MIN and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].action is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    async def serve(self) -> None:
        """Fire what is due, for ever. One task of the runtime runs this."""
        while True:
            if self._fire(self.now()):
                await anyio.lowlevel.checkpoint()
                continue
            deadline = self._heap[0][0] if self._heap else math.inf
            with anyio.CancelScope(deadline=deadline):
                await self._waker.wait()

    def _fire(self, now: float) -> bool:
        """Fire what is due, a bounded number; False where nothing was. Cancelled entries that come up are let go."""
        fired = 0
        round_began = next(self._numbers)
        while self._heap and fired < _FIRED_PER_CHECKPOINT:
            when, number, timer = self._heap[0]
            if timer.action is not None and (when > now or number > round_began):
                break
            heapq.heappop(self._heap)
            action, timer.action = timer.action, None
            if action is None:
                self._cancelled -= 1
            else:
                fired += 1
                action()
        return fired > 0
