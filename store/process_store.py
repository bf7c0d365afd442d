"""The store on disk with its writing side in a process of its own, for event loops that Python code keeps busy.

    this process                                   writer process
    commit ── one message over a socket ─────────> LmdbStore: log, checkpoints
    load, scan ── a read-only LmdbStore of ours ── the same directory

A thread that commits must get the GIL back for each call of LMDB's, and beside a loop that never rests each time costs
up to the interpreter's switch interval. Here a commit takes it twice, however large the group is, and checkpoints cost
this process nothing. Alone, a commit is slower by the way to the other process and back, about 0.1 ms.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Literal

import msgspec

from .batch import Batch, Index, IndexRow, Table, check_batches
from .contract import Durability, Head, IndexHit, Refusal, StoreStatistics
from .damage import DamageLog
from .errors import StoreUnavailable
from .lmdb_store import LmdbStore, check_options
from .writer_process import Answer, Call, WriterOptions, receive, send

__all__ = ["ProcessStore"]

_log = logging.getLogger("callboard.store")

_PACKAGE = Path(__file__).parent.parent
_WRITER = """
import sys, types
package = sys.modules["callboard"] = types.ModuleType("callboard")
package.__path__ = [sys.argv[1]]
from callboard.store.writer_process import main
main(int(sys.argv[2]))
"""
"""The writer needs callboard.store alone: importing callboard as a whole, with its event loops, takes half a second."""

_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class ProcessStore:
    """See contract.py for the guarantees, and LmdbStore for the arguments and errors.

    The writer starts with the store (about 0.1 s) and ends with it, or with this process,
    however that ends. Where the writer itself is killed, the call that was under way raises StoreUnavailable with
    `uncertain`, and the next one starts another: nothing that was acknowledged is lost.

    Raises, besides:
        StoreUnavailable: the writer did not start.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["sync", "async"] = "sync",
        map_size_bytes: int = 64 << 30,
        log_bytes_max: int = 16 << 20,
    ) -> None:
        check_options(durability, map_size_bytes=map_size_bytes, log_bytes_max=log_bytes_max)
        self.durability: Durability = durability
        self._path = Path(path).absolute()
        self._options = WriterOptions(str(self._path), durability, map_size_bytes, log_bytes_max)
        self._pid = os.getpid()
        self._calling = Lock()
        self._closed = False
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        try:
            self._connect()
            self._reader = LmdbStore(self._path, map_size_bytes=map_size_bytes, readonly=True)
        except BaseException:
            self._disconnect()
            raise
        _opened.add(self)

    @property
    def inline(self) -> bool:
        return False

    @property
    def location(self) -> str:
        return str(self._path)

    @property
    def damage(self) -> DamageLog:
        """What reads have met; what the writer meets is in its log, and counted in `statistics`."""
        return self._reader.damage

    @property
    def writer_pid(self) -> int | None:
        """The writer's process id; None where none runs."""
        return self._child.pid if self._child is not None else None

    def claim(self) -> int:
        return self._call(Call("claim")).owner

    def load(self, stream: str) -> Head | None:
        return self._reader.load(stream)

    def scan(
        self,
        stream: str,
        table: Table,
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        return self._reader.scan(stream, table, start=start, stop=stop, limit=limit, newest_first=newest_first)

    def scan_index(
        self,
        index: Index,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[IndexHit]:
        return self._reader.scan_index(index, prefix=prefix, after=after, limit=limit, newest_first=newest_first)

    def streams(self, *, after: str = "", limit: int | None = None) -> list[str]:
        return self._reader.streams(after=after, limit=limit)

    def entries(self, stream: str) -> list[IndexRow]:
        return self._reader.entries(stream)

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        check_batches(batches)
        refusals = self._call(Call("commit", list(batches))).refusals
        self._reader.catch_up()  # here, on the committer's thread: the event loop's reads find it done
        answers: list[Refusal | None] = []
        for fault in refusals:
            error = fault.error() if fault is not None else None
            assert error is None or isinstance(error, Refusal)
            answers.append(error)
        return answers

    def checkpoint(self) -> None:
        """As LmdbStore.checkpoint."""
        self._call(Call("checkpoint"))

    def statistics(self) -> StoreStatistics:
        """Counts since the writer was started, damage as both sides have met it."""
        statistics = self._call(Call("statistics")).statistics
        assert statistics is not None
        return msgspec.structs.replace(statistics, damaged=statistics.damaged + self.damage.count)

    def close(self) -> None:
        if os.getpid() != self._pid or self._closed:
            return
        try:
            if self._connection is not None:
                self._call(Call("close"))
        except StoreUnavailable as error:
            if self._connection is not None:
                raise
            _log.warning("closed, and the next opening replays the log: %s", error)
        finally:
            self._closed = True
            with self._calling:
                self._disconnect()
            self._reader.close()

    def let_go(self) -> None:
        """For a forked child: the connection is the parent's alone."""
        if self._connection is not None:
            self._connection.close()

    # The writer -----------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """A writer runs afterwards; where this raises, the caller disconnects."""
        try:
            ours = self._start()
            send(ours, self._options)
            answer = _answers.decode(receive(ours))
        except (EOFError, OSError) as error:
            raise StoreUnavailable(
                f"the process that writes to the store {str(self._path)!r} did not start ({error}): "
                "its errors are on stderr"
            ) from error
        if answer.fault is not None:
            raise answer.fault.error()

    def _start(self) -> socket.socket:
        self._connection, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            # A session of its own: Ctrl-C at the terminal is for us, and we close it in order.
            self._child = subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(_PACKAGE), str(descriptor)],
                pass_fds=(descriptor,),
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        return self._connection

    def _disconnect(self) -> None:
        """The writer ends, and has ended afterwards."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # a forked child may have a copy, and hold it open
            self._connection.close()
        if self._child is not None:
            self._child.wait()
        self._connection = self._child = None

    def _call(self, call: Call) -> Answer:
        if os.getpid() != self._pid:
            raise StoreUnavailable(
                f"the store {str(self._path)!r} was opened by process {self._pid}, of which this one is a fork: "
                "open it anew after forking"
            )
        with self._calling:
            if self._closed:
                raise StoreUnavailable(f"the store {str(self._path)!r} is closed")
            try:
                answer = self._ask(call)
            except BaseException:  # whatever it was: an answer that comes later must not be taken for the next call's
                self._disconnect()
                raise
        if answer.fault is not None:
            raise answer.fault.error()
        return answer

    def _ask(self, call: Call) -> Answer:
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        try:
            send(self._connection, call)
        except OSError:  # it ended some time ago, and has read nothing of this
            self._disconnect()
            return self._ask(call)
        try:
            return _answers.decode(receive(self._connection))
        except (EOFError, OSError) as error:
            raise StoreUnavailable(
                f"the process that writes to the store {str(self._path)!r} has ended; what was under way may have "
                "been stored, and the next call starts another one",
                uncertain=True,
            ) from error


_opened: weakref.WeakSet[ProcessStore] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A forked child shares the sockets: unless its copies are closed, a writer outlives its owner."""
    for store in list(_opened):
        store.let_go()


os.register_at_fork(after_in_child=_let_go_in_child)
