"""A process of `load.py` from its own end: told to end by its standard input, or killed; read to the last line."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO

import anyio
import anyio.abc

__all__ = ["Child", "memory_of", "open_child"]

_HERE = Path(__file__).parent
_LOG_TAIL_BYTES = 2_000


class Child:
    """A process that runs one of the files beside this one. `open_child` makes it."""

    def __init__(self, process: anyio.abc.Process, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self._killed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def lines(self) -> AsyncGenerator[bytes]:
        """What it prints, line by line, until it is gone; a line that was cut off is left out."""
        assert self._process.stdout is not None
        rest = b""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                *lines, rest = (rest + await self._process.stdout.receive(1 << 18)).split(b"\n")
                for line in lines:
                    yield line

    def kill(self) -> None:
        """SIGKILL: it runs no line of code any more."""
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Close its standard input, whereupon it ends by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._process.stdin.aclose()

    async def wait(self) -> str:
        """Wait until it has ended; "" where it did as it was told, else how it ended, with the end of its log."""
        code = await self._process.wait()
        if code == 0 or (self._killed and code == -signal.SIGKILL):
            return ""
        size_bytes = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size_bytes - _LOG_TAIL_BYTES))
        return f"ended with {code}: {self._log.read().decode(errors='replace').strip()}"


@contextlib.asynccontextmanager
async def open_child(file: str, *arguments: str, end_s: float = 10.0) -> AsyncGenerator[Child]:
    """Run a file of this folder; after the block the process is gone: told to end, and killed after `end_s`."""
    with tempfile.TemporaryFile() as log:  # not a pipe, which somebody would have to empty
        command = [sys.executable, str(_HERE / file), *arguments]
        process = await anyio.open_process(command, stderr=log, start_new_session=True)
        child = Child(process, log)
        try:
            yield child
        finally:
            with anyio.CancelScope(shield=True):
                await child.end()
                with anyio.move_on_after(end_s):
                    await process.wait()
                child.kill()
                await process.aclose()


def memory_of(pid: int) -> tuple[int, int] | None:
    """Bytes that the process has allocated, and that it sees of files (LMDB's map); None where Linux does not tell.

    Two figures, because the kernel gives and takes the pages of files as it likes: they say nothing of a leak.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    if "RssAnon" not in fields:
        return None
    return int(fields["RssAnon"].split()[0]) * 1024, int(fields["RssFile"].split()[0]) * 1024
