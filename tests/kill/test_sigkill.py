"""A process under load is killed with SIGKILL at random moments; what it acknowledged is there, whole, once, in order.

How that is done is in kill_rounds.py.

    CALLBOARD_KILLS=100 pytest -s tests/kill         more kills, shared by the two tests; 50 by default
    CALLBOARD_KILL_SEED=7 pytest tests/kill          the same plan of kills again; what the kills hit is still a race
    python tests/kill/soak.py                        a thousand; part of `make soak`
"""

import os
import random
import time
from math import ceil
from pathlib import Path

import pytest
from kill_rounds import LOG_BYTES_MAX, play_rounds

pytestmark = pytest.mark.kill

KILLS = int(os.environ.get("CALLBOARD_KILLS", "50"))
SEED = int(os.environ.get("CALLBOARD_KILL_SEED", random.SystemRandom().randrange(10**6)))


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_killed_process_loses_no_acknowledged_turn_and_leaves_no_half_turn(tmp_path: Path, backend: str) -> None:
    print(f"\nCALLBOARD_KILL_SEED={SEED} CALLBOARD_KILLS={KILLS}")
    began = time.monotonic()

    tally = play_rounds(tmp_path, backend, kills=ceil(KILLS / 2), seed=f"{SEED} {backend}")

    print(f"{tally} in {time.monotonic() - began:.0f} s")
    assert tally.runs_cut > tally.kills, "the kills hit next to no running turn: they prove nothing"
    assert tally.replayed > tally.kills / 2, "next to no kill left a log: they prove nothing"
    assert tally.log_bytes_most < 20 * LOG_BYTES_MAX, "no checkpoint went on under load"
