"""The store on disk: one LMDB environment in one directory, one writing process, readers from any.

    commit ──> log: one record for the whole group, durable when `commit` returns
                │   in memory: the tail of each stream (log.py), laid over the rows by whoever reads
                └─ checkpoint, a few streams with each later commit ──> rows, index entries, guards

A commit is one write transaction with one put, whatever it stores: LMDB copies the pages that it touches, flushes them
and publishes them with one write of the meta page, so that a process killed at any moment leaves the last whole commit.

Source: the log and the rows are those of a log-structured merge tree (O'Neil et al., Acta Informatica 33, 1996), with
LMDB's B+tree as the one sorted run.
"""

import logging
import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Literal

import lmdb

from . import keys
from .batch import Batch, Index, IndexRow, Table, check_batches, check_name
from .checkpoint import Round
from .contract import Durability, Head, IndexHit, Refusal, StoreStatistics
from .damage import DamageLog
from .entries import decode_name, list_entries, list_names, read_entries
from .errors import Corrupt, StoreError, StoreUnavailable
from .guards import greatest_number, read_head, read_number, set_aside, stored_guard
from .lmdb_directory import WriterLock, check_format, make_directory, write_format
from .lmdb_environment import Environment
from .log import Log
from .numbers import pack_number, read_number_at
from .overlay import merged
from .rows import StoredRows
from .segments import decode_segment, encode_segment, read_segments

__all__ = ["LmdbStore", "check_options"]

KNOWN_MAX = 100_000
"""Streams kept in memory, about 250 bytes each. Past it those without a tail are forgotten, and read when needed."""
SYNC_INTERVAL_S = 1.0
CHECKPOINT_BATCHES = 1000
"""Moved into rows by one transaction of `checkpoint`."""

LAST_OWNER = "last owner of the store"

_log = logging.getLogger("callboard.store")


class LmdbStore:
    """See contract.py for the guarantees.

    Args:
        path: the store's directory; made with its parents unless `readonly`.
        durability: "sync" waits for the disk in each commit. "async" leaves that to the operating system and asks for
            it once a second and on closing: every commit survives the end of the process, but a power loss may cost
            the last second or, as LMDB promises nothing here, the whole file; keep copies.
        map_size_bytes: address space to begin with, not disk space; doubled whenever it is used up.
        log_bytes_max: where the log is moved into rows. Opening replays at most about twice as much, some 10 ms a
            megabyte, and as much is held in memory; what processes that were killed have left beyond that is moved at
            once, which takes several times as long. A larger log writes less, as more turns of a session meet in it.
        readonly: read only, also while another process writes.

    Raises:
        StoreLocked: another process, or this one, already writes to it.
        StoreUnavailable: it cannot be opened or created; the message says what to do.
        NewerFormat: a newer callboard wrote it.
        Corrupt: what lies there is not a store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["sync", "async"] = "sync",
        map_size_bytes: int = 64 << 30,
        log_bytes_max: int = 16 << 20,
        readonly: bool = False,
    ) -> None:
        check_options(durability, map_size_bytes=map_size_bytes, log_bytes_max=log_bytes_max)
        self.durability: Durability = durability
        self.damage = DamageLog()
        self._path = Path(path).absolute()
        self._sync = durability == "sync"
        self._readonly = readonly
        self._log_bytes_max = log_bytes_max
        self._writing = Lock()
        self._log = Log(reading=readonly)
        self._round: Round | None = None
        self._stale = False  # True after a write that may have been stored: only the disk knows
        self._synced_at_s = time.monotonic()
        self._commits = self._batches = self._refused = self._checkpoints = 0
        self._lock: WriterLock | None = None
        if not readonly:
            make_directory(self._path)
            self._lock = WriterLock(self._path)
        self._environment = Environment(self._path, readonly=readonly, sync=self._sync)
        try:
            self._environment.open(map_size_bytes)
            self._open()
        except BaseException:
            self._give_back()
            raise

    def _open(self) -> None:
        if not self._environment.read(lambda txn: check_format(txn, self._path)):
            if self._readonly:
                raise StoreUnavailable(f"the store {str(self._path)!r} is empty: open it for writing first")
            with self._writing:
                self._environment.write(write_format)
        damaged = self._environment.read(self._catch_up)
        if damaged and not self._readonly:
            with self._writing:
                self._environment.write(partial(set_aside, damaged))
        if not self._readonly and self._log.size_bytes > 2 * self._log_bytes_max:
            self._catch_up_rounds()

    def _catch_up_rounds(self) -> None:
        """Empty a log that has outgrown its rounds: each begins anew where a process was killed in the middle, so after
        many kills the log would only grow."""
        try:
            self.checkpoint()
        except StoreError as error:
            _log.warning("opened with %d bytes in the log, as they cannot be moved: %s", self._log.size_bytes, error)

    @property
    def inline(self) -> bool:
        return False

    @property
    def location(self) -> str:
        return str(self._path)

    def claim(self) -> int:
        def next_owner(txn: "lmdb.Transaction[bytes]") -> int:
            last = read_number_at(txn, keys.LAST_OWNER, where=LAST_OWNER)
            if last is None:
                raise Corrupt(LAST_OWNER, "it is missing; callboard store check --repair finds another")
            owner = last + 1
            txn.put(keys.LAST_OWNER, pack_number(keys.LAST_OWNER, owner))
            return owner

        with self._writing:
            owner = self._environment.write(next_owner)
            self._sync_if_due(self._synced_at_s)
            return owner

    # Reading --------------------------------------------------------------------------------------------------------

    def load(self, stream: str) -> Head | None:
        check_name(stream)

        def read(txn: "lmdb.Transaction[bytes]") -> Head | None:
            self._look(txn)
            known = self._log.get(stream)
            if known is not None and (guard := known.guard()) is not None:
                return guard
            number = known.number if known is not None else read_number(txn, stream)
            if number is None:
                return None
            stored = read_head(txn, stream, number)
            if known is None or not known.batches:
                return stored
            last = known.batches[-1]
            return Head(last.epoch, last.version + 1, stored.head if stored is not None else b"")

        return self._environment.read(read)

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

        def read(txn: "lmdb.Transaction[bytes]") -> list[tuple[bytes, bytes]]:
            self._look(txn)
            known = self._log.get(stream)
            number = known.number if known is not None else read_number(txn, stream)
            if number is None:
                return []
            rows = StoredRows(txn, number, stream, self.damage).scan(table, start, stop, newest_first=newest_first)
            if known is not None and known.batches:
                if known.erased:
                    rows = iter(())
                overlay = known.tables().get(table)
                if overlay is not None:
                    writes = overlay.range(start, stop, newest_first=newest_first)
                    rows = merged(rows, writes, newest_first=newest_first)
            return list(islice(rows, limit))

        return self._environment.read(read)

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
        start = keys.entry_prefix(index, prefix)
        stop = keys.successor(start)
        if after is not None:
            keys.check_position(after, index)
            # Keys are never one another's prefix with a zero behind it, so after + b"\0" is the place just behind.
            start, stop = (start, min(stop, after)) if newest_first else (max(start, after + b"\0"), stop)

        def read(txn: "lmdb.Transaction[bytes]") -> list[IndexHit]:
            self._look(txn)
            stored = read_entries(txn, start, stop, newest_first=newest_first)
            entries = self._log.index().over(stored, index, start, stop, newest_first=newest_first)
            named = ((key, decode_name(name, self.damage)) for key, name in entries)
            hits = (IndexHit(key, keys.entry_value(key), name) for key, name in named if name is not None)
            return list(islice(hits, limit))  # a damaged entry must not make a page short, which would be the last

        return self._environment.read(read)

    def streams(self, *, after: str = "", limit: int | None = None) -> list[str]:
        keys.check_limit(limit)
        return self._environment.read(lambda txn: list(islice(list_names(txn, after, self.damage), limit)))

    def entries(self, stream: str) -> list[IndexRow]:
        check_name(stream)

        def read(txn: "lmdb.Transaction[bytes]") -> list[IndexRow]:
            self._look(txn)
            known = self._log.get(stream)
            number = known.number if known is not None else read_number(txn, stream)
            entries = set(list_entries(txn, number)) if number is not None else set[tuple[Index, bytes]]()
            for batch in known.batches if known is not None else ():
                if batch.erase:
                    entries.clear()
                for entry in batch.index_rows:
                    (entries.add if entry.present else entries.discard)((entry.index, entry.value))
            return [IndexRow(index, value) for index, value in sorted(entries)]

        return self._environment.read(read)

    def catch_up(self) -> None:
        """As a reader: take over now what was committed since the last read, so that the next one need not."""
        self._environment.read(self._look)

    def _look(self, txn: "lmdb.Transaction[bytes]") -> None:
        """Before each read: what is in memory agrees with the transaction."""
        if self._stale:
            self._log, self._round = Log(reading=self._readonly), None
        if self._readonly or self._stale:
            self._catch_up(txn)
            self._stale = False

    def _catch_up(self, txn: "lmdb.Transaction[bytes]") -> dict[bytes, bytes]:
        """Take over what the log has and we have not: all at opening, and what the writer added since, as a reader.

        Returns: the segments that cannot be read.
        """
        trimmed = self._last_trimmed(txn)
        if trimmed > self._log.last_segment:
            self._log = Log(last_segment=trimmed, reading=self._readonly)  # what we missed is in the rows by now
        elif self._readonly:
            self._log.follow(trimmed)
        damaged: dict[bytes, bytes] = {}
        for number, value in read_segments(txn, self._log.last_segment):
            problems: list[Corrupt] = []
            batches: list[Batch] = []
            try:
                batches = decode_segment(value, number=number)
            except Corrupt as error:
                problems.append(error)
            problems += self._log.replay(batches, partial(read_number, txn))
            for problem in problems:
                self.damage.report(problem.where, problem.reason)
                damaged[keys.segment_key(number)] = value
            self._log.add_segment(number, len(value))
        self._log.streams = self._last_stream(txn)
        return damaged

    def _last_trimmed(self, txn: "lmdb.Transaction[bytes]") -> int:
        """The number of the last segment that was deleted; where it is damaged, the one before the first there is."""
        number = self._sound_number(txn, keys.LAST_TRIMMED, where="last deleted segment")
        if number is None:
            first = next(read_segments(txn, 0), None)
            number = first[0] - 1 if first is not None else 0
        return number

    def _last_stream(self, txn: "lmdb.Transaction[bytes]") -> int:
        """The last stream number that was given out; where it is damaged, the greatest that something has."""
        number = self._sound_number(txn, keys.LAST_STREAM, where="last stream number")
        return number if number is not None else greatest_number(txn)

    def _sound_number(self, txn: "lmdb.Transaction[bytes]", key: bytes, *, where: str) -> int | None:
        """The number under `key`; None where there is none, or, with damage noted, none that can be read."""
        try:
            return read_number_at(txn, key, where=where)
        except Corrupt as error:
            self.damage.report(error.where, error.reason)
            return None

    # Writing --------------------------------------------------------------------------------------------------------

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        check_batches(batches)
        with self._writing:
            with self._deciding():
                answers, size_bytes = self._write(batches)
            self._stored(size_bytes)
            self._commits += 1
            self._batches += len(batches)
            self._refused += len(batches) - answers.count(None)
            self._sync_if_due(self._synced_at_s + SYNC_INTERVAL_S)
            return answers

    @contextmanager
    def _deciding(self) -> Generator[None]:
        """What is in memory agrees with the disk before, and after a transaction that raised."""
        if self._stale:
            self._environment.read(self._look)
        try:
            yield
        except BaseException as error:
            self._log.undo()
            if self._round is not None:
                self._round.rest()
            # Also where it was broken off, as by Ctrl-C: that may come between LMDB's commit and our knowing of it.
            self._stale = not isinstance(error, StoreError) or error.uncertain
            raise

    def _write(self, batches: Sequence[Batch]) -> tuple[list[Refusal | None], int]:
        """Decide on the batches and store those accepted; the answers, and the bytes of their segment."""
        write = self._environment.write
        if self._round is None:
            return write(partial(self._put, batches, round=None))
        try:
            return write(partial(self._put, batches, round=self._round))
        except StoreError as error:
            if error.uncertain:
                raise
            self._round.rest()  # what fits the log must not be refused because the rows do not fit
            return write(partial(self._put, batches, round=None))

    def _put(
        self, batches: Sequence[Batch], txn: "lmdb.Transaction[bytes]", *, round: Round | None
    ) -> tuple[list[Refusal | None], int]:
        log = self._log
        log.undo()  # of the try before
        answers = log.decide(batches, partial(stored_guard, txn))
        for stream in log.created:
            key = keys.name_key(stream.name)
            txn.put(key, pack_number(key, stream.number))
        if log.created:
            txn.put(keys.LAST_STREAM, pack_number(keys.LAST_STREAM, log.streams))
        size_bytes = 0
        if log.accepted:
            segment = encode_segment(log.accepted)
            size_bytes = len(segment)
            txn.put(keys.segment_key(log.last_segment + 1), segment)
        if round is not None:
            round.work(txn, len(log.accepted), self.damage, size_bytes=size_bytes)
        return answers, size_bytes

    def _stored(self, size_bytes: int) -> None:
        """What the transaction stored becomes what readers see; its segment has so many bytes."""
        log = self._log
        with self._environment.viewing:
            if self._round is not None:
                self._round.settle()
                if self._round.ended:
                    self._round = None
                    self._checkpoints += 1
                    log.end_round()
            if log.accepted:
                log.add_segment(log.last_segment + 1, size_bytes)
            log.apply()
            if self._round is None:
                log.forget_idle(KNOWN_MAX)
                if log.size_bytes > self._log_bytes_max:
                    self._round = Round(log)

    def checkpoint(self) -> None:
        """Move all of the log into rows; afterwards it is empty. Commits wait meanwhile.

        Raises:
            StoreFull, StoreUnavailable: some of it is still in the log, where it is as safe.
        """
        with self._writing, self._deciding():
            self._end_round()
            if self._log.segments:  # what came after the round began, or all where there was none
                self._round = Round(self._log)
                self._end_round()

    def _end_round(self) -> None:
        while self._round is not None:
            self._environment.write(partial(self._round.work, batches=CHECKPOINT_BATCHES, damage=self.damage))
            self._stored(0)

    def statistics(self) -> StoreStatistics:
        def read(txn: "lmdb.Transaction[bytes]") -> StoreStatistics:
            self._look(txn)
            return StoreStatistics(
                commits=self._commits,
                batches=self._batches,
                refused=self._refused,
                streams=self._log.streams,
                size_bytes=self._environment.size_bytes(),
                log_bytes=self._log.size_bytes,
                checkpoints=self._checkpoints,
                damaged=self.damage.count,
            )

        return self._environment.read(read)

    def close(self) -> None:
        if not self._environment.is_open or self._readonly or self._environment.forked:
            self._give_back()
            return
        try:
            self.checkpoint()
        except StoreError as error:
            _log.warning(
                "closed with %d bytes in the log, which the next opening replays: %s", self._log.size_bytes, error
            )
        with self._writing:
            try:
                if not self._sync:
                    self._environment.sync()
            finally:
                self._give_back()

    def _give_back(self) -> None:
        self._environment.close()
        if self._lock is not None:
            self._lock.release()

    def _sync_if_due(self, due_at_s: float) -> None:
        if not self._sync and time.monotonic() >= due_at_s:
            self._environment.sync()
            self._synced_at_s = time.monotonic()


def check_options(durability: str, *, map_size_bytes: int, log_bytes_max: int) -> None:
    """ValueError where a store cannot be opened so, whatever its directory."""
    if durability not in ("sync", "async"):
        raise ValueError(f'durability must be "sync" or "async", not {durability!r}; for "none" use MemoryStore')
    if map_size_bytes <= 0:
        raise ValueError(f"map_size_bytes must be positive, not {map_size_bytes}")
    if log_bytes_max < 0:
        raise ValueError(f"log_bytes_max must be at least 0, not {log_bytes_max}")
