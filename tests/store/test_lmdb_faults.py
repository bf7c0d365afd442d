"""LMDB when things go wrong after opening: the map and the disk fill up, processes fork and are killed, bytes rot."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from callboard.store import Batch, Corrupt, Head, Index, IndexRow, LmdbStore, Row, StoreUnavailable, Table, keys


def a_batch(version: int, *, stream: str = "a", size_bytes: int = 100_000) -> Batch:
    return Batch(stream, 1, version, rows=(Row(Table.MESSAGE, keys.number(version), bytes(size_bytes)),))


def run_child(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "import sys, os, resource\nfrom callboard.store import *\n" + program]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_a_map_that_is_too_small_grows_while_it_is_read(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, map_size_bytes=1 << 16, durability="async")
    counts: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            counts.append(len(store.scan("a", Table.MESSAGE)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        answers = [store.commit([a_batch(version)]) for version in range(100)]
    finally:
        done.set()
        reader.join()

    assert answers == [[None]] * 100
    assert counts == sorted(counts)
    assert len(store.scan("a", Table.MESSAGE)) == 100
    store.close()


def test_one_commit_far_larger_than_the_map_is_stored(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, map_size_bytes=1 << 16)

    assert store.commit([a_batch(version) for version in range(50)]) == [None] * 50
    assert store.load("a") == Head(1, 50, b"")
    store.close()


def test_no_address_space_to_grow_is_store_full_and_the_store_goes_on(tmp_path: Path) -> None:
    result = run_child(
        """
store = LmdbStore(sys.argv[1], map_size_bytes=1 << 20)
store.commit([Batch("a", 1, 0, head=b"kept")])
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), -1))
for version in range(1, 100):
    try:
        store.commit([Batch("a", 1, version, rows=(Row(Table.RUN, b"%d" % version, os.urandom(1 << 20)),))])
    except StoreError as error:  # StoreFull for the map, StoreUnavailable where LMDB's own memory is short first
        print(error.uncertain, store.load("a") == Head(1, version, b"kept"))
        print(store.commit([Batch("a", 1, version, head=b"next")]), store.load("a") == Head(1, version + 1, b"next"))
        break
""",
        tmp_path,
    )

    assert result.stderr == ""
    assert result.stdout == "False True\n[None] True\n"


@contextmanager
def files_limited_to(size_bytes: int) -> Generator[None, None, None]:
    """Writes past `size_bytes` of any file fail, as on a disk that breaks: Python ignores the signal SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_stores_nothing_says_so_and_may_be_repeated(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.commit([a_batch(0)])
    batches = [a_batch(1, size_bytes=1 << 20), Batch("new", 1, 0, index_rows=(IndexRow(Index.TAG, b"t"),))]

    with files_limited_to(1 << 18), pytest.raises(StoreUnavailable, match="nothing was stored") as caught:
        store.commit(batches)

    assert not caught.value.uncertain
    assert store.load("a") == Head(1, 1, b"")
    assert store.load("new") is None
    assert store.commit(batches) == [None, None]
    assert [hit.stream for hit in store.scan_index(Index.TAG)] == ["new"]
    store.close()


def test_a_claim_that_fails_gives_no_number(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    first = store.claim()

    with files_limited_to(1), pytest.raises(StoreUnavailable):
        store.claim()

    assert store.claim() == first + 1
    store.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_and_does_not_disturb_its_parent(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.commit([Batch("a", 1, 0)])

    child = os.fork()
    if child == 0:
        refused = 0
        for call in (store.claim, store.statistics, lambda: store.load("a"), lambda: store.commit([])):
            try:
                call()
            except StoreUnavailable as error:
                refused += "open it anew after forking" in str(error)
        store.close()
        os._exit(refused)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 4
    assert store.commit([Batch("a", 1, 1)]) == [None]
    store.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_store_locked(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    ready, go = os.pipe(), os.pipe()

    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    store.close()

    try:
        LmdbStore(tmp_path).close()
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for fd in (*ready, *go):
            os.close(fd)


WRITER = """
store = LmdbStore(sys.argv[1])
version = store.load("a").version if store.load("a") else 0
while True:
    key = version.to_bytes(8, "big")
    rows = tuple(Row(Table.MESSAGE, key + bytes([n]), bytes(3000)) for n in range(5))
    moved = (IndexRow(Index.UPDATED, (version - 1).to_bytes(8, "big", signed=True), present=False),)
    store.commit([Batch("a", 1, version, head=key, rows=rows, index_rows=(*moved, IndexRow(Index.UPDATED, key)))])
    os.write(1, key)
    version += 1
"""


@pytest.mark.kill
def test_a_process_killed_in_mid_commit_leaves_whole_commits_and_all_that_it_acknowledged(tmp_path: Path) -> None:
    acknowledged = 0
    for seed in range(5):
        acknowledged = max(acknowledged, run_and_kill_writer(tmp_path, commits=random.Random(seed).randint(1, 40)))

        store = LmdbStore(tmp_path)
        head = store.load("a")
        assert head is not None
        rows = store.scan("a", Table.MESSAGE)
        entries = store.scan_index(Index.UPDATED)
        store.close()

        assert head.version >= acknowledged
        assert head.head == keys.number(head.version - 1)
        assert [key for key, _ in rows] == [keys.number(v) + bytes([n]) for v in range(head.version) for n in range(5)]
        assert [entry.value for entry in entries] == [head.head]
    assert acknowledged >= 5


def run_and_kill_writer(path: Path, *, commits: int) -> int:
    """The version acknowledged last before the writer was killed, in some commit after `commits` more."""
    program = "import sys, os\nfrom callboard.store import *\n" + WRITER
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        said = writer.stdout.read(8 * commits)
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read()
    return int.from_bytes(said[len(said) // 8 * 8 - 8 :][:8], "big") + 1


def damage(path: Path, key: bytes, value: bytes) -> None:
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(key, value)


@pytest.mark.parametrize(("key", "where"), [(keys.name_key("a"), "number of stream 'a'"), (keys.guard_key(1), "guard")])
def test_a_damaged_record_is_corrupt_and_hides_no_other_stream(tmp_path: Path, key: bytes, where: str) -> None:
    store = LmdbStore(tmp_path)
    store.commit([Batch("a", 1, 0), Batch("b", 1, 0, head=b"h")])
    store.close()
    damage(tmp_path, key, b"short")
    store = LmdbStore(tmp_path)

    with pytest.raises(Corrupt, match=where):
        store.load("a")

    assert store.load("b") == Head(1, 1, b"h")
    assert store.commit([Batch("b", 1, 1)]) == [None]
    store.close()


def test_pages_of_noise_are_corrupt_not_a_crash(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.commit([a_batch(0, stream=f"s{number}", size_bytes=1000) for number in range(200)])
    store.close()
    noise = random.Random(1)
    with (tmp_path / "data.mdb").open("r+b") as file:
        for page in range(2, os.path.getsize(tmp_path / "data.mdb") // 4096):
            file.seek(page * 4096)
            file.write(noise.randbytes(4096))

    result = run_child(
        """
try:
    LmdbStore(sys.argv[1])
except Corrupt as error:
    print("corrupt")
""",
        tmp_path,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("corrupt\n", "", 0)


def test_what_is_stored_does_not_depend_on_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.store.lmdb_store.KNOWN_MAX", 2)
    store = LmdbStore(tmp_path, durability="async")

    for version in range(4):
        for name in "abcde":
            assert store.commit([Batch(name, 1, version, head=name.encode())]) == [None]

    assert [store.load(name) for name in "abcde"] == [Head(1, 4, name.encode()) for name in "abcde"]
    store.close()
