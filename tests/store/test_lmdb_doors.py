"""Opening an LMDB store: every way in which it can go wrong is told apart, and says what to do."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from callboard.store import (
    Batch,
    Corrupt,
    Head,
    LmdbStore,
    NewerFormat,
    Row,
    StoreLocked,
    StoreUnavailable,
    Table,
    keys,
)
from callboard.store.lmdb_directory import FORMAT_VERSION

NOBODY = 65534
HOLDER = """
import sys
from callboard.store import LmdbStore
store = LmdbStore(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_writing_to(path: Path) -> Generator["subprocess.Popen[str]", None, None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child
        child.kill()


@contextmanager
def without_roots_rights() -> Generator[None, None, None]:
    """Root passes every permission check, so the tests that are about permissions become nobody for a moment."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def written(path: Path) -> Path:
    store = LmdbStore(path)
    store.commit([Batch("a", 1, 0, head=b"h", rows=(Row(Table.MESSAGE, b"k", b"v" * 2000),) * 3)])
    store.close()
    return path


def test_a_new_store_is_made_with_its_parents_and_is_its_owners_alone(tmp_path: Path) -> None:
    LmdbStore(tmp_path / "new" / "store").close()

    assert (tmp_path / "new" / "store").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "store" / "data.mdb").stat().st_mode & 0o777 == 0o600


def test_a_path_that_is_a_file_is_refused_and_the_file_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")

    with pytest.raises(StoreUnavailable, match="is a file, but a store is a directory"):
        LmdbStore(path)

    assert path.read_text() == "precious"


def test_a_path_below_a_file_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    with pytest.raises(StoreUnavailable, match="cannot be created: Not a directory"):
        LmdbStore(tmp_path / "file" / "store")


def test_a_parent_that_may_not_be_written_to_is_named_as_the_cause() -> None:
    with without_roots_rights(), pytest.raises(StoreUnavailable, match="cannot be created: Permission denied"):
        LmdbStore("/callboard-may-not-be-made-here")


def test_a_directory_that_may_not_be_written_to_is_named_as_the_cause() -> None:
    with without_roots_rights(), pytest.raises(StoreUnavailable, match="cannot be written to: Permission denied"):
        LmdbStore("/usr")


def test_a_second_process_is_refused_and_told_the_pid_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "callboard.lock").write_text("12345678901234567890\n")  # left behind by a process with a longer pid

    with another_process_writing_to(tmp_path) as first:
        with pytest.raises(StoreLocked, match=f"open for writing in process {first.pid}") as caught:
            LmdbStore(tmp_path)

        assert caught.value.pid == first.pid


def test_a_second_opening_in_the_same_process_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    first = LmdbStore(tmp_path)

    with pytest.raises(StoreLocked) as caught:
        LmdbStore(tmp_path)
    with pytest.raises(StoreUnavailable, match="already open in this process"):
        LmdbStore(tmp_path, readonly=True)
    first.close()
    LmdbStore(tmp_path).close()

    assert caught.value.pid == os.getpid()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with another_process_writing_to(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()

        assert (tmp_path / "callboard.lock").read_text() == f"{first.pid}\n"
        LmdbStore(tmp_path).close()


def test_a_reader_works_while_another_process_writes(tmp_path: Path) -> None:
    written(tmp_path)

    with another_process_writing_to(tmp_path):
        reader = LmdbStore(tmp_path, readonly=True)

        assert reader.load("a") == Head(1, 1, b"h")
        reader.close()


def test_a_reader_sees_what_is_committed_after_it_opened_even_beyond_its_map(tmp_path: Path) -> None:
    written(tmp_path)
    reader = LmdbStore(tmp_path, readonly=True, map_size_bytes=1 << 20)
    child = (
        "import sys; from callboard.store import *; s = LmdbStore(sys.argv[1]);"
        "s.commit([Batch('b', 1, 0, rows=(Row(Table.RUN, b'k', bytes(8 << 20)),))])"
    )

    subprocess.run([sys.executable, "-c", child, str(tmp_path)], check=True)

    assert len(reader.scan("b", Table.RUN)[0][1]) == 8 << 20
    reader.close()


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    reader = LmdbStore(written(tmp_path), readonly=True)

    with pytest.raises(StoreUnavailable, match="readonly=True"):
        reader.commit([Batch("a", 1, 1)])
    with pytest.raises(StoreUnavailable, match="readonly=True"):
        reader.claim()
    reader.close()


def test_a_reader_creates_nothing_where_there_is_no_store(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(StoreUnavailable, match="there is no store at"):
            LmdbStore(path, readonly=True)

    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    with lmdb.open(str(written(tmp_path))) as env, env.begin(write=True) as txn:
        txn.put(keys.FORMAT, keys.number(FORMAT_VERSION + 1))

    for readonly in (False, True):
        with pytest.raises(
            NewerFormat, match=f"has format {FORMAT_VERSION + 1}, and this callboard reads up to {FORMAT_VERSION}"
        ):
            LmdbStore(tmp_path, readonly=readonly)

    with lmdb.open(str(tmp_path)) as env, env.begin() as txn:
        assert txn.get(keys.FORMAT) == keys.number(FORMAT_VERSION + 1)


def test_the_lmdb_directory_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"precious")

    with pytest.raises(Corrupt, match="of another program"):
        LmdbStore(tmp_path)

    with lmdb.open(str(tmp_path)) as env, env.begin() as txn:
        assert txn.stat()["entries"] == 1


@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_is_not_lmdbs_is_corrupt(tmp_path: Path, readonly: bool) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)

    with pytest.raises(Corrupt, match="not an LMDB file"):
        LmdbStore(tmp_path, readonly=readonly)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_was_cut_off_is_corrupt(tmp_path: Path, readonly: bool) -> None:
    store = LmdbStore(tmp_path)
    store.commit([Batch("a", 1, 0, rows=(Row(Table.MESSAGE, b"k", bytes(1 << 20)),))])
    store.close()
    os.truncate(tmp_path / "data.mdb", 16384)

    with pytest.raises(Corrupt, match="it was cut off"):
        LmdbStore(tmp_path, readonly=readonly)


def test_a_door_that_stays_shut_leaves_the_lock_free(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(Corrupt):
        LmdbStore(tmp_path)
    (tmp_path / "data.mdb").unlink()

    LmdbStore(tmp_path).close()


def test_arguments_that_make_no_sense_are_value_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="durability"):
        LmdbStore(tmp_path, durability="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] the test
    with pytest.raises(ValueError, match="map_size_bytes"):
        LmdbStore(tmp_path, map_size_bytes=0)
