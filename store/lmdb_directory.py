"""The door of an LMDB store: its directory, its one writer, its format; each fault there told apart and named.

    support.lmdb/
    ├─ data.mdb         LMDB's file
    ├─ lock.mdb         LMDB's table of readers
    └─ callboard.lock   of the writing process (writer_lock.py)

LMDB itself lets several processes write in turn. We do not, because the writer keeps what it knows of the streams in
memory.
"""

import os
from pathlib import Path

import lmdb

from . import keys
from .errors import Corrupt, NewerFormat, OlderFormat, StoreError, StoreFull, StoreUnavailable
from .lmdb_file import check_whole
from .numbers import pack_number
from .writer_lock import WriterLock

__all__ = [
    "FORMAT_VERSION",
    "WriterLock",
    "check_format",
    "make_directory",
    "open_environment",
    "read_error",
    "sync_directory",
    "write_error",
    "write_format",
]

FORMAT_VERSION = 2
READERS_MAX = 512
"""LMDB's default of 126 is soon used up by readers in threads; a slot costs 64 bytes."""


def make_directory(path: Path) -> None:
    """The directory exists afterwards, readable to its owner only where it is new. StoreUnavailable if it cannot."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (path / "data.mdb").exists():  # else it was made, and seen to be on the disk, before
            for parent in (path.parent, *(parent.parent for parent in missing)):
                sync_directory(parent)
    except FileExistsError as error:
        raise StoreUnavailable(
            f"{str(path)!r} is a file, but a store is a directory: give the name of a directory, which may be a new one"
        ) from error
    except OSError as error:
        raise StoreUnavailable(
            f"the store {str(path)!r} cannot be created: {error.strerror}; use a directory that you may write to"
        ) from error


def sync_directory(path: Path) -> None:
    """The names in a directory survive power loss afterwards. OSError where the disk does not take them."""
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def open_environment(path: Path, *, readonly: bool, sync: bool, map_size_bytes: int) -> lmdb.Environment:
    """LMDB's environment in `path`, which is made first unless `readonly`.

    Raises:
        StoreUnavailable: there is none and `readonly`, or the disk or its permissions do not allow it.
        Corrupt: what lies there is not LMDB's, or not all of it is there.
    """
    if readonly and not os.path.isfile(path / "data.mdb"):
        raise StoreUnavailable(
            f"there is no store at {str(path)!r}: check the path and its permissions (opening for writing creates one)"
        )
    try:
        if not readonly and not os.path.lexists(path / "data.mdb"):
            _create_file(path, map_size_bytes=map_size_bytes)
        check_whole(path)
        return lmdb.open(
            str(path),
            map_size=map_size_bytes,
            readonly=readonly,
            create=not readonly,
            sync=sync,
            metasync=sync,
            mode=0o600,
            # Readahead reads 32 pages for each cold one: wasted on many small streams.
            readahead=False,
            max_readers=READERS_MAX,
            max_dbs=0,
        )
    except (lmdb.Error, OSError) as error:
        raise read_error(error, path) from error


def _create_file(path: Path, *, map_size_bytes: int) -> None:
    """Make data.mdb, whole or not at all, since an empty one is taken for a store that was lost.

    LMDB creates its file first and fills it then: a process killed between, or a full disk, would leave it empty.
    """
    new = path / "new.mdb"
    try:
        new.unlink(missing_ok=True)
        with lmdb.open(str(new), subdir=False, lock=False, mode=0o600, map_size=map_size_bytes) as env:
            env.sync(True)
        new.rename(path / "data.mdb")
    finally:
        new.unlink(missing_ok=True)
    sync_directory(path)


def check_format(txn: "lmdb.Transaction[bytes]", path: Path) -> bool:
    """False where the environment is empty, True where it holds a store that we can read.

    Raises:
        NewerFormat: a newer callboard wrote it.
        OlderFormat: an older one did.
        Corrupt: it belongs to some other program.
    """
    data = txn.get(keys.FORMAT)
    if data is None:
        if txn.stat()["entries"]:
            raise Corrupt(f"format of the store {str(path)!r}", "this is an LMDB directory of another program")
        return False
    version = int.from_bytes(data, "big")
    if len(data) != 8 or version == 0:
        raise Corrupt(f"format of the store {str(path)!r}", f"{data!r} is no format number")
    if version > FORMAT_VERSION:
        raise NewerFormat(
            f"the store {str(path)!r} has format {version}, and this callboard reads up to {FORMAT_VERSION}: upgrade it"
        )
    if version < FORMAT_VERSION:
        raise OlderFormat(
            f"the store {str(path)!r} has format {version}, of an older callboard: callboard store migrate --store "
            f"{path} brings it to format {FORMAT_VERSION} and keeps the old file"
        )
    return True


def write_format(txn: "lmdb.Transaction[bytes]") -> None:
    """What an empty store has. A field that is missing afterwards was lost."""
    txn.put(keys.FORMAT, keys.number(FORMAT_VERSION))
    for key in (keys.LAST_OWNER, keys.LAST_STREAM, keys.LAST_TRIMMED):
        txn.put(key, pack_number(key, 0))


_NOT_OURS = (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError)


def read_error(error: lmdb.Error | OSError, path: Path) -> StoreError:
    """What an error of LMDB's means to somebody who opens or reads the store."""
    if isinstance(error, _NOT_OURS):
        return Corrupt(
            f"file of the store {str(path)!r}", f"{error}; restore the directory from a copy, or use another"
        )
    if "already open in this process" in str(error):
        return StoreUnavailable(f"the store {str(path)!r} is already open in this process: use that one, or close it")
    return StoreUnavailable(f"the store {str(path)!r} does not answer: {error}")


def write_error(error: lmdb.Error, path: Path, *, uncertain: bool) -> StoreError:
    """What an error of LMDB's means to somebody who writes."""
    if not uncertain and (isinstance(error, lmdb.DiskError) or _is_full(path)):
        return StoreFull(f"no space is left for the store {str(path)!r}; nothing was stored: free some and try again")
    advice = "it may have been stored all the same: open the store again" if uncertain else "nothing was stored"
    return StoreUnavailable(f"the store {str(path)!r} could not be written: {error}; {advice}", uncertain=uncertain)


def _is_full(path: Path) -> bool:
    """LMDB reports a write that was cut short, as it is when the disk fills up half-way, as an input/output error."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize < 1 << 20
