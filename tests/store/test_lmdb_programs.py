"""Generated programs of commits, checkpoints, crashes and failing transactions: memory, disk and model stay equal."""

import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal, TypeVar

import lmdb
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from callboard.store import (
    Batch,
    Index,
    IndexRow,
    LmdbStore,
    MemoryStore,
    Row,
    Store,
    StoreFull,
    StoreUnavailable,
    Table,
    rows as rows_module,
)
from callboard.store.lmdb_environment import Environment

T = TypeVar("T")
Work = Callable[["lmdb.Transaction[bytes]"], T]

NAMES = ("a", "b", "c")
Fault = Literal["none", "full", "full after the work", "lost", "stored", "interrupted", "checkpoint"]
FAULTS: tuple[Fault, ...] = ("full", "full after the work", "lost", "stored", "interrupted")

some_rows = st.builds(
    Row,
    st.sampled_from([Table.MESSAGE, Table.RUN]),
    st.sampled_from([b"", b"1", b"2", b"3"]),
    st.none() | st.sampled_from([b"small", b"L" * 41, b"M" * 60, b"N" * 3000]),
)
some_entries = st.builds(
    IndexRow, st.sampled_from([Index.TAG, Index.OWNER]), st.sampled_from([b"", b"x", b"\x00"]), st.booleans()
)
# `version` is how far from the right one; `epoch` mostly does not go back.
some_batches = st.builds(
    Batch,
    st.sampled_from(NAMES),
    st.sampled_from([1, 1, 1, 1, 2]),
    st.sampled_from([0, 0, 0, 0, 0, 1]),
    head=st.none() | st.binary(max_size=4),
    rows=st.lists(some_rows, max_size=3).map(tuple),
    index_rows=st.lists(some_entries, max_size=3).map(tuple),
    erase=st.sampled_from([False, False, False, True]),
)
steps = st.tuples(
    st.sampled_from(["none"] * 5 + ["checkpoint"] * 2 + list(FAULTS)), st.lists(some_batches, min_size=1, max_size=4)
)
programs = st.lists(steps, min_size=4, max_size=12)
Program = list[tuple[Fault, list[Batch]]]

armed: list[Fault] = []


@pytest.fixture(scope="module", autouse=True)
def failing_transactions() -> Generator[None, None, None]:
    """While `armed` names a fault, the next transaction meets it."""
    write = Environment.write

    def write_or_fail(self: Environment, work: "Work[T]") -> T:
        fault = armed.pop() if armed else "none"
        if fault == "full":
            raise StoreFull("a fault")

        def work_and_fail(txn: "lmdb.Transaction[bytes]") -> T:
            work(txn)
            raise StoreFull("a fault") if fault != "lost" else StoreUnavailable("a fault", uncertain=True)

        result = write(self, work_and_fail if fault in ("full after the work", "lost") else work)
        if fault == "stored":
            raise StoreUnavailable("a fault", uncertain=True)
        if fault == "interrupted":
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "write", write_or_fail)
        patch.setattr(rows_module, "BLOB_BYTES_MIN", 40)
        yield


def everything(store: Store) -> list[object]:
    seen: list[object] = [store.streams(), store.statistics().streams]
    for name in NAMES:
        seen += [store.load(name), store.entries(name)]
        seen += [store.scan(name, table, newest_first=back) for table in Table for back in (False, True)]
    for back in (False, True):
        for index in (Index.TAG, Index.OWNER):
            seen.append([(hit.value, hit.stream) for hit in store.scan_index(index, newest_first=back)])
    return seen


def with_versions(store: Store, batches: list[Batch]) -> list[Batch]:
    versions: dict[str, int] = {}
    result: list[Batch] = []
    for batch in batches:
        head = store.load(batch.stream)
        version = versions.get(batch.stream, head.version if head is not None else 0)
        result.append(msgspec.structs.replace(batch, version=version + batch.version))
        versions[batch.stream] = version + (not batch.version)
    return result


def commit_both(memory: MemoryStore, disk: LmdbStore, batches: list[Batch], fault: Fault) -> None:
    armed[:] = [fault]
    try:
        answers = disk.commit(batches)
    except (StoreFull, StoreUnavailable, KeyboardInterrupt) as error:
        assert fault != "none"
        uncertain = isinstance(error, StoreUnavailable) and error.uncertain
        if fault in ("stored", "interrupted"):
            memory.commit(batches)
        assert uncertain == (fault in ("lost", "stored"))
    else:
        wanted = memory.commit(batches)
        assert [(type(answer), str(answer)) for answer in answers] == [(type(answer), str(answer)) for answer in wanted]
    armed.clear()


@settings(deadline=None, max_examples=40)
@given(programs, st.sampled_from([0, 300, 3000]), st.sampled_from(["none", *FAULTS]))
def test_a_transaction_that_fails_in_any_way_leaves_memory_and_disk_equal(
    program: Program, log_bytes_max: int, fault_of_checkpoints: Fault
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        memory = MemoryStore()
        disk = LmdbStore(directory, durability="async", log_bytes_max=log_bytes_max)
        for fault, batches in program:
            if fault == "checkpoint":
                armed[:] = [fault_of_checkpoints]
                try:
                    disk.checkpoint()
                except (StoreFull, StoreUnavailable, KeyboardInterrupt):
                    assert fault_of_checkpoints != "none"
                armed.clear()
            else:
                commit_both(memory, disk, with_versions(memory, batches), fault)

            assert everything(disk) == everything(memory)
        disk.checkpoint()
        assert disk.statistics().log_bytes == 0
        assert everything(disk) == everything(memory)
        disk.close()


@settings(deadline=None, max_examples=15)
@given(programs, st.sampled_from([0, 300, 3000]))
def test_a_crash_after_any_commit_leaves_a_directory_that_opens_equal_and_goes_on(
    program: Program, log_bytes_max: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        memory = MemoryStore()
        disk = LmdbStore(Path(directory) / "0", durability="async", log_bytes_max=log_bytes_max)
        for place, (fault, batches) in enumerate(program):
            commit_both(memory, disk, with_versions(memory, batches), fault)
            crashed = Path(directory) / str(place + 1)
            crashed.mkdir()
            shutil.copy(Path(directory) / str(place) / "data.mdb", crashed)
            disk.close()

            disk = LmdbStore(crashed, durability="async", log_bytes_max=log_bytes_max)
            assert everything(disk) == everything(memory)
            assert disk.damage.count == 0
        disk.close()


@pytest.mark.parametrize("fault", ["full", "full after the work"])
def test_a_commit_is_not_refused_because_the_checkpoint_on_it_does_not_fit(tmp_path: Path, fault: Fault) -> None:
    disk = LmdbStore(tmp_path, durability="async", log_bytes_max=1000)
    for version in range(3):
        disk.commit([Batch("a", 1, version, rows=(Row(Table.RUN, b"%d" % version, bytes(600)),))])
    assert disk.statistics().log_bytes > 1000, "no round has begun"

    armed[:] = [fault]
    assert disk.commit([Batch("a", 1, 3, rows=(Row(Table.RUN, b"3", bytes(600)),))]) == [None]

    assert not armed
    assert [key for key, _ in disk.scan("a", Table.RUN)] == [b"0", b"1", b"2", b"3"]
    disk.close()


def test_a_full_disk_in_the_middle_of_a_checkpoint_leaves_the_rest_in_the_log(tmp_path: Path) -> None:
    disk = LmdbStore(tmp_path, durability="async", log_bytes_max=1 << 20)
    disk.commit([Batch(f"{number}", 1, 0, b"head") for number in range(3000)])

    armed[:] = ["full", "none"]
    with pytest.raises(StoreFull):
        disk.checkpoint()

    assert disk.statistics().log_bytes > 0
    assert all(disk.load(f"{number}") for number in range(3000))
    disk.close()
    reopened = LmdbStore(tmp_path, durability="async")
    assert reopened.statistics().log_bytes == 0
    assert reopened.statistics().streams == sum(head is not None for head in map(reopened.load, reopened.streams()))
    reopened.close()
