"""The right to write to a directory: one process at a time, and who it is.

Two locks are taken with flock, and either of them refuses a second writer:

    support.lmdb/                   the directory itself: cannot be removed while it holds a store
    support.lmdb/callboard.lock     a file with the holder's pid, for people and for the error's text

The file alone would be no guard: whoever removes it while its holder lives makes the next one lock a new file of that
name, and two writers would each give out the same stream numbers from memory. Nor is the pid a guard: it may be that of
a process that is gone, or be given to another. It is never believed, only told.

The kernel drops a flock with the last copy of its file descriptor, so with its process, however that died. A process
that is stopped (SIGSTOP, Ctrl-Z, a frozen container) holds it on: there is no telling it from one that is about to
write, so it is named in the error, and whoever is sure kills it.

Not for network filesystems: on NFS a directory cannot be locked at all, and locks of another machine may not be seen;
nor does LMDB work there. Keep the store on a local disk.

Source: flock(2); http://www.lmdb.tech/doc (caveats: no remote filesystems).
"""

import errno
import fcntl
import os
import weakref
from pathlib import Path

from .errors import StoreLocked, StoreUnavailable

__all__ = ["LOCK_FILE", "WriterLock"]

LOCK_FILE = "callboard.lock"

_TRIES_MAX = 100
"""How often the file may be removed between its opening and its locking before that is called a fault."""


class WriterLock:
    """Held until `release` or the end of the process.

    Raises:
        StoreLocked: somebody else holds it, perhaps in this very process.
        StoreUnavailable: the directory or the lock file cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._fds: list[int] = []
        try:
            self._lock_directory(directory)
            self._lock_file(directory)
        except BlockingIOError as error:
            pid = _read_pid(directory / LOCK_FILE)
            self.release()
            raise StoreLocked(str(directory), pid=pid, state=_state(pid)) from error
        except OSError as error:
            self.release()
            raise StoreUnavailable(
                f"the store {str(directory)!r} cannot be written to: {error.strerror}; "
                "check its owner and permissions, or use another directory"
            ) from error
        _held.add(self)

    def release(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _lock_directory(self, directory: Path) -> None:
        self._fds.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            fcntl.flock(self._fds[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            # Filesystems that cannot lock a directory leave the file as the only guard, as before.
            if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EISDIR):
                raise

    def _lock_file(self, directory: Path) -> None:
        for _ in range(_TRIES_MAX):
            fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._fds.append(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, directory / LOCK_FILE):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return
            os.close(self._fds.pop())  # removed meanwhile: a lock on what nobody finds keeps nobody out
        raise OSError(errno.EBUSY, f"{LOCK_FILE} is removed again and again")


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child shares the flocks: unless its copies are closed, the store stays locked after its parent's end."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


def _is_at(fd: int, path: Path) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), found)


def _read_pid(path: Path) -> int | None:
    try:
        text = path.read_bytes()[:32].strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _state(pid: int | None) -> str:
    """What the process does: "stopped", "not seen from here", or "" where it runs or that cannot be told."""
    if pid is None:
        return ""
    try:
        # After the name, which stands in parentheses and may hold anything, comes the state: proc(5).
        status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1]
    except FileNotFoundError:
        return "not seen from here" if os.path.isdir("/proc/self") else ""
    except OSError:
        return ""
    return "stopped" if status in ([b"T"], [b"t"]) else ""
