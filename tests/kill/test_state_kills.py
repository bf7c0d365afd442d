"""A process whose turns change state is killed with SIGKILL again and again; each delta is applied once all the same.

CALLBOARD_STATE_KILLS=200 pytest -s tests/kill/test_state_kills.py        more kills; 8 by default
"""

import os
import random
import signal
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from kill_nursery import Nursery, open_nursery
from state_worker import owner_of

from callboard.actors.archive import Archive
from callboard.actors.state_records import read_values
from callboard.store import Index, LmdbStore, Store, Table

pytestmark = pytest.mark.kill

KILLS = int(os.environ.get("CALLBOARD_STATE_KILLS", "8"))
SEED = int(os.environ.get("CALLBOARD_KILL_SEED", random.SystemRandom().randrange(10**6)))
SESSIONS = 6
TURNS = 5 + KILLS // 2


async def run_worker(nursery: Nursery, path: Path, backend: str, *, kill_after: int | None) -> bool:
    """Run a worker, to its end or until it has printed so many lines and a moment more; True where it was killed."""
    arguments = [path, "--backend", backend, "--sessions", SESSIONS, "--turns", TURNS]
    printed = 0
    with nursery.open_worker("state_worker", *arguments) as child:
        async with aclosing(child.lines()) as lines:
            async for _ in lines:
                printed += 1
                if printed == kill_after:
                    await anyio.sleep(random.random() * 0.003)
                    child.kill()
        code = child.wait()
        assert code in (0, -signal.SIGKILL), child.how_it_ended()
    return code != 0


def completed_runs(store: Store) -> dict[str, list[str]]:
    """By session, in the order of their turns."""
    archive = Archive(store)
    runs: dict[str, list[str]] = {}
    for number in range(SESSIONS):
        records = [record for record in archive.runs(f"s{number}") if record.status == "completed"]
        runs[f"s{number}"] = [record.id for record in sorted(records, key=lambda record: record.turn)]
        assert len(records) == TURNS
    return runs


def expected(runs: dict[str, list[str]], sessions: list[str]) -> dict[str, object]:
    values: dict[str, object] = {"turns": TURNS * len(sessions)}
    for session_id in sessions:
        values |= dict.fromkeys(runs[session_id], session_id)
        values[f"last of {session_id}"] = runs[session_id][-1]
    return values


def test_each_delta_is_applied_once_however_often_the_process_is_killed(tmp_path: Path) -> None:
    print(f"\nCALLBOARD_KILL_SEED={SEED}")
    chance = random.Random(SEED)
    left: list[int] = []

    def on_its_way() -> int:
        store = LmdbStore(tmp_path, readonly=True)
        try:
            return len(store.scan_index(Index.OUTBOX_DUE))
        finally:
            store.close()

    async def body() -> None:
        with open_nursery() as nursery, anyio.fail_after(60):
            for number in range(KILLS):
                backend = ("trio", "asyncio")[number % 2]
                if await run_worker(nursery, tmp_path, backend, kill_after=chance.randint(1, 6)):
                    left.append(on_its_way())
            await run_worker(nursery, tmp_path, "trio", kill_after=None)

    anyio.run(body)

    store = LmdbStore(tmp_path, readonly=True)
    try:
        runs = completed_runs(store)
        for session_id in runs:
            assert read_values(store, f"session:{session_id}") == expected(runs, [session_id])
        for owner in ("ann", "bob"):
            own = [f"s{number}" for number in range(SESSIONS) if owner_of(number) == owner]
            assert read_values(store, f"state:user:{owner}") == expected(runs, own)
        assert read_values(store, "state:app") == expected(runs, list(runs))
        assert all(store.scan(f"session:{session_id}", Table.OUTBOX) == [] for session_id in runs)
        assert store.scan_index(Index.OUTBOX_DUE) == []
    finally:
        store.close()
    print(f"{len(left)} kills, {sum(left)} outboxes left to the next process")
    assert sum(left) > 0, "no kill left anything on its way: they prove nothing"
