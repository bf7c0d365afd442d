"""Thousands of turns, cancelled while they queue, connect, wait, stream and commit: nothing of them is left.

`CALLBOARD_CANCELS=N` plays another number of turns, `CALLBOARD_STORM_SEED=N` another storm. See turn_storm.
"""

import os
import sys
from pathlib import Path

import anyio
import pytest
from turn_storm import MOMENTS, WAYS, Way, play

TURNS = int(os.environ.get("CALLBOARD_CANCELS", "2000"))
SEED = int(os.environ.get("CALLBOARD_STORM_SEED", "0"))

PHASE_SHARE_MIN = 0.05
"""Of all cancellations, those at each moment; drawn are 0.2, and some turns are over before their moment comes."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are counted in /proc")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_cancelled_turns_leave_no_slot_socket_task_or_open_run(backend: str, way: Way, tmp_path: Path) -> None:
    turns = TURNS if way == "pool" else TURNS // 4
    storm = anyio.run(play, tmp_path / "store", turns, SEED, way, backend=backend)

    assert storm.faults == [], f"seed {SEED}"
    assert len(storm.cancelled) >= turns
    for moment in MOMENTS:
        assert storm.moments[moment] >= turns * PHASE_SHARE_MIN, moment
    assert storm.moments["committed_all_the_same"] > 0
