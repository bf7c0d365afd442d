"""A process with a reader of events is killed with SIGKILL, again and again; each life's reader goes on where the last
one was. Together they saw every event that lasts, once and in order, and what they saw is what the store has."""

from contextlib import aclosing
from pathlib import Path

import anyio
import msgspec
import pytest
from kill_nursery import Nursery, open_nursery

from callboard.actors.archive import Archive

pytestmark = pytest.mark.kill

KILLS = 4
EVENTS_A_LIFE = 45


class Line(msgspec.Struct):
    """What the child prints for an event."""

    number: int
    event: str


async def read_until_killed(nursery: Nursery, store: Path, backend: str, after: int) -> list[Line]:
    seen: list[Line] = []
    with nursery.open_worker("event_worker", store, "--backend", backend, "--after", after) as child:
        async with aclosing(child.lines()) as lines:
            async for raw in lines:
                seen.append(msgspec.json.decode(raw, type=Line))
                if len(seen) == EVENTS_A_LIFE:
                    child.kill()
        assert child.wait() < 0, child.how_it_ended()
    return seen


def test_readers_of_killed_processes_see_together_every_event_once_and_in_order(tmp_path: Path) -> None:
    async def body() -> None:
        with open_nursery() as nursery:
            for number in range(KILLS):
                backend = ("trio", "asyncio")[number % 2]
                seen.extend(await read_until_killed(nursery, store, backend, seen[-1].number if seen else 0))

    store, seen = tmp_path / "store", list[Line]()
    anyio.run(body)
    with Archive.open(store) as archive:
        stored = archive.events("s", limit=100_000)

    assert [line.number for line in seen] == list(range(1, len(seen) + 1))
    assert len(seen) >= KILLS * EVENTS_A_LIFE
    assert [line.event for line in seen] == [repr(event) for event in stored[: len(seen)]]
