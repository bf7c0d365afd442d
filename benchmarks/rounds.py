"""A benchmark's rounds: its systems take turns, each in a process of its own, and each figure becomes a JSON line."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from system_process import Figures, MeasureFailed, System, SystemProcess

__all__ = ["Rounds", "print_line"]


class Rounds:
    """One run: its processes, which start with the first row that needs them, and what they measured.

    Args:
        benchmark: its name in the lines.
        script: that starts a process, see system_process.py.
        stack: ends the processes.
        check: looks at a round's figures, may change them, and says what is wrong with them, or nothing.

    Attributes:
        measured: the figures of each round by system, row and figure.
        failed: by system and row, why it has no further figures.
    """

    def __init__(
        self, benchmark: str, script: str, stack: ExitStack, *, check: Callable[[Figures], str] = lambda _: ""
    ) -> None:
        self._benchmark = benchmark
        self._script = Path(script).resolve()
        self._stack = stack
        self._check = check
        self._processes: dict[System, SystemProcess] = {}
        self.measured: dict[tuple[str, str, str], list[float]] = {}
        self.failed: dict[tuple[str, str], str] = {}

    def take_turns(self, row: str, systems: Sequence[System], *, rounds: int, load: msgspec.Struct) -> None:
        """Measure all rounds of a row."""
        for round_number in range(rounds):
            # Another order each time: the first after a pause finds a slower clock, and a colder cache.
            shift = round_number % max(len(systems), 1)
            for system in (*systems[shift:], *systems[:shift]):
                self.measure(system, row, load)

    def measure(self, system: System, row: str, load: msgspec.Struct, *, asked: str | None = None) -> None:
        """One round of a system, if it is there and has not failed in this row; `asked` is what its process is told."""
        if not system.installed or (system.name, row) in self.failed:
            return
        try:
            if system not in self._processes:
                process = SystemProcess(system, self._script)
                self._processes[system] = self._stack.enter_context(process)
            figures = self._processes[system].measure(asked or row, load)
        except MeasureFailed as error:
            self.failed[system.name, row] = str(error)
            self._processes.pop(system).end()  # the next row has a new one
            return
        if wrong := self._check(figures):
            self.failed[system.name, row] = wrong
        for figure, value in figures.items():
            self.measured.setdefault((system.name, row, figure), []).append(value)

    def lines(self, system: System, row: str) -> Iterator[dict[str, Any]]:
        """What there is to print of a system's row."""
        facts: dict[str, Any] = {"benchmark": self._benchmark, "row": row, "system": system.name}
        if not system.installed:
            yield {**facts, "note": "not installed"}
        elif (system.name, row) in self.failed:
            yield {**facts, "note": f"failed: {self.failed[system.name, row]}"}
        for (name, of_row, figure), values in self.measured.items():
            if (name, of_row) == (system.name, row):
                spread = {"min": min(values), "median": statistics.median(values), "max": max(values)}
                rounded = {key: float(f"{value:.4g}") for key, value in spread.items()}
                yield {**facts, "figure": figure, **rounded, "rounds": len(values)}


def print_line(line: dict[str, Any]) -> None:
    print(msgspec.json.encode(line).decode(), flush=True)
