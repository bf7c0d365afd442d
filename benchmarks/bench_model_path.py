"""What does a call of a model cost, and what a whole durable turn, beside other HTTP clients and the openai client?

Every row is the same calls of the same server by callboard (`client`: OpenAIChat.complete; `turn`: the same call as a
turn of an agent in a session, on LMDB with durability "sync"), by bare httpx, httpx2 and aiohttp, and by the openai
client, where they are installed (dependency group `bench`), on trio and on asyncio (aiohttp: there only); `socket` is
what is left when a client does nothing. Each system lives in a process of its own (`system_process.py`); they take
turns in many short rounds, so that what else the machine does hits all of them alike, and each has a quiet one. The
server is `model_upstream.py`: it knows its answers beforehand, so that it is not the limit. It counts the calls, each
client compares each text with what was sent, and the store is read afterwards for the turns: a wrong number or text
fails the row; for ours it fails the run.

Read off: the table at the end. "this" is the ratio of each one's best round, since what else the machine does only ever
takes; beside it stand the lowest, highest and median ratio of a same round; far apart: it was busy. "at most"
is how many times the other's cost ours is, or the figure itself, "at least" how many times as many. "NO" is a figure
that was not reached, "-" one that is only shown. The JSON lines before it have the figures, in the unit that the end of
the name says: `cpu_us` is the CPU time of the whole process per call (or turn), all its threads and the kernel's part
included; `server_us` is the server's, `token_us` ours of one token of a stream.

    post         whole answers, 10 callers at once
    hundred      the same, 100 callers at once. A call waits for all the others' then, and trio runs those that are
                 ready in random order: whoever is woken once a call gets a p99 of 1.86 times the p50 (two places in the
                 queue, each drawn evenly), a `socket` too. See `connections` for a server that takes its time
    burst        streams of 200 tokens that come all at once, 10 callers
    paced        the same, a token every 10 ms in each stream
    many         whole answers by number of callers: the others as far as they go, since httpx's pool is quadratic
    streams      bursts by number of callers
    connections  2 000 calls a second over 100 connections, and over 5 000: all are in use, the server takes its time;
                 httpx's pools cannot keep up with that
    idle         one call after another beside 1 000 idle connections, and beside none, in turn
    cancel       10 000 calls by 100 callers over 20 connections, each cancelled at any moment: which slots, sockets
                 and tasks are left afterwards
"""

import argparse
import os
import platform
import tempfile
from contextlib import ExitStack
from functools import partial

import msgspec
from closed_loop import allow_open_files, requests_per_s_max
from model_load import TALKS, Load
from model_targets import OTHERS, TARGETS, backends_of
from model_upstream import open_model_server
from rounds import Rounds, print_line
from row_process import serve
from system_process import Figures, System
from targets import print_table

BACKENDS = ("trio", "asyncio")
SYSTEMS_OF = {
    "post": ("client", "turn", "socket", *OTHERS),
    "hundred": ("client", "turn", "socket", *OTHERS),
    "burst": ("client", "turn", *OTHERS),
    "paced": ("client", "turn", *OTHERS),
    "many": ("client", "turn", *OTHERS),
    "streams": ("client", "turn", *OTHERS),
    "connections": ("client", "aiohttp"),
    "idle": ("client", *OTHERS),
    "cancel": ("client", "turn", *OTHERS),
}
ROUNDS_OF = {"paced": 8, "many": 2, "streams": 2, "connections": 3, "idle": 6, "cancel": 1}
"""At most so many, where a round takes long."""
QUICK_ROWS = ("post", "burst", "paced")
QUICK_OTHERS = ("httpx",)
OPEN_FILES = 16_384


class Options(msgspec.Struct, frozen=True):
    rows: list[str]
    backends: list[str]
    beside: list[str]
    rounds: int


def systems(options: Options) -> list[System]:
    """Ours, and those that stand beside it on the same event loops."""
    there: list[System] = []
    for backend in options.backends:
        there += [System(f"{variant} on {backend}", "ours", variant, backend) for variant in ("client", "turn")]
        for other in options.beside:
            if backend in backends_of(other):
                module = "httpx" if other == "httpx2" else other
                there.append(System(f"{other} on {backend}", module, other, backend, other))
        there.append(System(f"socket on {backend}", "socket", "", backend))
    return there


def check(figures: Figures) -> str:
    """Nothing may be left of what was cancelled (httpx's pool loses slots, see FACTS.md)."""
    left = {name: value for name, value in figures.items() if name.endswith("_left") and value}
    return f"left over: {left}" if left else ""


def run(options: Options, load: Load) -> Rounds:
    """All rows, with their lines."""
    with ExitStack() as stack:
        rounds = Rounds("model_path", __file__, stack, check=check)
        for row in options.rows:
            there = [one for one in systems(options) if one.name.partition(" ")[0] in SYSTEMS_OF[row]]
            rounds.take_turns(row, there, rounds=min(options.rounds, ROUNDS_OF.get(row, options.rounds)), load=load)
            for system in there:
                for line in rounds.lines(system, row):
                    print_line(line)
    return rounds


def load_of(url: str, folder: str, *, quick: bool) -> Load:
    load = partial(Load, url=url, folder=folder, gap_ms=10)
    if quick:
        return load(seconds=0.3, at_once=(1, 10, 100), connections=1_000, idle=200, cancelled=1_000)
    return load(seconds=0.5, at_once=(1, 10, 100, 1_000, 5_000), connections=5_000, idle=1_000, cancelled=10_000)


def describe_machine(load: Load) -> None:
    """The line that says what all other lines stand on."""
    body = msgspec.json.encode({"model": "whole-0", "messages": TALKS[-1]})
    limits = {
        str(callers): requests_per_s_max(load.url, body, connections=callers, seconds=0.5) for callers in (1, 10, 100)
    }
    print_line(
        {
            "benchmark": "model_path",
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 2),
            "server_per_s": {callers: round(limit) for callers, limit in limits.items()},
            **{name: getattr(load, name) for name in ("seconds", "gap_ms", "connections", "idle", "cancelled")},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(SYSTEMS_OF), metavar="ROW", help="default: all")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="default: both")
    parser.add_argument("--beside", nargs="*", choices=OTHERS, help="which others; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="of each system in each row")
    parser.add_argument("--folder", help="where the stores lie; default: the system's folder for temporary files")
    parser.add_argument(
        "--quick", action="store_true", help=f"a look, no result: by default {QUICK_ROWS} on trio beside {QUICK_OTHERS}"
    )
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    allow_open_files(OPEN_FILES)
    if chosen.serve:
        module, variant, backend = chosen.serve
        serve(f"model_{module}", variant, backend, load=Load)
        return
    quick = chosen.quick
    options = Options(
        rows=chosen.rows or list(QUICK_ROWS if quick else SYSTEMS_OF),
        backends=chosen.backends or list(BACKENDS[:1] if quick else BACKENDS),
        beside=list(QUICK_OTHERS if quick else OTHERS) if chosen.beside is None else chosen.beside,
        rounds=min(chosen.rounds, 4) if quick else chosen.rounds,
    )
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder, open_model_server() as url:
        load = load_of(url, folder, quick=quick)
        describe_machine(load)
        rounds = run(options, load)
    print_table(TARGETS, rounds.measured, options.backends)
    ours = tuple(f"{name} on " for name in ("client", "turn"))
    if broken := [why for (system, _), why in rounds.failed.items() if system.startswith(ours)]:
        raise SystemExit(f"failed: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
