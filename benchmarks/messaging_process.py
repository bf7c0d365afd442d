"""A process for each system of bench_messaging.py, so that none disturbs another: its threads, its pinning, its heap.

The benchmark starts itself with `--serve`, and asks the process line by line: a row and a load as JSON on its standard
input, the row's figures as JSON on its standard output. Processes that are not asked wait for input, and cost nothing.
A process ends when its standard input does, hence also when the benchmark was killed.
"""

import contextlib
import importlib
import importlib.util
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import anyio
import msgspec
from messaging_load import Figures, Load, Measure

__all__ = ["MeasureFailed", "System", "SystemProcess", "serve"]

ANSWER_TIMEOUT_S = 180.0
END_TIMEOUT_S = 10.0


class System(msgspec.Struct, frozen=True):
    """What is measured: `messaging_<module>.py` in this variant.

    Attributes:
        name: how the figures call it.
        module: has `measures(variant)`.
        variant: for two ways of the same system.
        backend: the event loop that it is run under.
        package: what has to be installed for it, or "".
    """

    name: str
    module: str
    variant: str
    backend: str
    package: str = ""

    @property
    def installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None


class Task(msgspec.Struct, frozen=True):
    row: str
    load: Load


class MeasureFailed(Exception):
    """A system broke down while it was measured; what it said stands on the standard error."""


class SystemProcess:
    """The benchmark's end of one process. Ended when the block is left, killed if it does not go by itself."""

    def __init__(self, system: System, script: Path) -> None:
        command = [sys.executable, str(script), "--serve", system.module, system.variant, system.backend]
        self._system = system
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def measure(self, row: str, load: Load) -> Figures:
        """One round; no figures where the system has no such row.

        Raises:
            MeasureFailed: it raised and ended, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(Task(row, load)) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise MeasureFailed(f"{self._system.name} ended before row {row}") from None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise MeasureFailed(f"{self._system.name} {'ended' if ready else 'did not answer in time'} in row {row}")
        return msgspec.json.decode(line, type=Figures)

    def end(self) -> None:
        """Let the process go; kill it where it does not. May be called again."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()


def serve(module: str, variant: str, backend: str) -> None:
    """The life of such a process."""
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    measures: Mapping[str, Measure] = importlib.import_module(f"messaging_{module}").measures(variant)
    for line in sys.stdin.buffer:
        task = msgspec.json.decode(line, type=Task)
        measure = measures.get(task.row)
        figures = anyio.run(measure, task.load, backend=backend) if measure is not None else {}
        answers.write(msgspec.json.encode(figures) + b"\n")
