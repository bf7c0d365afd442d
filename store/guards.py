"""A stream's guard on disk: its epoch, its version and its head, as the last checkpoint left them."""

import contextlib
import struct
from collections.abc import Mapping

import lmdb

from . import keys
from .contract import Head
from .damage import DamageLog
from .errors import Corrupt
from .framing import frame, unframe
from .log import Guard
from .numbers import read_number_at, unpack_number

__all__ = ["greatest_number", "kept_head", "pack_guard", "read_head", "read_number", "set_aside", "stored_guard"]

_GUARD = struct.Struct(">QQ")


def read_number(txn: "lmdb.Transaction[bytes]", name: str) -> int | None:
    """The number of the stream of this name, or None where it was never written. Corrupt if it is no number."""
    return read_number_at(txn, keys.name_key(name), where=f"number of stream {name!r}")


def greatest_number(txn: "lmdb.Transaction[bytes]") -> int:
    """The greatest stream number that a sound name or a guard has; 0 where there is none. Cost: reads all names."""
    greatest = 0
    with txn.cursor() as cursor:
        found = cursor.set_range(keys.name_key(""))
        while found and not cursor.key().startswith(keys.row_prefix(0)[:1]):
            key, value = cursor.item()
            if key.startswith(keys.guard_prefix()):
                greatest = max(greatest, int.from_bytes(key[1:9], "big"))
            else:
                with contextlib.suppress(Corrupt):
                    greatest = max(greatest, unpack_number(key, value, where=""))
            found = cursor.next()
    return greatest


def read_head(txn: "lmdb.Transaction[bytes]", name: str, number: int) -> Head | None:
    """A stream's guard and head as the rows have them; None where no checkpoint has reached it. Corrupt if damaged."""
    data = txn.get(keys.guard_key(number))
    if data is None:
        return None
    where = f"guard of stream {name!r}"
    content = unframe(data, where=where)
    if len(content) < _GUARD.size:
        raise Corrupt(where, f"it has {len(content)} bytes, not {_GUARD.size} or more")
    epoch, version = _GUARD.unpack_from(content)
    return Head(epoch, version, bytes(content[_GUARD.size :]))


def pack_guard(head: Head) -> bytes:
    return frame(_GUARD.pack(head.epoch, head.version) + head.head)


def stored_guard(txn: "lmdb.Transaction[bytes]", name: str) -> Guard | None:
    """Number, epoch and version of a stream as the rows have them; None where it was never written."""
    number = read_number(txn, name)
    if number is None:
        return None
    head = read_head(txn, name, number)
    return (number, head.epoch, head.version) if head is not None else (number, 0, 0)


def kept_head(txn: "lmdb.Transaction[bytes]", number: int, name: str, damage: DamageLog) -> bytes:
    """The stored head, b"" for a stream that has none; one that cannot be read moves aside."""
    try:
        stored = read_head(txn, name, number)
    except Corrupt as error:
        damage.report(error.where, error.reason)
        key = keys.guard_key(number)
        set_aside({key: txn.get(key) or b""}, txn)
        return b""
    return stored.head if stored is not None else b""


def set_aside(values: Mapping[bytes, bytes], txn: "lmdb.Transaction[bytes]") -> None:
    """Keep a copy of bytes that could not be read and are about to be overwritten or deleted, by their keys."""
    for key, value in values.items():
        txn.put(keys.aside_key(key, value), value)
