"""A committer whose disk takes virtual time: what is staged meanwhile gathers for the next group, as behind the thread.

With it, programs restart, stop and passivate actors while commits are in flight, pipeline writes behind a closed gate,
and hear of a write that failed only after they have gone on. A store that is closed, or taken over, in that time
refuses what had been on its way.
"""

from collections.abc import Callable

import anyio

from callboard.runtime import Runtime
from callboard.runtime.committer import Committer, Entry, Receipt
from callboard.runtime.gathering import Gathering
from callboard.runtime.metrics import Metrics
from callboard.runtime.waking import Backend
from callboard.store import Batch, Store

__all__ = ["RuntimeOnSlowDisk"]

DrawTimes = Callable[[], tuple[float, float]]
"""The seconds before a group is written, and from then until it is known to be."""


class SlowDisk(Committer):
    """Keeps the contract of Committer: receipts in order, each group's in a task and through `run`."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        metrics: Metrics,
        *,
        run: Callable[[Callable[[], None]], None],
        draw_times: DrawTimes,
    ) -> None:
        super().__init__(store, backend, metrics, run=run)
        self._draw_times = draw_times
        self._asked = backend.waker()
        self._gathering = Gathering()

    def submit(self, batch: Batch, receipt: Receipt) -> None:
        assert not self._closing, "nothing is staged once every actor has stopped"
        self.in_flight += 1
        self._gathering.waiting.append((batch, receipt, self._backend.now()))
        self._asked.wake()

    async def serve(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write)
            await super().serve()

    async def aclose(self) -> None:
        self._closing = True
        self._asked.wake()
        await self._ended.wait()
        await super().aclose()

    async def _write(self) -> None:
        while self._gathering.waiting or not self._closing:
            if not self._gathering.waiting:
                await self._asked.wait()
                continue
            group: list[Entry] = []
            self._gathering.fill(group)
            before_s, after_s = self._draw_times()
            await anyio.sleep(before_s)
            results = self._commit([batch for batch, _, _ in group])
            await anyio.sleep(after_s)
            self._done.append((group, results))
            self._arrived.wake()
        self._ended.wake()


class RuntimeOnSlowDisk(Runtime):
    """A Runtime whose commits take as long as `draw_times` says."""

    def __init__(
        self, open_store: Callable[[], Store], *, drain_timeout_s: float, actors_max: int, draw_times: DrawTimes
    ) -> None:
        super().__init__(open_store, drain_timeout_s=drain_timeout_s, actors_max=actors_max)
        self._draw_times = draw_times

    def _compose(self) -> None:
        super()._compose()
        slow = SlowDisk(
            self._store, self._backend, self._metrics, run=self._dispatcher.run, draw_times=self._draw_times
        )
        self._committer = self._supervisor.committer = self._inspection.committer = slow
