"""Ids are unique among all processes, also those that were forked from one another, and sort by their making."""

import subprocess
import sys

from callboard.actors.ids import new_id


def test_ids_differ_and_sort_in_the_order_of_their_making() -> None:
    ids = [new_id("run", 1_700_000_000_000 + n // 100) for n in range(10_000)]

    assert len(set(ids)) == len(ids)
    assert sorted(ids) == ids
    assert {len(id) for id in ids} == {len("run_") + 24}


FORKS = """
import os
from callboard.actors.ids import new_id, new_number
child = os.fork()
if child:
    os.waitpid(child, 0)
print(new_number(), new_id("run", 1), flush=True)
"""


def test_child_process_gives_other_ids_than_its_parent() -> None:
    """Parent and child begin with the same random source, which was made at import."""
    printed = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True).stdout.split()

    assert len(printed) == len(set(printed)) == 4
