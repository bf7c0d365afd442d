"""Stores of older formats become stores of the present one.

    format 1    one record a row; guards and rows without checksums; no log (commit 0ad095b)
    format 2    today's, see keys.py

The new file is built beside the old one and takes its place in one step, so that a migration that is cut off, wherever,
leaves the old store as it was; it is begun again from its beginning. The old file stays as data-format-N.mdb.

Epochs, versions and stream numbers stay what they are: writers of before are fenced as before, and indexes keep their
order.
"""

import os
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import lmdb

from . import keys
from .batch import Index, Table
from .contract import Head
from .damage import DamageLog
from .errors import Corrupt, StoreUnavailable
from .guards import pack_guard
from .lmdb_check import check_transaction
from .lmdb_copy import Copied, new_file_beside, put_in_place
from .lmdb_directory import FORMAT_VERSION, open_environment, write_format
from .numbers import pack_number
from .rows import StoredRows
from .writer_lock import WriterLock

__all__ = ["migrate", "stored_format"]

_GUARD = struct.Struct(">QQ")
_STREAMS_PER_STEP = 200
_ROWS_PER_STEP = 1000


def stored_format(path: Path) -> int:
    """The number of the store's format. StoreUnavailable, Corrupt: there is no store, or it is another program's."""
    env = open_environment(path, readonly=True, sync=True, map_size_bytes=1 << 40)
    try:
        with env.begin() as txn:
            data = txn.get(keys.FORMAT)
            if data is None and not txn.stat()["entries"]:
                raise StoreUnavailable(f"the store {str(path)!r} is empty")
    finally:
        env.close()
    if data is None or len(data) != 8:
        raise Corrupt(f"format of the store {str(path)!r}", "this is an LMDB directory of another program")
    return int.from_bytes(data, "big")


def migrate(path: Path) -> Copied | None:
    """Bring the store to the present format; None where it has it already.

    Raises:
        StoreLocked: somebody has it open for writing.
        StoreUnavailable: a process reads from it, or there is none.
        NewerFormat, Corrupt, StoreFull: the store is as it was.
    """
    lock = WriterLock(path)
    try:
        found = stored_format(path)
        if found >= FORMAT_VERSION:
            return None
        with new_file_beside(path) as new:
            copied = _build(path, new)
            kept = path / f"data-format-{found}.mdb"
            kept.unlink(missing_ok=True)
            os.link(path / "data.mdb", kept)
            put_in_place(path, new)
    finally:
        lock.release()
    return copied


def _build(path: Path, new: Path) -> Copied:
    old = open_environment(path, readonly=True, sync=True, map_size_bytes=1 << 40)
    # Without syncs while it is built: until it is whole nobody opens it.
    made = lmdb.open(str(new), subdir=False, lock=False, mode=0o600, map_size=1 << 40, sync=False, max_dbs=0)
    try:
        with old.begin() as source:
            _copy_fields(source, made)
            _copy_streams(source, made)
        made.sync(True)
        with made.begin() as txn:
            report = check_transaction(txn)
        if report.findings:
            raise Corrupt(report.findings[0].where, f"after its migration: {report.findings[0].reason}")
    finally:
        made.close()
        old.close()
    return Copied((path / "data.mdb").stat().st_size, new.stat().st_size, report)


def _copy_fields(source: "lmdb.Transaction[bytes]", made: lmdb.Environment) -> None:
    with made.begin(write=True) as txn:
        write_format(txn)
        owner = source.get(keys.LAST_OWNER)
        if owner is not None:
            txn.put(keys.LAST_OWNER, pack_number(keys.LAST_OWNER, int.from_bytes(owner, "big")))
        numbers = [int.from_bytes(key[1:], "big") for key, _ in _range(source, keys.guard_prefix())]
        txn.put(keys.LAST_STREAM, pack_number(keys.LAST_STREAM, max(numbers, default=0)))


def _copy_streams(source: "lmdb.Transaction[bytes]", made: lmdb.Environment) -> None:
    names = _range(source, keys.name_key(""))
    while page := list(islice(names, _STREAMS_PER_STEP)):
        with made.begin(write=True) as txn:
            for key, value in page:
                _copy_head(source, txn, key, value)
        for key, value in page:
            _copy_rows(source, made, key[1:].decode(), int.from_bytes(value, "big"))


def _copy_head(
    source: "lmdb.Transaction[bytes]", txn: "lmdb.Transaction[bytes]", name_key: bytes, number: bytes
) -> None:
    name, stream = name_key[1:].decode(), int.from_bytes(number, "big")
    guard = source.get(keys.guard_key(stream)) or b""
    if len(guard) < _GUARD.size:
        raise Corrupt(f"guard of stream {name!r}", f"it has {len(guard)} bytes, not {_GUARD.size} or more")
    txn.put(name_key, pack_number(name_key, stream))
    epoch, version = _GUARD.unpack_from(guard)
    txn.put(keys.guard_key(stream), pack_guard(Head(epoch, version, guard[_GUARD.size :])))
    prefix = keys.listed_prefix(stream)
    for key, _ in _range(source, prefix):
        index, value = Index(key[len(prefix)]), key[len(prefix) + 1 :]
        txn.put(keys.entry_key(index, value, stream), name.encode())
        txn.put(key, b"")


def _copy_rows(source: "lmdb.Transaction[bytes]", made: lmdb.Environment, name: str, stream: int) -> None:
    for table in Table:
        prefix = keys.row_prefix(stream, table)
        rows = ((key[len(prefix) :], value) for key, value in _range(source, prefix))
        while page := list(islice(rows, _ROWS_PER_STEP)):
            with made.begin(write=True) as txn:
                StoredRows(txn, stream, name, DamageLog()).write(table, page)


def _range(txn: "lmdb.Transaction[bytes]", prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor() as cursor:
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            yield cursor.key(), cursor.value()
            found = cursor.next()
