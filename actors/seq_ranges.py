"""Ranges of places in a history, and what is left between them. Pure.

A place (`seq`) is given once and never again, so what an edit removes stays a range of places that nobody sees. Ranges
are (first, last), both included, in order, and never touch: `(2, 3), (4, 9)` is `(2, 9)`.

    places     1  2  3  4  5  6  7  8  9
    removed       [2..3]        [7..8]
    visible    1        4  5  6       9        visible_spans -> (1, 1), (4, 6), (9, 9)
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from .message import Message

__all__ = [
    "Ranges",
    "add_range",
    "count_visible",
    "first_of_latest",
    "is_removed",
    "last_of_earliest",
    "visible_messages",
    "visible_spans",
]

Ranges: TypeAlias = tuple[tuple[int, int], ...]


def add_range(ranges: Ranges, first: int, last: int) -> Ranges:
    """The ranges with this one; those that it meets are merged with it.

    Raises:
        ValueError: the range is empty, or begins before place 1.
    """
    if not 1 <= first <= last:
        raise ValueError(f"a range of places is from 1 and not empty, unlike {first} to {last}")
    before = tuple(each for each in ranges if each[1] < first - 1)
    behind = tuple(each for each in ranges if each[0] > last + 1)
    met = ranges[len(before) : len(ranges) - len(behind)]
    if met:
        first, last = min(first, met[0][0]), max(last, met[-1][1])
    return (*before, (first, last), *behind)


def is_removed(ranges: Ranges, seq: int) -> bool:
    """True where this place is in one of the ranges."""
    at = bisect_right(ranges, seq, key=_first) - 1
    return at >= 0 and seq <= ranges[at][1]


def visible_messages(messages: list[Message], ranges: Ranges) -> list[Message]:
    """Those of the messages that stand in none of the ranges; the list itself where nothing was removed."""
    return [message for message in messages if not is_removed(ranges, message.seq)] if ranges else messages


def visible_spans(ranges: Ranges, first: int, last: int) -> Iterator[tuple[int, int]]:
    """What of the places `first` to `last` is in none of the ranges, in order."""
    for start, end in ranges:
        if start > last:
            break
        if first < start:
            yield first, start - 1
        first = max(first, end + 1)
    if first <= last:
        yield first, last


def count_visible(ranges: Ranges, first: int, last: int) -> int:
    """How many of the places `first` to `last` are in none of the ranges."""
    return _length(visible_spans(ranges, first, last))


def first_of_latest(ranges: Ranges, last: int, count: int) -> int:
    """Where the latest `count` visible places up to `last` begin; the first visible one where there are fewer.

    `last + 1` where there are none. `count` is at least 1.
    """
    first = last + 1
    for start, end in reversed(list(visible_spans(ranges, 1, last))):
        first = max(start, end - count + 1)
        count -= end - first + 1
        if not count:
            break
    return first


def last_of_earliest(ranges: Ranges, first: int, last: int, count: int) -> int:
    """Where the earliest `count` visible places from `first` to `last` end; the last visible one where there are fewer.

    `first - 1` where there are none. `count` is at least 1.
    """
    found = first - 1
    for start, end in visible_spans(ranges, first, last):
        found = min(end, start + count - 1)
        count -= found - start + 1
        if not count:
            break
    return found


def _length(spans: Iterable[tuple[int, int]]) -> int:
    return sum(end - start + 1 for start, end in spans)


def _first(each: tuple[int, int]) -> int:
    return each[0]
