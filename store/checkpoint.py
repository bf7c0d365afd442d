"""Moving the log into rows, a few streams at a time, within transactions that are there anyway.

A *round* begins when the log has grown beyond its bound: it takes down which streams have a tail, and the number of the
last segment. Each group commit from then on moves the tails of some of these streams into rows, twice as many batches
as it adds, until all are done; then the segments up to that number are deleted, some with each commit. Where batches
have become larger than those before, it does as much as their bytes ask for. So no commit pays for a whole checkpoint
unless it is as large itself, no flush is spent on it, and the log stays below twice its bound, or a little more where
sizes change.

What a crash leaves of a round does no harm: a tail replayed over rows that it was moved into already gives the same.

Source: fuzzy checkpoints, as in ARIES (Mohan et al., ACM TODS 1992), without their undo.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from math import ceil

import lmdb

from . import keys
from .batch import Batch, Index, Table
from .contract import Head
from .damage import DamageLog
from .entries import erase_entries, write_entries
from .guards import kept_head, pack_guard
from .log import Log, Stream
from .rows import StoredRows
from .segments import delete_segments

__all__ = ["Round", "move_tail"]

SEGMENTS_PER_COMMIT = 64
"""Deleted with one commit at most: about 0.1 ms."""
BATCHES_PER_BATCH = 2
"""Moved for each batch that is added, so that a round ends although the log grows."""
BATCHES_PER_STEP = 64
"""A longer tail is moved in steps of at least so many, as each rewrites its last chunk, its head and its entries."""


class Round:
    """One round of checkpoints. What `work` does in a transaction becomes so with `settle`, once that is durable.

    Args:
        log: whose tails are moved, and whose segments are deleted.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        log.begin_round()
        self._segments = len(log.segments)
        self._left = deque((stream, len(stream.batches)) for stream in log.with_tail())
        self._batches_per_byte = sum(count for _, count in self._left) / max(log.size_bytes, 1)
        self._segments_per_byte = self._segments / max(log.size_bytes, 1)
        self._moved: list[int] = []
        self._deleted = self._granted = self._credit = 0
        self.ended = False

    def work(self, txn: "lmdb.Transaction[bytes]", batches: int, damage: DamageLog, *, size_bytes: int = 0) -> None:
        """Go on by as much as so many batches more of log, of so many bytes, ask for."""
        self.rest()
        if not self._left:
            self._deleted = min(
                self._segments, max(SEGMENTS_PER_COMMIT, ceil(2 * self._segments_per_byte * size_bytes))
            )
            delete_segments(txn, [number for number, _ in islice(self._log.segments, self._deleted)])
            return
        self._granted = max(BATCHES_PER_BATCH * batches, ceil(BATCHES_PER_BATCH * self._batches_per_byte * size_bytes))
        credit = self._credit + self._granted
        for stream, count in self._left:
            step = min(count, BATCHES_PER_STEP)
            if step > credit:
                break
            step = min(count, credit)
            move_tail(txn, stream, stream.batches[:step], damage)
            self._moved.append(step)
            credit -= step

    def rest(self) -> None:
        """The transaction of the last `work` did not happen, or there was none."""
        self._moved.clear()
        self._deleted = self._granted = 0

    def settle(self) -> None:
        """The transaction of the last `work` is durable: what it moved leaves the tails."""
        self._log.drop_segments(self._deleted)
        self._segments -= self._deleted
        self._credit += self._granted - sum(self._moved)
        for step in self._moved:
            stream, count = self._left.popleft()
            self._log.drop(stream, step)
            if step < count:
                self._left.appendleft((stream, count - step))
        self.ended = not self._left and not self._segments
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
