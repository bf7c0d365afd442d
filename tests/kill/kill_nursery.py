"""Workers to be killed, forked from one process that has imported all: starting one takes 10 ms instead of a second.

    parent ── socket: arguments, and the worker's three pipes ──> nursery ── fork ──> worker
       ▲ <── its pid; later how it ended ─────────────────────────┘                     │
       └── what it prints ──────────────────────────────────────────────────────────────┘

A worker ends by itself when its standard input closes, so it cannot outlive the parent. The nursery has no threads and
no event loop: forking it is safe.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import anyio
import msgspec

__all__ = ["Nursery", "Worker", "open_nursery"]


class _Birth(msgspec.Struct):
    """Which module's `main` to run in a child, with which arguments."""

    module: str
    arguments: list[str]


class Worker:
    """A child that runs. `Nursery.open_worker` makes it."""

    def __init__(self, nursery: "Nursery", pid: int, output: int, log: IO[bytes]) -> None:
        self._nursery = nursery
        self._output = output
        self._log = log
        self.pid = pid
        self.code: int | None = None

    async def lines(self) -> AsyncGenerator[bytes]:
        """The lines that it prints, without newlines, until it is gone. A line that was cut off is left out."""
        rest = b""
        while True:
            await anyio.wait_readable(self._output)
            data = os.read(self._output, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line

    def kill(self) -> None:
        """SIGKILL: it runs no line of code any more."""
        os.kill(self.pid, signal.SIGKILL)  # the nursery reaps it when asked to, so the number is still its own

    def wait(self) -> int:
        """How it ended, once it has: exit code, negative for a signal."""
        if self.code is None:
            self.code = self._nursery.reap(self.pid)
        return self.code

    def how_it_ended(self) -> str:
        self._log.seek(0)
        return f"{self.code}\n{self._log.read()[-2_000:].decode(errors='replace')}"


class Nursery:
    """See `open_nursery`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @contextmanager
    def open_worker(self, module: str, *arguments: object) -> Generator[Worker]:
        """Run `module.main(arguments)` in a child; after the block it is gone."""
        (inside, outside), (output, inner_output) = os.pipe(), os.pipe()
        with tempfile.TemporaryFile() as log:
            try:
                birth = msgspec.json.encode(_Birth(module, [str(argument) for argument in arguments]))
                socket.send_fds(self._connection, [birth], [inside, inner_output, log.fileno()])
                os.close(inside)
                os.close(inner_output)
                worker = Worker(self, int(self._connection.recv(64)), output, log)
                yield worker
                if worker.code is None:
                    worker.kill()
                    worker.wait()
            finally:
                os.close(outside)
                os.close(output)

    def reap(self, pid: int) -> int:
        self._connection.send(b"reap %d" % pid)
        return int(self._connection.recv(64))


@contextmanager
def open_nursery() -> Generator[Nursery]:
    """A nursery, which ends with the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # What is killed leaves no figures of coverage, and measuring them would cost each worker a third of its speed.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    here = Path(__file__)
    # Under PYTHONSAFEPATH it would not find the workers.
    kept["PYTHONPATH"] = os.pathsep.join([str(here.parent), *filter(None, [kept.get("PYTHONPATH")])])
    command = [sys.executable, str(here), str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], env=kept, start_new_session=True) as process:
        theirs.close()
        try:
            yield Nursery(ours)
        finally:
            ours.close()
            process.wait()


# The nursery's own process --------------------------------------------------------------------------------------------


def _work(birth: _Birth, fds: list[int], connection: socket.socket) -> None:
    """In the child: become the worker."""
    code = 1
    try:
        connection.close()
        for place, fd in enumerate(fds):
            os.dup2(fd, place)
            os.close(fd)
        sys.modules[birth.module].main(birth.arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must never return into the nursery
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _serve(connection: socket.socket) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        if not data:
            return
        if data.startswith(b"reap "):
            _, status = os.waitpid(int(data[5:]), 0)
            connection.send(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if not pid:
            _work(msgspec.json.decode(data, type=_Birth), list(fds), connection)
        for fd in fds:
            os.close(fd)
        connection.send(b"%d" % pid)


if __name__ == "__main__":
    # The workers, and the backends that anyio would import when it first uses them: in each child.
    for name in ("worker", "reminder_worker", "tool_worker", "state_worker", "event_worker", "asyncio", "trio"):
        importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
