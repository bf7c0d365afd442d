"""Ranges of places against a plain set of places."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from callboard import Message
from callboard.actors.seq_ranges import (
    Ranges,
    add_range,
    count_visible,
    first_of_latest,
    is_removed,
    last_of_earliest,
    visible_messages,
    visible_spans,
)

PLACES = 24
ADDED = st.lists(st.tuples(st.integers(1, PLACES), st.integers(0, 5)), max_size=8)


def ranges_of(added: list[tuple[int, int]]) -> tuple[Ranges, set[int]]:
    """The ranges, and the places in them as a set."""
    ranges: Ranges = ()
    places: set[int] = set()
    for first, more in added:
        ranges = add_range(ranges, first, first + more)
        places |= set(range(first, first + more + 1))
    return ranges, places


@given(ADDED)
def test_ranges_hold_what_was_added_in_order_and_never_touch(added: list[tuple[int, int]]) -> None:
    ranges, places = ranges_of(added)

    assert {seq for first, last in ranges for seq in range(first, last + 1)} == places
    assert all(end + 1 < start for (_, end), (start, _) in pairwise(ranges))
    assert [is_removed(ranges, seq) for seq in range(PLACES + 8)] == [seq in places for seq in range(PLACES + 8)]


@given(ADDED, st.integers(1, PLACES), st.integers(0, PLACES), st.integers(1, 7))
def test_what_is_visible_is_what_is_in_no_range(
    added: list[tuple[int, int]], first: int, last: int, count: int
) -> None:
    ranges, places = ranges_of(added)
    visible = [seq for seq in range(first, last + 1) if seq not in places]
    up_to_last = [seq for seq in range(1, last + 1) if seq not in places]
    messages = [Message(role="user", content="", seq=seq) for seq in range(first, last + 1)]

    assert [seq for start, end in visible_spans(ranges, first, last) for seq in range(start, end + 1)] == visible
    assert all(end + 1 < start for (_, end), (start, _) in pairwise(visible_spans(ranges, first, last)))
    assert count_visible(ranges, first, last) == len(visible)
    assert [message.seq for message in visible_messages(messages, ranges)] == visible
    assert last_of_earliest(ranges, first, last, count) == (visible[:count] or [first - 1])[-1]
    assert first_of_latest(ranges, last, count) == (up_to_last[-count:] or [last + 1])[0]


@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 2), (-1, -1)])
def test_a_range_of_no_places_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match=f"unlike {first} to {last}"):
        add_range((), first, last)
