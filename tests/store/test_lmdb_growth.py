"""The file stays within a small multiple of what lives in it, however often that is replaced, also while it is read."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from callboard.store import Batch, Index, IndexRow, LmdbStore, Row, Table, keys

STREAMS = 100
GROUP = 50
TURN_BYTES = 660
KEPT = 50
"""Of each stream's turns so many live; older ones are deleted as new ones come."""
LIVE_BYTES = STREAMS * KEPT * (TURN_BYTES + 30)
LOG_BYTES_MAX = 256 << 10


def a_turn(number: int) -> Batch:
    stream, version = number % STREAMS, number // STREAMS
    rows = [Row(Table.MESSAGE, keys.number(version), b"%08d" % number + bytes(TURN_BYTES - 8))]
    if version >= KEPT:
        rows.append(Row(Table.MESSAGE, keys.number(version - KEPT), None))
    entries = (IndexRow(Index.UPDATED, keys.number(number)),)
    if version:
        entries = (*entries, IndexRow(Index.UPDATED, keys.number(number - STREAMS), present=False))
    return Batch(f"session:{stream}", 1, version, b"head of %d" % number, tuple(rows), entries)


def churn(store: LmdbStore, turns: range, file: Path) -> list[int]:
    """Commit the turns; the file's size at ten points in between."""
    sizes: list[int] = []
    for first in range(turns.start, turns.stop, GROUP):
        store.commit([a_turn(number) for number in range(first, first + GROUP)])
        if (first - turns.start) % (len(turns) // 10) == 0:
            sizes.append(file.stat().st_size)
    return sizes


def reading(store: LmdbStore, done: threading.Event) -> None:
    place = 0
    while not done.is_set():
        place += 1
        rows = store.scan(f"session:{place % STREAMS}", Table.MESSAGE, newest_first=place % 2 == 0)
        assert len(rows) <= KEPT
        store.scan_index(Index.UPDATED, limit=20)


def no_reading(_store: LmdbStore, _done: threading.Event) -> None:
    """Nobody reads."""


@pytest.mark.parametrize("read", [no_reading, reading])
def test_a_file_under_churn_stays_within_a_small_multiple_of_what_lives_in_it(
    tmp_path: Path, read: Callable[[LmdbStore, threading.Event], None]
) -> None:
    store = LmdbStore(tmp_path, durability="async", log_bytes_max=LOG_BYTES_MAX)
    done = threading.Event()
    reader = threading.Thread(target=read, args=(store, done))
    churn(store, range(STREAMS * KEPT), tmp_path / "data.mdb")
    reader.start()
    try:
        sizes = churn(store, range(STREAMS * KEPT, 25_000), tmp_path / "data.mdb")
    finally:
        done.set()
        reader.join()

    assert max(sizes) < 3 * LIVE_BYTES + 2 * LOG_BYTES_MAX
    assert sizes[-1] <= sizes[3] * 1.2, "it grows on and on"
    store.close()


def test_a_history_that_only_grows_takes_little_more_than_its_bytes(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, durability="async", log_bytes_max=LOG_BYTES_MAX)
    turns = [a_turn(number) for number in range(STREAMS * KEPT)]
    for first in range(0, len(turns), GROUP):
        store.commit(turns[first : first + GROUP])
    store.close()

    assert (tmp_path / "data.mdb").stat().st_size < 2.5 * LIVE_BYTES


def test_large_values_that_are_replaced_all_the_time_leave_their_pages_to_the_next_ones(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, durability="async", log_bytes_max=LOG_BYTES_MAX)
    for version in range(400):
        value = b"%08d" % version * 5000
        store.commit([Batch("a", 1, version, rows=(Row(Table.STEP, b"%d" % (version % 5), value),))])
    store.close()

    assert (tmp_path / "data.mdb").stat().st_size < 5 * 40_000 + 6 * LOG_BYTES_MAX
