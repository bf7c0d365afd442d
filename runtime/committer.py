"""Group commit: what all actors stage goes to the store in as few transactions as the disk allows.

One thread owns the store's write side. While one transaction is on its way to the disk, batches gather for the next: no
timer, so a lone commit waits for nobody, and under load the cost of a sync is shared (FACTS.md, "Threads, GIL, group
commit": 1 805 turns/s with a thread hop per turn, 39 165 with one thread). One callback brings a whole group's answers
back to the event loop.

A store that never waits for a device (memory) is called in place: then the same program is deterministic.

Source: DeWitt et al., "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984 (group commit).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from ..store.contract import Batch, Store
from ..store.errors import StoreError, StoreUnavailable
from .metrics import Metrics
from .observing import Committed
from .waking import Backend

__all__ = ["GROUP_BATCHES_MAX", "GROUP_BYTES_MAX", "Committer", "Entry", "Receipt"]

_log = logging.getLogger("callboard.committer")

GROUP_BATCHES_MAX = 4096
GROUP_BYTES_MAX = 16 * 1024 * 1024

COMMITS_PER_SAMPLE = 16
"""Of the commits to a store in memory, which take 4 us, so many share the 0.4 us of one measurement."""

Receipt = Callable[[StoreError | None], None]
"""Called on the event loop with None where the batch is durable, else with what became of it."""


Entry = tuple[Batch, Receipt, float]
"""A batch, its receipt, and when it was staged."""


def _size_bytes(batch: Batch) -> int:
    return len(batch.head or b"") + sum(len(row.value or b"") + len(row.key) for row in batch.rows)


def _unknown(what: str, error: BaseException) -> StoreUnavailable:
    unknown = StoreUnavailable(f"{what}: {error!r}", uncertain=True)
    unknown.__cause__ = error
    return unknown


class Committer:
    """Takes batches on the event loop, commits them on its thread, in the order in which they came.

    `run` is given what hands out receipts, see `Dispatcher.run`.
    """

    def __init__(
        self, store: Store, backend: Backend, metrics: Metrics, *, run: Callable[[Callable[[], None]], None]
    ) -> None:
        self._store = store
        self._backend = backend
        self._metrics = metrics
        self._run = run
        self._queue: deque[Entry] = deque()
        self._wanted = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ended = backend.waker()
        self._done: deque[tuple[list[Entry], Sequence[StoreError | None]]] = deque()
        self._arrived = backend.waker()
        self.in_flight = 0
        self.groups = 0

    def submit(self, batch: Batch, receipt: Receipt) -> None:
        """Queue a batch; its receipt comes later, or, with an inline store, before this returns."""
        assert not self._closing, "nothing is staged once every actor has stopped"
        if self._store.inline:
            receipt(self._commit_inline(batch))
            return
        self.in_flight += 1
        with self._wanted:
            self._queue.append((batch, receipt, self._backend.now()))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="callboard-committer", daemon=True)
                self._thread.start()
            self._wanted.notify()

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
            self._run(self._hand_out)

    async def aclose(self) -> None:
        """Commit what is queued, end the thread and wait for it. Shield it: a commit is never cut off."""
        with self._wanted:
            self._closing = True
            self._wanted.notify()
            thread = self._thread
        if thread is not None:
            await self._ended.wait()
            thread.join()  # waking us was its last act
        self._run(self._hand_out)

    def _work(self) -> None:
        """The thread: whatever is raised here, those whose batches it holds are answered, and it goes on."""
        while True:
            group: list[Entry] = []
            try:
                self._fill(group)
                if not group:
                    break  # closing, and all is done
                results = self._commit([batch for batch, _, _ in group])
            except BaseException as error:  # noqa: BLE001 - a thread that ended here would leave all callers waiting
                _log.exception("the committer failed with %d batches in hand", len(group))
                if not group and self._ends_idle():
                    break
                results = [_unknown("the committer failed", error)] * len(group)
            if group:
                self._done.append((group, results))
                self._backend.run_soon(self._arrived.wake)
        self._backend.run_soon(self._ended.wake)

    def _fill(self, group: list[Entry]) -> None:
        """Wait for work, and move the next group's entries from the queue; none when closing and all is done."""
        with self._wanted:
            while not self._queue and not self._closing:
                self._wanted.wait()
            size_bytes = 0
            while self._queue and len(group) < GROUP_BATCHES_MAX and size_bytes < GROUP_BYTES_MAX:
                group.append(self._queue.popleft())  # first of all: what is in the group gets an answer
                size_bytes += _size_bytes(group[-1][0])

    def _ends_idle(self) -> bool:
        """True where nothing is queued: the thread that could not even wait may end, the next batch starts another."""
        with self._wanted:
            if self._queue:
                return False
            self._thread = None
            return True

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

    def _hand_out(self) -> None:
        while self._done:
            group, results = self._done.popleft()
            self.in_flight -= len(group)
            self._count(group[0][2], results)
            now = self._backend.now()
            for (_, receipt, staged_at), result in zip(group, results, strict=True):
                self._metrics.commits.add(max(now - staged_at, 0.0))
                receipt(result)

    def _count(self, began_at: float, results: Sequence[StoreError | None]) -> None:
        self.groups += 1
        if self._metrics.events.observers:
            refused = sum(error is not None for error in results)
            self._metrics.events.tell(Committed(len(results), refused, max(self._backend.now() - began_at, 0.0)))
