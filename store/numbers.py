"""Numbers on disk that all else hangs on: a stream's, the last ones given out, the last segment deleted.

    number:u64 crc32:u32 (big-endian; of the key and the number)

The key is part of the checksum, so that a number that has got to another name is not believed there: it would show one
conversation under the name of another.
"""

import struct
import zlib

import lmdb

from .errors import Corrupt

__all__ = ["pack_number", "read_number_at", "unpack_number"]

_NUMBER = struct.Struct(">QI")


def pack_number(key: bytes, number: int) -> bytes:
    """The value to store under `key`."""
    return _NUMBER.pack(number, zlib.crc32(key + number.to_bytes(8, "big")))


def unpack_number(key: bytes, value: bytes, *, where: str) -> int:
    """The number that is stored under `key`; `where` names it for people.

    Raises:
        Corrupt: it is not as it was written.
    """
    if len(value) != _NUMBER.size:
        raise Corrupt(where, f"it has {len(value)} bytes, not {_NUMBER.size}")
    number, checksum = _NUMBER.unpack(value)
    if zlib.crc32(key + value[:8]) != checksum:
        raise Corrupt(where, "its bytes are not those that were written (checksum)")
    return int(number)


def read_number_at(txn: "lmdb.Transaction[bytes]", key: bytes, *, where: str) -> int | None:
    """The number under `key`; None where there is none. Raises as unpack_number."""
    value = txn.get(key)
    return None if value is None else unpack_number(key, value, where=where)
