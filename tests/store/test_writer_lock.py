"""Who may write to a directory: one process, whatever happens to the lock file, and however the one before it ended."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callboard.store import LmdbStore, StoreLocked, StoreUnavailable
from callboard.store.writer_lock import LOCK_FILE, WriterLock

PID_OF_NOBODY = 2**22 + 1
"""Beyond the greatest pid that Linux gives out: proc(5), pid_max."""

HOLDER = """
import sys
from callboard.store import LmdbStore
store = LmdbStore(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""

FORKER = """
import os, sys
from callboard.store import LmdbStore
store = LmdbStore(sys.argv[1])
if os.fork():
    os._exit(0)
print("forked", flush=True)
sys.stdin.read()
"""


@contextmanager
def process_writing_to(path: Path) -> Generator["subprocess.Popen[str]", None, None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child
        child.kill()


def test_a_stopped_holder_is_named_as_stopped_and_its_end_frees_the_store_at_once(tmp_path: Path) -> None:
    with process_writing_to(tmp_path) as first:
        os.kill(first.pid, signal.SIGSTOP)
        os.waitpid(first.pid, os.WUNTRACED)

        with pytest.raises(StoreLocked, match=rf"process {first.pid}, which is stopped but alive: .*-CONT {first.pid}"):
            LmdbStore(tmp_path)

        first.kill()
        first.wait()
        LmdbStore(tmp_path).close()


def test_a_holder_that_runs_is_named_as_that_and_no_more(tmp_path: Path) -> None:
    with process_writing_to(tmp_path) as first:
        with pytest.raises(StoreLocked, match=rf"in process {first.pid}: stop it") as caught:
            LmdbStore(tmp_path)

        assert (caught.value.pid, caught.value.state) == (first.pid, "")


@pytest.mark.parametrize(
    "left_behind",
    [f"{PID_OF_NOBODY}\n", f"{os.getpid()}\n", "1\n", "no pid\n", ""],
    ids=["nobody", "this process", "init", "no pid", "nothing"],
)
def test_a_lock_file_left_behind_is_no_obstacle_whoever_has_its_pid_now(tmp_path: Path, left_behind: str) -> None:
    (tmp_path / LOCK_FILE).write_text(left_behind)

    LmdbStore(tmp_path).close()

    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_a_holder_that_is_not_seen_from_here_is_told_as_that(tmp_path: Path) -> None:
    first = WriterLock(tmp_path)
    (tmp_path / LOCK_FILE).write_text(f"{PID_OF_NOBODY}\n")

    with pytest.raises(StoreLocked, match="not seen from here"):
        WriterLock(tmp_path)

    first.release()


def test_a_lock_file_removed_under_its_holder_lets_nobody_in(tmp_path: Path) -> None:
    with process_writing_to(tmp_path) as first:
        (tmp_path / LOCK_FILE).unlink()

        for _ in range(2):
            with pytest.raises(StoreLocked, match="in another process: stop it"):
                LmdbStore(tmp_path)
        first.kill()
        first.wait()
        LmdbStore(tmp_path).close()


def test_a_lock_file_replaced_under_its_holder_lets_nobody_in(tmp_path: Path) -> None:
    first = WriterLock(tmp_path)
    (tmp_path / "new").write_text("7\n")
    (tmp_path / "new").rename(tmp_path / LOCK_FILE)

    with pytest.raises(StoreLocked):
        WriterLock(tmp_path)

    first.release()


def test_the_lock_file_of_an_older_callboard_which_locks_only_that_is_heeded(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(f"{os.getpid()}\n")
    with (tmp_path / LOCK_FILE).open("r+") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)

        with pytest.raises(StoreLocked) as caught:
            WriterLock(tmp_path)

    assert caught.value.pid == os.getpid()
    WriterLock(tmp_path).release()


def test_a_lock_file_removed_while_it_is_locked_is_locked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, removed = fcntl.flock, list[int]()

    def remove_once(fd: int, operation: int) -> None:
        flock(fd, operation)
        if (tmp_path / LOCK_FILE).exists() and not removed:
            removed.append((tmp_path / LOCK_FILE).stat().st_ino)
            (tmp_path / LOCK_FILE).unlink()

    monkeypatch.setattr(fcntl, "flock", remove_once)
    lock = WriterLock(tmp_path)
    monkeypatch.undo()

    assert removed
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    lock.release()


def test_where_directories_cannot_be_locked_the_file_is_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def not_directories(fd: int, operation: int) -> None:
        if os.path.samestat(os.fstat(fd), tmp_path.stat()):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", not_directories)
    first = WriterLock(tmp_path)

    with pytest.raises(StoreLocked):
        WriterLock(tmp_path)

    first.release()
    WriterLock(tmp_path).release()


def test_a_filesystem_that_fails_to_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)

    with pytest.raises(StoreUnavailable, match="cannot be written to: No locks available"):
        WriterLock(tmp_path)


def test_a_forked_child_does_not_hold_the_store_after_its_parents_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"forked\n"
        parent.wait()  # the child lives on, until its standard input ends

        LmdbStore(tmp_path).close()


def test_a_refused_opening_leaves_no_file_descriptor(tmp_path: Path) -> None:
    first = WriterLock(tmp_path)
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        with pytest.raises(StoreLocked):
            WriterLock(tmp_path)

    assert len(os.listdir("/proc/self/fd")) == before
    first.release()
