r"""Every key of the store, byte by byte; one function a key. Numbers are big-endian, so byte order is their order.

    01 field:u8                                       meta: the format's number, the last owner number given out
    02 name                                           stream name (UTF-8) -> stream:u64, dense from 1
    03 stream:u64                                     guard -> epoch:u64 version:u64 head
    04 stream:u64 table:u8 key                        row -> value
    05 index:u8 value* 00 stream:u64                  index entry -> stream name
    06 stream:u64 index:u8 value                      the entries that one stream has -> empty

- Everything of one stream lies together, so that a small stream's rows share pages and a commit dirties few of them.
- `value*` is the value with each 00 written as 00 FF. The closing 00 is followed by a stream number, whose first byte
  is never FF; so "a" sorts before "a\0" and that before "ab", entries of one value sort by stream number, and the
  escaped prefix of a value is a prefix of the key. (The scheme of FoundationDB's tuple layer.)
- Kind 06 lists what `erase` has to drop from kind 05.

LMDB takes keys of at most 511 bytes; the limits below keep every key of ours within that.

Source: https://apple.github.io/foundationdb/data-modeling.html (tuples), http://www.lmdb.tech/doc (key size).
"""

from .contract import Batch, Index, IndexRow, Row, Table

__all__ = [
    "FORMAT",
    "INDEX_VALUE_BYTES_MAX",
    "INDEX_VALUE_ZEROS_MAX",
    "LAST_OWNER",
    "NAME_BYTES_MAX",
    "ROW_KEY_BYTES_MAX",
    "check_batch",
    "check_bounds",
    "check_index_prefix",
    "check_limit",
    "check_name",
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
    "row_key",
    "row_prefix",
    "successor",
]

NAME_BYTES_MAX = 400
ROW_KEY_BYTES_MAX = 64
INDEX_VALUE_BYTES_MAX = 400
INDEX_VALUE_ZEROS_MAX = 100
"""A zero byte takes two in an entry's key: 400 + 100 + 11 = 511, LMDB's limit."""
NUMBER_MAX = 2**63 - 1

FORMAT = b"\x01\x01"
LAST_OWNER = b"\x01\x02"

_NAME = b"\x02"
_GUARD = b"\x03"
_ROW = b"\x04"
_ENTRY = b"\x05"
_LISTED = b"\x06"


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


def check_name(name: str) -> None:
    """ValueError unless `name` can name a stream, TypeError where it is no str."""
    if type(name) is not str:
        _check_type(name, str, "a stream's name", "decode it")
    try:
        size_bytes = len(name) if name.isascii() else len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"a stream's name must be valid Unicode: take the lone surrogates out of {name!r}") from error
    if not 0 < size_bytes <= NAME_BYTES_MAX:
        raise ValueError(
            f"a stream's name has 1 to {NAME_BYTES_MAX} bytes of UTF-8, but {name[:40]!r} has {size_bytes}: shorten it"
        )


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
    _check_index_value(prefix)


def check_position(position: bytes, index: Index) -> None:
    """ValueError unless `position` can be the key of an entry of this index."""
    if not position.startswith(index_prefix(index)) or not 11 <= len(position) <= 511:
        raise ValueError(f"after={position!r} is not a position in the index {index.name}: pass an IndexHit.position")


def check_batch(batch: Batch) -> None:
    """Refuse what cannot be stored, so that a commit fails before it began, and takes nobody else's batch with it.

    Raises:
        TypeError: a part is of another type than the contract says. Also a bytearray or a memoryview: its owner could
            change it while the batch waits for its commit.
        ValueError: a key or a number is beyond its limits.

    Cost: about 0.3 us, and 0.1 us more for each row.
    """
    if type(batch) is not Batch or type(rows := batch.rows) is not tuple or type(batch.index_rows) is not tuple:
        _check_type(batch, Batch, "a batch", "pass Batch(stream, epoch, version)")
        _check_type(rows := batch.rows, tuple, "a batch's rows", "pass a tuple")
        _check_type(batch.index_rows, tuple, "a batch's index_rows", "pass a tuple")
    name, epoch, version, head = batch.stream, batch.epoch, batch.version, batch.head
    # Each of these tests is one that the usual batch passes; what is wrong with another is found out behind it.
    if type(name) is not str or not name.isascii() or not 0 < len(name) <= NAME_BYTES_MAX:
        check_name(name)
    if type(epoch) is not int or type(version) is not int:
        _check_type(epoch, int, "a batch's epoch", "pass an int")
        _check_type(version, int, "a batch's version", "pass an int")
    if epoch < 0 or version < 0 or epoch > NUMBER_MAX or version >= NUMBER_MAX:
        raise ValueError(f"epoch and version must be 0 to 2**63 - 2, not {epoch} and {version}")
    if type(head) is not bytes and head is not None:
        _check_type(head, bytes, "a head", "encode it, or pass None to keep the old one")
    for row in rows:
        if (
            type(row) is Row
            and type(key := row.key) is bytes
            and type(row.table) is Table
            and (type(row.value) is bytes or row.value is None)
            and len(key) <= ROW_KEY_BYTES_MAX
        ):
            continue
        _check_row(row)
    for entry in batch.index_rows:
        if (
            type(entry) is not IndexRow
            or type(entry.index) is not Index
            or type(entry.value) is not bytes
            or type(entry.present) is not bool
        ):
            _check_index_row(entry)
        _check_index_value(entry.value)


def _check_index_row(entry: IndexRow) -> None:
    _check_type(entry, IndexRow, "an index row", "pass IndexRow(index, value)")
    _check_type(entry.index, Index, "an index row's index", "pass a member of Index")
    _check_type(entry.value, bytes, "an index value", "encode it")
    _check_type(entry.present, bool, "an index row's present", "pass True to add the entry, False to remove it")


def _check_row(row: Row) -> None:
    _check_type(row, Row, "a row", "pass Row(table, key, value)")
    _check_type(row.table, Table, "a row's table", "pass a member of Table")
    _check_type(row.key, bytes, "a row key", "encode it")
    if len(row.key) > ROW_KEY_BYTES_MAX:
        raise ValueError(f"a row key has at most {ROW_KEY_BYTES_MAX} bytes, not {len(row.key)}: store a hash of it")
    if row.value is not None:
        _check_type(row.value, bytes, "a row value", "encode it, or pass None to delete the row")


def _check_type(value: object, wanted: type, what: str, mend: str) -> None:
    if not isinstance(value, wanted):
        raise TypeError(f"{what} must be {wanted.__name__}, not {type(value).__name__}: {mend}")


def _check_index_value(value: bytes) -> None:
    if len(value) > INDEX_VALUE_BYTES_MAX or value.count(0) > INDEX_VALUE_ZEROS_MAX:
        raise ValueError(
            f"an index value has at most {INDEX_VALUE_BYTES_MAX} bytes, {INDEX_VALUE_ZEROS_MAX} of them zero, "
            f"not {len(value)} and {value.count(0)}: shorten it, or index a hash of it"
        )
