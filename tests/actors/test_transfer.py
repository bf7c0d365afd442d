"""A store as JSON lines and back: nothing lost, nothing half, nothing overwritten that was not meant."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from callboard.actors import transfer
from callboard.actors.archive import Archive
from callboard.actors.ledger import Ledger
from callboard.actors.message import Message
from callboard.actors.session_records import SessionDefaults, stream_of
from callboard.actors.transfer import BadLine, StreamsExist, Transferred, check_export, export_store, import_store
from callboard.store import (
    Batch,
    Conflict,
    Corrupt,
    Index,
    IndexRow,
    LmdbStore,
    MemoryStore,
    Row,
    Store,
    StoreUnavailable,
    Table,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "format-1" / "contents.json"


def golden_store() -> MemoryStore:
    """What a store of format 1 had: every kind of record, a deleted session, bytes of somebody else's."""
    store = MemoryStore()
    told = json.loads(GOLDEN.read_text())
    for name, stream in told["streams"].items():
        rows = tuple(Row(Table[table], decoded(key), decoded(value)) for table, key, value in stream["rows"])
        entries = tuple(
            IndexRow(Index[index], decoded(value)) for index, value, owner in told["entries"] if owner == name
        )
        store.commit([Batch(name, stream["epoch"], 0, decoded(stream["head"]), rows, entries)])
    return store


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def contents(store: Store) -> dict[str, Any]:
    """Head, rows and entries of every stream that has some."""
    found: dict[str, Any] = {}
    for name in store.streams():
        head = store.load(name)
        rows = {table: store.scan(name, table) for table in Table}
        if head is not None and (head.head or any(rows.values()) or store.entries(name)):
            found[name] = (head.head, rows, store.entries(name))
    return found


def session_store(count: int) -> MemoryStore:
    store = MemoryStore()
    ledger = Ledger("s", None)
    ledger.ensure(SessionDefaults(owner="ann", tags=("t",)), at_ms=1)
    ledger.append([Message(role="user", content=f"{number} " + "." * 50) for number in range(count)], at_ms=2)
    change = ledger.take()
    assert change is not None
    store.commit([Batch(stream_of("s"), 1, 0, change.head, change.rows, change.index_rows)])
    return store


class Failing(MemoryStore):
    """Stores so many commits, then none."""

    def __init__(self, commits: int) -> None:
        super().__init__()
        self.left = commits

    def commit(self, batches: Sequence[Batch]) -> Any:
        if not self.left:
            raise StoreUnavailable("the disk has gone")
        self.left -= 1
        return super().commit(batches)


def test_what_is_exported_and_imported_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    source = golden_store()
    told = Transferred()
    lines = list(export_store(source, told))
    target = LmdbStore(tmp_path)

    imported = import_store(target, lines)

    assert contents(target) == contents(source)
    assert (imported, check_export(lines)) == (told, told)
    assert {index: [hit.value for hit in target.scan_index(index)] for index in Index} == {
        index: [hit.value for hit in source.scan_index(index)] for index in Index
    }
    assert (told.streams, told.skipped) == (8, 0)  # without the deleted session
    target.close()


def test_known_records_are_written_for_people_and_all_else_raw() -> None:
    lines = [json.loads(line) for line in export_store(golden_store())]

    heads = {line["name"]: line for line in lines if line["type"] == "stream"}
    assert "raw" in heads["own:bytes"]
    assert "raw" in heads["session:user-1"]  # msgpack gives a map of up to 15 fields another header than one of more
    kinds = {(line["table"], "record" in line) for line in lines if line["type"] == "row"}
    assert kinds >= {("run", True), ("span", True), ("step", True), ("reminder", True), ("outcome", False)}
    assert ("message", False) in kinds  # in the form of an older version, which would not come back as it was


def test_what_the_present_version_wrote_is_written_for_people() -> None:
    lines = [json.loads(line) for line in export_store(session_store(2))]
    (row,) = [line for line in lines if line["type"] == "row"]

    assert lines[1]["record"]["owner"] == "ann"
    assert [message["seq"] for message in row["record"]] == [1, 2]


def test_a_tombstone_is_left_out_and_one_in_the_target_is_no_clash() -> None:
    source, target = session_store(3), session_store(5)
    target.commit([Batch(stream_of("s"), 7 << 32, 1, b"", erase=True)])
    target.claim()
    for _ in range(7):
        target.claim()

    import_store(target, export_store(source))

    assert contents(target) == contents(source)
    stored = target.load(stream_of("s"))
    assert stored is not None
    assert stored.epoch > 7 << 32
    assert [json.loads(line)["type"] for line in export_store(emptied(source))] == ["export", "end"]


def emptied(store: MemoryStore) -> MemoryStore:
    store.commit([Batch(stream_of("s"), 1, 1, b"", erase=True)])
    return store


@pytest.mark.parametrize("existing", ["refuse", "skip", "replace"])
def test_what_is_there_already_is_refused_left_alone_or_replaced(existing: transfer.Existing) -> None:
    source, target = session_store(3), session_store(5)
    before = contents(target)

    if existing == "refuse":
        with pytest.raises(StreamsExist, match="'session:s'; nothing was imported"):
            import_store(target, export_store(source), existing=existing)
    else:
        told = import_store(target, export_store(source), existing=existing)
        assert (told.streams, told.skipped) == ((0, 1) if existing == "skip" else (1, 0))

    assert contents(target) == (contents(source) if existing == "replace" else before)


def test_an_import_that_ends_at_any_commit_leaves_no_half_stream_and_the_next_one_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "COMMIT_BYTES", 2000)
    source = session_store(300)
    for name in ("session:a", "session:z", "own"):
        source.commit([Batch(name, 1, 0, b"h", (Row(Table.OUTCOME, b"k", b"v" * 900),))])
    lines = list(export_store(source))
    half = 0

    for commits in range(100):
        target = Failing(commits)
        try:
            import_store(target, lines)
        except StoreUnavailable:
            target.left = 1000
        else:
            break
        there = contents(target)
        cut = [name for name, content in there.items() if content != contents(source)[name]]
        assert [there[name][0] for name in cut] == [transfer.IMPORTING] * len(cut)
        for name in cut:
            half += 1
            with pytest.raises(Corrupt):
                Archive(target).head(name.removeprefix("session:"))
        assert all(json.loads(line).get("name") not in cut for line in export_store(target))

        import_store(target, lines, existing="skip")

        assert contents(target) == contents(source)
    else:
        pytest.fail("the import never ended")
    assert commits > 5
    assert half > 3


def test_an_export_reads_page_by_page() -> None:
    limits: list[int | None] = []

    class Noting(MemoryStore):
        def scan(self, *args: Any, **options: Any) -> list[tuple[bytes, bytes]]:
            limits.append(options["limit"])
            return super().scan(*args, **options)

    store = Noting()
    rows = tuple(Row(Table.OUTCOME, number.to_bytes(4, "big"), b"v") for number in range(1000))
    store.commit([Batch("own", 1, 0, b"h", rows)])
    lines = export_store(store)

    first = [next(lines) for _ in range(10)]

    assert json.loads(first[-1])["type"] == "row"
    assert len(limits) == len((Table.MESSAGE, Table.RUN, Table.SPAN, Table.STEP, Table.OUTCOME))
    assert sum(1 for _ in lines) == 1000 - 8 + 1
    assert max(limit or 10**9 for limit in limits) <= transfer.PAGE


def test_a_stream_that_is_written_while_it_is_read_is_told() -> None:
    store = session_store(300)
    lines = export_store(store)
    assert len([next(lines) for _ in range(2)]) == 2
    store.commit([Batch(stream_of("s"), 1, 1)])

    with pytest.raises(Conflict):
        list(lines)


def test_a_head_that_cannot_be_read_is_exported_as_it_is() -> None:
    store = session_store(1)
    store.commit([Batch(stream_of("s"), 1, 1, b"\x07 of a newer callboard")])
    target = MemoryStore()

    import_store(target, export_store(store))

    assert contents(target) == contents(store)


@pytest.mark.parametrize(
    ("line", "change", "reason"),
    [
        (1, {"format": 9}, "upgrade callboard"),
        (1, {"type": "stream", "name": "x", "epoch": 1, "version": 1, "raw": ""}, "begins with"),
        (2, {"name": "session:" + "x" * 400}, "1 to 400 bytes"),
        (2, {"record": {"type": "run", "id": "r", "session_id": "s", "created_at_ms": 1}}, "cannot be read"),
        (2, {"raw": "aaaa"}, 'either a "record" or a "raw"'),
        (3, {"table": "what"}, "WHAT"),
        (3, {"key": "AA" * 100}, "at most 64 bytes"),
        (3, {"key": "?"}, "base64"),
        (3, {"record": None}, 'either a "record" or a "raw"'),
        (4, {"index": "what"}, "WHAT"),
        (4, {"value": "AA" * 1000}, "at most 400 bytes"),
        (-1, {"rows": 9}, "should stand above"),
        (-1, {"type": "entry", "index": "tag", "value": ""}, "cut off"),
    ],
)
def test_a_wrong_line_is_named(line: int, change: dict[str, Any], reason: str) -> None:
    lines = list(export_store(session_store(2)))
    place = line if line > 0 else len(lines)
    lines[place - 1] = json.dumps({**json.loads(lines[place - 1]), **change}).encode()

    with pytest.raises(BadLine, match=reason) as caught:
        check_export(lines)

    assert caught.value.line == (place + 1 if "cut off" in reason else place)


@pytest.mark.parametrize("kept", range(8))
def test_an_export_that_was_cut_off_is_refused(kept: int) -> None:
    lines = list(export_store(session_store(2)))
    assert len(lines) == 7

    if kept == 7:
        assert check_export(lines).streams == 1
    else:
        with pytest.raises(BadLine):
            check_export(lines[:kept])


def test_a_stream_that_comes_twice_is_refused() -> None:
    lines = list(export_store(session_store(2)))

    with pytest.raises(BadLine, match="a second stream of the name 'session:s'"):
        check_export([*lines[:-1], *lines[1:]])
