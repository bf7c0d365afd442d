"""A process whose turns call tools is killed with SIGKILL between, before and in the calls, again and again.

What the tools did stands in a file that no kill takes back. At the end every turn is there whole, no call that may
happen once only was begun twice, and each result that history shows is one that the world has seen.

    CALLBOARD_TOOL_KILLS=100 pytest -s tests/kill/test_tool_kills.py        more kills; 12 by default
"""

import os
import random
import signal
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from kill_nursery import Nursery, open_nursery

from callboard.actors.archive import Archive
from callboard.actors.conversation import INTERRUPTED_RESULT, units
from callboard.actors.session_records import stream_of
from callboard.store import Index, LmdbStore, Table

pytestmark = pytest.mark.kill

KILLS = int(os.environ.get("CALLBOARD_TOOL_KILLS", "12"))
SEED = int(os.environ.get("CALLBOARD_KILL_SEED", random.SystemRandom().randrange(10**6)))
SESSIONS = 8
TURNS = 6


async def run_worker(nursery: Nursery, path: Path, backend: str, *, kill_after: int | None) -> bool:
    """Run a worker, to its end or until it has printed so many lines; True where it was killed."""
    arguments = [path / "db", path / "effects", "--backend", backend, "--sessions", SESSIONS, "--turns", TURNS]
    printed = 0
    with nursery.open_worker("tool_worker", *arguments) as child:
        async with aclosing(child.lines()) as lines:
            async for _ in lines:
                printed += 1
                if printed == kill_after:
                    child.kill()
        code = child.wait()
        assert code in (0, -signal.SIGKILL), child.how_it_ended()
    return code != 0


def check(path: Path) -> Counter[str]:
    """Check what is stored against what the tools did; how the calls ended, and how many were repeated."""
    began, ended = Counter[str](), Counter[str]()
    for line in (path / "effects").read_text().splitlines():
        word, key = line.split()
        (began if word == "begin" else ended)[key] += 1
    tally: Counter[str] = Counter(repeated=sum(count > 1 for count in began.values()))
    assert all(count == 1 for key, count in began.items() if ":charge" in key)
    store = LmdbStore(path / "db", readonly=True)
    try:
        assert store.scan_index(Index.OPEN_RUN) == []
        for number in range(SESSIONS):
            archive, session_id = Archive(store), f"s{number}"
            messages = archive.messages(session_id)
            assert units(messages)
            asked = [message.text for message in messages if message.role == "user"]
            assert asked == [f"turn {turn}" for turn in range(1, TURNS + 1)]
            assert [run.status for run in archive.runs(session_id)].count("completed") == TURNS
            assert store.scan(stream_of(session_id), Table.STEP) == []
            for message in messages:
                if message.role == "tool":
                    key = f"{message.run_id}:{message.tool_call_id}"
                    tally[check_result(message.text, key, ended[key])] += 1
    finally:
        store.close()
    return tally


def check_result(text: str, key: str, ended: int) -> str:
    if text == INTERRUPTED_RESULT:
        assert ":charge" in key, "what may be repeated was"
        return "interrupted"
    assert text == "acted"
    assert ended >= 1, "a result of what never happened"
    return "acted"


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_killed_process_repeats_no_call_that_may_happen_once_only(tmp_path: Path, backend: str) -> None:
    print(f"\nCALLBOARD_KILL_SEED={SEED}")
    chance = random.Random(f"{SEED} {backend}")

    async def body() -> int:
        kills = 0
        with open_nursery() as nursery, anyio.fail_after(120):
            for _ in range(KILLS):
                kills += await run_worker(nursery, tmp_path, backend, kill_after=chance.randint(1, 40))
            await run_worker(nursery, tmp_path, backend, kill_after=None)
        return kills

    kills = anyio.run(body, backend=backend)
    tally = check(tmp_path)

    print(f"{kills} kills, {dict(tally)}")
    assert tally["acted"] + tally["interrupted"] == SESSIONS * TURNS * 4
    assert tally["interrupted"] > 0, "no kill hit a call: they prove nothing"
    assert tally["repeated"] > 0, "no kill hit a call that is repeated: they prove nothing"
