"""Writes that lie over what is on disk: sorted, so that both can be read as one range. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

__all__ = ["Overlay", "merged"]

Write = tuple[bytes, bytes | None]
"""A key and its new value; None deletes it."""


class Overlay:
    """The last write of each key, in the order of the keys. Appending behind all others costs what a list's does."""

    __slots__ = ("_in_order", "_order", "_values")

    def __init__(self) -> None:
        self._values: dict[bytes, bytes | None] = {}
        self._order: list[bytes] = []
        self._in_order = True

    def put(self, key: bytes, value: bytes | None) -> None:
        if key not in self._values:
            if self._order and key < self._order[-1]:
                self._in_order = False
            self._order.append(key)
        self._values[key] = value

    def range(self, start: bytes, stop: bytes | None, *, newest_first: bool = False) -> Iterator[Write]:
        """The writes with `start <= key < stop` in byte order, or backwards."""
        order = self._order
        if not self._in_order:
            order.sort()  # nearly sorted as it is, which is what Timsort is good at
            self._in_order = True
        first = bisect_left(order, start)
        last = len(order) if stop is None else bisect_left(order, stop)
        places = range(last - 1, first - 1, -1) if newest_first else range(first, last)
        return ((key, self._values[key]) for key in map(order.__getitem__, places))

    def __len__(self) -> int:
        return len(self._order)


def merged(
    stored: Iterable[tuple[bytes, bytes]], writes: Iterator[Write], *, newest_first: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """What is there when `writes` lie over `stored`; both come in byte order, or both backwards.

    Lazy: nothing is read of either beyond what is taken.
    """
    write = next(writes, None)
    for pair in stored:
        key = pair[0]
        while write is not None and (write[0] > key if newest_first else write[0] < key):
            if write[1] is not None:
                yield write[0], write[1]
            write = next(writes, None)
        if write is not None and write[0] == key:
            continue  # the write comes in its turn
        yield pair
    while write is not None:
        if write[1] is not None:
            yield write[0], write[1]
        write = next(writes, None)
