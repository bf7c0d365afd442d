"""The store on disk: one LMDB environment in one directory, one writing process, readers from any.

Rows are one record each (keys.py draws them). A commit is one write transaction: LMDB copies the pages that it touches
and publishes them with one write of the meta page, so that a process killed at any moment leaves the last whole commit.

Read transactions live only inside a call: one that stays open keeps every later page from being reused, and the file
grew from 24 to 461 MB in our measurement. All of LMDB's errors become ours here and in lmdb_directory.py.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

import lmdb

from . import keys
from .batch import check_batches, check_name
from .contract import Batch, Durability, Head, Index, IndexHit, StoreStatistics, Table
from .damage import DamageLog
from .errors import Conflict, Fenced, StoreFull, StoreUnavailable
from .lmdb_directory import (
    WriterLock,
    check_format,
    make_directory,
    open_environment,
    read_error,
    write_error,
    write_format,
)
from .staging import Guard, Staging, count_streams, read_head, read_range, read_stream

__all__ = ["LmdbStore"]

T = TypeVar("T")

KNOWN_MAX = 100_000
"""Guards kept in memory, about 250 bytes each. Past it all are forgotten, and each is read again when it is needed."""
MAP_SIZE_BYTES_MAX = 1 << 46
"""64 TiB: half of what a process can address on x86-64."""
SYNC_INTERVAL_S = 1.0


class LmdbStore:
    """See contract.py for the guarantees.

    Args:
        path: the store's directory; made with its parents unless `readonly`.
        durability: "sync" waits for the disk in each commit. "async" leaves that to the operating system and asks for
            it once a second and on closing: every commit survives the end of the process, but a power loss may cost
            the last second or, as LMDB promises nothing here, the whole file; keep copies.
        map_size_bytes: address space to begin with, not disk space; doubled whenever it is used up.
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
        readonly: bool = False,
    ) -> None:
        if durability not in ("sync", "async"):
            raise ValueError(f'durability must be "sync" or "async", not {durability!r}; for "none" use MemoryStore')
        if map_size_bytes <= 0:
            raise ValueError(f"map_size_bytes must be positive, not {map_size_bytes}")
        self.durability: Durability = durability
        self.damage = DamageLog()
        self._path = Path(path).absolute()
        self._sync = durability == "sync"
        self._readonly = readonly
        self._pid = os.getpid()
        self._writing = Lock()
        # Held by each read and by each change of the map: LMDB moves the map away under a read that is going on.
        self._reading = Lock()
        self._known: dict[str, Guard] = {}
        self._streams: int | None = None
        self._synced_at_s = time.monotonic()
        self._commits = self._batches = self._refused = 0
        self._lock: WriterLock | None = None
        self._env: lmdb.Environment | None = None
        try:
            self._open(map_size_bytes)
        except BaseException:
            self.close()
            raise

    def _open(self, map_size_bytes: int) -> None:
        if not self._readonly:
            make_directory(self._path)
            self._lock = WriterLock(self._path)
        self._env = self._open_environment(map_size_bytes)
        if self._read(lambda txn: check_format(txn, self._path)):
            return
        if self._readonly:
            raise StoreUnavailable(f"the store {str(self._path)!r} is empty: open it for writing first")
        with self._writing:
            self._write(write_format)

    def _open_environment(self, map_size_bytes: int) -> lmdb.Environment:
        return open_environment(self._path, readonly=self._readonly, sync=self._sync, map_size_bytes=map_size_bytes)

    @property
    def inline(self) -> bool:
        return False

    @property
    def location(self) -> str:
        return str(self._path)

    def claim(self) -> int:
        def next_owner(txn: "lmdb.Transaction[bytes]") -> int:
            owner = int.from_bytes(txn.get(keys.LAST_OWNER) or b"", "big") + 1
            txn.put(keys.LAST_OWNER, keys.number(owner))
            return owner

        self._check_process()
        with self._writing:
            owner = self._write(next_owner)
            self._sync_if_due(self._synced_at_s)
            return owner

    def load(self, stream: str) -> Head | None:
        check_name(stream)

        def read(txn: "lmdb.Transaction[bytes]") -> Head | None:
            number = self._number(txn, stream)
            return None if number is None else read_head(txn, stream, number)

        return self._read(read)

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
            number = self._number(txn, stream)
            if number is None:
                return []
            prefix = keys.row_prefix(number, table)
            end = keys.successor(prefix) if stop is None else prefix + stop
            pairs = read_range(txn, prefix + start, end, limit=limit, newest_first=newest_first)
            return [(key[len(prefix) :], value) for key, value in pairs]

        return self._read(read)

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
        pairs = self._read(lambda txn: read_range(txn, start, stop, limit=limit, newest_first=newest_first))
        return [IndexHit(key, keys.entry_value(key), name.decode()) for key, name in pairs]

    def commit(self, batches: Sequence[Batch]) -> list[Fenced | Conflict | None]:
        check_batches(batches)

        def store(txn: "lmdb.Transaction[bytes]") -> tuple[Staging, list[Fenced | Conflict | None]]:
            if self._streams is None:
                self._streams = count_streams(txn)
            staging = Staging(txn, known=self._known, streams=self._streams)
            answers = [staging.decide(batch) for batch in batches]
            staging.write()
            return staging, answers

        self._check_process()
        with self._writing:
            staging, answers = self._write(store)
            if len(self._known) > KNOWN_MAX:
                self._known.clear()
            self._known.update(staging.guards)
            self._streams = staging.streams
            self._commits += 1
            self._batches += len(batches)
            self._refused += len(batches) - answers.count(None)
            self._sync_if_due(self._synced_at_s + SYNC_INTERVAL_S)
            return answers

    def statistics(self) -> StoreStatistics:
        def read(txn: "lmdb.Transaction[bytes]") -> tuple[int, int]:
            size_bytes = (self._opened().info()["last_pgno"] + 1) * txn.stat()["psize"]
            return count_streams(txn), size_bytes

        streams, size_bytes = self._read(read)
        return StoreStatistics(
            commits=self._commits,
            batches=self._batches,
            refused=self._refused,
            streams=streams,
            size_bytes=size_bytes,
        )

    def close(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._writing, self._reading:
            env, self._env = self._env, None
            try:
                if env is not None and not self._sync and not self._readonly:
                    env.sync(True)
            except lmdb.Error as error:
                raise write_error(error, self._path, uncertain=True) from error
            finally:
                if env is not None:
                    env.close()
                if self._lock is not None:
                    self._lock.release()

    def _check_process(self) -> None:
        # An environment is undefined in a forked child, where a lock may also be held by a thread that is not there.
        if os.getpid() != self._pid:
            raise StoreUnavailable(
                f"the store {str(self._path)!r} was opened by process {self._pid}, of which this one is a fork: "
                "open it anew after forking"
            )

    def _opened(self) -> lmdb.Environment:
        if self._env is None:
            raise StoreUnavailable(f"the store {str(self._path)!r} is closed")
        return self._env

    def _number(self, txn: "lmdb.Transaction[bytes]", name: str) -> int | None:
        guard = self._known.get(name)
        return guard[0] if guard is not None else read_stream(txn, name)

    def _read(self, work: Callable[["lmdb.Transaction[bytes]"], T]) -> T:
        """What `work` gives in a read transaction of its own."""
        self._check_process()
        with self._reading:
            env = self._opened()
            try:
                try:
                    with env.begin() as txn:
                        return work(txn)
                except lmdb.MapResizedError:
                    self._remap(env, 0)  # the writing process has grown the map: 0 takes its size over
                except lmdb.ReadersFullError:
                    env.reader_check()  # gives back the slots of processes that were killed
                with env.begin() as txn:
                    return work(txn)
            except lmdb.Error as error:
                raise read_error(error, self._path) from error

    def _write(self, work: Callable[["lmdb.Transaction[bytes]"], T]) -> T:
        """What `work` gives in a write transaction that is committed; `_writing` is held by the caller.

        `work` runs again, on a fresh transaction, when the map had to grow; so it must change nothing else.
        """
        env = self._opened()
        if self._readonly:
            raise StoreUnavailable(f"the store {str(self._path)!r} was opened with readonly=True")
        while True:
            try:
                return self._transact(env, work)
            except lmdb.MapFullError as error:
                self._grow(env, error)

    def _transact(self, env: lmdb.Environment, work: Callable[["lmdb.Transaction[bytes]"], T]) -> T:
        transaction_id = 0
        try:
            txn = env.begin(write=True)
            try:
                transaction_id = txn.id()
                result = work(txn)
            except BaseException:
                txn.abort()
                transaction_id = 0
                raise
            txn.commit()
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            uncertain = transaction_id != 0 and self._may_be_stored(env, transaction_id)
            if uncertain:
                self._known.clear()
                self._streams = None
            raise write_error(error, self._path, uncertain=uncertain) from error
        return result

    @staticmethod
    def _may_be_stored(env: lmdb.Environment, transaction_id: int) -> bool:
        """False where the last meta page is older than the failed commit, and LMDB has not given the environment up.

        LMDB writes the meta page last, after the pages were flushed. Where that one write fails it tries to undo it
        and refuses every transaction from then on.
        """
        try:
            with env.begin() as txn:
                return txn.id() >= transaction_id
        except lmdb.Error:
            return True

    def _grow(self, env: lmdb.Environment, full: lmdb.MapFullError) -> None:
        size_bytes = env.info()["map_size"] * 2
        if size_bytes > MAP_SIZE_BYTES_MAX:
            raise StoreFull(f"the store {str(self._path)!r} is at its limit of {MAP_SIZE_BYTES_MAX} bytes") from full
        with self._reading:
            self._remap(env, size_bytes)

    def _remap(self, env: lmdb.Environment, size_bytes: int) -> None:
        """Give the map another size; `_reading` is held by the caller. StoreFull leaves it as it was."""
        before_bytes = env.info()["map_size"]
        try:
            env.set_mapsize(size_bytes)
        except lmdb.Error as error:
            # LMDB has let go of the old map by now, and any further call on this environment would be a segfault.
            self._env = None
            env.close()
            self._env = self._open_environment(before_bytes)
            raise StoreFull(
                f"the store {str(self._path)!r} has no address space to grow to {size_bytes} bytes ({error}); "
                "nothing was stored: raise the process's limit (ulimit -v)"
            ) from error

    def _sync_if_due(self, due_at_s: float) -> None:
        if self._sync or (now_s := time.monotonic()) < due_at_s:
            return
        try:
            self._opened().sync(True)
        except lmdb.Error as error:
            raise write_error(error, self._path, uncertain=True) from error
        self._synced_at_s = now_s
