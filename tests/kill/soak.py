"""A thousand kills of a process under load, on all cores: `make soak`, or

    python tests/kill/soak.py [--kills 1000] [--seed 7] [--processes 2]

Prints the seed, each round that fails with what did not hold, and a tally. The status is 1 where one has failed. Seed
and number of a round give the same plan of kills again; what the kills hit is still a race.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kill_rounds import Tally, play_rounds

from callboard.first_error import first_error

KILLS_PER_ROUND = 20


class Verdict(NamedTuple):
    """How one round ended: `fault` is "" where every kill was survived."""

    number: int
    tally: Tally
    fault: str


def judge(seed: int, number: int) -> Verdict:
    """Play one round of kills."""
    with tempfile.TemporaryDirectory(prefix="callboard-kills-") as folder:
        backend = ("trio", "asyncio")[number % 2]
        try:
            tally = play_rounds(Path(folder), backend, kills=KILLS_PER_ROUND, seed=f"{seed} {number}")
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is this round's, and the others go on
            first = first_error(fault)
            return Verdict(number, Tally(), f"{type(first).__name__}: {first}")
    return Verdict(number, tally, "")


def main() -> int:
    options = argparse.ArgumentParser(description="Kill processes under load.")
    options.add_argument("--kills", type=int, default=1_000)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = options.parse_args()
    print(f"kills: seed {chosen.seed}", flush=True)
    began_s = time.monotonic()
    rounds = range(-(-chosen.kills // KILLS_PER_ROUND))
    tally, faults = Tally(), 0
    with multiprocessing.get_context("spawn").Pool(chosen.processes) as pool:
        for verdict in pool.imap_unordered(partial(judge, chosen.seed), rounds):
            tally += verdict.tally
            if verdict.fault:
                faults += 1
                print(f"kills: round {verdict.number} of seed {chosen.seed} failed: {verdict.fault}", flush=True)
    print(f"kills: {tally}, {faults} of {len(rounds)} rounds failed, {time.monotonic() - began_s:.0f} s", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
