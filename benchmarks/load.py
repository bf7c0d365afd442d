"""Will callboard hold in my program? A load like yours, with faults and kills as you like; every turn is accounted for.

    python benchmarks/load.py                                            1 000 users for a minute
    python benchmarks/load.py --sessions 10000 --rate 200 --prefill 100000
    python benchmarks/load.py --minutes 60 --kills-every-s 20 --faults   the soak

Users talk with agents in sessions: a question, an answer, a pause; now and then three questions at once, a tool call, a
stream. The model is a server in a process of its own, and so is the program with callboard in it, which can be killed
with SIGKILL at random moments and started again on the same store.

Read off: the verdict. Each turn that a caller was told of must be in the store, whole, once, in its place, by one
completed run; no turn may be there whose caller was told that it failed; every caller must have been told something.
That is looked up after each kill, each minute, and for all sessions at the end; what is said is a function of session
and turn, so that nothing goes unrecognised. `memory` is what the worker has allocated, as the kernel counts it, judged
in the last life, which nobody cuts short, from when it is warm on: a straight line through it must not rise by more
than 3 % and 8 MB, and 300 bytes for each session that was begun, of which the store remembers the last 100 000.
`latency` is from a question to its durable answer, the model's time and all faults included.

Two cores are shared by users, model server, callboard and this program. What callboard alone costs a turn is measured
by bench_turns.py.

The JSON line on standard output has all figures; --plot draws turns, latencies and memory over time. The status is 1
where a turn was at fault, memory grew, or a process ended by itself.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import anyio
import msgspec
from closed_loop import allow_open_files
from load_ledger import Ledger
from load_plan import Backend, Plan
from load_plot import plot
from load_report import problems, record_of, summary
from load_stage import Course, Outcome, Stage, WorkerFailed
from load_view import open_view, table_of
from rich.console import Console

from callboard.first_error import first_error

BACKENDS: dict[str, tuple[Backend, ...]] = {
    "trio": ("trio",),
    "asyncio": ("asyncio",),
    "both": ("trio", "asyncio"),
}


def run(plan: Plan, course: Course, folder: Path) -> Outcome:
    """Play it and show how it goes."""
    outcome = Outcome(Ledger(plan))
    with open_view(outcome, course) as show:
        try:
            anyio.run(Stage(plan, course, folder, outcome=outcome, show=show).play, backend="asyncio")
        except* WorkerFailed as failed:
            outcome.failure = str(first_error(failed))
    return outcome


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    load = parser.add_argument_group("load")
    load.add_argument("--minutes", type=float, default=1.0, help="of load")
    load.add_argument("--sessions", type=int, default=1_000, help="live at the same time")
    load.add_argument("--prefill", type=int, default=0, help="sessions stored beforehand, which users come back to")
    load.add_argument("--agents", type=int, default=4)
    load.add_argument("--turns", type=int, default=10, help="of a visit, before a user goes on in another session")
    load.add_argument("--think-s", type=float, default=5.0, help="mean pause of a user between answer and question")
    load.add_argument("--rate", type=float, help="turns a second that are asked for; sets --think-s")
    load.add_argument("--burst", type=int, default=3, help="questions at once, now and then; 1: never")
    load.add_argument("--server-s", type=float, default=0.1, help="mean time of the model for an answer")
    trouble = parser.add_argument_group("trouble")
    trouble.add_argument(
        "--faults", action="store_true", help="the same as --fault-share 0.02 --store-faults-every-s 5"
    )
    trouble.add_argument("--fault-share", type=float, default=0.0, help="of model calls: 429, 5xx, cut, stalled, ...")
    trouble.add_argument("--store-faults-every-s", type=float, default=0.0, help="mean time between failing commits")
    trouble.add_argument("--kills-every-s", type=float, default=0.0, help="mean time between kills; 0: none")
    trouble.add_argument("--calm-minutes", type=float, help="at the end, without kills; a third of the run by default")
    program = parser.add_argument_group("program")
    program.add_argument("--backend", choices=list(BACKENDS), default="both", help="of the worker; both: by turns")
    program.add_argument("--durability", choices=["sync", "async"], default="sync")
    program.add_argument("--log-mb", type=int, default=16, help="of the store, which holds it in memory as well")
    program.add_argument("--idle-s", type=float, default=30.0, help="how long a session stays in memory")
    program.add_argument("--check-every-s", type=float, default=60.0, help="how often the store is read")
    program.add_argument("--seed", type=int, default=0, help="of chance; what a kill hits is still a race")
    program.add_argument("--store", type=Path, help="a folder to keep the store in; else a temporary one")
    program.add_argument("--json", type=Path, help="a file for the figures as well")
    program.add_argument("--plot", type=Path, help="a file for a picture, as SVG")
    return parser.parse_args(arguments)


def as_plan(chosen: argparse.Namespace) -> Plan:
    return Plan(
        sessions=chosen.sessions,
        stored=chosen.prefill,
        turns=chosen.turns,
        agents=chosen.agents,
        think_s=chosen.sessions / chosen.rate if chosen.rate else chosen.think_s,
        burst=chosen.burst,
        server_s=chosen.server_s,
        fault_share=chosen.fault_share or (0.02 if chosen.faults else 0.0),
        store_fault_every_s=chosen.store_faults_every_s or (5.0 if chosen.faults else 0.0),
        idle_s=chosen.idle_s,
        durability=chosen.durability,
        log_mb=chosen.log_mb,
        seed=chosen.seed,
    )


def as_course(chosen: argparse.Namespace) -> Course:
    calm_minutes = chosen.minutes / 3 if chosen.calm_minutes is None else chosen.calm_minutes
    return Course(
        seconds=chosen.minutes * 60,
        kill_every_s=chosen.kills_every_s,
        calm_s=calm_minutes * 60,
        check_every_s=chosen.check_every_s,
        backends=BACKENDS[chosen.backend],
    )


@contextlib.contextmanager
def folder_of(store: Path | None) -> Generator[Path]:
    if store is None:
        with tempfile.TemporaryDirectory(prefix="callboard-load-") as made:
            yield Path(made)
        return
    store.mkdir(parents=True, exist_ok=False)
    yield store


def main(arguments: list[str]) -> int:
    chosen = parsed(arguments)
    plan, course = as_plan(chosen), as_course(chosen)
    allow_open_files(1_024)
    with folder_of(chosen.store) as folder:
        outcome = run(plan, course, folder)
    line = msgspec.json.encode(record_of(plan, course, outcome))
    Console(file=sys.stderr).print(table_of(summary(outcome), title="callboard load"))
    sys.stdout.write(line.decode() + "\n")
    if chosen.json is not None:
        chosen.json.write_bytes(line + b"\n")
    if chosen.plot is not None:
        title = f"{plan.sessions:,} live sessions, {plan.stored:,} stored, {outcome.kills} kills"
        chosen.plot.write_text(plot(outcome.series, title=title))
    return 1 if problems(outcome) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
