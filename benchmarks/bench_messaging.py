"""What does a message cost, beside other actor libraries and the event loop's own limit?

Every row is the same work done by callboard on trio and on asyncio, by a bare loop (`messaging_bare.py`: two tasks that
wake each other, a channel with a reply event, a parked task), and by Pykka, xoscar, autogen-core and Ray where they are
installed (dependency group `bench`). Each system lives in a process of its own (`system_process.py`); they take
turns in rounds, so that what else the machine does hits all of them alike. Who knows asyncio only runs under asyncio.

Read off: the table at the end. "this" is the ratio of each one's least round, since what else the machine does only
ever adds; beside it stand the lowest, highest and median ratio of a same round; far apart: it was busy. Where
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
from contextlib import ExitStack

import msgspec
from messaging_load import Load
from messaging_targets import TARGETS
from rounds import Rounds, print_line
from row_process import serve
from system_process import System
from targets import print_table

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


def run(options: Options) -> Rounds:
    """All rows, with their lines."""
    load = QUICK if options.quick else FULL
    with ExitStack() as stack:
        rounds = Rounds("messaging", __file__, stack)
        for row in options.rows:
            there = [one for one in systems(options.backends) if one.module in SYSTEMS_OF[row]]
            rounds.take_turns(row, there, rounds=min(options.rounds, ROUNDS_OF.get(row, options.rounds)), load=load)
            for system in there:
                for line in rounds.lines(system, row):
                    print_line(line)
    return rounds


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
        module, variant, backend = chosen.serve
        serve(f"messaging_{module}", variant, backend, load=Load)
        return
    rounds = min(chosen.rounds, 2) if chosen.quick else chosen.rounds
    options = Options(chosen.rows, chosen.backends, rounds, chosen.quick)
    describe_machine(options)
    rounds = run(options)
    print_table(TARGETS, rounds.measured, options.backends)
    if broken := [why for (system, _), why in rounds.failed.items() if system.startswith("ours")]:
        raise SystemExit(f"failed: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
