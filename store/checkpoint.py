"""Moving the log into rows, a few streams at a time, within transactions that are there anyway.

A *round* begins when the log has grown beyond its bound: it takes down which streams have a tail, and the number of the
last segment. Each group commit from then on moves the tails of some of these streams into rows, twice as many batches
as it adds, until all are done; then the segments up to that number are deleted, some with each commit. So no commit
pays for a whole checkpoint, no flush is spent on it, and the log stays below twice its bound.

What a crash leaves of a round does no harm: a tail replayed over rows that it was moved into already gives the same.

Source: fuzzy checkpoints, as in ARIES (Mohan et al., ACM TODS 1992), without their undo.
"""

from collections import deque
from collections.abc import Sequence

import lmdb

from . import keys
from .batch import Batch, Index, Table
from .contract import Head
from .damage import DamageLog
from .entries import erase_entries, write_entries
from .guards import kept_head, pack_guard
from .log import Log, Stream
from .rows import StoredRows
from .segments import trim

__all__ = ["Round", "move_tail"]

BATCHES_PER_BATCH = 2
"""Moved for each batch that is added, so that a round ends although the log grows."""
BATCHES_PER_STEP = 64
"""A longer tail is moved in steps of at least so many, as each rewrites its last chunk, its head and its entries."""


class Round:
    """One round of checkpoints. What `work` does in a transaction becomes so with `settle`, once that is durable.

    Args:
        log: whose tails are moved.
        upto: the number of the last segment that the tails have.
    """

    def __init__(self, log: Log, *, upto: int) -> None:
        self._log = log
        self._upto = upto
        self._left = deque((stream, len(stream.batches)) for stream in log.with_tail())
        self._moved: list[int] = []
        self._granted = self._credit = 0
        self._trimmed = False
        self.ended = False

    def work(self, txn: "lmdb.Transaction[bytes]", batches: int, damage: DamageLog) -> int:
        """Go on by as much as `batches` batches more of log ask for; how many bytes of log were deleted."""
        self.rest()
        if not self._left:
            freed_bytes, self._trimmed = trim(txn, self._upto)
            return freed_bytes
        self._granted = BATCHES_PER_BATCH * batches
        credit = self._credit + self._granted
        for stream, count in self._left:
            step = min(count, BATCHES_PER_STEP)
            if step > credit:
                break
            step = min(count, credit)
            move_tail(txn, stream, stream.batches[:step], damage)
            self._moved.append(step)
            credit -= step
        return 0

    def rest(self) -> None:
        """The transaction of the last `work` did not happen, or there was none."""
        self._moved.clear()
        self._granted = 0
        self._trimmed = False

    def settle(self) -> None:
        """The transaction of the last `work` is durable: what it moved leaves the tails."""
        self.ended = self._trimmed
        self._credit += self._granted - sum(self._moved)
        for step in self._moved:
            stream, count = self._left.popleft()
            self._log.drop(stream, step)
            if step < count:
                self._left.appendleft((stream, count - step))
        self.rest()


def move_tail(txn: "lmdb.Transaction[bytes]", stream: Stream, batches: Sequence[Batch], damage: DamageLog) -> None:
    """Lay the first batches of a stream's tail into its rows, index entries and guard."""
    rows = StoredRows(txn, stream.number, stream.name, damage)
    head: bytes | None = None
    tables: dict[Table, dict[bytes, bytes | None]] = {}
    entries: dict[tuple[Index, bytes], bool] = {}
    for batch in batches:
        if batch.erase:
            rows.erase()  # once more for a second one, which is rare, and then finds nothing
            erase_entries(txn, stream.number)
            head = b""
            tables.clear()
            entries.clear()
        if batch.head is not None:
            head = batch.head
        for row in batch.rows:
            tables.setdefault(row.table, {})[row.key] = row.value
        for entry in batch.index_rows:
            entries[entry.index, entry.value] = entry.present
    for table, writes in tables.items():
        rows.write(table, sorted(writes.items()))
    write_entries(txn, stream.number, stream.name, entries)
    last = batches[-1]
    if head is None:
        head = kept_head(txn, stream.number, stream.name, damage)
    txn.put(keys.guard_key(stream.number), pack_guard(Head(last.epoch, last.version + 1, head)))
