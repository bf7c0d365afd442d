"""A data.mdb that is not all there: refused before LMDB maps it, in a process that survives; a sound one never is."""

import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import lmdb
import pytest

from callboard.store import Batch, Corrupt, Head, LmdbStore, Row, StoreUnavailable, Table, keys
from callboard.store.lmdb_file import check_whole

PAGE_BYTES = 4096
READ_ALL = """
import sys
from callboard.store import Corrupt, LmdbStore, Table
try:
    store = LmdbStore(sys.argv[1], readonly=sys.argv[2] == "True")
    for number in range(5):
        store.scan(f"s{number}", Table.MESSAGE)
except Corrupt as error:
    print(error)
"""


READER = """
import sys, lmdb
with lmdb.open(sys.argv[1], readonly=True) as env, env.begin():
    print("reading", flush=True)
    sys.stdin.read()
"""
CUT_AND_READ = """
import os, sys
from callboard.store import Corrupt, Head, LmdbStore, Table
file = sys.argv[1] + "/data.mdb"
for size_bytes in range(os.path.getsize(file), 0, -4096):
    os.truncate(file, size_bytes)
    try:
        store = LmdbStore(sys.argv[1], readonly=True)
    except Corrupt:
        sys.exit(print("refused"))
    assert store.load("b") == Head(1, 1, b"kept")
    assert store.scan("a", Table.MESSAGE) == []
    store.close()
"""


def written(path: Path) -> Path:
    """A store of about 30 pages, with values that have pages of their own."""
    store = LmdbStore(path, durability="async")
    for number in range(5):
        rows = tuple(Row(Table.MESSAGE, keys.number(row), bytes(900)) for row in range(10))
        store.commit([Batch(f"s{number}", 1, 0, b"h", (*rows, Row(Table.RUN, b"large", bytes(9_000))))])
    store.close()
    return path / "data.mdb"


def erased(path: Path) -> Path:
    """A store whose last commit took pages at the end of the file, because a reader kept the others, and gave one back
    that LMDB therefore never wrote."""
    store = LmdbStore(path)
    store.commit([Batch("b", 1, 0, head=b"kept")])
    store.close()
    with lmdb.open(str(path), map_size=1 << 30) as env:
        for version in range(3):
            with env.begin(write=True) as txn:
                for number in range(version * 200, version * 200 + 200):
                    txn.put(keys.row_key(99, Table.MESSAGE, keys.number(number)), bytes(900))
        with subprocess.Popen([sys.executable, "-c", READER, str(path)], stdin=PIPE, stdout=PIPE) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            with env.begin(write=True) as txn:
                for number in range(600):
                    txn.delete(keys.row_key(99, Table.MESSAGE, keys.number(number)))
            reader.kill()
    return path / "data.mdb"


def missing_pages(path: Path) -> int:
    with lmdb.open(str(path), readonly=True) as env:
        return int(env.info()["last_pgno"]) + 1 - os.path.getsize(path / "data.mdb") // PAGE_BYTES


def run_apart(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("left", ["0", "5000", "8192", "half", "a page less", "a byte less"])
def test_a_file_that_was_cut_off_is_refused_and_kills_nobody(tmp_path: Path, left: str, *, readonly: bool) -> None:
    file = written(tmp_path)
    whole_bytes = file.stat().st_size
    named = {"half": whole_bytes // 2, "a page less": whole_bytes - PAGE_BYTES, "a byte less": whole_bytes - 1}
    left_bytes = named[left] if left in named else int(left)
    os.truncate(file, left_bytes)

    result = run_apart(READ_ALL, tmp_path, readonly)

    assert (result.stderr, result.returncode) == ("", 0)
    assert "restore the directory from a copy" in result.stdout
    assert ("it is empty" if left == "0" else "it was cut off") in result.stdout
    assert file.stat().st_size == left_bytes


def test_every_length_that_lacks_a_page_in_use_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)

    for size_bytes in range(file.stat().st_size - 1, 2 * PAGE_BYTES, -777):
        os.truncate(file, size_bytes)
        with pytest.raises(Corrupt, match="cut off"):
            check_whole(tmp_path)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_sound_store_that_ends_before_its_last_page_is_opened(tmp_path: Path, *, readonly: bool) -> None:
    erased(tmp_path)
    assert missing_pages(tmp_path) == 1

    store = LmdbStore(tmp_path, readonly=readonly)

    assert store.load("b") == Head(1, 1, b"kept")
    assert store.scan("a", Table.MESSAGE) == []
    store.close()


def test_whatever_length_is_accepted_all_that_is_stored_can_be_read(tmp_path: Path) -> None:
    file = erased(tmp_path)

    result = run_apart(CUT_AND_READ, tmp_path)

    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout == "refused\n"
    assert file.stat().st_size > 2 * PAGE_BYTES


def test_a_store_that_ends_before_its_last_page_takes_commits(tmp_path: Path) -> None:
    erased(tmp_path)
    store = LmdbStore(tmp_path)
    rows = tuple(Row(Table.MESSAGE, keys.number(number), bytes(900)) for number in range(1000))

    assert store.commit([Batch("b", 1, 1, rows=rows)]) == [None]
    assert len(store.scan("b", Table.MESSAGE)) == 1000
    store.close()


def test_an_empty_file_is_refused_though_nothing_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").touch()

    for readonly in (False, True):
        with pytest.raises(Corrupt, match=r"it is empty .* remove it if nothing was stored there yet"):
            LmdbStore(tmp_path, readonly=readonly)

    assert (tmp_path / "data.mdb").stat().st_size == 0


def test_a_store_that_could_not_be_created_leaves_nothing_that_looks_damaged(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # as on a disk that is full
    try:
        with pytest.raises(StoreUnavailable):
            LmdbStore(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert not (tmp_path / "data.mdb").exists()
    (tmp_path / "new.mdb").touch()  # what a process leaves that is killed at this point
    LmdbStore(tmp_path).close()
    assert not (tmp_path / "new.mdb").exists()


def test_a_short_file_of_noise_is_corrupt_or_left_to_lmdb_and_nothing_else(tmp_path: Path) -> None:
    file = erased(tmp_path)
    sound = file.read_bytes()
    noise = random.Random(1)
    outcomes = {"accepted": 0, "refused": 0}
    for _ in range(300):
        spoilt = bytearray(sound[: noise.randrange(1, len(sound))])
        for _ in range(noise.choice([1, 20, len(spoilt) // 10])):
            spoilt[noise.randrange(min(len(spoilt), noise.choice([200, 4300, len(spoilt)])))] = noise.randrange(256)
        file.write_bytes(spoilt)
        try:
            check_whole(tmp_path)
            outcomes["accepted"] += 1
        except Corrupt:
            outcomes["refused"] += 1

    assert outcomes["refused"] > 30
    assert outcomes["accepted"] > 0
