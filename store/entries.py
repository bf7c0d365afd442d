"""Index entries on disk, each twice: in its index, and in the list of those that its stream has."""

from collections.abc import Iterator, Mapping

import lmdb

from . import keys
from .batch import Index
from .damage import DamageLog

__all__ = ["decode_name", "erase_entries", "list_entries", "list_names", "read_entries", "write_entries"]


def read_entries(
    txn: "lmdb.Transaction[bytes]", start: bytes, stop: bytes, *, newest_first: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Keys and stream names with `start <= key < stop`, in byte order or backwards. Lazy."""
    with txn.cursor() as cursor:
        if newest_first:
            found = cursor.prev() if cursor.set_range(stop) else cursor.last()
            while found and cursor.key() >= start:
                yield cursor.item()
                found = cursor.prev()
        else:
            found = cursor.set_range(start)
            while found and cursor.key() < stop:
                yield cursor.item()
                found = cursor.next()


def list_entries(txn: "lmdb.Transaction[bytes]", stream: int) -> Iterator[tuple[Index, bytes]]:
    """Index and value of all that the stream of this number has. Lazy."""
    prefix = keys.listed_prefix(stream)
    with txn.cursor() as cursor:
        found = cursor.set_range(prefix)
        while found and (key := cursor.key()).startswith(prefix):
            yield Index(key[len(prefix)]), key[len(prefix) + 1 :]
            found = cursor.next()


def decode_name(data: bytes, damage: DamageLog) -> str | None:
    """The name of a stream as it stands in a key or an entry; None, and damage noted, where it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        damage.report(f"name of stream {data!r}", str(error))
        return None


def list_names(txn: "lmdb.Transaction[bytes]", after: str, damage: DamageLog) -> Iterator[str]:
    """The names of streams behind `after`, in byte order; one that cannot be read is left out and noted. Lazy."""
    start = keys.name_key(after)
    with txn.cursor() as cursor:
        found = cursor.set_range(start + b"\0" if after else start)
        while found and (key := cursor.key()).startswith(start[:1]):
            name = decode_name(key[1:], damage)
            if name is not None:
                yield name
            found = cursor.next()


def write_entries(
    txn: "lmdb.Transaction[bytes]", stream: int, name: str, entries: Mapping[tuple[Index, bytes], bool]
) -> None:
    """Add the entries that are True, remove the others; `stream` is the stream's number."""
    for (index, value), present in sorted(entries.items()):
        entry, listed = keys.entry_key(index, value, stream), keys.listed_key(stream, index, value)
        if present:
            txn.put(entry, name.encode())
            txn.put(listed, b"")
        else:
            txn.delete(entry)
            txn.delete(listed)


def erase_entries(txn: "lmdb.Transaction[bytes]", stream: int) -> None:
    """Remove all that the stream of this number has."""
    prefix = keys.listed_prefix(stream)
    with txn.cursor() as cursor:
        found = cursor.set_range(prefix) and cursor.key().startswith(prefix)
        while found:
            txn.delete(keys.listed_entry(cursor.key()))
            found = cursor.delete() and cursor.key().startswith(prefix)
