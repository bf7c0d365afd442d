"""Index entries that lie over those on disk. Pure."""

from collections.abc import Iterable, Iterator

from . import keys
from .batch import Batch, Index
from .overlay import Overlay, merged

__all__ = ["IndexOverlay"]


class IndexOverlay:
    """What the batches of many streams, given in order, add to the indexes and remove from them."""

    __slots__ = ("_erased", "_keys", "_overlays")

    def __init__(self) -> None:
        self._overlays: dict[Index, Overlay] = {}
        self._keys: dict[int, set[tuple[Index, bytes]]] = {}
        self._erased: set[int] = set()

    def put(self, stream: int, batch: Batch) -> None:
        """Lay a batch of the stream of this number over all before it."""
        if batch.erase:
            self._erased.add(stream)
            for index, key in self._keys.get(stream, ()):
                self._overlays[index].put(key, None)
        if not batch.index_rows:
            return
        name = batch.stream.encode()
        known = self._keys.setdefault(stream, set())
        for entry in batch.index_rows:
            key = keys.entry_key(entry.index, entry.value, stream)
            known.add((entry.index, key))
            self._overlays.setdefault(entry.index, Overlay()).put(key, name if entry.present else None)

    @property
    def size(self) -> int:
        """How many entries it adds or removes."""
        return sum(len(overlay) for overlay in self._overlays.values())

    def over(
        self, stored: Iterable[tuple[bytes, bytes]], index: Index, start: bytes, stop: bytes, *, newest_first: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries of one index between two keys, where `stored` is what the disk has of them."""
        if self._erased:
            stored = (pair for pair in stored if int.from_bytes(pair[0][-8:], "big") not in self._erased)
        overlay = self._overlays.get(index)
        if overlay is None:
            return iter(stored)
        return merged(stored, overlay.range(start, stop, newest_first=newest_first), newest_first=newest_first)
