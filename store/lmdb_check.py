"""Every key of an LMDB store looked at: is it what its place says, and does what belongs together agree?

| kind | what must hold |
|---|---|
| 01 | known fields; checksum |
| 02 | a name of 1 to 400 bytes of UTF-8; checksum; a number given out, to one name only |
| 03 | of a stream that has a name; checksum; a guard |
| 04 | of a stream that has a name and a guard; checksum; rows in order, between this key and the next one |
| 05, 06 | each entry stands in the list of its stream, and each of the list in its index |
| 07 | checksum; batches; of streams that have a name; no batch of a stream is left out between |
| 08, 09 | a large value has its hash, and as many rows as are counted |
| 0a | set aside by an earlier repair: told, and no fault |

A repair deletes nothing: what cannot be read moves aside (kind 0a). Index entries and counts are derived, and are made
anew from what they are derived from.
"""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lmdb

from . import keys
from .batch import NAME_BYTES_MAX, ROW_KEY_BYTES_MAX, Index, Table
from .chunks import LargeValue, decode_chunk
from .contract import Head
from .errors import Corrupt, StoreUnavailable
from .framing import unframe
from .guards import greatest_number, pack_guard, read_head, set_aside
from .lmdb_directory import FORMAT_VERSION, check_format, open_environment, read_error
from .numbers import pack_number, read_number_at, unpack_number
from .segments import decode_segment, read_segments
from .writer_lock import WriterLock

__all__ = ["CheckReport", "Finding", "check_directory", "check_transaction", "repair_directory"]

_TABLES = {int(table): table for table in Table}
_INDEXES = {int(index): index for index in Index}
_FIELDS = {
    keys.FORMAT: "format of the store",
    keys.LAST_OWNER: "last owner of the store",
    keys.LAST_STREAM: "last stream number",
    keys.LAST_TRIMMED: "last deleted segment",
}
OWNER_BITS = 32
"""An epoch is an owner's number, with so many bits of activations below it."""
OWNERS_LEFT_OUT = 1000
"""Owners that opened the store and wrote nothing have left no trace: their numbers must not be given out again."""
_KEY_BYTES_MAX = 511
_ROUNDS_MAX = 3
"""Mending one thing may bring another to light: an entry that was set aside leaves a list naming it."""

Mend = Callable[["lmdb.Transaction[bytes]"], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be. `mend` makes it right where that can be done, without loss."""

    where: str
    reason: str
    mend: Mend | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class CheckReport:
    """What was looked at, and what is wrong with it; `aside` are values that an earlier repair has set aside."""

    streams: int = 0
    rows: int = 0
    chunks: int = 0
    entries: int = 0
    segments: int = 0
    large_values: int = 0
    aside: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])


def check_directory(path: Path) -> CheckReport:
    """Look at every key, as of one moment. Nothing is changed; another process may write meanwhile.

    Raises:
        StoreError: there is no store, it cannot be opened, or the file itself is damaged.

    Cost: reads all of it, some 600 MB a second from memory. Pages that are given free meanwhile are reused afterwards
    only, so the file of a busy store may grow.
    """
    env = open_environment(path, readonly=True, sync=True, map_size_bytes=1 << 40)
    try:
        with env.begin() as txn:
            if not check_format(txn, path):
                raise StoreUnavailable(f"the store {str(path)!r} is empty")
            return check_transaction(txn)
    except lmdb.Error as error:
        raise read_error(error, path) from error
    finally:
        env.close()


def repair_directory(path: Path) -> tuple[CheckReport, CheckReport]:
    """Check, mend what can be mended, and check again: both reports. One transaction: all is mended, or nothing.

    Raises:
        StoreLocked: somebody has the store open for writing.
        StoreError: as check_directory, or it could not be written.
    """
    lock = WriterLock(path)
    try:
        before = check_directory(path)
        env = open_environment(path, readonly=False, sync=True, map_size_bytes=1 << 40)
        try:
            with env.begin(write=True) as txn:
                after = before
                for _ in range(_ROUNDS_MAX):
                    mends = [finding.mend for finding in after.findings if finding.mend is not None]
                    for mend in mends:
                        mend(txn)
                    after = check_transaction(txn) if mends else after
            return before, after
        finally:
            env.close()
    except lmdb.Error as error:
        raise read_error(error, path) from error
    finally:
        lock.release()


def check_transaction(txn: "lmdb.Transaction[bytes]") -> CheckReport:
    """The report on what a transaction sees."""
    return _Walk(txn).report()


class _Walk:
    def __init__(self, txn: "lmdb.Transaction[bytes]") -> None:
        self._txn = txn
        self._told = CheckReport()
        self._names: dict[int, str] = {}
        self._references: Counter[bytes] = Counter()
        self._versions: dict[str, int] = {}
        self._last_stream = _number(txn, keys.LAST_STREAM)
        self._last_segment = _number(txn, keys.LAST_TRIMMED)
        self._chunk_end: tuple[bytes, bytes] | None = None
        self._unguarded: set[int] = set()
        self._entry_numbers: dict[bytes, set[int]] | None = None

    def report(self) -> CheckReport:
        kinds = {
            1: self._field,
            2: self._name,
            3: self._guard,
            4: self._chunk,
            5: self._entry,
            6: self._listed,
            7: self._segment,
            8: self._blob,
            9: self._count,
            10: self._aside,
        }
        for key, value in _pairs(self._txn):
            kinds.get(key[0], self._unknown)(key, value)
        for key, where in _FIELDS.items():
            if self._txn.get(key) is None:
                self._find(where, "it is missing", self._new_field(key))
        for digest in list(self._references):
            if self._txn.get(keys.reference_key(digest)) is None:
                self._wrong_count(digest, 0)
        return self._told

    def _find(self, where: str, reason: str, mend: Mend | None = None) -> None:
        self._told.findings.append(Finding(where, reason, mend))

    def _unknown(self, key: bytes, value: bytes) -> None:
        self._find(f"key {key.hex()}", "this callboard knows no such key", _move_aside(key))

    def _field(self, key: bytes, value: bytes) -> None:
        if key not in _FIELDS:
            self._unknown(key, value)
        elif key == keys.FORMAT:
            if value != keys.number(FORMAT_VERSION):
                self._find("format of the store", f"{value.hex()} is not the number of this format")
        else:
            try:
                unpack_number(key, value, where=_FIELDS[key])
            except Corrupt as error:
                self._find(error.where, error.reason, self._new_field(key))

    def _name(self, key: bytes, value: bytes) -> None:
        where = f"name {key[1:]!r}"
        try:
            name = key[1:].decode()
        except UnicodeDecodeError as error:
            self._find(where, str(error), _move_aside(key))
            return
        if not 0 < len(key) - 1 <= NAME_BYTES_MAX:
            self._find(where, "no stream's name is so long", _move_aside(key))
            return
        try:
            number = unpack_number(key, value, where=where)
        except Corrupt as error:
            # Its entries in the indexes know the number as well; without one its rows could not be told from others'.
            number = self._number_by_entries(key[1:])
            mend = _putting(key, pack_number(key, number)) if number else _move_aside(key)
            self._find(where, error.reason, mend)
            if not number:
                return
        if number in self._names:
            self._find(where, f"it has the number of {self._names[number]!r}")
            return
        if number > self._last_stream:
            self._find(where, "its number was never given out", self._new_field(keys.LAST_STREAM))
        self._names[number] = name
        self._told.streams += 1

    def _number_by_entries(self, name: bytes) -> int:
        """The stream number that a name's index entries have; 0 where it has none, or several."""
        if self._entry_numbers is None:
            self._entry_numbers = {}
            for key, value in _pairs(self._txn, keys.index_prefix(Index.UPDATED)[:1]):
                self._entry_numbers.setdefault(value, set()).add(int.from_bytes(key[-8:], "big"))
        numbers = self._entry_numbers.get(name, set())
        return next(iter(numbers)) if len(numbers) == 1 else 0

    def _guard(self, key: bytes, value: bytes) -> None:
        number = int.from_bytes(key[1:], "big")
        name = self._names.get(number)
        if name is None or len(key) != 9:
            self._find(f"guard {key.hex()}", "no stream has this number", _move_aside(key))
            return
        try:
            head = read_head(self._txn, name, number)
        except Corrupt as error:
            self._find(error.where, error.reason, self._new_guard(key))
            self._versions[name] = 2**63  # unknown: what the log has of it cannot be compared
            return
        assert head is not None, "it was found by its key"
        self._versions[name] = head.version

    def _new_guard(self, key: bytes) -> Mend:
        """Epoch and head are lost. Nobody who wrote before may write again, so the epoch is that of a new owner."""

        def mend(txn: "lmdb.Transaction[bytes]") -> None:
            damaged = txn.get(key)
            if damaged is not None:
                set_aside({key: damaged}, txn)
            owner = max(_number(txn, keys.LAST_OWNER), _greatest_owner(txn)) + 1
            txn.put(key, pack_guard(Head(owner << OWNER_BITS, 0, b"")))
            txn.put(keys.LAST_OWNER, pack_number(keys.LAST_OWNER, owner))

        return mend

    def _new_field(self, key: bytes) -> Mend:
        """What can be derived from all else. An owner before may have written nothing: one more is left out for it."""

        def mend(txn: "lmdb.Transaction[bytes]") -> None:
            damaged = txn.get(key)
            if damaged is not None:
                set_aside({key: damaged}, txn)
            if key == keys.LAST_STREAM:
                number = greatest_number(txn)
            elif key == keys.LAST_OWNER:
                number = _greatest_owner(txn) + OWNERS_LEFT_OUT
            else:
                first = next(read_segments(txn, 0), None)
                number = first[0] - 1 if first is not None else 0
            txn.put(key, pack_number(key, number))

        return mend

    def _chunk(self, key: bytes, value: bytes) -> None:
        number, table = int.from_bytes(key[1:9], "big"), _TABLES.get(key[9] if len(key) > 9 else 0)
        name = self._names.get(number)
        if name is None or table is None or len(key) > 10 + ROW_KEY_BYTES_MAX:
            self._find(f"rows {key.hex()}", "no stream has this number, or no table", _move_aside(key))
            return
        where = f"{table.name} rows from {key[10:].hex() or 'the first'} of stream {name!r}"
        if self._txn.get(keys.guard_key(number)) is None and number not in self._unguarded:
            self._unguarded.add(number)
            self._find(where, "their stream has no guard", self._new_guard(keys.guard_key(number)))
        try:
            rows = decode_chunk(value, where=where)
        except Corrupt as error:
            self._find(where, error.reason, _move_aside(key))
            return
        self._told.chunks += 1
        self._told.rows += len(rows)
        row_keys = [row_key for row_key, _ in rows]
        behind = self._chunk_end is not None and self._chunk_end[0] == key[:10] and self._chunk_end[1] >= key[10:]
        if row_keys[:1] != [key[10:]] or any(a >= b for a, b in itertools.pairwise(row_keys)) or behind:
            self._find(where, "its rows are not in their place", _move_aside(key))
            return
        self._chunk_end = (key[:10], row_keys[-1])
        for _, stored in rows:
            if isinstance(stored, LargeValue):
                self._references[stored.hash] += 1
                if self._txn.get(keys.blob_key(stored.hash)) is None:
                    self._find(where, "its large value is missing: restore it from a backup")

    def _entry(self, key: bytes, value: bytes) -> None:
        index, number = _INDEXES.get(key[1] if len(key) > 1 else 0), int.from_bytes(key[-8:], "big")
        name = self._names.get(number)
        where = f"index entry {key.hex()}"
        if index is None or len(key) < 11 or name is None or not _is_escaped(key[2:-9]):
            self._find(where, "it does not point at a stream", _move_aside(key))
            return
        listed = keys.listed_key(number, index, keys.entry_value(key))
        if value != name.encode():
            known = self._txn.get(listed) is not None
            mend = _putting(key, name.encode()) if known else _move_aside(key)
            self._find(where, "it does not point at a stream", mend)
            return
        self._told.entries += 1
        if self._txn.get(listed) is None:
            self._find(where, "the list of its stream does not have it", _putting(listed, b""))

    def _listed(self, key: bytes, value: bytes) -> None:
        name = self._names.get(int.from_bytes(key[1:9], "big"))
        where = f"listed entry {key.hex()}"
        if name is None or len(key) < 10 or key[9] not in _INDEXES or value:
            self._find(where, "it does not name an entry of a stream", _move_aside(key))
            return
        entry = keys.listed_entry(key)
        if self._txn.get(entry) is None:
            self._find(where, "its index does not have it", _putting(entry, name.encode()))

    def _segment(self, key: bytes, value: bytes) -> None:
        number = keys.segment_number(key)
        where = f"number {number} of the log"
        if len(key) != 9 or number <= _number(self._txn, keys.LAST_TRIMMED):
            self._find(where, "it should have been deleted", _move_aside(key))
            return
        if number != self._last_segment + 1:
            self._find(where, f"it follows number {self._last_segment}: what lay between is lost")
        self._last_segment = number
        try:
            batches = decode_segment(value, number=number)
        except Corrupt as error:
            self._find(where, error.reason, _move_aside(key))
            return
        self._told.segments += 1
        for batch in batches:
            known = self._versions.get(batch.stream, 0)
            if self._txn.get(keys.name_key(batch.stream)) is None:
                self._find(where, f"its stream {batch.stream!r} has no name")
            elif batch.version > known:
                self._find(where, f"stream {batch.stream!r} goes from version {known} to {batch.version}")
            self._versions[batch.stream] = max(known, batch.version + 1)

    def _blob(self, key: bytes, value: bytes) -> None:
        where = f"large value {key[1:].hex()}"
        try:
            content = unframe(value, where=where)
        except Corrupt as error:
            self._find(where, error.reason, _move_aside(key))
            return
        self._told.large_values += 1
        if hashlib.blake2b(content, digest_size=32).digest() != key[1:]:
            self._find(where, "it does not have this hash", _move_aside(key))
        elif key[1:] not in self._references:
            self._find(where, "no row has it", _move_aside(key))

    def _count(self, key: bytes, value: bytes) -> None:
        try:
            counted: int | str = unpack_number(key, value, where="")
        except Corrupt as error:
            counted = f"nothing ({error.reason})"
        if counted != self._references[key[1:]]:
            self._wrong_count(key[1:], counted)

    def _wrong_count(self, digest: bytes, counted: int | str) -> None:
        count = self._references[digest]
        key = keys.reference_key(digest)

        def mend(txn: "lmdb.Transaction[bytes]") -> None:
            if count:
                txn.put(key, pack_number(key, count))
            else:
                txn.delete(key)

        self._find(f"count of the large value {digest.hex()}", f"it says {counted}, and {count} rows have it", mend)

    def _aside(self, key: bytes, value: bytes) -> None:
        self._told.aside += 1


def _pairs(txn: "lmdb.Transaction[bytes]", kind: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """All keys with their values, or those of one kind."""
    with txn.cursor() as cursor:
        if cursor.set_range(kind) if kind else cursor.first():
            yield from itertools.takewhile(lambda pair: pair[0].startswith(kind), cursor)


def _number(txn: "lmdb.Transaction[bytes]", key: bytes) -> int:
    """A field; where it cannot be read, which is told where the walk meets it, the greatest there can be."""
    try:
        return read_number_at(txn, key, where=_FIELDS[key]) or 0
    except Corrupt:
        return greatest_number(txn) if key == keys.LAST_STREAM else 0


def _greatest_owner(txn: "lmdb.Transaction[bytes]") -> int:
    """The last owner that any guard, or batch in the log, was written by."""
    epochs = [0]
    for key, value in _pairs(txn):
        with contextlib.suppress(Corrupt):
            if key.startswith(keys.guard_prefix()):
                head = read_head(txn, "", int.from_bytes(key[1:], "big"))
                epochs.append(head.epoch if head is not None else 0)
            elif key.startswith(keys.segment_prefix()):
                epochs.extend(batch.epoch for batch in decode_segment(value, number=keys.segment_number(key)))
    return max(epochs) >> OWNER_BITS


def _putting(key: bytes, value: bytes) -> Mend:
    """Write what is derived: nothing is lost with what was there."""

    def mend(txn: "lmdb.Transaction[bytes]") -> None:
        txn.put(key, value)

    return mend


def _is_escaped(escaped: bytes) -> bool:
    return b"\0" not in escaped.replace(b"\0\xff", b"")


def _move_aside(key: bytes) -> Mend | None:
    """Keep the value under a key of kind 0a, and take it out of its place; None where the key is too long for that."""
    if len(keys.aside_key(key, b"")) > _KEY_BYTES_MAX:
        return None

    def mend(txn: "lmdb.Transaction[bytes]") -> None:
        value = txn.get(key)
        if value is not None:
            set_aside({key: value}, txn)
            txn.delete(key)

    return mend
