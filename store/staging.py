"""What one commit writes to LMDB: batches are accepted or refused one by one, and the accepted ones are gathered.

Everything here happens inside one write transaction. The decisions see the guards as the batches before them left
them; the bytes are gathered in a dict and go to LMDB once, sorted and in one call, because each call of LMDB's gives up
the GIL and neighbouring keys are faster to put than scattered ones.

What a commit learns about streams is kept in `known`, so that the next one needs no look-up. That is sound because one
process writes to a store. The caller takes it over only after the transaction is committed.
"""

import struct
from collections.abc import Iterator, Mapping
from itertools import islice, takewhile

import lmdb

from . import keys
from .contract import Batch, Head, IndexRow
from .errors import Conflict, Corrupt, Fenced

__all__ = ["Guard", "Staging", "count_streams", "read_head", "read_range", "read_stream"]

Guard = tuple[int, int, int]
"""A stream's number, epoch and version."""

_GUARD = struct.Struct(">QQ")


class Staging:
    """One commit in the making. `known` holds guards as they are on disk, `streams` is the greatest stream number."""

    __slots__ = ("_heads", "_known", "_txn", "_writes", "guards", "streams")

    def __init__(self, txn: "lmdb.Transaction[bytes]", *, known: Mapping[str, Guard], streams: int) -> None:
        self._txn = txn
        self._known = known
        self._heads: dict[str, bytes | None] = {}
        self._writes: dict[bytes, bytes | None] = {}
        self.guards: dict[str, Guard] = {}
        self.streams = streams

    def decide(self, batch: Batch) -> Fenced | Conflict | None:
        """Accept the batch and gather its writes, or say why not and gather nothing."""
        name = batch.stream
        guard = self.guards.get(name) or self._known.get(name) or self._stored_guard(name)
        stream, epoch, version = guard or (0, 0, 0)
        if batch.epoch < epoch:
            return Fenced(name, epoch=batch.epoch, stored_epoch=epoch)
        if batch.version != version:
            return Conflict(name, version=batch.version, stored_version=version)
        if guard is None:
            self.streams = stream = self.streams + 1
            self._writes[keys.name_key(name)] = keys.number(stream)
        self.guards[name] = (stream, batch.epoch, version + 1)
        if batch.erase:
            self._erase(stream)
            self._heads[name] = b""
        if batch.head is not None:
            self._heads[name] = batch.head
        for row in batch.rows:
            self._writes[keys.row_key(stream, row.table, row.key)] = row.value
        for entry in batch.index_rows:
            self._stage_entry(name, stream, entry)
        return None

    def write(self) -> None:
        """Hand everything that was gathered to the transaction."""
        for name, (stream, epoch, version) in self.guards.items():
            head = self._heads.get(name)
            if head is None:
                head = self._stored_head(name, stream)
            self._writes[keys.guard_key(stream)] = _GUARD.pack(epoch, version) + head
        puts: list[tuple[bytes, bytes]] = []
        for key, value in sorted(self._writes.items()):
            if value is None:
                self._txn.delete(key)
            else:
                puts.append((key, value))
        with self._txn.cursor() as cursor:
            cursor.putmulti(puts)

    def _stage_entry(self, name: str, stream: int, entry: IndexRow) -> None:
        self._writes[keys.entry_key(entry.index, entry.value, stream)] = name.encode() if entry.present else None
        self._writes[keys.listed_key(stream, entry.index, entry.value)] = b"" if entry.present else None

    def _erase(self, stream: int) -> None:
        for key in self._present(keys.row_prefix(stream)):
            self._writes[key] = None
        for key in self._present(keys.listed_prefix(stream)):
            self._writes[key] = None
            self._writes[keys.listed_entry(key)] = None

    def _present(self, prefix: bytes) -> list[bytes]:
        """The keys that start with `prefix`, on disk or gathered by batches before this one."""
        gathered = [key for key in self._writes if key.startswith(prefix)]
        return gathered + [key for key, _ in read_range(self._txn, prefix, keys.successor(prefix))]

    def _stored_guard(self, name: str) -> Guard | None:
        stream = read_stream(self._txn, name)
        if stream is None:
            return None
        head = read_head(self._txn, name, stream)
        return (stream, head.epoch, head.version)

    def _stored_head(self, name: str, stream: int) -> bytes:
        """The head that a batch with `head=None` keeps; b"" for a stream that this commit creates."""
        if self._txn.get(keys.guard_key(stream)) is None:
            return b""
        return read_head(self._txn, name, stream).head


def read_stream(txn: "lmdb.Transaction[bytes]", name: str) -> int | None:
    """The number of the stream of this name, or None where it was never written. Corrupt if it is no number."""
    data = txn.get(keys.name_key(name))
    if data is None:
        return None
    if len(data) != 8:
        raise Corrupt(f"number of stream {name!r}", f"it has {len(data)} bytes, not 8")
    return int.from_bytes(data, "big")


def read_head(txn: "lmdb.Transaction[bytes]", name: str, stream: int) -> Head:
    """A stream's guard and head. Corrupt if they are missing or too short."""
    data = txn.get(keys.guard_key(stream)) or b""
    if len(data) < _GUARD.size:
        raise Corrupt(f"guard of stream {name!r}", f"it has {len(data)} bytes, not {_GUARD.size} or more")
    epoch, version = _GUARD.unpack_from(data)
    return Head(epoch, version, data[_GUARD.size :])


def count_streams(txn: "lmdb.Transaction[bytes]") -> int:
    """The greatest stream number in use; numbers are dense, so it is their count too."""
    prefix = keys.guard_prefix()
    last = read_range(txn, prefix, keys.successor(prefix), limit=1, newest_first=True)
    return int.from_bytes(last[0][0][1:], "big") if last else 0


def read_range(
    txn: "lmdb.Transaction[bytes]",
    start: bytes,
    stop: bytes,
    *,
    limit: int | None = None,
    newest_first: bool = False,
) -> list[tuple[bytes, bytes]]:
    """At most `limit` pairs with `start <= key < stop`, in byte order or backwards."""
    with txn.cursor() as cursor:
        pairs: Iterator[tuple[bytes, bytes]] = iter(())
        if newest_first:
            if cursor.prev() if cursor.set_range(stop) else cursor.last():
                pairs = takewhile(lambda pair: pair[0] >= start, cursor.iterprev())
        elif cursor.set_range(start):
            pairs = takewhile(lambda pair: pair[0] < stop, cursor.iternext())
        return list(islice(pairs, limit))
