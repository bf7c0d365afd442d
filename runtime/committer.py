"""Group commit: what all actors stage goes to the store in as few transactions as the disk allows.

One thread owns the store's write side. While one transaction is on its way to the disk, batches gather for the next: no
timer, so a lone commit waits for nobody, and under load the cost of a sync is shared (FACTS.md, "Threads, GIL, group
commit": 1 805 turns/s with a thread hop per turn, 39 165 with one thread). One callback brings a whole group's answers
back to the event loop, which hands them out in pieces, so that other tasks come between.

A store that never waits for a device (memory) is called in place: then the same program is deterministic.

Source: DeWitt et al., "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984 (group commit).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import anyio
import anyio.to_thread

from ..store.contract import Batch, Store
from ..store.errors import StoreError, StoreUnavailable
from .gathering import Entry, Gathering, Receipt
from .metrics import Metrics
from .observing import Committed
from .switch_interval import SwitchInterval
from .waking import Backend

__all__ = ["Committer", "Entry", "Receipt", "close_store"]

_log = logging.getLogger("callboard.committer")

COMMITS_PER_SAMPLE = 16
"""Of the commits, so many share the 0.5 us of one measurement."""
RECEIPTS_PER_PIECE = 128
"""Handed out before other tasks of the loop get their turn: each is some microseconds."""


def _unknown(what: str, error: BaseException) -> StoreUnavailable:
    unknown = StoreUnavailable(f"{what}: {error!r}", uncertain=True)
    unknown.__cause__ = error
    return unknown


async def close_store(store: Store) -> None:
    """Close it in a thread, where it may wait for a disk: the host's other tasks go on while the log becomes rows."""
    if store.inline:
        return store.close()
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(store.close)


class Committer:
    """Takes batches on the event loop, commits them on its thread, in the order in which they came.

    `run` is given what hands out receipts, see `Dispatcher.run`. While the thread lives, the interpreter's switch
    interval is `switch_interval_s`, see switch_interval.py; None leaves it alone.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        metrics: Metrics,
        *,
        run: Callable[[Callable[[], None]], None],
        switch_interval_s: float | None = None,
    ) -> None:
        self._store = store
        self._backend = backend
        self._metrics = metrics
        self._run = run
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ended = backend.waker()
        self._done: deque[tuple[list[Entry], Sequence[StoreError | None]]] = deque()
        self._handed_out = 0
        self._arrived = backend.waker()
        self._interval = SwitchInterval(switch_interval_s) if switch_interval_s is not None else None
        self.in_flight = 0
        self.groups = 0

    def submit(self, batch: Batch, receipt: Receipt) -> None:
        """Queue a batch; its receipt comes later, or, with an inline store, before this returns. Cost: 0.4 us."""
        assert not self._closing, "nothing is staged once every actor has stopped"
        if self._store.inline:
            receipt(self._commit_inline(batch))
            return
        sampled = not self.in_flight % COMMITS_PER_SAMPLE
        self.in_flight += 1
        self._queue.put((batch, receipt, self._backend.now() if sampled else None))
        if self._thread is None:
            if self._interval is not None:
                self._interval.hold()
            self._thread = threading.Thread(target=self._work, name="callboard-committer", daemon=True)
            self._thread.start()

    def _commit_inline(self, batch: Batch) -> StoreError | None:
        if self.groups % COMMITS_PER_SAMPLE and not self._metrics.events.observers:
            self.groups += 1
            return self._commit([batch])[0]
        began_at = self._backend.now()
        results = self._commit([batch])
        self._count(began_at, results)
        self._metrics.commits.add(max(self._backend.now() - began_at, 0.0))
        return results[0]

    async def serve(self) -> None:
        """Hand out receipts, for ever. One task of the runtime runs this.

        A task, because what follows from a receipt may start tasks, and asyncio's own callbacks run outside of any.
        """
        while True:
            await self._arrived.wait()
            while self._done:
                self._run(self._hand_out)
                if self._done:
                    await self._backend.checkpoint()

    async def aclose(self) -> None:
        """Commit what is queued, end the thread and wait for it. Shield it: a commit is never cut off."""
        self._closing = True
        if self._thread is not None:
            self._queue.put(None)
            await self._ended.wait()
            self._thread.join()  # waking us was its last act
            if self._interval is not None:
                self._interval.release()
        while self._done:
            self._run(self._hand_out)

    # The thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """The thread: whatever is raised here, those whose batches it holds are answered, and it goes on."""
        gathering = Gathering()
        closing = False
        while not closing or gathering.waiting:
            group: list[Entry] = []
            try:
                closing = self._receive(gathering.waiting) or closing
                gathering.fill(group)
                results = self._commit([batch for batch, _, _ in group]) if group else ()
            except BaseException as error:  # noqa: BLE001 - a thread that ended here would leave all callers waiting
                _log.exception("the committer failed with %d batches in hand", len(group))
                if not group:
                    group.extend(gathering.waiting)
                    gathering.waiting.clear()
                results = [_unknown("the committer failed", error)] * len(group)
            if group:
                self._done.append((group, results))
                self._backend.run_soon(self._arrived.wake)
        self._backend.run_soon(self._ended.wake)

    def _receive(self, waiting: deque[Entry]) -> bool:
        """Wait for an entry, unless some wait already, and take over all that are there; True where it is the end."""
        if not waiting:
            entry = self._queue.get()
            if entry is None:
                return True
            waiting.append(entry)
        for _ in range(self._queue.qsize()):  # nobody else takes from it
            entry = self._queue.get_nowait()
            if entry is None:
                return True
            waiting.append(entry)
        return False

    def _commit(self, batches: Sequence[Batch]) -> Sequence[StoreError | None]:
        try:
            results = self._store.commit(batches)
            if len(results) != len(batches):
                raise ValueError(f"{len(results)} answers to {len(batches)} batches")
        except StoreError as error:
            return [error] * len(batches)
        except Exception as error:  # noqa: BLE001 - whatever a store raises must reach the callers, or they wait for ever
            _log.exception("the store raised an error that its contract does not name")
            return [_unknown("the store broke its contract", error)] * len(batches)
        return results

    # Back on the loop -----------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Hand out some receipts of the oldest group."""
        group, results = self._done[0]
        first = self._handed_out
        last = min(first + RECEIPTS_PER_PIECE, len(group))
        if not first:
            self._count(group[0][2], results)
        self.in_flight -= last - first
        if last == len(group):
            self._done.popleft()
            self._handed_out = 0
        else:
            self._handed_out = last
        for place in range(first, last):
            _, receipt, staged_at = group[place]
            if staged_at is not None:
                self._metrics.commits.add(max(self._backend.now() - staged_at, 0.0))
            receipt(results[place])

    def _count(self, began_at: float | None, results: Sequence[StoreError | None]) -> None:
        self.groups += 1
        if self._metrics.events.observers:
            refused = sum(error is not None for error in results)
            duration_s = max(self._backend.now() - began_at, 0.0) if began_at is not None else 0.0
            self._metrics.events.tell(Committed(len(results), refused, duration_s))
