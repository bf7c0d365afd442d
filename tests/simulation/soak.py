"""Many programs against the kernel, on all cores: `make soak`, or

    python tests/simulation/soak.py [--trio 20000] [--asyncio 2000] [--first 1000] [--processes 2]

Prints each seed that fails with what did not hold, and at the end one line for each backend. The status is 1 where one
has failed.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from kernel_checks import play
from kernel_program import Backend

from callboard.first_error import first_error

CHUNK = 25


class Verdict(NamedTuple):
    """How the program of one seed ended: `fault` is "" where every invariant held."""

    backend: Backend
    seed: int
    lives: int
    messages: int
    fault: str


def judge(backend: Backend, seed: int) -> Verdict:
    """Play one program."""
    try:
        program = play(seed, backend)
    except Exception as fault:  # noqa: BLE001 - whatever it is, it is this seed's, and the others go on
        first = first_error(fault)
        return Verdict(backend, seed, 0, 0, f"{type(first).__name__}: {first}")
    return Verdict(backend, seed, len(program.lives), sum(len(life.seen.handled) for life in program.lives), "")


def quiet() -> None:
    """In each process: what crashes on purpose is logged by the kernel, at length."""
    logging.disable(logging.CRITICAL)


def verdicts(backend: Backend, seeds: range, processes: int) -> Iterator[Verdict]:
    context = multiprocessing.get_context("spawn")  # a forked process would share the state of this one's chance
    with context.Pool(processes, initializer=quiet) as pool:
        yield from pool.imap_unordered(partial(judge, backend), seeds, chunksize=CHUNK)


def main() -> int:
    options = argparse.ArgumentParser(description="Play many programs against the kernel.")
    options.add_argument("--trio", type=int, default=20_000, help="programs on trio")
    options.add_argument("--asyncio", type=int, default=2_000, help="programs on asyncio")
    options.add_argument("--first", type=int, default=1_000, help="the first seed")
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = options.parse_args()
    wanted: dict[Backend, int] = {"trio": chosen.trio, "asyncio": chosen.asyncio}
    failed = 0
    for backend, count in wanted.items():
        began_s = time.monotonic()
        seeds = range(chosen.first, chosen.first + count)
        lives = messages = faults = 0
        for verdict in verdicts(backend, seeds, chosen.processes):
            lives, messages = lives + verdict.lives, messages + verdict.messages
            if verdict.fault:
                faults += 1
                print(f"{backend}: seed {verdict.seed} failed: {verdict.fault}", flush=True)
        took_s = time.monotonic() - began_s
        played = f"seeds {seeds.start}:{seeds.stop}, {lives} lives, {messages} messages"
        print(f"{backend}: {count} programs ({played}), {faults} failed, {took_s:.0f} s", flush=True)
        failed += faults
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
