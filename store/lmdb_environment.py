"""One LMDB environment: transactions that grow the map, tell what a failure left, and never meet a fork.

Read transactions live only inside a call: one that stays open keeps every later page from being reused, and the file
grew from 24 to 461 MB in our measurement. All of LMDB's errors become ours here and in lmdb_directory.py.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import TypeVar

import lmdb

from .errors import StoreError, StoreFull, StoreUnavailable
from .lmdb_directory import open_environment, read_error, write_error

__all__ = ["Environment"]

T = TypeVar("T")

MAP_SIZE_BYTES_MAX = 1 << 46
"""64 TiB: half of what a process can address on x86-64."""


class Environment:
    """One environment. One thread writes at a time; any may read.

    Attributes:
        viewing: held while something is read, and while the map changes: LMDB moves the map away under a read that is
            going on. Its owner holds it as well while it changes what reads combine with what they find here.
    """

    def __init__(self, path: Path, *, readonly: bool, sync: bool) -> None:
        self.viewing = RLock()
        self._path = path
        self._readonly = readonly
        self._sync = sync
        self._pid = os.getpid()
        self._env: lmdb.Environment | None = None
        self._map_size_bytes = 0
        self._broken = False

    def open(self, map_size_bytes: int) -> None:
        """Open it, and create it first unless `readonly`; raises as open_environment does."""
        self._map_size_bytes = map_size_bytes
        self._env = self._open(map_size_bytes)

    def _open(self, map_size_bytes: int) -> lmdb.Environment:
        return open_environment(self._path, readonly=self._readonly, sync=self._sync, map_size_bytes=map_size_bytes)

    def check_process(self) -> None:
        """StoreUnavailable in a forked child, where an environment is undefined, and a lock may be held for ever."""
        if self.forked:
            raise StoreUnavailable(
                f"the store {str(self._path)!r} was opened by process {self._pid}, of which this one is a fork: "
                "open it anew after forking"
            )

    def read(self, work: Callable[["lmdb.Transaction[bytes]"], T]) -> T:
        """What `work` gives in a read transaction of its own, with `viewing` held.

        `work` may run twice, on a fresh transaction, so it must change nothing that it cannot change again.
        """
        self.check_process()
        with self.viewing:
            env = self._opened()
            try:
                try:
                    with env.begin() as txn:
                        return work(txn)
                except lmdb.MapResizedError:
                    self._remap(env, 0)  # the writing process has grown the map: 0 takes its size over
                except lmdb.ReadersFullError:
                    env.reader_check()  # gives back the slots of processes that were killed
                with self._opened().begin() as txn:
                    return work(txn)
            except lmdb.Error as error:
                raise read_error(error, self._path) from error

    def write(self, work: Callable[["lmdb.Transaction[bytes]"], T]) -> T:
        """What `work` gives in a write transaction that is durable afterwards, as far as `sync` says.

        `work` runs again, on a fresh transaction, when the map had to grow; so it must change nothing else.

        Raises:
            StoreFull: nothing was stored.
            StoreUnavailable: nothing was stored, or, with `uncertain`, perhaps everything.
        """
        self.check_process()
        env = self._opened()
        if self._readonly:
            raise StoreUnavailable(f"the store {str(self._path)!r} was opened with readonly=True")
        while True:
            try:
                return self._transact(env, work)
            except lmdb.MapFullError as error:
                self._grow(env, error)

    def sync(self) -> None:
        """What was written is on the disk afterwards. StoreUnavailable, `uncertain`, where the disk did not take it."""
        try:
            self._opened().sync(True)
        except lmdb.Error as error:
            raise write_error(error, self._path, uncertain=True) from error

    def size_bytes(self) -> int:
        """What is in use of the file, free pages within it included."""
        env = self._opened()
        return int((env.info()["last_pgno"] + 1) * env.stat()["psize"])

    @property
    def forked(self) -> bool:
        """True in a child of the process that opened it."""
        return os.getpid() != self._pid

    @property
    def is_open(self) -> bool:
        """False before `open` and after `close`."""
        return self._env is not None or self._broken

    def close(self) -> None:
        """Give it back; in a forked child do nothing, as it is the parent's."""
        if self.forked:
            return
        with self.viewing:
            env, self._env, self._broken = self._env, None, False
            if env is not None:
                env.close()

    def _opened(self) -> lmdb.Environment:
        if self._env is None:
            with self.viewing:
                if not self._broken:
                    raise StoreUnavailable(f"the store {str(self._path)!r} is closed")
                self._env = self._open(self._map_size_bytes)
                self._broken = False
        return self._env

    def _renew(self, env: lmdb.Environment) -> None:
        """Open it anew: LMDB refuses all else, for ever, after a failed write of the meta page or a failed remapping.

        Where the disk does not allow it yet, each later call tries again.
        """
        with self.viewing:
            self._env = None
            self._broken = True
            env.close()
            with contextlib.suppress(StoreError):
                self._opened()

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
        except MemoryError as error:
            raise StoreUnavailable(
                f"no memory to write to the store {str(self._path)!r}; nothing was stored"
            ) from error
        except lmdb.Error as error:
            uncertain = transaction_id != 0 and self._may_be_stored(env, transaction_id)
            if uncertain:
                self._renew(env)
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
        with self.viewing:
            self._remap(env, size_bytes)

    def _remap(self, env: lmdb.Environment, size_bytes: int) -> None:
        """Give the map another size; `viewing` is held by the caller. StoreFull leaves it as it was."""
        try:
            env.set_mapsize(size_bytes)
            self._map_size_bytes = env.info()["map_size"]
        except lmdb.Error as error:
            # LMDB has let go of the old map by now, and any further call on this environment would be a segfault.
            self._renew(env)
            raise StoreFull(
                f"the store {str(self._path)!r} has no address space to grow to {size_bytes} bytes ({error}); "
                "nothing was stored: raise the process's limit (ulimit -v)"
            ) from error
