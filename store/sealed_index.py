"""Reads the indexes of a sealed store: entries by what they start with, in the order of their true values.

Entries with the same text lie together beneath, in the order of what follows it: what asks for one owner or one tag
reads just those. All else about texts, such as every owner in the alphabet's order, is read whole, opened and sorted.

A position in OWNER or TAG: index u8, length of the value u16, the value, then the position in the store beneath.
"""

from collections.abc import Callable
from typing import NamedTuple

from .batch import Index, IndexRow, Table
from .contract import IndexHit, Store
from .pseudonyms import INDEX_LAYOUTS, HiddenValue, IndexLayout
from .sealing import Sealing

__all__ = ["SealedIndexes"]


class _Place(NamedTuple):
    """A position taken apart: the true value, and where its entry stood beneath."""

    value: bytes
    inner: bytes

    def position(self, index: Index) -> bytes:
        return bytes((index,)) + len(self.value).to_bytes(2, "big") + self.value + self.inner


class SealedIndexes:
    """The indexes of the store `inner`, opened by `sealing`.

    Args:
        name_of: the name of a stream that is stored under this pseudonym, or None, which is reported.
    """

    def __init__(self, inner: Store, sealing: Sealing, *, name_of: Callable[[str], str | None]) -> None:
        self._inner = inner
        self._sealing = sealing
        self._name_of = name_of

    def scan(
        self, index: Index, *, prefix: bytes, after: bytes | None, limit: int | None, newest_first: bool
    ) -> list[IndexHit]:
        """As Store.scan_index."""
        if INDEX_LAYOUTS[index] is not IndexLayout.TEXT_FIRST:
            return self._scan_timed(index, prefix, after, limit=limit, newest_first=newest_first)
        place = None if after is None else _taken_apart(after, index)
        if limit == 0:
            self._inner.scan_index(index, after=None if place is None else place.inner, limit=0)
            return []
        if b"\0" not in prefix or self._has_long(index, prefix, place):
            return self._scan_sorted(index, prefix, place, limit=limit, newest_first=newest_first)
        behind = None
        if place is not None and place.value.startswith(prefix):
            behind = place.inner
        elif place is not None and (place.value < prefix) == newest_first:
            return []  # the place is beyond all that start with this
        inner_prefix = self._sealing.names.short_prefix(index, prefix)
        if inner_prefix is None:
            return []
        return self._walk(index, inner_prefix, behind, limit=limit, newest_first=newest_first)

    def entries(self, stream: str) -> list[IndexRow]:
        """As Store.entries, of the stream with this pseudonym."""
        opened = ((row.index, self._value(row.index, row.value, stream)) for row in self._inner.entries(stream))
        return [IndexRow(index, value) for index, value in sorted((i, v) for i, v in opened if v is not None)]

    def _has_long(self, index: Index, prefix: bytes, place: _Place | None) -> bool:
        """True where values of this text are stored apart, or were when the place was given."""
        names = self._sealing.names
        if place is not None and names.of_value(index, place.value).row_key is not None:
            return True
        return bool(self._inner.scan_index(index, prefix=names.long_prefix(index, prefix), limit=1))

    def _scan_timed(
        self, index: Index, prefix: bytes, after: bytes | None, *, limit: int | None, newest_first: bool
    ) -> list[IndexHit]:
        """An index whose values begin in clear: the store beneath has its order and its positions."""
        clear = prefix if INDEX_LAYOUTS[index] is IndexLayout.CLEAR else prefix[:8]
        hits: list[IndexHit] = []
        while True:
            left = None if limit is None else limit - len(hits)
            read = self._inner.scan_index(index, prefix=clear, after=after, limit=left, newest_first=newest_first)
            opened = (self._opened(index, hit, in_place=True) for hit in read)
            hits += [hit for hit in opened if hit is not None and hit.value.startswith(prefix)]
            if left is None or len(read) < left or len(hits) == limit:
                return hits
            after = read[-1].position

    def _walk(
        self, index: Index, inner_prefix: bytes, after: bytes | None, *, limit: int | None, newest_first: bool
    ) -> list[IndexHit]:
        """Entries of one text: beneath they are in the order of their true values."""
        hits: list[IndexHit] = []
        while True:
            left = None if limit is None else limit - len(hits)
            read = self._inner.scan_index(
                index, prefix=inner_prefix, after=after, limit=left, newest_first=newest_first
            )
            opened = (self._opened(index, hit) for hit in read)
            hits += [hit for hit in opened if hit is not None]
            if left is None or len(read) < left or len(hits) == limit:
                return hits
            after = read[-1].position

    def _scan_sorted(
        self, index: Index, prefix: bytes, place: _Place | None, *, limit: int | None, newest_first: bool
    ) -> list[IndexHit]:
        """All entries of the index, opened and sorted; those of one value keep the order that they have beneath."""
        entries: list[tuple[bytes, IndexHit]] = []
        for hit in self._inner.scan_index(index):
            value = self._value(index, hit.value, hit.stream)
            if value is not None and value.startswith(prefix):
                entries.append((value, hit))
        entries.sort(key=lambda entry: entry[0])
        if newest_first:
            entries.reverse()
        if place is not None:
            beside = self._beside(index, place, newest_first=newest_first)
            entries = [
                (value, hit)
                for value, hit in entries
                if (hit.position in beside if value == place.value else (value < place.value) == newest_first)
            ]
        hits: list[IndexHit] = []
        for value, hit in entries:
            if len(hits) == limit:
                break
            name = self._name_of(hit.stream)
            if name is not None:
                hits.append(IndexHit(_Place(value, hit.position).position(index), value, name))
        return hits

    def _beside(self, index: Index, place: _Place, *, newest_first: bool) -> set[bytes]:
        """Positions beneath of entries with just this value that are beyond this one."""
        inner = self._sealing.names.of_value(index, place.value).inner
        hits = self._inner.scan_index(index, prefix=inner, after=place.inner, newest_first=newest_first)
        return {hit.position for hit in hits if hit.value == inner}

    def _opened(self, index: Index, hit: IndexHit, *, in_place: bool = False) -> IndexHit | None:
        """The hit as it was before it was sealed; None, and reported, where it cannot be read."""
        value = self._value(index, hit.value, hit.stream)
        name = self._name_of(hit.stream) if value is not None else None
        if value is None or name is None:
            return None
        return IndexHit(hit.position if in_place else _Place(value, hit.position).position(index), value, name)

    def _value(self, index: Index, inner: bytes, stream: str) -> bytes | None:
        """What this entry of the stream had as its value; None where it cannot be read, which is reported."""
        value = self._sealing.open_entry(index, inner)
        if not isinstance(value, HiddenValue):
            return value
        assert value.row_key is not None
        key = value.row_key
        rows = self._inner.scan(stream, Table.OUTCOME, start=key, stop=key + b"\0", limit=1)
        # Without a row the entry was removed since it was read.
        return self._sealing.open_long(stream, key, rows[0][1]) if rows else None


def _taken_apart(position: bytes, index: Index) -> _Place:
    end = 3 + int.from_bytes(position[1:3], "big")
    if position[:1] != bytes((index,)) or len(position) <= end:
        raise ValueError(f"after={position!r} is not a position in the index {index.name}: pass an IndexHit.position")
    return _Place(position[3:end], position[end:])
