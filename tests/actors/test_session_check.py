"""What is found wrong with sessions, and what a repair makes of it."""

import pytest

from callboard.actors.archive import Archive
from callboard.actors.ledger import Ledger
from callboard.actors.message import Message
from callboard.actors.run_record import RunRecord, SpanRecord
from callboard.actors.session_check import DAMAGED_HEAD, check_sessions, repair_sessions
from callboard.actors.session_records import SPAN_CODEC, SessionDefaults, message_key, span_key, stream_of
from callboard.actors.transfer import IMPORTING
from callboard.store import Batch, Index, IndexRow, MemoryStore, Row, Table

STREAM = stream_of("s")


def filled() -> MemoryStore:
    """A session with messages, an open run and a span, a second one beside it, and a stream of somebody else's."""
    store = MemoryStore()
    epoch = store.claim() << 32
    for session_id in ("s", "t"):
        ledger = Ledger(session_id, None)
        ledger.ensure(SessionDefaults(owner="ann", tags=("t1", "t2"), metadata={"n": 1}), at_ms=1000)
        ledger.append([Message(role="user", content=f"{number}") for number in range(40)], at_ms=2000)
        ledger.create_run(RunRecord(id="run_1", session_id=session_id, created_at_ms=3000, manual=True), at_ms=3000)
        change = ledger.take()
        assert change is not None
        span = SPAN_CODEC.encode(SpanRecord(run_id="run_1", number=1, name="x", kind="tool", started_at_ms=3000))
        rows = (*change.rows, Row(Table.SPAN, span_key("run_1", 1), span))
        store.commit([Batch(stream_of(session_id), epoch, 0, change.head, rows, change.index_rows)])
    store.commit([Batch("own", epoch, 0, b"\xff", (Row(Table.MESSAGE, b"k", b"\xff"),))])
    return store


def spoil(store: MemoryStore, *, head: bytes | None = None, rows: tuple[Row, ...] = (), **entries: bool) -> None:
    changes = tuple(
        IndexRow(Index[name], b"x" * 9 if present else entry_of(store, Index[name]), present)
        for name, present in entries.items()
    )
    guard = store.load(STREAM)
    assert guard is not None
    assert store.commit([Batch(STREAM, guard.epoch, guard.version, head, rows, changes)]) == [None]


def entry_of(store: MemoryStore, index: Index) -> bytes:
    return next(entry.value for entry in store.entries(STREAM) if entry.index is index)


def test_sound_sessions_are_found_sound() -> None:
    assert list(check_sessions(filled())) == []


@pytest.mark.parametrize("head", [b"", b"\x01\xff", b"\x01"])
def test_a_head_that_is_lost_or_cannot_be_read_is_made_anew_and_its_bytes_are_kept(head: bytes) -> None:
    store = filled()
    intact = Archive(store).head("t")
    spoil(store, head=head)

    (found,) = repair_sessions(store)

    assert found.where == "head of session 's'"
    assert list(check_sessions(store)) == []
    made = Archive(store).head("s")
    assert made is not None
    assert intact is not None
    assert (made.owner, made.tags, made.message_count, made.run_count) == ("ann", ("t1", "t2"), 40, 1)
    assert (made.updated_at_ms, made.open_runs, made.metadata) == (3000, ("run_1",), {})
    assert len(Archive(store).messages("s")) == 40
    kept = store.scan(STREAM, Table.OUTCOME)
    assert kept == ([(DAMAGED_HEAD, head)] if head else [])


def test_index_entries_are_made_anew_from_the_head() -> None:
    store = filled()
    before = store.entries(STREAM)
    spoil(store, OWNER=False, OPEN_RUN=False, TAG=True, REMINDER_DUE=True)

    (found,) = repair_sessions(store)

    assert found.reason.startswith("4 of its index entries")
    assert store.entries(STREAM) == before


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (Row(Table.MESSAGE, message_key(1), b"\x02\xff"), "message 0000000000000001 of session 's'"),
        (Row(Table.RUN, b"run_1", b"\x01\xff"), "run 72756e5f31 of session 's'"),
        (Row(Table.SPAN, span_key("run_1", 1), b""), "span"),
        (Row(Table.STEP, b"k", b"\x63"), "step"),
        (Row(Table.REMINDER, b"k", b"\x63"), "reminder"),
    ],
)
def test_records_that_cannot_be_read_are_told_and_stay_where_they_are(row: Row, where: str) -> None:
    store = filled()
    spoil(store, rows=(row,))

    found = repair_sessions(store)

    assert where in found[0].where
    assert row.key in dict(store.scan(STREAM, row.table))
    assert all(" of session 's'" in finding.where for finding in found)


def test_messages_that_are_missing_are_told() -> None:
    store = filled()
    spoil(store, rows=(Row(Table.MESSAGE, message_key(33), None),))

    (found,) = check_sessions(store)

    assert found.reason == "40 were stored; 32, up to number 32, can be read"


def test_an_import_that_was_cut_off_is_told_and_left_alone() -> None:
    store = filled()
    spoil(store, head=IMPORTING)

    (found,) = repair_sessions(store)

    assert "import it again" in found.reason
    stored = store.load(STREAM)
    assert stored is not None
    assert stored.head == IMPORTING
