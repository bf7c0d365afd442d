"""Thousands of turns, cancelled while they queue, connect, wait, stream and commit: nothing of them is left.

`CALLBOARD_CANCELS=N` plays another number of turns, `CALLBOARD_STORM_SEED=N` another storm. See turn_storm.
"""

import os
import sys
from pathlib import Path

import anyio
import pytest
from turn_storm import PHASES, WAYS, Way, play

TURNS = int(os.environ.get("CALLBOARD_CANCELS", "2000"))
SEED = int(os.environ.get("CALLBOARD_STORM_SEED", "0"))

PHASE_SHARE_MIN = 0.05
"""Of all cancellations, those in each phase: a storm that only ever cancels a queue proves little."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are counted in /proc")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_cancelled_turns_leave_no_slot_socket_task_or_open_run(backend: str, way: Way, tmp_path: Path) -> None:
    turns = TURNS if way == "pool" else TURNS // 4
    storm = anyio.run(play, tmp_path / "store", turns, SEED, way, backend=backend)

    assert storm.faults == [], f"seed {SEED}"
    assert len(storm.cancelled) >= turns
    for phase in PHASES:
        assert storm.phases[phase] >= turns * PHASE_SHARE_MIN, phase
    # Rare, and a matter of microseconds: where the commit of the whole turn is on its way, cancelling does not stop it.
    assert storm.phases["committed_all_the_same"] > 0 or turns < 1000
