"""Every write, sync and change of names in the life of a store goes wrong once in every way; then all is checked.

The life is fault_scenario.py, which uses every operation of the contract, and what looks after a store. Its points are
counted first, then it is played again for each point and each fault: the call fails (EIO, ENOSPC; this once, or from
there on), the disk fills up in the middle of a write, a write is done and yet fails, the process is killed there, or
with half of the write done, or with a random half of its sectors. A kill behind a point is the kill before the next.

What must hold is in fault_model.py: all that was acknowledged is there once and in order, groups whole, nothing of what
was refused, uncertain ones either way; the store can be used, the one that was open as well as one opened anew; its
check finds nothing, and a backup is whole or not there. A migration is done or can be begun again.

    python tests/faults/soak.py       the same with longer lives drawn by chance; part of `make soak`
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_journal import Entry
from fault_lab import Lab, Life, open_lab
from fault_model import digest
from fault_scenario import FINAL

from callboard.store import Store

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

EVERY = int(os.environ.get("CALLBOARD_FAULTS_EVERY", "1"))
"""Only each so-many-th life, where another run plays all of them."""
ALWAYS = ["kill {}", f"fail {{}} {errno.EIO} once", f"fail {{}} {errno.EIO} on"]
WRITES = ["half {}", "tear {0} {0}", "short {}", f"late {{}} {errno.EIO}"]
GOLDEN = str(Path(__file__).parents[1] / "golden" / "format-1" / "data.mdb")
ROOM = [f"fail {{}} {errno.ENOSPC} once", f"fail {{}} {errno.ENOSPC} on"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as lab:
        yield lab


def points_before_the_end(journal: list[Entry]) -> list[Entry]:
    """Those that can go wrong: in the last step the disk is well."""
    end = next(place for place, entry in enumerate(journal) if entry.note is not None and entry.note.text == FINAL)
    return [entry for entry in journal[:end] if entry.point]


def plans_for(points: list[Entry]) -> list[str]:
    """Each fault that can be at each of these points."""
    plans: list[str] = []
    for entry in points:
        faults = [*ALWAYS, *(WRITES if entry.kind.writes else []), *(ROOM if entry.kind.takes_room else [])]
        plans += [fault.format(entry.point) for fault in faults]
    return plans


def points_by_step(journal: list[Entry]) -> dict[str, Counter[str]]:
    """How many points of each kind fell into each step."""
    found: dict[str, Counter[str]] = {}
    step = ""
    for entry in journal:
        if entry.note is not None:
            step = entry.note.text if entry.note.what == "step" else step
        else:
            found.setdefault(step, Counter())[entry.name] += 1
    return found


def table_of(steps: dict[str, Counter[str]]) -> str:
    kinds = sorted({kind for counts in steps.values() for kind in counts})
    rows = [
        f"{step:34}" + "".join(f"{counts[kind] or '':>{len(kind) + 2}}" for kind in kinds)
        for step, counts in steps.items()
    ]
    return "\n".join([" " * 34 + "".join(f"  {kind}" for kind in kinds), *rows])


def contract() -> set[str]:
    """The names of all that a store can be asked."""
    return {name for name in vars(Store) if not name.startswith("_")} - {"inline", "location"}


def test_every_fault_at_every_point_keeps_every_promise(lab: Lab) -> None:
    quiet = lab.play()
    assert quiet.fault == ""
    points = points_before_the_end(quiet.journal)
    plans = plans_for(points)[::EVERY]

    lives = list(lab.play_all(plans))

    print(f"\n{table_of(points_by_step(quiet.journal))}\n{len(points)} points, {len(plans)} lives: {outcomes(lives)}")
    assert [f"{life.plan}: {life.fault}" for life in lives if life.fault] == []
    assert [life.plan for life in lives if not life.hit] == []


def outcomes(lives: list[Life]) -> dict[str, int]:
    """How many lives there were of each kind of fault, and what was raised in them."""
    found = Counter(life.plan.split()[0] for life in lives)
    for life in lives:
        found.update({note.error + "?" * note.uncertain for note in life.notes() if note.what == "raised"})
    return dict(found)


def test_the_scenario_uses_every_operation_and_meets_every_kind_of_point(lab: Lab) -> None:
    life = lab.play()

    steps = points_by_step(life.journal)
    called = {name for note in life.notes() if note.what == "called" for name in note.answers}
    kinds = {kind for counts in steps.values() for kind in counts}
    assert contract() - called == set()
    assert kinds >= {"create", "mkdir", "rename", "unlink", "pwrite", "writev", "pwrite+dsync", "fdatasync", "fsync"}
    assert set(steps) >= {"open a new store", "claim", "append 0", "erase", "checkpoint", "close", "reopen", FINAL}
    assert called >= {"checkpoint", "read only", "back up", "check", "compact", "repair"}


def test_every_fault_at_every_point_of_a_migration_leaves_a_store_that_has_all(lab: Lab) -> None:
    quiet = lab.play(golden=GOLDEN)
    assert quiet.fault == ""
    points = [entry for entry in quiet.journal if entry.point]

    # Most points are writes to a file that nobody opens yet: less of the same is enough.
    plans = [plan for plan in plans_for(points) if plan.startswith(("kill", "half")) or plan.endswith("once")]
    lives = list(lab.play_all(plans[::EVERY], golden=GOLDEN))

    print(f"\n{table_of(points_by_step(quiet.journal))}\n{len(lives)} lives: {outcomes(lives)}")
    assert [f"{life.plan}: {life.fault}" for life in lives if life.fault] == []
    assert {digest(life.found.dump) for life in lives} == {digest(quiet.found.dump)}
    assert [life.plan for life in lives if not life.hit] == []


@pytest.mark.parametrize(
    ("broken", "plan"),
    [("answers early", "kill {}"), ("halves", "kill {}"), ("hides errors", f"fail {{}} {errno.EIO} once")],
)
def test_a_store_that_breaks_a_promise_is_found_out(lab: Lab, broken: str, plan: str) -> None:
    points = [entry.point for entry in points_before_the_end(lab.play(broken=broken).journal)]

    found = [life.fault for life in lab.play_all([plan.format(point) for point in points[::3]], broken=broken)]

    assert any(found), "nothing was found, so the loops prove nothing"


def test_a_life_without_faults_is_the_same_each_time(lab: Lab) -> None:
    first, second = lab.play(), lab.play()

    points = [(entry.point, entry.kind, entry.offset, entry.length) for entry in first.journal if entry.point]
    assert [point for point, *_ in points] == list(range(1, len(points) + 1))
    assert points == [(entry.point, entry.kind, entry.offset, entry.length) for entry in second.journal if entry.point]
