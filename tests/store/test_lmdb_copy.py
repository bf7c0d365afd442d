"""Backups, compact copies and migrations: whole or not there, wherever the process dies or the disk fills up."""

import base64
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import lmdb
import pytest

from callboard.store import (
    Batch,
    Corrupt,
    Index,
    LmdbStore,
    OlderFormat,
    Row,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    Table,
    keys,
    lmdb_copy,
    migration,
)
from callboard.store.lmdb_check import check_directory
from callboard.store.lmdb_copy import NEW_FILE, back_up, compact
from callboard.store.migration import migrate, stored_format

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "format-1"
KILLED = 9

WRITER = """
import sys
from callboard.store import LmdbStore, Batch, Row, Table
store = LmdbStore(sys.argv[1], log_bytes_max=20_000)
epoch = store.claim() << 32
for version in range(1_000_000):
    row = Row(Table.RUN, version.to_bytes(4, "big"), b"v" * 200)
    store.commit([Batch("busy", epoch, version, b"%d" % version, (row,))])
    print(version, flush=True)
"""

READER = """
import sys
from callboard.store import LmdbStore
store = LmdbStore(sys.argv[1], readonly=True)
print("open", flush=True)
sys.stdin.read()
"""


def filled(path: Path, *, count: int = 200) -> Path:
    """Half of the streams are erased again, so that half of the file is free."""
    store = LmdbStore(path)
    large = (Row(Table.MESSAGE, b"k", b"v" * 1000), Row(Table.RUN, b"l", b"l" * 20_000))
    small = (*large[:1], Row(Table.RUN, b"l", b"s"))
    store.commit([Batch(f"s{n}", 1 << 32, 0, b"head", small if n > 2 else large) for n in range(count)])
    store.checkpoint()
    store.commit([Batch(f"s{n}", 1 << 32, 1, b"", erase=True) for n in range(count // 2, count)])
    store.close()
    return path


def contents(path: Path) -> dict[str, Any]:
    store = LmdbStore(path, readonly=True)
    try:
        return {
            name: (store.load(name), *(store.scan(name, table) for table in Table), store.entries(name))
            for name in store.streams()
        }
    finally:
        store.close()


@contextmanager
def process(code: str, path: Path) -> Generator["subprocess.Popen[str]", None, None]:
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child
        child.kill()


@contextmanager
def files_of_at_most(size_bytes: int) -> Generator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_backup_is_the_store_and_can_be_written_to(tmp_path: Path) -> None:
    filled(tmp_path / "s")

    copied = back_up(tmp_path / "s", tmp_path / "new" / "copy")

    assert contents(tmp_path / "new" / "copy") == contents(tmp_path / "s")
    assert copied.after_bytes < copied.before_bytes
    assert (tmp_path / "new" / "copy").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "copy" / "data.mdb").stat().st_mode & 0o777 == 0o600
    LmdbStore(tmp_path / "new" / "copy").close()


def test_a_backup_of_a_busy_store_has_all_that_was_acknowledged_before_it_began(tmp_path: Path) -> None:
    with process(WRITER, tmp_path / "s") as writer:
        assert writer.stdout is not None
        for number in range(5):
            while int(acknowledged := writer.stdout.readline()) < 40 * (number + 1):
                pass
            back_up(tmp_path / "s", tmp_path / f"copy-{number}")

            (guard, *tables, _) = contents(tmp_path / f"copy-{number}")["busy"]
            rows = tables[list(Table).index(Table.RUN)]
            assert int(acknowledged) <= int(guard.head) == len(rows) - 1
            assert check_directory(tmp_path / f"copy-{number}").findings == []


@pytest.mark.parametrize("there", ["file", "directory", "link"])
def test_a_backup_overwrites_nothing(tmp_path: Path, there: str) -> None:
    filled(tmp_path / "s", count=1)
    target = tmp_path / "there"
    if there == "directory":
        target.mkdir()
    elif there == "file":
        target.write_text("precious")
    else:
        target.symlink_to(tmp_path / "nowhere")

    with pytest.raises(StoreUnavailable, match="give the name of a new directory"):
        back_up(tmp_path / "s", target)


def test_a_backup_of_nothing_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store at"):
        back_up(tmp_path / "none", tmp_path / "copy")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size_bytes", [0, 4096, 50_000])
def test_a_disk_that_fills_up_leaves_the_store_as_it_was_and_nothing_of_the_copy(
    tmp_path: Path, size_bytes: int
) -> None:
    before = contents(filled(tmp_path / "s"))

    with files_of_at_most(size_bytes), pytest.raises(StoreFull, match="nothing of it is left"):
        back_up(tmp_path / "s", tmp_path / "copy")
    with files_of_at_most(size_bytes), pytest.raises((StoreFull, StoreUnavailable)):
        compact(tmp_path / "s")

    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert not (tmp_path / "s" / NEW_FILE).exists()
    assert contents(tmp_path / "s") == before


def test_a_damaged_store_is_not_copied_without_a_word(tmp_path: Path) -> None:
    filled(tmp_path / "s", count=2)
    with lmdb.open(str(tmp_path / "s")) as env, env.begin(write=True) as txn:
        txn.put(keys.guard_key(1), b"damaged")

    for work in (lambda: back_up(tmp_path / "s", tmp_path / "copy"), lambda: compact(tmp_path / "s")):
        with pytest.raises(Corrupt, match="callboard store check"):
            work()

    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert not (tmp_path / "s" / NEW_FILE).exists()


def test_a_compact_store_is_the_same_and_smaller(tmp_path: Path) -> None:
    before = contents(filled(tmp_path))

    copied = compact(tmp_path)

    assert contents(tmp_path) == before
    assert copied.after_bytes < copied.before_bytes // 2
    assert (tmp_path / "data.mdb").stat().st_size == copied.after_bytes
    store = LmdbStore(tmp_path)
    assert store.commit([Batch("new", 1 << 32, 0, b"head")]) == [None]
    store.close()


def test_a_store_in_use_is_not_compacted(tmp_path: Path) -> None:
    filled(tmp_path, count=3)

    with process(READER, tmp_path) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        with pytest.raises(StoreUnavailable, match="a process reads from the store"):
            compact(tmp_path)
    store = LmdbStore(tmp_path)
    with pytest.raises(StoreLocked):
        compact(tmp_path)
    store.close()

    compact(tmp_path)
    assert not (tmp_path / NEW_FILE).exists()


def golden(path: Path) -> Path:
    path.mkdir()
    shutil.copy(GOLDEN / "data.mdb", path / "data.mdb")
    return path


def told() -> dict[str, Any]:
    return json.loads((GOLDEN / "contents.json").read_text())


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def check_is_migrated(path: Path) -> None:
    store, expected = LmdbStore(path), told()
    for name, stream in expected["streams"].items():
        head = store.load(name)
        assert head is not None
        assert (head.epoch, head.version, head.head) == (stream["epoch"], stream["version"], decoded(stream["head"]))
        rows = [[table.name, key, value] for table in Table for key, value in store.scan(name, table)]
        assert rows == [[table, decoded(key), decoded(value)] for table, key, value in stream["rows"]]
    entries = [[index.name, hit.value, hit.stream] for index in Index for hit in store.scan_index(index)]
    assert entries == [[index, decoded(value), name] for index, value, name in expected["entries"]]
    assert store.claim() == expected["owner"] + 2  # one was claimed to know it
    store.close()


def test_the_golden_store_of_format_1_is_refused_until_it_is_migrated_and_is_the_same_then(tmp_path: Path) -> None:
    path = golden(tmp_path / "s")
    for readonly in (False, True):
        with pytest.raises(OlderFormat, match="callboard store migrate"):
            LmdbStore(path, readonly=readonly)

    assert stored_format(path) == 1
    assert migrate(path) is not None

    assert stored_format(path) == 2
    check_is_migrated(path)
    assert (path / "data-format-1.mdb").read_bytes() == (GOLDEN / "data.mdb").read_bytes()
    assert check_directory(path).findings == []
    assert migrate(path) is None


def test_a_migration_into_a_full_disk_leaves_the_old_store(tmp_path: Path) -> None:
    path = golden(tmp_path / "s")

    with files_of_at_most(20_000), pytest.raises((StoreFull, StoreUnavailable)):
        migrate(path)

    assert (path / "data.mdb").read_bytes() == (GOLDEN / "data.mdb").read_bytes()
    assert not (path / NEW_FILE).exists()
    assert migrate(path) is not None
    check_is_migrated(path)


def killed(work: Callable[[], object], step: int) -> bool:
    """Do the work in a child that dies before its call number `step` into the operating system, LMDB or the check.

    Returns: True where it died there, False where it came to its end before.
    """
    child = os.fork()
    if child == 0:
        try:
            die_at(step)
            work()
        finally:
            os._exit(sys.exc_info()[0] is not None)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def die_at(step: int) -> None:
    steps = count()

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                os._exit(KILLED)
            return call(*args, **options)

        return stepping

    for module, names in (
        (os, ("open", "fsync", "link")),
        (Path, ("rename", "unlink", "mkdir")),
        (lmdb_copy, ("open_environment", "check_transaction")),
        (migration, ("open_environment", "check_transaction", "_copy_head", "_copy_rows")),
    ):
        for name in names:
            setattr(module, name, dying(getattr(module, name)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_compaction_killed_at_any_step_leaves_a_whole_store_and_the_next_one_succeeds(tmp_path: Path) -> None:
    before = contents(filled(tmp_path / "source", count=6))

    step = 0
    for step in count():
        path = Path(shutil.copytree(tmp_path / "source", tmp_path / f"{step}"))
        died = killed(partial(compact, path), step)
        assert contents(path) == before
        compact(path)
        assert contents(path) == before
        assert not (path / NEW_FILE).exists()
        if not died:
            break
    assert step > 10


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_backup_killed_at_any_step_is_whole_or_not_there(tmp_path: Path) -> None:
    before = contents(filled(tmp_path / "s", count=6))

    step = 0
    for step in count():
        copy = tmp_path / f"copy-{step}"
        died = killed(partial(back_up, tmp_path / "s", copy), step)
        assert contents(tmp_path / "s") == before
        if copy.exists():
            assert contents(copy) == before
        else:
            back_up(tmp_path / "s", copy)  # which takes away what the other left
        assert not list(tmp_path.glob(".*"))
        if not died:
            break
    assert step > 6


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_migration_killed_at_any_step_leaves_the_old_store_or_the_new_one(tmp_path: Path) -> None:
    formats: list[int] = []

    step = 0
    for step in count():
        path = golden(tmp_path / f"{step}")
        died = killed(partial(migrate, path), step)
        formats.append(stored_format(path))
        if formats[-1] == 1:
            assert (path / "data.mdb").read_bytes() == (GOLDEN / "data.mdb").read_bytes()
            migrate(path)
        check_is_migrated(path)
        assert not (path / NEW_FILE).exists()
        if not died:
            break
    assert step > 20
    assert formats == sorted(formats)
    assert set(formats) == {1, 2}
