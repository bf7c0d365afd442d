"""The arithmetic of reminders, their rows, and what an activation knows before the store does."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from callboard.runtime.reminder_records import (
    REMINDER_CODEC,
    REMINDER_TIME_MS_MAX,
    ReminderChanges,
    ReminderRecord,
    due_entry,
    due_value,
    new_reminder,
    read_reminder,
    reminder_rows,
)
from callboard.store import Batch, Index, MemoryStore, Table

times = st.integers(0, 2**42)
periods = st.integers(1, 2**36)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=16)
records = st.builds(ReminderRecord, names, times, st.none() | periods)


@given(times, periods, st.integers(0, 2**42))
def test_the_next_time_is_the_first_on_the_grid_after_now(due_ms: int, every_ms: int, late_ms: int) -> None:
    record, now_ms = ReminderRecord("r", due_ms, every_ms), due_ms + late_ms

    missed = record.missed(now_ms)
    after = record.moved_on(missed)

    assert after is not None
    assert after.due_ms > now_ms >= after.due_ms - every_ms
    assert (after.due_ms - due_ms) % every_ms == 0
    assert missed == (after.due_ms - due_ms) // every_ms - 1
    assert (after.name, after.every_ms) == ("r", every_ms)


@given(times, periods, st.lists(st.integers(0, 2**38), max_size=12))
def test_each_point_of_the_grid_is_told_once_however_late_the_firings_are(
    due_ms: int, every_ms: int, delays_ms: list[int]
) -> None:
    record, now_ms, told = ReminderRecord("r", due_ms, every_ms), 0, 0

    for delay_ms in delays_ms:
        now_ms = max(now_ms, record.due_ms) + delay_ms
        missed = record.missed(now_ms)
        told += 1 + missed
        moved = record.moved_on(missed)
        assert moved is not None
        record = moved

    passed = (now_ms - due_ms) // every_ms + 1 if delays_ms else 0
    assert told == passed


def test_before_its_time_nothing_is_missed() -> None:
    assert ReminderRecord("r", 1000, 10).missed(0) == 0


@given(times, st.integers(0, 2**42))
def test_one_that_fires_once_misses_nothing_and_is_gone(due_ms: int, late_ms: int) -> None:
    record = ReminderRecord("r", due_ms)

    assert record.missed(due_ms + late_ms) == 0
    assert record.moved_on(0) is None


@given(st.lists(records, max_size=8))
def test_entries_of_the_index_stand_in_the_order_of_their_times(some: list[ReminderRecord]) -> None:
    values = sorted(due_value(record) for record in some)

    assert [due_entry(value)[0] for value in values] == sorted(record.due_ms for record in some)
    assert sorted(due_entry(value) for value in values) == sorted((record.due_ms, record.name) for record in some)


@pytest.mark.parametrize("value", [b"", b"12345678", b"\x00" * 8 + b"\xff"])
def test_an_entry_that_is_none_is_a_value_error(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"no time|decode"):
        due_entry(value)


@given(st.lists(st.tuples(st.sampled_from(["a", "ab", "ä\0"]), st.none() | st.tuples(times, periods)), max_size=12))
def test_any_chain_of_changes_leaves_one_row_and_one_entry_for_each_reminder(
    changes: list[tuple[str, tuple[int, int] | None]],
) -> None:
    store = MemoryStore()
    kept: dict[str, ReminderRecord] = {}

    for version, (name, time) in enumerate(changes):
        new = ReminderRecord(name, *time) if time is not None else None
        rows, index_rows = reminder_rows(name, kept.pop(name, None), new)
        store.commit([Batch("k:x", 1, version, rows=rows, index_rows=index_rows)])
        if new is not None:
            kept[name] = new

    assert [hit.value for hit in store.scan_index(Index.REMINDER_DUE)] == sorted(map(due_value, kept.values()))
    assert len(store.scan("k:x", Table.REMINDER)) == len(kept)
    assert [read_reminder(store, "k:x", name) for name in ("a", "ab", "ä\0", "b")] == [
        kept.get(name) for name in ("a", "ab", "ä\0", "b")
    ]


def test_a_change_and_its_reverse_in_one_batch_leave_the_last_word() -> None:
    store = MemoryStore()
    first, second = ReminderRecord("r", 5), ReminderRecord("r", 7)
    writes = [reminder_rows("r", None, first), reminder_rows("r", first, second), reminder_rows("r", second, second)]

    store.commit([Batch("k:x", 1, 0, rows=sum((w[0] for w in writes), ()), index_rows=sum((w[1] for w in writes), ()))])

    assert read_reminder(store, "k:x", "r") == second
    assert [hit.value for hit in store.scan_index(Index.REMINDER_DUE)] == [due_value(second)]


@pytest.mark.parametrize(
    ("arguments", "record"),
    [
        ({"at_ms": 5}, ReminderRecord("r", 5)),
        ({"at_ms": 0, "every_s": 60}, ReminderRecord("r", 0, 60_000)),
        ({"after_s": 0}, ReminderRecord("r", 1000)),
        ({"after_s": 1.1}, ReminderRecord("r", 2100)),
        ({"every_s": 2.5}, ReminderRecord("r", 3500, 2500)),
        ({"after_s": 1, "every_s": 0.001}, ReminderRecord("r", 2000, 1)),
        ({"after_s": 10 * 365 * 86_400}, ReminderRecord("r", 1000 + 315_360_000_000)),
    ],
)
def test_times_can_be_given_in_three_ways(arguments: dict[str, Any], record: ReminderRecord) -> None:
    given_times: dict[str, Any] = {"at_ms": None, "after_s": None, "every_s": None} | arguments

    made = new_reminder("r", now_ms=1000, **given_times)

    assert made == record
    assert REMINDER_CODEC.decode(REMINDER_CODEC.encode(made), where="here") == made


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("r", {}, TypeError, "at_ms=, after_s= or every_s="),
        ("r", {"at_ms": 1, "after_s": 1}, TypeError, "not both"),
        ("r", {"at_ms": 1.5}, TypeError, "whole number"),
        ("r", {"at_ms": -1}, ValueError, "milliseconds since 1970"),
        ("r", {"at_ms": REMINDER_TIME_MS_MAX + 1}, ValueError, "milliseconds since 1970"),
        ("r", {"after_s": -0.1}, ValueError, "after_s"),
        ("r", {"after_s": float("nan")}, ValueError, "after_s"),
        ("r", {"after_s": float("inf")}, ValueError, "after_s"),
        ("r", {"after_s": "1"}, TypeError, "after_s"),
        ("r", {"every_s": 0}, ValueError, "at least 0.001"),
        ("r", {"every_s": 0.0004}, ValueError, "at least 0.001"),
        ("r", {"every_s": True}, TypeError, "every_s"),
        ("", {"after_s": 1}, ValueError, "1 to 64 bytes"),
        ("ä" * 33, {"after_s": 1}, ValueError, "has 66"),
        ("\ud800", {"after_s": 1}, ValueError, "surrogates"),
        (7, {"after_s": 1}, TypeError, "not int"),
    ],
)
def test_nonsense_is_refused_with_what_to_do(
    name: Any, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    given_times: dict[str, Any] = {"at_ms": None, "after_s": None, "every_s": None} | arguments

    with pytest.raises(error, match=text):
        new_reminder(name, now_ms=1000, **given_times)


# What an activation knows before the store does.

steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abc"), st.none() | records, max_size=2),
        st.booleans(),
        st.integers(0, 3),
    ),
    max_size=12,
)


@given(steps)
def test_changes_in_flight_with_the_store_behind_them_give_the_newest_state(
    batches: list[tuple[dict[str, ReminderRecord | None], bool, int]],
) -> None:
    changes = ReminderChanges()
    newest: dict[str, ReminderRecord | None] = {}
    stored: dict[str, ReminderRecord | None] = {}
    in_flight: list[tuple[int, dict[str, ReminderRecord | None], bool]] = []

    for version, (changed, erase, durable) in enumerate(batches):
        changes.given(version, changed, erase=erase)
        in_flight.append((version, changed, erase))
        newest = ({} if erase else newest) | changed
        for _ in range(min(durable, len(in_flight))):  # commits come back in order
            done, its_changes, erased = in_flight.pop(0)
            stored = ({} if erased else stored) | its_changes
            changes.stored(done, its_changes)
        for name in "abc":
            known = changes.find(name) if changes.knows(name) else stored.get(name)
            assert known == newest.get(name)
        assert in_flight or (len(changes) == 0 and not any(map(changes.knows, "abc")))
