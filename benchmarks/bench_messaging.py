"""What does a message cost, beside other actor libraries and the event loop's own limit?

Every row is the same work done by callboard on trio and on asyncio, by a bare loop (`messaging_bare.py`: two tasks that
wake each other, a channel with a reply event, a parked task), and by Pykka, xoscar, autogen-core and Ray where they are
installed (dependency group `bench`). Each system lives in a process of its own (`system_process.py`); they take
turns in rounds, so that what else the machine does hits all of them alike. Who knows asyncio only runs under asyncio.

Read off: the table at the end. "this" is the ratio of each one's least round, since what else the machine does only
ever adds; beside it stand the lowest and the highest ratio of a same round: far apart, they say that it was busy. Where
"at least" stands, it is how many times slower the other one is; with "at most" how many times the other's cost ours is,
or the figure itself. "NO" is a figure that was not reached, "-" one that is only shown. Pykka has two speeds: while its
two threads happen to share a core, as on a busy machine, it is as fast as if it were pinned (20 us, else over 100).
The JSON lines before it have the figures: microseconds per operation, or what the end of the name says.

    ask        one caller, one actor, plain handler that answers at once; with the default deadline, and without
    async      the same with an async handler that does not wait
    waits      with an async handler that waits once for the loop; one caller, and 50 callers on it
    many       1 000 callers, each of which asks 50 of 1 000 actors in turn
    tells      100 senders tell one actor 100 times each; until all is handled
    memory     bytes by tracemalloc (all that Python allocates) and tasks per idle actor, over 100 000
    create     10 000 actors by their first message
    live       asks beside 100 000 live actors: to the 100 that were there before (`same_100`: what the runtime itself
               loses), and to all of them in turn (the processor's caches included); then the end of the block;
               `collector`: what garbage collection takes of an ask, which the others do not show (messaging_load.py)
    hot        50 agents append to one actor and read the last ten texts from it
    activate   the first ask to an actor that has a snapshot of 1 kB in the store, memory or LMDB
    ray        `ask` beside a Ray actor, whose daemons would disturb the other rows
"""

import argparse
import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from messaging_load import Load
from messaging_process import serve
from messaging_targets import Measured, judged
from system_process import MeasureFailed, System, SystemProcess

BACKENDS = ("trio", "asyncio")
ROUNDS_OF = {"memory": 1, "live": 4, "activate": 3}
"""At most so many, where a round takes long and its figures hardly differ."""
SYSTEMS_OF = {
    "ask": ("ours", "bare", "pykka", "xoscar", "autogen"),
    "async": ("ours", "bare", "xoscar", "autogen"),
    "waits": ("ours", "bare", "xoscar", "autogen"),
    "many": ("ours", "bare", "xoscar", "autogen"),
    "tells": ("ours", "bare", "pykka", "xoscar"),
    "memory": ("ours",),
    "create": ("ours", "bare", "xoscar", "autogen"),
    "live": ("ours",),
    "hot": ("ours", "bare", "xoscar"),
    "activate": ("ours",),
    "ray": ("ours", "ray"),
}
FULL = Load(seconds=0.3, actors=100_000, created=10_000)
QUICK = Load(seconds=0.05, actors=10_000, created=1_000)


class Options(msgspec.Struct, frozen=True):
    rows: list[str]
    backends: list[str]
    rounds: int
    quick: bool


def systems(backends: list[str]) -> list[System]:
    """All there are; both bare loops also where ours runs on one of them only, since they are set beside it."""
    return [
        *(System(f"ours on {backend}", "ours", "", backend) for backend in backends),
        *(System(f"bare on {backend}", "bare", backend, backend) for backend in BACKENDS),
        System("pykka", "pykka", "", "asyncio", "pykka"),
        System("pykka pinned", "pykka", "pinned", "asyncio", "pykka"),
        System("xoscar", "xoscar", "", "asyncio", "xoscar"),
        System("autogen-core", "autogen", "", "asyncio", "autogen_core"),
        System("ray", "ray", "", "asyncio", "ray"),
    ]


class Run:
    """One run: its processes, which start with the first row that needs them, and what they measured."""

    def __init__(self, options: Options, stack: ExitStack) -> None:
        self._options = options
        self._stack = stack
        self._load = QUICK if options.quick else FULL
        self._systems = systems(options.backends)
        self._processes: dict[str, SystemProcess] = {}
        self.measured: dict[tuple[str, str, str], list[float]] = {}
        self.failed: dict[tuple[str, str], str] = {}

    def row(self, row: str) -> None:
        """Measure all rounds of a row and print its lines."""
        there = [one for one in self._systems if one.module in SYSTEMS_OF[row]]
        for round_number in range(min(self._options.rounds, ROUNDS_OF.get(row, self._options.rounds))):
            # Another order each time: the first after a pause finds a slower clock, and a colder cache.
            shift = round_number % len(there)
            for system in (*there[shift:], *there[:shift]):
                if system.installed and (system.name, row) not in self.failed:
                    self._measure(system, row)
        for system in there:
            for line in self._lines(system, row):
                print_line(line)

    def _measure(self, system: System, row: str) -> None:
        try:
            if system.name not in self._processes:
                process = SystemProcess(system, Path(__file__).resolve())
                self._processes[system.name] = self._stack.enter_context(process)
            figures = self._processes[system.name].measure(row, self._load)
        except MeasureFailed as error:
            self.failed[system.name, row] = str(error)
            self._processes.pop(system.name).end()  # the next row has a new one
            return
        for figure, value in figures.items():
            self.measured.setdefault((system.name, row, figure), []).append(value)

    def _lines(self, system: System, row: str) -> Iterator[dict[str, Any]]:
        facts: dict[str, Any] = {"benchmark": "messaging", "row": row, "system": system.name}
        if not system.installed:
            yield {**facts, "note": "not installed"}
        elif (system.name, row) in self.failed:
            yield {**facts, "note": f"failed: {self.failed[system.name, row]}"}
        for (name, of_row, figure), values in self.measured.items():
            if (name, of_row) == (system.name, row):
                spread = {"min": min(values), "median": statistics.median(values), "max": max(values)}
                rounded = {key: float(f"{value:.4g}") for key, value in spread.items()}
                yield {**facts, "figure": figure, **rounded, "rounds": len(values)}
        if row == "memory" and system.module == "ours" and (system.name, row, "passivated_bytes") not in self.measured:
            yield {**facts, "figure": "passivated_bytes", "note": "this runtime has no Ref.passivate"}


def print_line(line: dict[str, Any]) -> None:
    print(msgspec.json.encode(line).decode(), flush=True)


def print_table(measured: Measured, options: Options) -> None:
    """What the issue asks for, and what this run says to it."""
    heads = ("work", "ours on", "beside", "this", "of", "to reach", "aim", "reached")
    table: list[tuple[str, ...]] = [heads]
    for verdict in judged(measured, options.backends):
        target = verdict.target
        bound = "at least" if target.faster else "at most"
        table.append(
            (
                target.work,
                verdict.backend,
                verdict.beside,
                f"{verdict.this:.3g}",
                f"{verdict.lowest:.3g} to {verdict.highest:.3g}",
                "" if target.limit is None else f"{bound} {target.limit:g}",
                "" if target.aim is None else f"{target.aim:g}",
                verdict.verdict,
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    for line in table:
        print("# " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def describe_machine(options: Options) -> None:
    """The line that says what all other lines stand on."""
    print_line(
        {
            "benchmark": "messaging",
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 2),
            "actors": (QUICK if options.quick else FULL).actors,
            "created": (QUICK if options.quick else FULL).created,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(SYSTEMS_OF), default=list(SYSTEMS_OF), metavar="ROW")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="of ours")
    parser.add_argument("--rounds", type=int, default=5, help="of each system in each row")
    parser.add_argument("--quick", action="store_true", help="a tenth of the actors, two rounds: a look, not a result")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(*chosen.serve)
        return
    rounds = min(chosen.rounds, 2) if chosen.quick else chosen.rounds
    options = Options(chosen.rows, chosen.backends, rounds, chosen.quick)
    describe_machine(options)
    with ExitStack() as stack:
        run = Run(options, stack)
        for row in options.rows:
            run.row(row)
    print_table(run.measured, options)
    if broken := [why for (system, _), why in run.failed.items() if system.startswith("ours")]:
        raise SystemExit(f"failed: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
