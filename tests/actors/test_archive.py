"""Reading a store without a runtime, and beside one that writes."""

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from callboard import (
    Agent,
    Corrupt,
    Runtime,
    Session,
    SessionHead,
    SpanRecord,
    StoreUnavailable,
    UnknownRun,
)
from callboard.actors.archive import Archive
from callboard.actors.ledger import Ledger
from callboard.actors.run_record import RunRecord
from callboard.actors.session_records import RUN_CODEC, SPAN_CODEC, SessionDefaults, span_key, stream_of
from callboard.store import Batch, LmdbStore, MemoryStore, Row, Table
from callboard.testing import ScriptedModel


class Shelf:
    """A store with sessions in it, each written once."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.archive = Archive(self.store)

    def add(self, id: str, *, at_ms: int, owner: str | None = None, tags: tuple[str, ...] = ()) -> None:
        ledger = Ledger(id, None)
        ledger.ensure(SessionDefaults(owner=owner, tags=tags), at_ms=at_ms)
        change = ledger.take()
        assert change is not None
        self.store.commit([Batch(stream_of(id), 1, 0, change.head, change.rows, change.index_rows)])

    def spoil(self, id: str) -> None:
        stored = self.store.load(stream_of(id))
        assert stored is not None
        self.store.commit([Batch(stream_of(id), 1, stored.version, b"\x01 this is no head")])


def ids(sessions: list[SessionHead]) -> list[str]:
    return [head.id for head in sessions]


def shelf_of(count: int) -> Shelf:
    shelf = Shelf()
    for number in range(count):
        owner = "ann" if number % 2 else "anna"
        shelf.add(f"s{number:03}", at_ms=1_000 + number, owner=owner, tags=("third",) if number % 3 == 0 else ())
    return shelf


def test_sessions_come_most_recently_changed_first() -> None:
    page = shelf_of(5).archive.sessions()

    assert ids(page.sessions) == ["s004", "s003", "s002", "s001", "s000"]
    assert page.cursor is None


def test_owner_is_matched_whole_and_not_by_its_beginning() -> None:
    shelf = shelf_of(4)

    assert ids(shelf.archive.sessions(owner="ann").sessions) == ["s003", "s001"]
    assert ids(shelf.archive.sessions(owner="anna").sessions) == ["s002", "s000"]
    assert ids(shelf.archive.sessions(owner="an").sessions) == []


def test_filters_are_all_obeyed_together() -> None:
    shelf = shelf_of(13)

    assert ids(shelf.archive.sessions(tag="third").sessions) == ["s012", "s009", "s006", "s003", "s000"]
    assert ids(shelf.archive.sessions(owner="ann", tag="third").sessions) == ["s009", "s003"]
    assert ids(shelf.archive.sessions(owner="ann", tag="third", updated_after_ms=1_003).sessions) == ["s009"]
    assert ids(shelf.archive.sessions(updated_after_ms=1_012).sessions) == []


@pytest.mark.parametrize("limit", [1, 2, 7, 599, 600, 601])
@pytest.mark.parametrize(("owner", "tag"), [(None, None), ("ann", None), (None, "third"), ("ann", "third")])
def test_pages_joined_are_the_whole_list(limit: int, owner: str | None, tag: str | None) -> None:
    archive = shelf_of(600 if limit > 2 else 30).archive
    whole = archive.sessions(owner=owner, tag=tag, limit=1_000)
    joined, cursor, pages = list[str](), None, 0
    while pages == 0 or cursor is not None:
        page = archive.sessions(owner=owner, tag=tag, limit=limit, cursor=cursor)
        joined, cursor, pages = joined + ids(page.sessions), page.cursor, pages + 1

    assert joined == ids(whole.sessions)
    assert pages == max(1, -(-len(joined) // limit))


@pytest.mark.parametrize("cursor", ["", "é", "%%%", "c29tZXRoaW5n", "AAAA", "AQAAAAAAAAPpAAAAAAAAAAI=", "\ud800"])
def test_cursor_that_is_none_of_ours_is_refused_with_what_to_pass(cursor: str) -> None:
    with pytest.raises(ValueError, match=r"is no cursor of this list: pass page\.cursor"):
        shelf_of(3).archive.sessions(cursor=cursor)


@pytest.mark.parametrize("cursor", [3, b"AAAA", 1.5])
def test_cursor_that_is_no_text_is_a_type_error(cursor: object) -> None:
    with pytest.raises(TypeError, match=r"cursor must be a string, not .*: pass page\.cursor"):
        shelf_of(3).archive.sessions(cursor=cursor)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] the test


@pytest.mark.parametrize("filters", [{}, {"owner": "anna"}, {"tag": "third"}])
def test_cursor_of_another_filter_is_refused(filters: dict[str, Any]) -> None:
    archive = shelf_of(10).archive
    cursor = archive.sessions(owner="ann", limit=1).cursor

    with pytest.raises(ValueError, match=r"cursor of .* list: pass page\.cursor .* with the same owner and tag"):
        archive.sessions(limit=1, cursor=cursor, **filters)


def test_cursor_of_another_kind_of_store_is_refused(tmp_path: Path) -> None:
    cursor = shelf_of(3).archive.sessions(limit=1).cursor
    LmdbStore(tmp_path).close()

    with Archive.open(tmp_path) as archive, pytest.raises(ValueError, match=r"cursor of this store: pass page\.cursor"):
        archive.sessions(cursor=cursor)


def test_session_that_cannot_be_read_is_left_out_of_the_list_and_hides_no_other() -> None:
    shelf = shelf_of(3)
    shelf.spoil("s001")

    assert ids(shelf.archive.sessions().sessions) == ["s002", "s000"]
    with pytest.raises(Corrupt, match="s001"):
        shelf.archive.head("s001")
    assert [each.where for each in shelf.archive.damage.list()] == ["head of session 's001'"]


def test_run_and_span_that_cannot_be_read_are_left_out_and_reported_once() -> None:
    shelf = shelf_of(1)
    runs = [RunRecord(id=f"run_{n}", session_id="s000", created_at_ms=n) for n in range(3)]
    spans = [SpanRecord(run_id="run_0", number=n, name="m", kind="model", started_at_ms=n) for n in range(3)]
    rows = [Row(Table.RUN, run.id.encode(), RUN_CODEC.encode(run)) for run in runs]
    rows += [Row(Table.SPAN, span_key("run_0", span.number), SPAN_CODEC.encode(span)) for span in spans]
    rows[1] = Row(Table.RUN, b"run_1", b"\x01 no run")
    rows[4] = Row(Table.SPAN, span_key("run_0", 1), b"")
    shelf.store.commit([Batch(stream_of("s000"), 1, 1, rows=tuple(rows))])

    for _ in range(2):
        assert shelf.archive.runs("s000") == [runs[0], runs[2]]
        assert shelf.archive.spans("s000", "run_0") == [spans[0], spans[2]]
    with pytest.raises(Corrupt, match="run_1"):
        shelf.archive.run("s000", "run_1")
    assert [each.where for each in shelf.archive.damage.list()] == [
        "run 'run_1' of session 's000'",
        "span 1 of run 'run_0' of session 's000'",
    ]


def test_unknown_session_has_nothing() -> None:
    archive = Shelf().archive

    assert archive.head("nobody") is None
    assert archive.messages("nobody") == []
    assert archive.runs("nobody") == []
    assert archive.with_open_runs() == []
    with pytest.raises(UnknownRun, match="nobody"):
        archive.run("nobody", "run_1")


def test_spans_are_those_of_one_run_though_the_name_of_another_begins_alike() -> None:
    shelf = Shelf()
    rows = tuple(
        Row(
            Table.SPAN,
            span_key(run_id, number),
            SPAN_CODEC.encode(SpanRecord(run_id=run_id, number=number, name="m", kind="model", started_at_ms=1)),
        )
        for run_id in ("run_1", "run_10", "run_2")
        for number in (1, 2)
    )
    shelf.store.commit([Batch(stream_of("s"), 1, 0, rows=rows)])

    assert [(span.run_id, span.number) for span in shelf.archive.spans("s", "run_1")] == [("run_1", 1), ("run_1", 2)]


def test_run_is_found_by_its_whole_id_only() -> None:
    shelf = Shelf()
    ledger = Ledger("s", None)
    ledger.ensure(SessionDefaults(), at_ms=1)
    ledger.create_run(RunRecord(id="run_12", session_id="s", created_at_ms=1), at_ms=1)
    change = ledger.take()
    assert change is not None
    shelf.store.commit([Batch(stream_of("s"), 1, 0, change.head, change.rows, change.index_rows)])

    assert shelf.archive.run("s", "run_12").id == "run_12"
    assert shelf.archive.with_open_runs() == ["s"]
    with pytest.raises(UnknownRun):
        shelf.archive.run("s", "run_1")


READER = """
import sys
from callboard.actors.archive import Archive

with Archive.open(sys.argv[1]) as archive:
    print(archive.head("s").owner, flush=True)
    for line in sys.stdin:
        print([message.text for message in archive.messages("s", limit=2)], archive.runs("s")[-1].status, flush=True)
"""


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_archive_in_another_process_reads_what_a_runtime_writes_meanwhile(tmp_path: Path, backend: str) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            agent = Agent("Agent", model=ScriptedModel(), session=Session(runtime, "s", owner="ann"))
            await agent.chat("one")
            async with await anyio.open_process([sys.executable, "-c", READER, str(tmp_path / "db")]) as reader:
                assert reader.stdin is not None
                assert reader.stdout is not None
                lines = BufferedByteReceiveStream(reader.stdout)
                assert await lines.receive_until(b"\n", 100) == b"ann"
                for text in ("two", "three"):
                    await agent.chat(text)
                    await reader.stdin.send(b"look\n")

                    assert await lines.receive_until(b"\n", 200) == f"['{text}', 'echo: {text}'] completed".encode()
                await reader.stdin.aclose()

    anyio.run(body, backend=backend)


def test_archive_of_a_directory_without_a_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="elsewhere"):
        Archive.open(tmp_path / "elsewhere")

    assert not (tmp_path / "elsewhere").exists()
