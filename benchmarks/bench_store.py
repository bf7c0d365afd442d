"""What does it cost to keep a conversation, beside other agent libraries' stores and the disk's own limits?

Every row is the same work done by callboard on trio and on asyncio, and by OpenAI Agents SDK (SQLiteSession), LangGraph
(AsyncSqliteSaver), Google ADK (DatabaseSessionService) where they are installed (dependency group `bench`), by raw
SQLite with a commit per turn, and by raw LMDB. All are durable when they answer (SQLite: synchronous=FULL). Each system
lives in a process of its own (`system_process.py`); they take turns in rounds, so that what else the machine does hits
all of them alike.

After its last round each row is closed, opened again, and read whole: what does not stand in the file as it was
acknowledged, is there twice, or in another order, is counted, for each system, and fails the row. For ours it fails the
run.

Read off: the table at the end. "this" is the ratio of each one's best round, since what else the machine does only ever
takes; beside it stand the lowest, highest and median ratio of a same round; far apart: it was busy. Where "at
least" stands, it is how many times as fast as the other ours is; with "at most" how many times the other's cost ours
is, or the figure itself. "NO" is a figure that was not reached, "-" one that is only shown. The JSON lines before it
have the figures, in the unit that the end of the name says. `cpu_us` is of the whole process, per turn.

    limits      fdatasync of a growing and of a preallocated file; LMDB with 1, 10, 100, 1 000 turns a commit;
                `counted_bytes`: how many bytes the kernel counts as written for each that was, see `written_bytes`
    writers     100 writers x 1 000 sessions, each writer has ten for itself; a turn is 660 bytes. `written_bytes`: what
                went to the disk per turn until all was closed, checkpoints included; `stored_message_bytes`: what
                lies there per message
    committers  1 000 tasks that submit a batch per turn to the committer itself, and a raw LMDB log at the same size of
                commits, measured right after it
    one         one session, one turn after the other
    agents      20 agents on one session
    append      one append to a history of 10, of 1 000 and of 100 000 messages
    cold        all messages of each of 1 000 sessions of 100 messages, after the store was opened anew
    last        the last 50 of 10 000 messages
    busy        100 committers on a loop that a task keeps busy with Python code, for 1 ms at a time; `short`: 0.1 ms,
                less than the switch interval: such a loop drops the interpreter's lock often, and takes it back before
                the committing thread has woken; each also with a writer process
    ticker      how long the loop could not go on because of commits while 100 writers write (`store_ticker.py`)
    slow        `writers` with a millisecond added to each flush (`slow_flush.c`)
"""

import argparse
import os
import platform
import sqlite3
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec
from closed_loop import allow_open_files
from rounds import Rounds, print_line
from row_process import serve_in_one_loop
from store_disk import compile_slow_flush, filesystem_of
from store_load import Load
from store_targets import TARGETS
from system_process import Figures, System
from targets import print_table

BACKENDS = ("trio", "asyncio")
ROUNDS_OF = {"append": 3}
"""At most so many, where a round takes long and its figures hardly differ."""
SYSTEMS_OF = {
    "limits": ("disk",),
    "writers": ("ours", "openai", "langgraph", "adk", "sqlite"),
    "committers": ("ours",),
    "one": ("ours", "disk", "openai", "langgraph", "adk", "sqlite"),
    "agents": ("ours", "openai"),
    "append": ("ours",),
    "cold": ("ours", "openai"),
    "last": ("ours", "openai"),
    "busy": ("ours",),
    "ticker": ("ours",),
    "slow": ("ours", "openai"),
}
BESIDE = ("disk", "openai", "langgraph", "adk", "sqlite")
OPEN_FILES = 16_384
"""OpenAI's sessions have a connection, so two files, per session and thread: 1 000 x 6 x 2."""


class Options(msgspec.Struct, frozen=True):
    rows: list[str]
    backends: list[str]
    beside: list[str]
    rounds: int
    quick: bool


def systems(backends: list[str], slow_flush: Path | None) -> list[System]:
    """All there are, and those of row `slow` once more with slower flushes; they have the same names there."""
    plain = [
        *(System(f"ours on {backend}", "ours", "", backend) for backend in backends),
        System("lmdb", "disk", "", "asyncio"),
        System("openai", "openai", "", "asyncio", "agents"),
        System("langgraph", "langgraph", "", "asyncio", "langgraph.checkpoint.sqlite"),
        System("adk", "adk", "", "asyncio", "google.adk"),
        System("sqlite", "sqlite", "", "asyncio"),
    ]
    preload = (("LD_PRELOAD", str(slow_flush)),) if slow_flush is not None else ()
    slowed = [msgspec.structs.replace(one, variant="slow", environment=preload) for one in plain]
    return [*plain, *(one for one in slowed if one.module in SYSTEMS_OF["slow"])]


def check(figures: Figures) -> str:
    """What a store holds must be what was acknowledged."""
    if "checked_messages" not in figures:
        return ""
    counted = {name: figures.pop(name, 0) for name in ("lost", "doubled", "reordered")}
    figures["wrong"] = sum(counted.values())
    wrong = {name: count for name, count in counted.items() if count}
    return f"of {figures['checked_messages']:.0f} messages {wrong}" if wrong else ""


def run(options: Options, load: Load) -> Rounds:
    """All rows, with their lines."""
    slow_flush = compile_slow_flush(Path(load.folder))
    with ExitStack() as stack:
        rounds = Rounds("store", __file__, stack, check=check)
        for row in options.rows:
            if row == "slow" and slow_flush is None:
                print_line({"benchmark": "store", "row": row, "note": "there is no C compiler"})
                continue
            variant = "slow" if row == "slow" else ""
            modules = set(SYSTEMS_OF[row]) & {"ours", *options.beside}
            those = systems(options.backends, slow_flush)
            there = [one for one in those if one.module in modules and one.variant == variant]
            rounds.take_turns(row, there, rounds=min(options.rounds, ROUNDS_OF.get(row, options.rounds)), load=load)
            for system in there:
                rounds.measure(system, row, load, asked="end")
                for line in rounds.lines(system, row):
                    print_line(line)
    return rounds


def describe_machine(load: Load) -> None:
    """The line that says what all other lines stand on."""
    print_line(
        {
            "benchmark": "store",
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 2),
            "filesystem": filesystem_of(Path(load.folder)),
            **{name: getattr(load, name) for name in ("seconds", "writers", "sessions", "committers", "long")},
        }
    )


def load_of(folder: str, *, quick: bool) -> Load:
    if quick:
        return Load(seconds=0.5, writers=100, sessions=200, committers=1_000, long=10_000, folder=folder)
    return Load(seconds=1.5, writers=100, sessions=1_000, committers=1_000, long=100_000, folder=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(SYSTEMS_OF), default=list(SYSTEMS_OF), metavar="ROW")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="of ours")
    parser.add_argument("--beside", nargs="*", choices=BESIDE, default=BESIDE, metavar="SYSTEM", help=" ".join(BESIDE))
    parser.add_argument("--rounds", type=int, default=4, help="of each system in each row")
    parser.add_argument("--quick", action="store_true", help="shorter, fewer sessions, one round: a look, not a result")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured; else the temporary folder")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        module, variant, backend = chosen.serve
        serve_in_one_loop(f"store_{module}", variant, backend, load=Load)
        return
    rounds = 1 if chosen.quick else chosen.rounds
    options = Options(chosen.rows, chosen.backends, list(chosen.beside), rounds, chosen.quick)
    allow_open_files(OPEN_FILES)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        load = load_of(folder, quick=options.quick)
        describe_machine(load)
        rounds = run(options, load)
    print_table(TARGETS, rounds.measured, options.backends)
    if broken := [why for (system, _), why in rounds.failed.items() if system.startswith("ours")]:
        raise SystemExit(f"failed: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
