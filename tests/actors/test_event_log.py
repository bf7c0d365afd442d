"""The log of a session's events on a store: any part of it is read as it was written, and damage stays where it is."""

import pytest
from hypothesis import given, strategies as st

from callboard import Message, MessageAdded, SessionEvent
from callboard.actors.event_log import read_events
from callboard.actors.event_rows import MetadataRow
from callboard.actors.ledger import Ledger
from callboard.actors.session_check import check_sessions
from callboard.actors.session_events import MetadataChanged
from callboard.actors.session_records import SessionDefaults, stream_of
from callboard.store import Batch, MemoryStore, Row, Table


def told(event: SessionEvent) -> str:
    """An event in a word or two."""
    if isinstance(event, MessageAdded):
        return f"user: {event.message.text}"
    assert isinstance(event, MetadataChanged)
    return f"metadata {' '.join(event.keys)}"


def logged(steps: list[int]) -> tuple[MemoryStore, list[str], Ledger]:
    """A store whose session had these batches: so many messages, or an entry of the log for 0; and what is in it."""
    store, ledger, expected = MemoryStore(), Ledger("s", None), list[str]()
    ledger.ensure(SessionDefaults(), at_ms=1)
    for version, count in enumerate(steps):
        if count:
            texts = [f"{version}.{number}" for number in range(count)]
            ledger.append([Message(role="user", content=text) for text in texts], at_ms=1)
            expected += [f"user: {text}" for text in texts]
        else:
            ledger.patch_metadata({f"k{version}": version}, SessionDefaults(), at_ms=1)
            expected.append(f"metadata k{version}")
        change = ledger.take()
        assert change is not None
        assert store.commit([Batch(stream_of("s"), 1, version, change.head, change.rows, change.index_rows)]) == [None]
    return store, expected, ledger


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 300), st.integers(1, 70))
def test_any_part_of_any_log_is_read_as_it_was_written(steps: list[int], after: int, limit: int) -> None:
    store, expected, ledger = logged(steps)
    head = ledger.head
    assert head is not None

    page = read_events(store, head, after=after, limit=limit)

    assert [told(event) for event in page.events] == expected[after : after + limit]
    assert (page.upto, page.last) == (max(min(after + limit, len(expected)), min(after, len(expected))), len(expected))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=10), st.data())
def test_a_head_that_is_behind_the_store_shows_no_more_than_it_knows(steps: list[int], data: st.DataObject) -> None:
    store, expected, _ = logged(steps)
    known = data.draw(st.integers(1, len(steps)))
    _, seen, earlier = logged(steps[:known])
    assert earlier.head is not None
    after = data.draw(st.integers(0, len(seen)))

    page = read_events(store, earlier.head, after=after)

    assert [told(event) for event in page.events] == expected[after : len(seen)]


@pytest.mark.parametrize("table", [Table.MESSAGE, Table.EVENT])
def test_what_cannot_be_read_leaves_its_number_out_and_hides_nothing_else(table: Table) -> None:
    store, expected, ledger = logged([1, 0, 1, 0, 1])
    assert ledger.head is not None
    key = store.scan(stream_of("s"), table)[1][0]
    store.commit([Batch(stream_of("s"), 1, 5, rows=(Row(table, key, b"\x01junk"),))])

    events = read_events(store, ledger.head, after=0).events

    lost = 3 if table is Table.MESSAGE else 4
    assert [told(event) for event in events] == [each for number, each in enumerate(expected, 1) if number != lost]
    assert [event.number for event in events] == [number for number in range(1, 6) if number != lost]
    assert store.damage.count == 1
    assert any("event" in finding.where or "message" in finding.where for finding in check_sessions(store))


def test_an_entry_of_the_log_without_a_change_of_the_head_is_a_broken_promise() -> None:
    ledger = Ledger("s", None)
    ledger.ensure(SessionDefaults(), at_ms=1)
    ledger.log(MetadataRow(("a",)))

    with pytest.raises(AssertionError, match="behind the last change"):
        ledger.take()
