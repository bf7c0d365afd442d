"""The writer process: what becomes of calls, locks and processes when either side is killed, forked or interrupted."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import lmdb
import msgspec
import pytest

from callboard.store import (
    Batch,
    Conflict,
    Fenced,
    Head,
    LmdbStore,
    NewerFormat,
    ProcessStore,
    Row,
    StoreError,
    StoreLocked,
    StoreUnavailable,
    Table,
    keys,
    process_store,
)
from callboard.store.errors import Corrupt
from callboard.store.writer_process import Answer, Fault, fault_of, receive

OWNER = """
import os, sys
from callboard.store import Batch, ProcessStore, StoreUnavailable
store = ProcessStore(sys.argv[1], durability="async")
store.commit([Batch("a", 1, 0, head=b"kept")])
"""


@pytest.fixture
def store(tmp_path: Path) -> Generator[ProcessStore, None, None]:
    opened = ProcessStore(tmp_path / "store", durability="async")
    yield opened
    opened.close()


def writer_of(store: ProcessStore) -> int:
    assert store.writer_pid is not None
    return store.writer_pid


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def an_owner(path: Path, program: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", OWNER + program, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def family(kind: type[StoreError]) -> set[type[StoreError]]:
    return {kind}.union(*(family(each) for each in kind.__subclasses__()))


OURS = sorted((kind for kind in family(StoreError) if kind.__module__ == StoreError.__module__), key=str)
ERRORS = [
    Fenced("stream", epoch=1, stored_epoch=2),
    Conflict("stream", version=1, stored_version=2),
    Corrupt("where", "reason"),
    StoreLocked("path", pid=7, state="stopped"),
    StoreLocked("path", pid=None),
    *(kind("text", uncertain=True) for kind in OURS if kind.__init__ is StoreError.__init__),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_across_with_its_class_its_text_and_all_its_fields(error: StoreError) -> None:
    answer = Answer(fault=fault_of(error), refusals=[None, fault_of(error)])

    back = msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=Answer)

    for fault in (back.fault, back.refusals[1]):
        assert fault is not None
        again = fault.error()
        assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
        assert again.__dict__ == error.__dict__


def test_every_class_of_errors_is_among_those_tried() -> None:
    assert {type(error) for error in ERRORS} == set(OURS)


def test_an_error_that_is_not_known_here_is_still_a_store_error() -> None:
    error = Fault("Newer", "text", {}).error()

    assert (type(error), str(error), error.uncertain) == (StoreError, "text", False)


def test_a_writer_killed_between_two_calls_is_replaced_and_nobody_notices(store: ProcessStore) -> None:
    store.commit([Batch("a", 1, 0, head=b"kept")])
    killed = writer_of(store)
    kill(killed)

    assert store.commit([Batch("a", 1, 1), Batch("a", 1, 9)])[0] is None
    assert store.load("a") == Head(1, 2, b"kept")
    assert writer_of(store) != killed


@pytest.mark.parametrize("stored", [False, True])
def test_a_writer_killed_during_a_call_is_an_uncertain_error_and_the_next_call_goes_on(
    store: ProcessStore, monkeypatch: pytest.MonkeyPatch, *, stored: bool
) -> None:
    store.commit([Batch("a", 1, 0, head=b"kept")])

    def receive_nothing(connection: socket.socket) -> bytearray:
        monkeypatch.setattr(process_store, "receive", receive)
        if stored:
            receive(connection)
        kill(writer_of(store))
        return receive(connection)

    if not stored:
        os.kill(writer_of(store), signal.SIGSTOP)
    monkeypatch.setattr(process_store, "receive", receive_nothing)
    with pytest.raises(StoreUnavailable, match="has ended") as caught:
        store.commit([Batch("a", 1, 1)])

    assert caught.value.uncertain
    assert store.writer_pid is None
    assert store.load("a") == Head(1, 1 + stored, b"kept")
    assert store.commit([Batch("a", 1, 1 + stored)]) == [None]
    assert store.load("a") == Head(1, 2 + stored, b"kept")


def test_an_interrupted_call_does_not_give_its_answer_to_the_next_one(
    store: ProcessStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.claim()

    def interrupted(_connection: socket.socket) -> bytearray:
        monkeypatch.setattr(process_store, "receive", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(process_store, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.claim()

    assert store.commit([Batch("a", 1, 0), Batch("a", 1, 7)])[0] is None
    assert store.claim() in (first + 1, first + 2)


def test_a_writer_that_is_dead_when_the_store_is_closed_is_no_error(store: ProcessStore, tmp_path: Path) -> None:
    store.commit([Batch("a", 1, 0, head=b"kept")])
    kill(writer_of(store))

    store.close()
    store.close()

    assert store.writer_pid is None
    reopened = LmdbStore(tmp_path / "store", durability="async")
    assert reopened.load("a") == Head(1, 1, b"kept")
    reopened.close()


def test_closing_ends_the_writer_empties_the_log_and_refuses_every_later_call(
    store: ProcessStore, tmp_path: Path
) -> None:
    store.commit([Batch("a", 1, 0, head=b"kept")])
    writer = writer_of(store)

    store.close()

    assert not is_running(writer)
    calls: list[Callable[[], object]] = [
        store.claim,
        store.statistics,
        store.checkpoint,
        lambda: store.commit([]),
        lambda: store.load("a"),
        lambda: store.scan("a", Table.RUN),
        lambda: store.streams(),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="closed"):
            call()
    reader = LmdbStore(tmp_path / "store", readonly=True)
    assert reader.statistics().log_bytes == 0
    reader.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_are_meant_for_the_owner_do_not_end_the_writer(
    store: ProcessStore, number: signal.Signals
) -> None:
    writer = writer_of(store)
    assert os.getsid(writer) != os.getsid(0), "Ctrl-C at a terminal goes to all of its session's foreground"

    os.kill(writer, number)

    assert store.commit([Batch("a", 1, 0)]) == [None]
    assert writer_of(store) == writer


def test_a_group_larger_than_any_socket_buffer_goes_across(store: ProcessStore) -> None:
    batches = [
        Batch("a", 1, version, rows=(Row(Table.RUN, keys.number(version), bytes(9000)),)) for version in range(900)
    ]

    assert store.commit([*batches, Batch("a", 1, 0)])[:900] == [None] * 900
    assert [key for key, _ in store.scan("a", Table.RUN)] == [batch.rows[0].key for batch in batches]


def test_the_options_reach_the_writer(tmp_path: Path) -> None:
    store = ProcessStore(tmp_path, durability="async", map_size_bytes=1 << 16, log_bytes_max=0)
    for version in range(8):
        store.commit([Batch("a", 1, version, rows=(Row(Table.RUN, b"%d" % version, bytes(50_000)),))])

    assert store.statistics().checkpoints > 0
    assert len(store.scan("a", Table.RUN)) == 8
    store.close()
    size_bytes = (tmp_path / "data.mdb").stat().st_size
    assert size_bytes < 4 << 20


@pytest.mark.parametrize(
    "options", [{"durability": "none"}, {"map_size_bytes": 0}, {"log_bytes_max": -1}], ids=lambda options: str(options)
)
def test_options_that_cannot_be_are_value_errors_and_start_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ProcessStore(tmp_path / "store", **options)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] # wrong

    assert not (tmp_path / "store").exists()


def test_a_directory_that_is_locked_is_told_with_all_fields_and_leaves_no_writer(tmp_path: Path) -> None:
    holder = LmdbStore(tmp_path, durability="async")

    with pytest.raises(StoreLocked) as caught:
        ProcessStore(tmp_path)

    assert (caught.value.path, caught.value.pid) == (str(tmp_path), os.getpid())
    holder.close()


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
def test_a_writer_that_cannot_be_started_is_unavailable_and_the_next_call_tries_again(
    store: ProcessStore, monkeypatch: pytest.MonkeyPatch, program: str, tmp_path: Path
) -> None:
    kill(writer_of(store))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", program)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="did not start") as caught:
                store.claim()
            assert not caught.value.uncertain
        with pytest.raises(StoreUnavailable, match="did not start"):
            ProcessStore(tmp_path / "another")

    assert store.claim() == 1


@pytest.mark.parametrize("forks", [False, True])
def test_when_the_owner_is_killed_the_writer_ends_and_the_store_is_free(tmp_path: Path, *, forks: bool) -> None:
    """Also where a child that the owner had forked lives on."""
    program = "print(store.writer_pid, flush=True)\nsys.stdin.read()"
    with an_owner(tmp_path, ("child = os.fork()\nif child: " if forks else "") + program) as owner:
        assert owner.stdout is not None
        writer = int(owner.stdout.readline())
        owner.kill()
        owner.wait()

        successor = ProcessStore(tmp_path, durability="async")

        assert not is_running(writer)
        assert successor.commit([Batch("a", 1, 1)]) == [None]
        assert successor.load("a") == Head(1, 2, b"kept")
        successor.close()


def test_a_forked_child_may_not_use_the_store_and_does_not_disturb_its_parent(tmp_path: Path) -> None:
    program = """
end, other_end = os.pipe()
child = os.fork()
if not child:
    for call in (store.claim, lambda: store.load("a"), lambda: store.commit([])):
        try:
            call()
        except StoreUnavailable as error:
            os.write(1, b"%s\\n" % str("fork" in str(error)).encode())
    store.close()
    os.close(other_end)
    os.read(end, 1)  # until the parent has closed the store
    os._exit(0)
os.write(1, b"%s\\n" % repr(store.commit([Batch("a", 1, 1)])).encode())
store.close()
os.close(other_end)
os.waitpid(child, 0)
print("closed")
"""
    with an_owner(tmp_path, program) as owner:
        output, _ = owner.communicate(timeout=20)

    assert sorted(output.split()) == ["True", "True", "True", "[None]", "closed"]


def test_what_a_newer_callboard_wrote_is_refused_as_by_a_store_without_a_process(tmp_path: Path) -> None:
    LmdbStore(tmp_path, durability="async").close()
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        txn.put(keys.FORMAT, keys.number(99))

    with pytest.raises(NewerFormat):
        ProcessStore(tmp_path)
