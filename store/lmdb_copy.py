"""Copies of a store's file: a backup beside a running writer, and a compact file in its own place.

Both are LMDB's own copy, which is that of one read transaction: the file as it was at that moment, with all that was
acknowledged before. A copy gets its name only once it is whole, on the disk, and found good; until then it has another,
and it is removed where that fails.
"""

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import lmdb

from .errors import Corrupt, StoreFull, StoreUnavailable
from .lmdb_check import CheckReport, check_transaction
from .lmdb_directory import check_format, open_environment, read_error, sync_directory
from .lmdb_store import LmdbStore
from .writer_lock import WriterLock

__all__ = ["NEW_FILE", "Copied", "back_up", "compact", "new_file_beside", "put_in_place", "unchanging"]

NEW_FILE = "new-data.mdb"
"""A file that is to take the place of data.mdb, while it is written. One left behind by a crash is written anew."""

_DISK_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True, slots=True)
class Copied:
    """Sizes of the file before and of the copy, in bytes, and what was found in the copy."""

    before_bytes: int
    after_bytes: int
    report: CheckReport


def back_up(path: Path, target: Path) -> Copied:
    """Copy the store into a new directory `target`, while another process may write to it.

    Afterwards `target` is a store with all that was acknowledged before the call; every key of it was checked.

    Raises:
        StoreUnavailable: there is no store, or something of this name is there already.
        StoreFull: no space; nothing is left of the copy.
        Corrupt: the copy was checked and is not sound, as the store is not: `check` says what. Nothing is left of it.

    Cost: reads and writes all of it. Pages that the writer gives free meanwhile are reused afterwards only.
    """
    if target.exists() or target.is_symlink():
        raise StoreUnavailable(f"there is something at {str(target)!r} already: give the name of a new directory")
    part = _unfinished(target, "part")
    with _writing_to(part.parent, part):
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir(mode=0o700)
        copied = _copy(path, part / "data.mdb")
        _check_sound(copied.report, path)
        sync_directory(part)
        part.rename(target)
        try:
            sync_directory(target.parent)
        except OSError:
            target.rename(part)  # which is removed: a name that may not last is no backup
            raise
    return copied


def compact(path: Path) -> Copied:
    """Write the store anew without its free pages, in its own place; its log is moved into rows first.

    At every moment the directory holds the old file whole or the new file whole.

    Raises:
        StoreLocked: somebody has it open for writing.
        StoreUnavailable: a process reads from it.
        StoreFull, Corrupt: the old file is as it was.
    """
    LmdbStore(path).close()  # which replays the log and moves it into rows
    lock = WriterLock(path)
    try:
        with new_file_beside(path) as new:
            copied = _copy(path, new)
            _check_sound(copied.report, path)
            put_in_place(path, new)
    finally:
        lock.release()
    return copied


@contextlib.contextmanager
def unchanging(path: Path) -> Generator[Path]:
    """A copy of the store as it is now, beside it, removed afterwards: for what has to see one moment of it.

    A copy also where nobody writes: a lock would keep out whoever wants to begin.

    Raises:
        StoreUnavailable, StoreFull: there is no store, or no place for the copy.
    """
    if not (path / "data.mdb").exists():
        yield path  # whoever opens it says so
        return
    copy = _unfinished(path.absolute(), "moment")
    try:
        with _writing_to(path, copy):
            copy.mkdir(mode=0o700)
            _copy(path, copy / "data.mdb")
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


@contextlib.contextmanager
def new_file_beside(path: Path) -> Generator[Path]:
    """The name of a file in the store's directory, removed at the end where it did not take the place of data.mdb."""
    new = path / NEW_FILE
    with _writing_to(path, new):
        new.unlink(missing_ok=True)
        try:
            yield new
        finally:
            new.unlink(missing_ok=True)


def put_in_place(path: Path, new: Path) -> None:
    """`new` becomes data.mdb, in one step. The caller holds the writer's lock, and nobody here has data.mdb open.

    Raises:
        StoreUnavailable: a process reads from the store; it would go on with the old file for ever.
    """
    with open(path / "lock.mdb", "a+b") as readers:
        try:
            # Everybody who has the environment open holds a lock on this byte (mdb_env_excl_lock in LMDB's mdb.c).
            fcntl.lockf(readers, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError as error:
            raise StoreUnavailable(
                f"a process reads from the store {str(path)!r}, whose file is to be replaced: end it first"
            ) from error
        new.rename(path / "data.mdb")
        sync_directory(path)


def _unfinished(target: Path, what: str) -> Path:
    """A name beside `target` for what is not finished; what killed processes left of that name is removed."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.{what}-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return target.with_name(f".{target.name}.{what}-{os.getpid()}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _copy(path: Path, new: Path) -> Copied:
    env = open_environment(path, readonly=True, sync=True, map_size_bytes=1 << 40)
    try:
        with env.begin() as txn:
            check_format(txn, path)
        before_bytes = (path / "data.mdb").stat().st_size
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            env.copyfd(fd, compact=True)
            os.fsync(fd)
        finally:
            os.close(fd)
    finally:
        env.close()
    report = _checked(new)
    return Copied(before_bytes, new.stat().st_size, report)


def _checked(file: Path) -> CheckReport:
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False, map_size=1 << 40) as env, env.begin() as txn:
        return check_transaction(txn)


def _check_sound(report: CheckReport, path: Path) -> None:
    if report.findings:
        first = report.findings[0]
        raise Corrupt(
            first.where,
            f"{first.reason} ({len(report.findings)} faults in all: see callboard store check --store {path})",
        )


@contextlib.contextmanager
def _writing_to(directory: Path, made: Path) -> Generator[None]:
    """Errors of the disk become ours, and what was made is removed where one comes."""
    try:
        yield
    except BaseException as error:
        if made.is_dir():
            shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, lmdb.Error):
            if any(text in str(error) for text in _DISK_FULL):
                raise StoreFull(f"no space is left for {str(made)!r}: nothing of it is left") from error
            raise read_error(error, directory) from error
        if isinstance(error, OSError):
            full = error.strerror in _DISK_FULL
            fault = StoreFull if full else StoreUnavailable
            raise fault(f"{str(made)!r} cannot be written: {error.strerror}; nothing of it is left") from error
        raise
