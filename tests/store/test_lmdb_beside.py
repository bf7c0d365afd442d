"""Readers beside a writer, in threads and in another process: whole commits, never a mix, never older than known."""

import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callboard.store import Batch, Index, IndexRow, LmdbStore, ProcessStore, Row, Store, Table, keys, lmdb_store
from callboard.store.segments import decode_segment

COMMITS = 500
STREAMS = ("a", "b")

BUSY_WRITER = """
import sys
from callboard.store import LmdbStore
sys.path.append(sys.argv[2])
from test_lmdb_beside import a_group
store = LmdbStore(sys.argv[1], durability="async", log_bytes_max=20_000)
number = 0
print("open", flush=True)
while number < 40_000:
    store.commit(a_group(number))
    number += 1
    if sys.argv[3] and number % 100 == 0:
        if number > 100:
            print("done", flush=True)
        sys.stdin.readline()
"""


def a_group(number: int) -> list[Batch]:
    """One commit: each stream has its number in its head, in two rows and in one index entry, and a row a commit."""
    value = b"%08d" % number
    large = value * (2500 if number % 50 == 0 else 1)
    batches: list[Batch] = []
    for name in STREAMS:
        rows = [Row(Table.RUN, b"first", value), Row(Table.RUN, b"last", value), Row(Table.STEP, b"large", large)]
        rows.append(Row(Table.MESSAGE, keys.number(number), value))
        if number >= 40:
            rows.append(Row(Table.MESSAGE, keys.number(number - 40), None))
        entries = [IndexRow(Index.UPDATED, b"%08d" % max(number - 1, 0), present=False), IndexRow(Index.UPDATED, value)]
        batches.append(Batch(name, 1, number, value, tuple(rows), tuple(entries)))
    return batches


def number_read(store: Store, name: str) -> int:
    """Which commit a stream is at, read in each way; each read must be whole in itself."""
    (_, first), (_, last) = store.scan(name, Table.RUN)
    assert first == last
    head = store.load(name)
    assert head is not None
    assert head.version == int(head.head) + 1 > int(first)
    messages = store.scan(name, Table.MESSAGE)
    numbers = [int(value) for _, value in messages]
    newest = numbers[-1]
    assert numbers == list(range(max(newest - 39, 0), newest + 1))
    backwards = store.scan(name, Table.MESSAGE, newest_first=True, limit=5)
    newest = newest_of(backwards)
    assert [int(value) for _, value in backwards] == list(range(newest, max(newest - 5, -1), -1))
    ((_, large),) = store.scan(name, Table.STEP)
    assert len({large[at : at + 8] for at in range(0, len(large), 8)}) == 1
    hits = store.scan_index(Index.UPDATED)
    assert [hit.stream for hit in hits] == list(STREAMS)
    assert len({hit.value for hit in hits}) == 1, "batches of one commit do not appear together"
    return int(hits[0].value)


def newest_of(rows: list[tuple[bytes, bytes]]) -> int:
    return int(rows[0][1])


@pytest.mark.parametrize("log_bytes_max", [0, 20_000])
def test_threads_that_read_beside_commits_and_rounds_see_whole_commits_and_never_go_back(
    tmp_path: Path, log_bytes_max: int
) -> None:
    store = LmdbStore(tmp_path, durability="async", log_bytes_max=log_bytes_max)
    store.commit(a_group(0))
    returned = [0]
    failures: list[BaseException] = []
    rounds = [0, 0]

    def read(name: str, which: int) -> None:
        try:
            seen = 0
            while returned[0] < COMMITS - 1:
                known = returned[0]
                seen_now = number_read(store, name)
                assert seen_now >= max(seen, known)
                seen = seen_now
                rounds[which] += 1
        except BaseException as error:
            failures.append(error)
            raise

    readers = [threading.Thread(target=read, args=(name, which)) for which, name in enumerate(STREAMS)]
    for reader in readers:
        reader.start()
    for number in range(1, COMMITS):
        assert store.commit(a_group(number)) == [None, None]
        returned[0] = number
    for reader in readers:
        reader.join()

    assert failures == []
    assert min(rounds) > 5
    assert number_read(store, "a") == COMMITS - 1
    assert store.statistics().checkpoints > 0
    store.close()


@contextmanager
def a_busy_writer(path: Path, *, waits: bool = False) -> Generator["subprocess.Popen[str]", None, None]:
    command = [sys.executable, "-c", BUSY_WRITER, str(path), str(Path(__file__).parent), "waits" if waits else ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child
        child.kill()


def test_a_process_that_reads_beside_a_busy_writer_sees_whole_commits_and_holds_a_bounded_log(tmp_path: Path) -> None:
    with a_busy_writer(tmp_path):
        store = wait_for_reader(tmp_path)
        seen = [0]
        most = 0
        while len(set(seen)) < 150:
            seen.append(number_read(store, "a"))
            most = max(most, store.statistics().log_bytes)
        store.close()

    assert seen == sorted(seen)
    assert most < 3 * 20_000 + 100_000


def wait_for_reader(path: Path) -> LmdbStore:
    while True:
        reader = LmdbStore(path, readonly=True)
        if reader.load("b") is not None:
            return reader
        reader.close()


def test_a_reader_that_missed_segments_begins_anew_with_what_is_left(tmp_path: Path) -> None:
    """Between two reads the log is emptied several times over."""
    with a_busy_writer(tmp_path, waits=True) as child:
        assert child.stdin is not None
        store = wait_for_reader(tmp_path)
        while number_read(store, "a") < 99:
            pass
        seen = [99]
        for _ in range(10):
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout is not None
            assert child.stdout.readline() == "done\n"
            seen.append(number_read(store, "b"))
        store.close()

    assert seen == list(range(99, 1100, 100))


def test_what_was_committed_through_the_writer_process_is_in_the_next_read_of_the_owner(tmp_path: Path) -> None:
    store = ProcessStore(tmp_path, durability="async", log_bytes_max=20_000)
    for number in range(300):
        store.commit(a_group(number))
        if number % 7 == 0 or number % 61 > 50:
            assert number_read(store, "a") == number

    assert number_read(store, "b") == 299
    store.close()


def test_each_record_of_the_log_is_read_once_and_by_the_thread_that_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counting(value: bytes, *, number: int) -> list[Batch]:
        decoded.append(number)
        return decode_segment(value, number=number)

    monkeypatch.setattr(lmdb_store, "decode_segment", counting)
    store = ProcessStore(tmp_path, durability="async")
    for number in range(100):
        store.commit(a_group(number))
    del decoded[:]

    assert number_read(store, "a") == 99
    assert decoded == []
    assert store.statistics().log_bytes > 50_000
    store.close()
