"""The generated programs of test_sessions.py with readers beside them, who stop and go on at any number, in any life.

    CALLBOARD_SEEDS=1000:2000 pytest tests/simulation/test_event_programs.py      other programs than those of CI

Whatever fails, every reader must have seen each event that lasts once and in order, and these must be what the store
says in other ways: the messages, and for each run a way through its statuses to the one that it has.
"""

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import anyio
import pytest
import trio
import trio.testing
from test_sessions import SESSIONS, Program

from callboard import (
    Agent,
    Failed,
    MessageAdded,
    MetadataChanged,
    Rejected,
    RunChanged,
    RunProgress,
    Runtime,
    Session,
    SessionEvent,
    Stopping,
    StoreError,
    Unknown,
)
from callboard.actors.archive import Archive
from callboard.actors.event_log import last_number
from callboard.actors.run_record import TRANSITIONS
from callboard.store import MemoryStore

_first, _last = (int(number) for number in os.environ.get("CALLBOARD_SEEDS", "0:25").split(":"))


@dataclass(slots=True)
class Reader:
    """Reads one session in many pieces. `seen` are the events that last."""

    session: str
    seen: list[SessionEvent] = field(default_factory=list[SessionEvent])
    number: int = 0

    async def read(self, runtime: Runtime, chance: random.Random, program: Program) -> None:
        store = program.store
        for _ in range(chance.randint(1, 6)):
            try:
                events = Session(runtime, self.session).events(after=self.number, progress=chance.random() < 0.5)
                with anyio.move_on_after(chance.choice((0.1, 1.0, 5.0)) * chance.random()):
                    async for event in events:
                        if program.store is not store:
                            return  # the process is dead: what it shows from here on nobody sees
                        self.take(event)
                        if chance.random() < 0.05:
                            break
                        if chance.random() < 0.2:
                            await anyio.sleep(chance.random())
                await events.aclose()
            except Stopping:
                return
            except (Rejected, Failed, Unknown, StoreError):
                pass  # it goes on where it was
            await anyio.sleep(chance.choice((0.0, 0.5)) * chance.random())

    def take(self, event: SessionEvent) -> None:
        if isinstance(event, RunProgress):
            assert event.number <= self.number or not self.seen
            return
        assert event.number > self.number, "an event came twice, or late"
        self.seen.append(event)
        self.number = event.number


class ReadProgram(Program):
    """Each caller has a reader beside it, one that rests or a new one."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.readers: list[Reader] = []
        self._resting: list[Reader] = []

    async def _caller(self, runtime: Runtime, agents: list[Agent], chance: random.Random) -> None:
        if self._resting and chance.random() < 0.7:
            reader = self._resting.pop(chance.randrange(len(self._resting)))
        else:
            reader = Reader(chance.choice(SESSIONS))
            self.readers.append(reader)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.read, runtime, chance, self)
            await super()._caller(runtime, agents, chance)
        self._resting.append(reader)

    async def run(self) -> None:
        await super().run()
        store = self.store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            archive = Archive(store)
            for session in SESSIONS:
                last = last_number(archive.head(session))
                whole = await read_to(runtime, session, after=0, last=last)
                check_against_store(session, whole, store)
                for reader in self.readers:
                    if reader.session == session:
                        rest = await read_to(runtime, session, after=reader.number, last=last)
                        assert reader.seen + rest == whole


async def read_to(runtime: Runtime, session: str, *, after: int, last: int) -> list[SessionEvent]:
    seen: list[SessionEvent] = []
    async with Session(runtime, session).events(after=after) as events:
        while events.number < last:
            seen.append(await anext(events))
    return seen


def check_against_store(session: str, events: Iterable[SessionEvent], store: MemoryStore) -> None:
    archive = Archive(store)
    events = list(events)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.message for event in events if isinstance(event, MessageAdded)] == archive.messages(session)
    statuses: dict[str, str] = {}
    written: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, RunChanged):
            before = statuses.get(event.run_id, "queued")
            assert before == event.status == "queued" or event.status in TRANSITIONS[before]  # type: ignore[index] # pyright: ignore[reportArgumentType] -- a status as text
            statuses[event.run_id] = event.status
        elif isinstance(event, MessageAdded) and event.message.run_id is not None:
            assert statuses[event.message.run_id] == "running", "a message of a run that does not run"
            written.setdefault(event.message.run_id, []).append(event.message.seq)
        else:
            assert isinstance(event, MessageAdded | MetadataChanged)
    assert statuses == {record.id: record.status for record in archive.runs(session)}
    for record in archive.runs(session):
        assert written.get(record.id, []) == list(
            range(record.first_seq, record.last_seq + 1) if record.first_seq else []
        )


@pytest.mark.parametrize("seed", range(_first, _last))
def test_readers_that_stop_and_go_on_anywhere_see_every_event_once_and_in_order(seed: int) -> None:
    print(f"seed {seed}: CALLBOARD_SEEDS={seed}:{seed + 1} repeats it")
    random.seed(seed)  # backoffs
    trio._core._run._r.seed(seed)  # type: ignore[attr-defined] # pyright: ignore -- trio has no public way to fix its schedule
    trio.run(ReadProgram(seed).run, clock=trio.testing.MockClock(autojump_threshold=0))
