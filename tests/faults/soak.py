"""Longer lives of a store, drawn by chance, with every fault at every point and power losses: `make soak`, or

    python tests/faults/soak.py [--lives 20] [--first 1] [--processes 2]

Prints each fault that was found, with the seed and the plan that show it again, and a tally. The status is 1 where one
was found.
"""

import argparse
import os
import random
import sys
import time

from fault_lab import Lab, open_lab
from test_every_point import plans_for, points_before_the_end
from test_power_loss import any_disk, broken_at


def faults_of(lab: Lab, seed: int) -> tuple[int, list[str]]:
    """How many lives and disks were judged for the scenario of this seed, and what was broken."""
    quiet = lab.play(seed=seed, with_bytes=True)
    if quiet.fault:
        return 1, [f"without a fault: {quiet.fault}"]
    points = points_before_the_end(quiet.journal)
    count, broken = broken_at(lab, quiet, any_disk, seed=seed)
    for life in lab.play_all(plans_for(points), seed=seed):
        count += 1
        if life.fault:
            broken.append(f"{life.plan}: {life.fault}")
    for point in random.Random(seed).sample(points, 3):
        life = lab.play(f"fail {point.point} 5 once", seed=seed, with_bytes=True)
        more, found = broken_at(lab, life, any_disk, seed=seed, behind=point.point)
        count, broken = count + more, [*broken, *(f"{life.plan}, then no power: {fault}" for fault in found)]
    return count, broken


def main() -> int:
    options = argparse.ArgumentParser(description="Let everything go wrong at every point in the life of a store.")
    options.add_argument("--lives", type=int, default=20, help="scenarios")
    options.add_argument("--first", type=int, default=1, help="the first seed")
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = options.parse_args()
    began_s = time.monotonic()
    judged = failed = 0
    with open_lab(chosen.processes) as lab:
        for seed in range(chosen.first, chosen.first + chosen.lives):
            count, broken = faults_of(lab, seed)
            judged += count
            failed += bool(broken)
            for fault in broken:
                print(f"faults: seed {seed}: {fault}", flush=True)
    took_s = time.monotonic() - began_s
    print(f"faults: {chosen.lives} scenarios, {judged} lives and disks, {failed} failed, {took_s:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
