"""Writes over what is on disk give what a dict gives, in both directions, and read no more than is taken."""

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given, strategies as st

from callboard.store import keys
from callboard.store.batch import Batch, Index, IndexRow
from callboard.store.index_overlay import IndexOverlay
from callboard.store.overlay import Overlay, merged

some_keys = st.binary(max_size=2)
stored_rows = st.dictionaries(some_keys, st.binary(max_size=2), max_size=12)
some_writes = st.lists(st.tuples(some_keys, st.none() | st.binary(max_size=2)), max_size=20)


def an_overlay(writes: list[tuple[bytes, bytes | None]]) -> Overlay:
    overlay = Overlay()
    for key, value in writes:
        overlay.put(key, value)
    return overlay


@given(some_writes, some_keys, st.none() | some_keys)
def test_a_range_has_the_last_write_of_each_key_within_its_bounds(
    writes: list[tuple[bytes, bytes | None]], start: bytes, stop: bytes | None
) -> None:
    overlay = an_overlay(writes)

    wanted = sorted(item for item in dict(writes).items() if start <= item[0] and (stop is None or item[0] < stop))
    assert list(overlay.range(start, stop)) == wanted
    assert list(overlay.range(start, stop, newest_first=True)) == wanted[::-1]
    assert len(overlay) == len(dict(writes))


@given(stored_rows, some_writes, st.booleans())
def test_merged_is_what_a_dict_has_after_the_writes(
    stored: dict[bytes, bytes], writes: list[tuple[bytes, bytes | None]], newest_first: bool
) -> None:
    below = sorted(stored.items(), reverse=newest_first)
    above = an_overlay(writes).range(b"", None, newest_first=newest_first)

    model = {key: value for key, value in {**stored, **dict(writes)}.items() if value is not None}
    found = list(merged(below, above, newest_first=newest_first))
    assert found == sorted(model.items(), reverse=newest_first)


@given(stored_rows, some_writes, st.integers(1, 5))
def test_nothing_is_read_beyond_what_is_taken(
    stored: dict[bytes, bytes], writes: list[tuple[bytes, bytes | None]], count: int
) -> None:
    read: list[bytes] = []

    def below() -> Iterator[tuple[bytes, bytes]]:
        for key, value in sorted(stored.items()):
            read.append(key)
            yield key, value

    taken = [key for key, _ in islice(merged(below(), an_overlay(writes).range(b"", None)), count)]

    beyond = [key for key in read if not taken or key > taken[-1]]
    written = dict(writes)
    assert len([key for key in beyond if key not in written]) <= 1 + (len(taken) < count)


programs = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.booleans(),
        st.lists(st.tuples(st.sampled_from([b"", b"a", b"\x00", b"b"]), st.booleans()), max_size=3),
    ),
    max_size=12,
)
Program = list[tuple[int, bool, list[tuple[bytes, bool]]]]


@given(programs, st.integers(0, 12))
def test_entries_of_the_log_over_those_on_disk_are_what_a_set_has(program: Program, moved: int) -> None:
    """However much of the program is on disk already, and even where some is both on disk and in the log."""
    overlay = IndexOverlay()
    disk: set[tuple[int, bytes]] = set()
    model: set[tuple[int, bytes]] = set()
    for place, step in enumerate(program):
        if place < moved:
            play(disk, step)
        play(model, step)
        if place >= moved // 2:
            overlay.put(step[0], a_batch(step))
    start = keys.index_prefix(Index.TAG)

    for newest_first in (False, True):
        stored = sorted(((key_of(entry), name_of(entry)) for entry in disk), reverse=newest_first)
        found = overlay.over(stored, Index.TAG, start, keys.successor(start), newest_first=newest_first)
        assert list(found) == sorted(((key_of(entry), name_of(entry)) for entry in model), reverse=newest_first)


def play(entries: set[tuple[int, bytes]], step: tuple[int, bool, list[tuple[bytes, bool]]]) -> None:
    stream, erase, changes = step
    if erase:
        entries -= {entry for entry in entries if entry[0] == stream}
    for value, present in changes:
        (entries.add if present else entries.discard)((stream, value))


def a_batch(step: tuple[int, bool, list[tuple[bytes, bool]]]) -> Batch:
    stream, erase, changes = step
    index_rows = tuple(IndexRow(Index.TAG, value, present) for value, present in changes)
    return Batch(str(stream), 1, 0, erase=erase, index_rows=index_rows)


def key_of(entry: tuple[int, bytes]) -> bytes:
    return keys.entry_key(Index.TAG, entry[1], entry[0])


def name_of(entry: tuple[int, bytes]) -> bytes:
    return str(entry[0]).encode()


@pytest.mark.parametrize("index", [Index.OWNER, Index.UPDATED])
def test_an_index_that_no_batch_changed_is_as_it_is_on_disk(index: Index) -> None:
    overlay = IndexOverlay()
    overlay.put(1, Batch("1", 1, 0, index_rows=(IndexRow(Index.TAG, b"a"),)))
    stored = [(keys.entry_key(index, b"a", 1), b"1")]

    start = keys.index_prefix(index)
    assert list(overlay.over(stored, index, start, keys.successor(start), newest_first=False)) == stored
