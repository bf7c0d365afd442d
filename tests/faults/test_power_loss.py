"""The power fails at every point in the life of a store; what the disk may then hold is opened, and all is checked.

One life is played and all its writes, syncs and names are recorded (interpose.c). For each place in that record the
disk is worked out (fault_disk.py): what was synced is there, of the rest nothing, or any sectors. Each such disk is
opened by a process of its own. With durability "sync" all that was acknowledged by then must be there, groups whole.

"async" promises less. A disk that has all that was written up to some moment has all that was acknowledged by then: a
process that dies loses nothing, and a power loss on a disk that writes in order loses the end. What was there at the
last sync (once a second, on claim and on close) is there. Where the disk wrote later pages and not earlier ones, LMDB
promises nothing, and neither do we.
"""

import errno
import random
import shutil
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
from fault_disk import Disk, Files
from fault_journal import Kind
from fault_lab import Lab, Life, open_lab
from fault_model import Possible
from test_every_point import EVERY

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

Disks: TypeAlias = Callable[[Disk, random.Random], list[Files]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as lab:
        yield lab


def any_disk(disk: Disk, chance: random.Random) -> list[Files]:
    """Nothing of what is loose, and some of it in sectors of either size."""
    return [disk.certain(), disk.some(chance, sector_bytes=512), disk.some(chance, sector_bytes=4096)]


def cuts(life: Life, disks: Disks, chance: random.Random, *, behind: int) -> Iterator[tuple[str, Files, Possible]]:
    """Every place of the life at which the power can fail, with disks that it may leave, and what they may show."""
    disk, possible = Disk(life.root), Possible()
    step = ""
    for entry in life.journal:
        if entry.note is not None:
            possible.note(entry.note)
            step = entry.note.text if entry.note.what == "step" else step
            continue
        disk.apply(entry)
        for files in disks(disk, chance) if entry.point > behind else []:
            yield f"{step}, after point {entry.point}", files, possible.died()


def broken_at(lab: Lab, life: Life, disks: Disks, *, seed: int = 1, behind: int = 0) -> tuple[int, list[str]]:
    """How many disks were looked at, all of them of points behind so many, and what was broken on which."""
    tried = list(cuts(life, disks, random.Random(seed), behind=behind))[::EVERY]
    faults = lab.look_all([(files, possible) for _, files, possible in tried])
    return len(tried), [f"{where}: {fault}" for (where, _, _), fault in zip(tried, faults, strict=True) if fault]


def test_nothing_acknowledged_is_lost_wherever_the_power_fails(lab: Lab) -> None:
    life = lab.play(with_bytes=True)
    assert life.fault == ""

    count, broken = broken_at(lab, life, any_disk)

    print(f"\n{count} disks after {sum(entry.point > 0 for entry in life.journal)} points")
    assert broken == []


def test_nothing_acknowledged_is_lost_where_a_sync_had_failed_before(lab: Lab) -> None:
    syncs = [entry.point for entry in lab.play().journal if entry.kind == Kind.FDATASYNC or entry.dsync]
    chosen = random.Random(1).sample(syncs[3:-8], 2)

    for point in chosen:
        life = lab.play(f"fail {point} {errno.EIO} once", with_bytes=True)
        assert life.fault == ""
        _, broken = broken_at(lab, life, lambda disk, chance: [disk.some(chance, sector_bytes=512)], behind=point)
        assert broken == []


def test_a_store_that_does_not_sync_is_found_out(lab: Lab) -> None:
    life = lab.play(with_bytes=True, durability="async")

    _, broken = broken_at(lab, life, lambda disk, chance: [disk.certain()])

    assert broken, "nothing was found, so the test above proves nothing"


def test_async_loses_nothing_where_the_disk_has_all_that_was_written(lab: Lab) -> None:
    life = lab.play(with_bytes=True, durability="async")
    assert life.fault == ""

    _, broken = broken_at(lab, life, lambda disk, chance: [disk.everything()])

    assert broken == []


def test_async_loses_nothing_of_what_came_before_a_sync(lab: Lab) -> None:
    life = lab.play(with_bytes=True, durability="async")

    count, broken = broken_at(lab, life, lambda disk, chance: [disk.certain()] if disk.all_certain else [])

    assert count > 10 / EVERY
    assert broken == []
