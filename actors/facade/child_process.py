"""A child process that cannot outlive its parent, for the local model server and the demo's worker.

The child's standard input is a pipe that nobody writes to: when it closes, the child ends by itself. The kernel closes
it also when the parent dies of SIGKILL, which no clean-up code of the parent's could.
"""

import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import IO

import anyio
import anyio.abc

__all__ = ["ChildProcess", "open_child_process"]

_LOG_TAIL_BYTES = 2_000
_STOP_TIMEOUT_S = 5.0


class ChildProcess:
    """A running child. `open_child_process` makes it."""

    def __init__(self, process: anyio.abc.Process, log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    async def lines(self) -> AsyncGenerator[bytes]:
        """The lines of its standard output, without newlines, until it closes. A line that was cut off is left out."""
        assert self._process.stdout is not None
        rest = b""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                *lines, rest = (rest + await self._process.stdout.receive()).split(b"\n")
                for line in lines:
                    yield line

    def kill(self) -> None:
        """SIGKILL: the child runs no line of code any more."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait until it has ended; its exit code, negative for a signal."""
        return await self._process.wait()

    def log_tail(self) -> str:
        """The end of what it wrote to standard error."""
        size_bytes = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size_bytes - _LOG_TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip()

    def how_it_ended(self) -> str:
        """For people: "exit code 1" or "SIGSEGV", with what it wrote to standard error."""
        code = self._process.returncode
        ended = "still running" if code is None else f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"{ended}\n{self.log_tail()}".strip()


@contextlib.asynccontextmanager
async def open_child_process(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> AsyncGenerator[ChildProcess]:
    """Start `command`; after the block the process is gone: asked first by closing its input, killed after 5 s.

    Cancellation: the process is stopped before the cancellation goes on.
    """
    # A file, not a pipe: nobody has to drain it, and a child that logs much cannot stand still because of it.
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then stops its children in order.
        process = await anyio.open_process(command, stderr=log, env=environment, start_new_session=True)
        try:
            yield ChildProcess(process, log)
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(process)


async def _stop(process: anyio.abc.Process) -> None:
    assert process.stdin is not None
    # A child that is already dead has closed its end: that is what was wanted.
    with contextlib.suppress(anyio.BrokenResourceError):
        await process.stdin.aclose()
    with anyio.move_on_after(_STOP_TIMEOUT_S):
        await process.wait()
    if process.returncode is None:
        process.kill()
    await process.aclose()
