"""A process that sets and hears reminders is killed with SIGKILL, again and again, on one store.

What it wrote with each batch is a diary: read in order, it must be one that no kill can be seen in. Each reminder that
was set fires from then on at each point of its grid once, told by itself or counted as missed, until it is set anew;
and each that was acknowledged is there.

    CALLBOARD_REMINDER_KILLS=50 pytest -s tests/kill/test_reminder_kills.py      more kills; 6 by default
"""

import os
import random
import signal
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path

import anyio
import msgspec
import pytest
from kill_nursery import Nursery, open_nursery

from callboard.runtime.reminder_records import ReminderRecord, due_value, read_reminder
from callboard.store import Index, LmdbStore, Table

pytestmark = pytest.mark.kill

KILLS = int(os.environ.get("CALLBOARD_REMINDER_KILLS", "6"))
SEED = int(os.environ.get("CALLBOARD_KILL_SEED", random.SystemRandom().randrange(10**6)))
ACTORS = 10
EVERY_MS = 50


class Line(msgspec.Struct):
    """A line of the child's, or a row of a diary."""

    what: str
    key: str = ""
    name: str = ""
    due_ms: int = 0
    missed: int = 0


async def run_until_killed(nursery: Nursery, store: Path, backend: str, acknowledgements: int) -> list[Line]:
    """What the child acknowledged until it was killed, so many acknowledgements after it began."""
    said: list[Line] = []
    arguments = [store, "--backend", backend, "--actors", ACTORS, "--rounds", 60]
    with nursery.open_worker("reminder_worker", *arguments) as child:
        async with aclosing(child.lines()) as lines:
            async for raw in lines:
                said.append(msgspec.json.decode(raw, type=Line))
                if len(said) == acknowledgements:
                    child.kill()
        assert child.wait() == -signal.SIGKILL, child.how_it_ended()
    return [line for line in said if line.what == "set"]


def expected_after(diary: list[Line]) -> tuple[dict[str, ReminderRecord], int]:
    """The reminders that are left after all that the diary tells, and how many fired; fails where it cannot be true."""
    left: dict[str, ReminderRecord] = {}
    fired = 0
    for line in diary:
        every_ms = EVERY_MS if int(line.name[1:]) % 3 == 0 else None
        if line.what == "set":
            left[line.name] = ReminderRecord(line.name, line.due_ms, every_ms)
            continue
        fired += 1
        record = left.pop(line.name)
        assert record.due_ms == line.due_ms
        moved = record.moved_on(line.missed)
        if moved is not None:
            left[line.name] = moved
    return left, fired


def check(path: Path, acknowledged: Mapping[str, list[Line]]) -> int:
    """Check all diaries against what is stored and what was acknowledged; how many firings they tell of."""
    store = LmdbStore(path, readonly=True)
    entries: list[tuple[bytes, str]] = []
    total = 0
    try:
        for key, lines in acknowledged.items():
            stream = f"diary:{key}"
            diary = [msgspec.json.decode(value, type=Line) for _, value in store.scan(stream, Table.MESSAGE)]
            left, fired = expected_after(diary)
            total += fired
            assert len(store.scan(stream, Table.REMINDER)) == len(left)
            for name, record in left.items():
                assert read_reminder(store, stream, name) == record
                entries.append((due_value(record), stream))
            told = [(line.name, line.due_ms) for line in diary if line.what == "set"]
            assert set(told) >= {(line.name, line.due_ms) for line in lines}
        assert sorted((hit.value, hit.stream) for hit in store.scan_index(Index.REMINDER_DUE)) == sorted(entries)
    finally:
        store.close()
    return total


def test_no_kill_loses_a_reminder_or_a_firing_or_tells_one_twice(tmp_path: Path) -> None:
    print(f"\nCALLBOARD_KILL_SEED={SEED} CALLBOARD_REMINDER_KILLS={KILLS}")
    chance = random.Random(SEED)
    path = tmp_path / "store"
    acknowledged: dict[str, list[Line]] = {f"a{number}": [] for number in range(ACTORS)}
    fired: list[int] = []

    with open_nursery() as nursery:
        for kill in range(KILLS):
            backend = ("trio", "asyncio")[kill % 2]
            for line in anyio.run(run_until_killed, nursery, path, backend, chance.randint(20, 400)):
                acknowledged[line.key].append(line)
            fired.append(check(path, acknowledged))

    print(f"{fired} firings after each kill")
    assert fired == sorted(fired)
    assert fired[-1] > 10 * KILLS, "the kills hit next to no firing: they prove nothing"
