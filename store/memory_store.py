"""The store in memory: the same promises as LMDB's, on sorted lists, with faults that a test can order.

It is written on its own, not on top of keys.py, so that the contract suite, which compares the two on generated
programs, has two opinions to compare.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

from . import keys
from .batch import check_batches, check_name
from .contract import Batch, Durability, Head, Index, IndexHit, IndexRow, Refusal, Row, StoreStatistics, Table
from .damage import DamageLog
from .errors import Conflict, Fenced, StoreError, StoreUnavailable

__all__ = ["MemoryStore"]

T = TypeVar("T")

_Entry = tuple[bytes, int]
"""An index entry: value and stream number."""


@dataclass(slots=True)
class _Rows:
    """One table of one stream: its values, and its keys in order. Appending at the end costs what a list's does."""

    values: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    order: list[bytes] = field(default_factory=list[bytes])

    def put(self, row: Row) -> None:
        known = row.key in self.values
        if row.value is None:
            if known:
                del self.values[row.key]
                del self.order[bisect_left(self.order, row.key)]
            return
        self.values[row.key] = row.value
        if not known:
            insort(self.order, row.key)


@dataclass(slots=True)
class _Stream:
    number: int
    epoch: int = 0
    version: int = 0
    head: bytes = b""
    tables: dict[Table, _Rows] = field(default_factory=dict[Table, _Rows])
    entries: set[tuple[Index, bytes]] = field(default_factory=set[tuple[Index, bytes]])


@dataclass(slots=True)
class _Contents:
    """What a store on disk would hold: it outlives the MemoryStore that wrote it."""

    owner: int = 0
    streams: dict[str, _Stream] = field(default_factory=dict[str, _Stream])
    names: list[str] = field(default_factory=list[str])
    indexes: dict[Index, list[_Entry]] = field(default_factory=dict[Index, list[_Entry]])

    def apply(self, batch: Batch) -> Fenced | Conflict | None:
        stream = self.streams.get(batch.stream)
        epoch, version = (stream.epoch, stream.version) if stream is not None else (0, 0)
        if batch.epoch < epoch:
            return Fenced(batch.stream, epoch=batch.epoch, stored_epoch=epoch)
        if batch.version != version:
            return Conflict(batch.stream, version=batch.version, stored_version=version)
        if stream is None:
            self.names.append(batch.stream)
            stream = self.streams[batch.stream] = _Stream(len(self.names))
        stream.epoch, stream.version = batch.epoch, version + 1
        if batch.erase:
            self._erase(stream)
        if batch.head is not None:
            stream.head = batch.head
        for row in batch.rows:
            stream.tables.setdefault(row.table, _Rows()).put(row)
        for entry in batch.index_rows:
            self._put_entry(stream, entry)
        return None

    def _erase(self, stream: _Stream) -> None:
        for index, value in list(stream.entries):
            self._put_entry(stream, IndexRow(index, value, present=False))
        stream.tables.clear()
        stream.head = b""

    def _put_entry(self, stream: _Stream, entry: IndexRow) -> None:
        known = (entry.index, entry.value) in stream.entries
        if known == entry.present:
            return
        order = self.indexes.setdefault(entry.index, [])
        if entry.present:
            stream.entries.add((entry.index, entry.value))
            insort(order, (entry.value, stream.number))
        else:
            stream.entries.discard((entry.index, entry.value))
            del order[bisect_left(order, (entry.value, stream.number))]


@dataclass(slots=True)
class _Fault:
    error: StoreError
    after_write: bool


class MemoryStore:
    """See contract.py for the guarantees. Nothing survives the process; `reopened` plays a restart within it.

    Args:
        keep_history: keep every accepted batch in `committed`, for tests.

    Attributes:
        committed: the accepted batches of each `commit` call, in order; empty without `keep_history`.
        damage: stays empty, save for what its users report.
    """

    durability: Durability = "none"

    def __init__(self, *, keep_history: bool = False) -> None:
        self.committed: list[tuple[Batch, ...]] = []
        self.damage = DamageLog()
        self._keep_history = keep_history
        self._contents = _Contents()
        self._lock = Lock()
        self._open = True
        self._commit_faults: deque[_Fault] = deque()
        self._read_faults: deque[StoreError] = deque()
        self._commits = self._batches = self._refused = 0

    def fail_next_commit(self, error: StoreError, *, after_write: bool = False) -> None:
        """The next commit raises `error` and stores nothing; or everything, with `after_write`. Calls add up, in order.

        An error after the write must be `uncertain`: no store may claim that nothing was stored when it was.
        """
        if after_write and not error.uncertain:
            raise ValueError("an error after the write must be made with uncertain=True")
        self._commit_faults.append(_Fault(error, after_write))

    def fail_next_read(self, error: StoreError) -> None:
        """The next load, scan or scan_index raises `error`. Calls add up, in order."""
        self._read_faults.append(error)

    def reopened(self) -> "MemoryStore":
        """A new store on what was committed, as after a crash: this one is closed, its ordered faults are gone."""
        self.close()
        successor = MemoryStore(keep_history=self._keep_history)
        with self._lock:
            successor._contents = self._contents
            successor.committed = self.committed
        return successor

    @property
    def inline(self) -> bool:
        return True

    @property
    def location(self) -> str:
        return "memory"

    def claim(self) -> int:
        with self._lock:
            self._check_open()
            self._contents.owner += 1
            return self._contents.owner

    def load(self, stream: str) -> Head | None:
        with self._lock:
            if self._read_faults or not self._open:
                self._check_read()
            found = self._contents.streams.get(stream)
            if found is not None:
                return Head(found.epoch, found.version, found.head)
        check_name(stream)
        return None

    def scan(
        self,
        stream: str,
        table: Table,
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        check_name(stream)
        keys.check_limit(limit)
        keys.check_bounds(start, stop)
        with self._lock:
            self._check_read()
            found = self._contents.streams.get(stream)
            rows = found.tables.get(table) if found is not None else None
            if rows is None:
                return []
            first = bisect_left(rows.order, start)
            last = len(rows.order) if stop is None else bisect_left(rows.order, stop)
            chosen = _travel(rows.order[first:last], limit, newest_first=newest_first)
            return [(key, rows.values[key]) for key in chosen]

    def scan_index(
        self,
        index: Index,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[IndexHit]:
        keys.check_limit(limit)
        keys.check_index_prefix(prefix)
        behind = None if after is None else _entry_at(after, index)
        with self._lock:
            self._check_read()
            order = self._contents.indexes.get(index, [])
            first = bisect_left(order, prefix, key=lambda entry: entry[0][: len(prefix)])
            last = bisect_right(order, prefix, key=lambda entry: entry[0][: len(prefix)])
            if behind is not None and newest_first:
                last = min(last, bisect_left(order, behind))
            elif behind is not None:
                first = max(first, bisect_right(order, behind))
            chosen = _travel(order[first:last], limit, newest_first=newest_first)
            return [
                IndexHit(_position(index, value, number), value, self._contents.names[number - 1])
                for value, number in chosen
            ]

    def streams(self, *, after: str = "", limit: int | None = None) -> list[str]:
        keys.check_limit(limit)
        with self._lock:
            self._check_read()
            names = sorted(self._contents.names, key=str.encode)
            return names[bisect_right(names, after.encode(), key=str.encode) :][:limit]

    def entries(self, stream: str) -> list[IndexRow]:
        check_name(stream)
        with self._lock:
            self._check_read()
            found = self._contents.streams.get(stream)
            return [IndexRow(index, value) for index, value in sorted(found.entries)] if found is not None else []

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        check_batches(batches)
        with self._lock:
            self._check_open()
            fault = self._commit_faults.popleft() if self._commit_faults else None
            if fault is not None and not fault.after_write:
                raise fault.error
            answers: list[Refusal | None] = [self._contents.apply(batch) for batch in batches]
            self._commits += 1
            self._batches += len(batches)
            self._refused += len(batches) - answers.count(None)
            if self._keep_history:
                accepted = (batch for batch, answer in zip(batches, answers, strict=True) if answer is None)
                self.committed.append(tuple(accepted))
            if fault is not None:
                raise fault.error
            return answers

    def statistics(self) -> StoreStatistics:
        with self._lock:
            self._check_open()
            return StoreStatistics(
                commits=self._commits,
                batches=self._batches,
                refused=self._refused,
                streams=len(self._contents.names),
                size_bytes=sum(_size_bytes(stream) for stream in self._contents.streams.values()),
            )

    def close(self) -> None:
        with self._lock:
            self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the memory store is closed")

    def _check_read(self) -> None:
        self._check_open()
        if self._read_faults:
            raise self._read_faults.popleft()


def _travel(chosen: list[T], limit: int | None, *, newest_first: bool) -> list[T]:
    if newest_first:
        chosen.reverse()
    return chosen if limit is None else chosen[:limit]


def _position(index: Index, value: bytes, number: int) -> bytes:
    return bytes((index,)) + value + number.to_bytes(8, "big")


def _entry_at(position: bytes, index: Index) -> _Entry:
    if len(position) < 9 or position[0] != index:
        raise ValueError(f"after={position!r} is not a position in the index {index.name}: pass an IndexHit.position")
    return position[1:-8], int.from_bytes(position[-8:], "big")


def _size_bytes(stream: _Stream) -> int:
    rows = (len(key) + len(value) for table in stream.tables.values() for key, value in table.values.items())
    return len(stream.head) + sum(rows) + sum(len(value) for _, value in stream.entries)
