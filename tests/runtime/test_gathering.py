"""What the next transaction takes: nothing lost, no stream out of order, and each stream in its turn."""

from collections import deque
from collections.abc import Generator, Sequence

import pytest
from hypothesis import given, settings, strategies as st

from callboard.runtime import gathering
from callboard.runtime.gathering import Entry, Gathering
from callboard.store.batch import Batch, Row, Table
from callboard.store.errors import StoreError

BATCHES_MAX, BYTES_MAX, WINDOW = 4, 100, 16

arrivals = st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from([0, 1, 30, 60, 100, 101, 500])), max_size=12)


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    bound_tightly(monkeypatch)


@pytest.fixture(scope="module")
def small_bounds_for_all() -> Generator[None, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        bound_tightly(patch)
        yield


def bound_tightly(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gathering, "GROUP_BATCHES_MAX", BATCHES_MAX)
    patch.setattr(gathering, "GROUP_BYTES_MAX", BYTES_MAX)
    patch.setattr(gathering, "WINDOW", WINDOW)


def an_entry(stream: str, version: int, size_bytes: int = 0) -> Entry:
    half = size_bytes // 2
    batch = Batch(stream, 1, version, bytes(half), (Row(Table.RUN, b"", bytes(size_bytes - half)),))
    return batch, not_called, None


def not_called(_error: StoreError | None) -> None:
    raise AssertionError("gathering answers nobody")


def size_of(entry: Entry) -> int:
    head, value = entry[0].head, entry[0].rows[0].value
    assert head is not None
    assert value is not None
    return len(head) + len(value)


def filled(gathering: Gathering) -> list[Entry]:
    group: list[Entry] = []
    gathering.fill(group)
    return group


def streams_of(entries: Sequence[Entry]) -> list[str]:
    return [entry[0].stream for entry in entries]


@settings(deadline=None)
@given(st.lists(arrivals, max_size=8))
@pytest.mark.usefixtures("small_bounds_for_all")
def test_nothing_is_lost_or_doubled_no_stream_changes_its_order_and_the_bounds_are_kept(
    program: list[list[tuple[str, int]]],
) -> None:
    waiting = Gathering()
    come: list[Entry] = []
    gone: list[Entry] = []
    while program or waiting.waiting:
        for stream, size_bytes in program.pop(0) if program else []:
            come.append(an_entry(stream, len(come), size_bytes))
            waiting.waiting.append(come[-1])
        before = list(waiting.waiting)
        group = filled(waiting)

        assert bool(group) == bool(before)
        assert len(group) <= BATCHES_MAX
        assert len(group) == 1 or sum(map(size_of, group)) <= BYTES_MAX
        if len(before) <= BATCHES_MAX and sum(map(size_of, before)) <= BYTES_MAX:
            assert group == before
        gone += group
    assert sorted(entry[0].version for entry in gone) == list(range(len(come)))
    for stream in set(streams_of(come)):
        versions = [entry[0].version for entry in gone if entry[0].stream == stream]
        assert versions == sorted(versions)


@settings(deadline=None)
@given(st.lists(arrivals, min_size=1, max_size=12))
@pytest.mark.usefixtures("small_bounds_for_all")
def test_a_stream_in_the_window_waits_for_one_turn_of_each_of_the_others_at_most(
    program: list[list[tuple[str, int]]],
) -> None:
    waiting = Gathering()
    passed_over: dict[str, set[str]] = {}
    count = 0
    while program or waiting.waiting:
        for stream, size_bytes in program.pop(0) if program else []:
            count += 1
            waiting.waiting.append(an_entry(stream, count, size_bytes))
        window = set(streams_of(list(waiting.waiting)[:WINDOW]))
        served = set(streams_of(filled(waiting)))

        for stream in window - served:
            twice = passed_over.setdefault(stream, set()) & served
            assert not twice, f"{twice} had a second turn while {stream} waited for its first"
            passed_over[stream] |= served
        for stream in served:
            passed_over.pop(stream, None)


@pytest.mark.usefixtures("small_bounds")
def test_who_stages_much_is_passed_by_the_others_in_the_same_transaction() -> None:
    waiting = Gathering()
    waiting.waiting = deque([*(an_entry("much", version) for version in range(10)), an_entry("one", 0)])

    assert streams_of(filled(waiting)) == ["much", "one", "much", "much"]
    assert streams_of(filled(waiting)) == ["much"] * 4


@pytest.mark.usefixtures("small_bounds")
def test_who_stages_large_batches_goes_on_only_when_the_others_had_their_turn() -> None:
    waiting = Gathering()
    waiting.waiting = deque([*(an_entry("large", version, 500) for version in range(3)), an_entry("b", 0, 60)])
    waiting.waiting.append(an_entry("c", 0, 60))

    turns = [streams_of(filled(waiting)) for _ in range(5)]

    assert turns == [["large"], ["b"], ["c"], ["large"], ["large"]]


def test_where_all_fits_the_order_is_that_of_arrival_and_no_stream_is_looked_at() -> None:
    waiting = Gathering()
    entries = [an_entry(str(place % 7), place) for place in range(gathering.GROUP_BATCHES_MAX)]
    waiting.waiting.extend(entries)

    assert filled(waiting) == entries
    assert not waiting.waiting


def test_nothing_waiting_is_an_empty_group() -> None:
    assert filled(Gathering()) == []


def test_a_failure_while_turns_are_given_leaves_everything_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    bound_tightly(monkeypatch)
    waiting = Gathering()
    entries = [an_entry(stream, 0) for stream in "abcdef"]
    waiting.waiting.extend(entries)
    sizes = iter([0] * (BATCHES_MAX + 1))
    monkeypatch.setattr(gathering, "_size_bytes", lambda _batch: next(sizes))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType] # a fault

    group: list[Entry] = []
    with pytest.raises(StopIteration):
        waiting.fill(group)

    assert group == []
    assert list(waiting.waiting) == entries
