"""Rounds of checkpoints: how much of one each commit does, and that the log is bounded and never in the way."""

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from callboard.store import Batch, Head, Index, IndexRow, LmdbStore, Row, Table, checkpoint, keys, rows
from callboard.store.checkpoint import BATCHES_PER_STEP, SEGMENTS_PER_COMMIT
from callboard.store.chunks import Stored, decode_chunk
from callboard.store.index_overlay import IndexOverlay
from callboard.store.log import Log, Stream

LOG_BYTES_MAX = 20_000
ROW_BYTES = 200


@pytest.fixture
def store(tmp_path: Path) -> Generator[LmdbStore, None, None]:
    opened = LmdbStore(tmp_path, durability="async", log_bytes_max=LOG_BYTES_MAX)
    yield opened
    opened.close()


def a_turn(stream: str, version: int, size_bytes: int = ROW_BYTES) -> Batch:
    row = Row(Table.MESSAGE, keys.number(version), bytes(size_bytes))
    entries = (
        IndexRow(Index.UPDATED, keys.number(version)),
        IndexRow(Index.UPDATED, keys.number(max(version - 1, 0)), False),
    )
    return Batch(stream, 1, version, b"head %d" % version, (row,), entries if version else entries[:1])


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches each step of a round has moved."""
    steps: list[int] = []
    move_tail = checkpoint.move_tail

    def counting(*arguments: object) -> None:
        batches = arguments[2]
        assert isinstance(batches, list)
        steps.append(len(batches))  # pyright: ignore[reportUnknownArgumentType] # of whatever
        move_tail(*arguments)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] # passed on as they came

    monkeypatch.setattr(checkpoint, "move_tail", counting)
    return steps


@pytest.mark.parametrize("streams", [1, 7, 500])
def test_the_log_stays_below_twice_its_bound_under_an_even_load(store: LmdbStore, streams: int) -> None:
    most = 0
    for turn in range(1500):
        store.commit([a_turn(str(turn % streams), turn // streams)])
        most = max(most, store.statistics().log_bytes)

    assert LOG_BYTES_MAX < most < 2 * LOG_BYTES_MAX
    assert store.statistics().checkpoints > 5


def test_the_log_stays_bounded_when_batches_become_a_hundred_times_larger(store: LmdbStore) -> None:
    for version in range(400):
        store.commit([a_turn(str(version % 30), version // 30, size_bytes=1)])
    small = store.statistics()
    most = 0
    for version in range(60):
        store.commit([a_turn("large", version, size_bytes=LOG_BYTES_MAX // 4)])
        most = max(most, store.statistics().log_bytes)

    assert small.checkpoints == 0 or small.log_bytes > LOG_BYTES_MAX // 2
    assert most < 2.8 * LOG_BYTES_MAX


def test_no_commit_moves_much_more_than_twice_what_it_adds(store: LmdbStore, moved: list[int]) -> None:
    per_commit: list[int] = []
    for turn in range(1500):
        store.commit([a_turn(str(turn % 3), turn // 3)])
        per_commit.append(sum(moved))
        moved.clear()

    assert sum(per_commit) > 1000
    assert max(per_commit) <= BATCHES_PER_STEP + 2
    for first in range(0, 1500, 100):
        assert sum(per_commit[first : first + 100]) <= 2 * 100 + BATCHES_PER_STEP


def test_a_long_tail_is_moved_in_few_steps_and_not_one_batch_at_a_time(store: LmdbStore, moved: list[int]) -> None:
    for version in range(1000):
        store.commit([a_turn("one", version)])

    assert store.statistics().checkpoints > 3
    assert len(moved) < sum(moved) / 20


def test_segments_are_deleted_some_at_a_time(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SEGMENTS_PER_COMMIT", 5)
    freed: list[int] = []
    for turn in range(600):
        before = store.statistics().log_bytes
        store.commit([a_turn(str(turn), 0)])
        freed.append(before - store.statistics().log_bytes)

    assert store.statistics().checkpoints > 0
    assert max(freed) < 5 * 2 * ROW_BYTES < SEGMENTS_PER_COMMIT * ROW_BYTES


@pytest.fixture
def chunks_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of the chunks that were decoded."""
    places: list[str] = []

    def counting(value: bytes, *, where: str) -> list[Stored]:
        places.append(where)
        return decode_chunk(value, where=where)

    monkeypatch.setattr(rows, "decode_chunk", counting)
    return places


def test_appending_and_activating_read_as_much_at_5_000_turns_as_at_100(tmp_path: Path, chunks_read: list[str]) -> None:
    """What a checkpoint reads to append, and what a store that was just opened reads for the last 50 rows."""
    read: list[tuple[int, int]] = []
    version = 0
    for history in (100, 5000):
        store = LmdbStore(tmp_path, durability="async")
        store.commit([a_turn("one", each) for each in range(version, history)])
        store.checkpoint()
        chunks_read.clear()
        store.commit([a_turn("one", history)])
        store.close()
        appending = len(chunks_read)
        store = LmdbStore(tmp_path, durability="async")
        chunks_read.clear()
        assert store.load("one") == Head(1, history + 1, b"head %d" % history)
        found = store.scan("one", Table.MESSAGE, newest_first=True, limit=50)
        assert [key for key, _ in found] == [keys.number(history - back) for back in range(50)]
        read.append((appending, len(chunks_read)))
        store.close()
        version = history + 1

    for appending, activating in read:
        assert appending <= 1
        assert activating <= 50 * ROW_BYTES / 12_000 + 3


def test_erasing_in_a_tail_of_several_steps_leaves_what_came_after(store: LmdbStore) -> None:
    turns = [a_turn("one", version) for version in range(200)]
    turns[150] = Batch("one", 1, 150, b"erased", (Row(Table.MESSAGE, b"only", b"row"),), erase=True)
    store.commit(turns[:100])
    store.checkpoint()
    store.commit(turns[100:160])
    store.checkpoint()

    assert store.load("one") == Head(1, 160, b"head 159")
    assert [key for key, _ in store.scan("one", Table.MESSAGE)] == [keys.number(each) for each in range(151, 160)] + [
        b"only"
    ]
    assert [entry.value for entry in store.entries("one")] == [keys.number(159)]


def test_after_each_round_the_entries_that_are_in_the_rows_are_forgotten(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlays: set[int] = set()
    index = Log.index

    def noting(log: Log) -> IndexOverlay:
        kept.append(index(log))
        overlays.add(id(kept[-1]))
        return kept[-1]

    kept: list[IndexOverlay] = []
    monkeypatch.setattr(Log, "index", noting)
    for version in range(1000):
        store.commit([a_turn("one", version)])
        assert [hit.value for hit in store.scan_index(Index.UPDATED)] == [keys.number(version)]

    assert len(overlays) == store.statistics().checkpoints + 1


def test_turns_that_bring_no_head_keep_the_one_in_the_rows(store: LmdbStore) -> None:
    store.commit([Batch("one", 1, 0, b"kept")])
    store.checkpoint()
    store.commit([Batch("one", 1, 1), Batch("one", 2, 2)])
    store.checkpoint()

    assert store.load("one") == Head(2, 3, b"kept")


def test_a_busy_stream_that_is_read_all_the_time_is_not_held_whole_in_memory() -> None:
    stream = Stream("one", 1, 0, 0)
    for version in range(0, 5000, 10):
        for each in range(version, version + 10):
            stream.append(a_turn("one", each))
        assert len(stream.tables()[Table.MESSAGE]) <= 3 * 20 + 10
        if len(stream.batches) >= 20:
            stream.drop(10)


def test_the_log_is_bounded_however_often_processes_are_killed_in_the_middle_of_a_round(tmp_path: Path) -> None:
    directory, most = tmp_path / "life 0", 0
    for life in range(1, 15):
        store = LmdbStore(directory, durability="async", log_bytes_max=LOG_BYTES_MAX)
        most = max(most, store.statistics().log_bytes)
        for turn in range(20 if most > LOG_BYTES_MAX else 100):
            store.commit([a_turn(f"{life} {turn}", 0)])
        directory = tmp_path / f"life {life}"
        directory.mkdir()
        shutil.copy(tmp_path / f"life {life - 1}" / "data.mdb", directory)  # as a kill leaves it
        store.close()

    store = LmdbStore(directory, durability="async")
    assert store.statistics().streams > 300
    store.close()
    assert LOG_BYTES_MAX < most <= 2 * LOG_BYTES_MAX
