"""A process for each system of a benchmark, so that none disturbs another: its threads, its pinning, its heap.

The benchmark starts itself with `--serve`, and asks the process line by line: a row and a load as JSON on its standard
input, the row's figures as JSON on its standard output. Processes that are not asked wait for input, and cost nothing.
A process ends when its standard input does, hence also when the benchmark was killed.
"""

import contextlib
import importlib.util
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self, TypeAlias

import msgspec

__all__ = ["Answers", "Figures", "MeasureFailed", "System", "SystemProcess", "Task", "tasks"]

ANSWER_TIMEOUT_S = 180.0
END_TIMEOUT_S = 10.0

Figures: TypeAlias = dict[str, float]
"""By name, which ends in the unit."""


class System(msgspec.Struct, frozen=True):
    """What is measured: a module of this folder, in this variant.

    Attributes:
        name: how the figures call it.
        module: without what all modules of this benchmark begin with.
        variant: for two ways of the same system.
        backend: the event loop that it is run under.
        package: what has to be installed for it, or "".
        environment: names and values that its process has beyond the benchmark's own environment.
    """

    name: str
    module: str
    variant: str
    backend: str
    package: str = ""
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def installed(self) -> bool:
        try:
            return not self.package or importlib.util.find_spec(self.package) is not None
        except ModuleNotFoundError:  # the package that this one lies in
            return False


class Task(msgspec.Struct, frozen=True):
    row: str
    load: msgspec.Raw


class MeasureFailed(Exception):
    """A system broke down while it was measured; what it said stands on the standard error."""


class SystemProcess:
    """The benchmark's end of one process. Ended when the block is left, killed if it does not go by itself."""

    def __init__(self, system: System, script: Path) -> None:
        command = [sys.executable, str(script), "--serve", system.module, system.variant, system.backend]
        environment = {**os.environ, **dict(system.environment)}
        self._system = system
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def measure(self, row: str, load: msgspec.Struct) -> Figures:
        """One round; no figures where the system has no such row.

        Raises:
            MeasureFailed: it raised and ended, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            task = Task(row, msgspec.Raw(msgspec.json.encode(load)))
            self._process.stdin.write(msgspec.json.encode(task) + b"\n")
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


class Answers:
    """The process's own end: what a library prints does not get between the answers."""

    def __init__(self) -> None:
        self._file: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def give(self, figures: Figures) -> None:
        self._file.write(msgspec.json.encode(figures) + b"\n")


def tasks() -> Iterator[Task]:
    """What the benchmark asks for, as it comes, until it has ended."""
    for line in sys.stdin.buffer:
        yield msgspec.json.decode(line, type=Task)
