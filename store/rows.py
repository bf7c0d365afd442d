"""The rows of one stream on disk, read and written chunk by chunk within a transaction of LMDB's.

A chunk's key is that of its first row; it reaches up to the next chunk. Appending, which is what sessions do, adds to
the last chunk until it is full. A value above BLOB_BYTES_MIN is stored once under its hash, however many rows have it,
with a count of them: chunks stay small, and a copy of a conversation does not copy its pictures.

What cannot be read is left out, and noted as damage. Before a damaged chunk is overwritten its bytes move aside, so
that nothing is lost that somebody could still mend.

Source: content-addressed storage as in Venti (Quinlan and Dorward, FAST 2002).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import lmdb

from . import keys
from .batch import Table
from .chunks import CHUNK_BYTES, LargeValue, Stored, decode_chunk, encode_chunks, last_key
from .damage import DamageLog
from .errors import Corrupt
from .framing import frame, unframe
from .guards import set_aside
from .numbers import pack_number, read_number_at

__all__ = ["BLOB_BYTES_MIN", "StoredRows", "place"]

BLOB_BYTES_MIN = 16 * 1024
CHUNK_BYTES_MIN = 4096
"""So much that is appended at once begins a chunk of its own: the one before it need not be read."""


class StoredRows:
    """Use it within the transaction that it is given.

    Args:
        number: the stream's number; `name` is for people.
        damage: where what cannot be read is noted.
    """

    __slots__ = ("_damage", "_name", "_number", "_txn")

    def __init__(self, txn: "lmdb.Transaction[bytes]", number: int, name: str, damage: DamageLog) -> None:
        self._txn = txn
        self._number = number
        self._name = name
        self._damage = damage

    def scan(
        self, table: Table, start: bytes, stop: bytes | None, *, newest_first: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """The rows with `start <= key < stop` in byte order, or backwards. Lazy: reads a chunk when it is reached."""
        prefix = keys.row_prefix(self._number, table)
        with self._txn.cursor() as cursor:
            found = (
                _seek_before(cursor, prefix, keys.successor(prefix) if stop is None else prefix + stop)
                if newest_first
                else _seek_chunk(cursor, prefix, prefix + start) or _seek_after(cursor, prefix, prefix)
            )
            while found:
                chunk_key = cursor.key()
                if stop is not None and not newest_first and chunk_key >= prefix + stop:
                    return
                rows = self._rows_of(table, chunk_key, cursor.value())
                if rows and (rows[0][0] < start or (stop is not None and rows[-1][0] >= stop)):
                    rows = [row for row in rows if row[0] >= start and (stop is None or row[0] < stop)]
                yield from self._contents(table, rows, newest_first=newest_first)
                if newest_first and chunk_key <= prefix + start:
                    return
                found = (cursor.prev() if newest_first else cursor.next()) and cursor.key().startswith(prefix)

    def write(self, table: Table, writes: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Put rows, or delete those whose value is None; the keys are in order, each once."""
        prefix = keys.row_prefix(self._number, table)
        done = 0
        with self._txn.cursor() as cursor:
            while done < len(writes):
                key = prefix + writes[done][0]
                chunk = (cursor.key(), cursor.value()) if _seek_chunk(cursor, prefix, key) else None
                behind = cursor.key() if _seek_after(cursor, prefix, chunk[0] + b"\0" if chunk else key) else None
                end = done + 1
                while end < len(writes) and (behind is None or prefix + writes[end][0] < behind):
                    end += 1
                self._merge(table, chunk, writes[done:end])
                done = end

    def erase(self) -> None:
        """Drop every row of the stream."""
        prefix = keys.row_prefix(self._number)
        with self._txn.cursor() as cursor:
            found = _seek_after(cursor, prefix, prefix)
            while found:
                key = cursor.key()
                for _, value in self._rows_of(Table(key[len(prefix)]), key, cursor.value()):
                    if isinstance(value, LargeValue):
                        self._count_reference(value, -1)
                found = cursor.delete() and cursor.key().startswith(prefix)

    # Inside ---------------------------------------------------------------------------------------------------------

    def _merge(
        self, table: Table, chunk: tuple[bytes, bytes] | None, writes: Sequence[tuple[bytes, bytes | None]]
    ) -> None:
        """Writes that all belong to one chunk, or before all chunks."""
        rows: dict[bytes, bytes | LargeValue] = {}
        prefix = keys.row_prefix(self._number, table)
        # One that begins with the first of these keys would be overwritten, whatever its damaged bytes say of its end.
        if chunk is not None and chunk[0] != prefix + writes[0][0] and _stands_alone(chunk[1], writes):
            chunk = None
        elif chunk is not None:
            rows = dict(self._rows_of(table, *chunk))
            if not rows:
                set_aside(dict((chunk,)), self._txn)
        for key, value in writes:
            before = rows.pop(key, None)
            if value is not None:
                rows[key] = self._keep(value) if len(value) > BLOB_BYTES_MIN else value
            if type(before) is LargeValue:
                self._count_reference(before, -1)
        made = encode_chunks(sorted(rows.items()))
        if chunk is not None and (not made or prefix + made[0][0] != chunk[0]):
            self._txn.delete(chunk[0])
        for first, value in made:
            self._txn.put(prefix + first, value)

    def _rows_of(self, table: Table, chunk_key: bytes, value: bytes) -> list[Stored]:
        """The rows of a chunk; none, and damage noted, where it cannot be read."""
        where = place(self._name, table, chunk_key[len(keys.row_prefix(self._number, table)) :])
        try:
            return decode_chunk(value, where=where)
        except Corrupt as error:
            self._damage.report(error.where, error.reason)
            return []

    def _contents(self, table: Table, rows: list[Stored], *, newest_first: bool) -> Iterable[tuple[bytes, bytes]]:
        """The rows of a chunk with their values; a large row is in a chunk by itself."""
        if rows and isinstance(rows[0][1], LargeValue):
            content = self._content(table, *rows[0])
            return [(rows[0][0], content)] if content is not None else []
        plain = cast("list[tuple[bytes, bytes]]", rows)
        return reversed(plain) if newest_first else plain

    def _content(self, table: Table, key: bytes, value: bytes | LargeValue) -> bytes | None:
        assert isinstance(value, LargeValue)
        where = f"large value of {place(self._name, table, key)}"
        stored = self._txn.get(keys.blob_key(value.hash))
        try:
            if stored is None:
                raise Corrupt(where, "it is missing")
            return bytes(unframe(stored, where=where))
        except Corrupt as error:
            self._damage.report(error.where, error.reason)
            return None

    def _keep(self, value: bytes) -> LargeValue:
        large = LargeValue(hashlib.blake2b(value, digest_size=32).digest())
        framed = frame(value)
        if self._txn.get(keys.blob_key(large.hash)) != framed:  # not there yet, or rotten: these bytes are sound
            self._txn.put(keys.blob_key(large.hash), framed)
        self._count_reference(large, 1)
        return large

    def _count_reference(self, large: LargeValue, change: int) -> None:
        """One row more or less has it. Where the count is damaged the value stays: one too many costs only space."""
        key, where = keys.reference_key(large.hash), f"count of the large value {large.hash.hex()}"
        try:
            count = (read_number_at(self._txn, key, where=where) or 0) + change
            if count < 0:
                raise Corrupt(where, "it is missing, and a row had the value")
        except Corrupt as error:
            self._damage.report(error.where, error.reason)
            return
        if count > 0:
            self._txn.put(key, pack_number(key, count))
        else:
            self._txn.delete(key)
            self._txn.delete(keys.blob_key(large.hash))


def place(name: str, table: Table, key: bytes) -> str:
    """Names rows for people."""
    return f"{table.name} rows from {key.hex() or 'the first'} of stream {name!r}"


def _stands_alone(chunk: bytes, writes: Sequence[tuple[bytes, bytes | None]]) -> bool:
    """True where the writes are behind all rows of this chunk, and one of both is large enough to be left by itself."""
    last = last_key(chunk)
    if last is None or writes[0][0] <= last:
        return False
    size_bytes = sum([len(key) + len(value or b"") for key, value in writes])
    return size_bytes >= CHUNK_BYTES_MIN or len(chunk) + size_bytes > CHUNK_BYTES


def _seek_chunk(cursor: "lmdb.Cursor[bytes]", prefix: bytes, key: bytes) -> bool:
    """Stand on the chunk that the row of this key belongs to: the last one that does not begin behind it."""
    if cursor.set_range(key) and cursor.key() == key:
        return True
    return _seek_before(cursor, prefix, key)


def _seek_before(cursor: "lmdb.Cursor[bytes]", prefix: bytes, key: bytes) -> bool:
    """Stand on the last chunk that begins before `key`."""
    found = cursor.prev() if cursor.set_range(key) else cursor.last()
    return found and cursor.key().startswith(prefix)


def _seek_after(cursor: "lmdb.Cursor[bytes]", prefix: bytes, key: bytes) -> bool:
    """Stand on the first chunk that does not begin before `key`."""
    return cursor.set_range(key) and cursor.key().startswith(prefix)
