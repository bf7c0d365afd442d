r"""Every key of the store, byte by byte; one function a key. Numbers are big-endian, so byte order is their order.

    01 field:u8                      meta: the format's number, the last owner and stream number given out, the last
                                     segment that was deleted
    02 name                          stream name (UTF-8) -> its number, from 1 on (numbers.py, as in 01)
    03 stream:u64                    guard -> frame of epoch:u64 version:u64 head
    04 stream:u64 table:u8 key       rows, from the one of this key on -> frame of a chunk (chunks.py)
    05 index:u8 value* 00 stream:u64 index entry -> stream name
    06 stream:u64 index:u8 value     the entries that one stream has -> empty
    07 number:u64                    log: what one group commit stored -> frame of its batches (segments.py)
    08 hash:32                       a large value -> frame of it
    09 hash:32                       how many rows have it (numbers.py)
    0a hash:8 key                    bytes that could not be read, moved aside from `key` -> as they were

- The log is the truth until a checkpoint has moved what it says into the kinds 03 to 06 (checkpoint.py).
- Everything of one stream lies together, so that a small stream's rows share pages and a commit dirties few of them.
- `value*` is the value with each 00 written as 00 FF. The closing 00 is followed by a stream number, whose first byte
  is never FF; so "a" sorts before "a\0" and that before "ab", entries of one value sort by stream number, and the
  escaped prefix of a value is a prefix of the key. (The scheme of FoundationDB's tuple layer.)
- Kind 06 lists what `erase` has to drop from kind 05.

LMDB takes keys of at most 511 bytes; the limits in batch.py keep every key of ours within that.

Source: https://apple.github.io/foundationdb/data-modeling.html (tuples), http://www.lmdb.tech/doc (key size).
"""

import hashlib

from .batch import ROW_KEY_BYTES_MAX, Index, Table, check_index_value

__all__ = [
    "FORMAT",
    "LAST_OWNER",
    "LAST_STREAM",
    "LAST_TRIMMED",
    "aside_key",
    "blob_key",
    "check_bounds",
    "check_index_prefix",
    "check_limit",
    "check_position",
    "entry_key",
    "entry_prefix",
    "entry_value",
    "guard_key",
    "guard_prefix",
    "index_prefix",
    "listed_entry",
    "listed_key",
    "listed_prefix",
    "name_key",
    "number",
    "reference_key",
    "row_key",
    "row_prefix",
    "segment_key",
    "segment_number",
    "segment_prefix",
    "successor",
]

FORMAT = b"\x01\x01"
LAST_OWNER = b"\x01\x02"
LAST_STREAM = b"\x01\x03"
LAST_TRIMMED = b"\x01\x04"

_NAME = b"\x02"
_GUARD = b"\x03"
_ROW = b"\x04"
_ENTRY = b"\x05"
_LISTED = b"\x06"
_SEGMENT = b"\x07"
_BLOB = b"\x08"
_REFERENCES = b"\x09"
_ASIDE = b"\x0a"


def number(value: int) -> bytes:
    """Eight bytes, big-endian."""
    return value.to_bytes(8, "big")


def successor(prefix: bytes) -> bytes:
    """The least byte string above everything that starts with `prefix`, a key's beginning (so never FF alone)."""
    counted = prefix.rstrip(b"\xff")
    return counted[:-1] + bytes((counted[-1] + 1,))


def name_key(name: str) -> bytes:
    return _NAME + name.encode()


def guard_key(stream: int) -> bytes:
    return _GUARD + number(stream)


def guard_prefix() -> bytes:
    return _GUARD


def row_prefix(stream: int, table: Table | None = None) -> bytes:
    """What the keys of all rows of a stream start with, or those of one of its tables."""
    prefix = _ROW + number(stream)
    return prefix if table is None else prefix + bytes((table,))


def row_key(stream: int, table: Table, key: bytes) -> bytes:
    return _ROW + number(stream) + bytes((table,)) + key


def index_prefix(index: Index) -> bytes:
    return _ENTRY + bytes((index,))


def entry_prefix(index: Index, prefix: bytes) -> bytes:
    """What the keys of all entries start with whose value starts with `prefix`."""
    return index_prefix(index) + prefix.replace(b"\0", b"\0\xff")


def entry_key(index: Index, value: bytes, stream: int) -> bytes:
    return entry_prefix(index, value) + b"\0" + number(stream)


def entry_value(key: bytes) -> bytes:
    """The value that an entry's key was made of."""
    return key[2:-9].replace(b"\0\xff", b"\0")


def listed_prefix(stream: int) -> bytes:
    return _LISTED + number(stream)


def listed_key(stream: int, index: Index, value: bytes) -> bytes:
    return _LISTED + number(stream) + bytes((index,)) + value


def listed_entry(key: bytes) -> bytes:
    """The key of the index entry that this key of kind 06 lists."""
    return _ENTRY + key[9:10] + key[10:].replace(b"\0", b"\0\xff") + b"\0" + key[1:9]


def segment_prefix() -> bytes:
    return _SEGMENT


def segment_key(segment: int) -> bytes:
    return _SEGMENT + number(segment)


def segment_number(key: bytes) -> int:
    """The number in a segment's key."""
    return int.from_bytes(key[1:], "big")


def blob_key(digest: bytes) -> bytes:
    return _BLOB + digest


def reference_key(digest: bytes) -> bytes:
    return _REFERENCES + digest


def aside_key(key: bytes, value: bytes) -> bytes:
    """Where the value of `key` is kept that could not be read. Another value of the same key gets another place."""
    return _ASIDE + hashlib.blake2b(value, digest_size=8).digest() + key


def check_limit(limit: int | None) -> None:
    """ValueError if `limit` is negative."""
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be None or at least 0, not {limit}")


def check_bounds(start: bytes, stop: bytes | None) -> None:
    """ValueError if a scan's bound is longer than a row key and a zero byte, the place just behind that key."""
    if max(len(start), len(stop or b"")) > ROW_KEY_BYTES_MAX + 1:
        raise ValueError(f"a scan's start and stop have at most {ROW_KEY_BYTES_MAX + 1} bytes: no row key is longer")


def check_index_prefix(prefix: bytes) -> None:
    """ValueError if no index value can start with `prefix`."""
    check_index_value(prefix)


def check_position(position: bytes, index: Index) -> None:
    """ValueError unless `position` can be the key of an entry of this index."""
    if not position.startswith(index_prefix(index)) or not 11 <= len(position) <= 511:
        raise ValueError(f"after={position!r} is not a position in the index {index.name}: pass an IndexHit.position")
