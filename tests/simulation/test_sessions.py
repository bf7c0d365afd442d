"""Generated programs over sessions and agents: callers that come and go, models that fail, a store that fails,
processes that end well or crash and start again on what was stored. In virtual time, repeatable by its seed.

    CALLBOARD_SEEDS=1000:2000 pytest tests/simulation/test_sessions.py      other programs than those of CI

What must hold is in `Witness`: it hears of every call and its outcome, and looks at what is stored after each life.
"""

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import anyio
import pytest
import trio
import trio.testing

from callboard import (
    Agent,
    BadRequest,
    Failed,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    RateLimited,
    Rejected,
    RunPolicy,
    Runtime,
    Session,
    StoreError,
    StoreUnavailable,
    Template,
    ToolCall,
    Unknown,
)
from callboard.actors.archive import Archive
from callboard.actors.conversation import units
from callboard.actors.model import OnDelta
from callboard.actors.session_records import stream_of
from callboard.runtime import Backoff
from callboard.store import Index, MemoryStore, Table
from callboard.testing import ScriptedModel, model_answer

_first, _last = (int(number) for number in os.environ.get("CALLBOARD_SEEDS", "0:60").split(":"))
SEEDS = range(_first, _last)

SESSIONS = ("a", "b", "c")
DRAIN_S = 5.0
POLICY = RunPolicy(attempts_max=3, backoff=Backoff(first_s=0.1, max_s=1.0), model_calls_max=5, timeout_s=60.0)
Outcome: TypeAlias = Literal["stored", "not stored", "unknown"]


class Crash(Exception):
    """The process ends here."""


@dataclass(slots=True)
class Call:
    """One chat or append, by the text that only it has. `seqs` are the places that its reply named."""

    session: str
    text: str
    began_s: float
    ended_s: float = 0.0
    outcome: Outcome | None = None
    messages: tuple[Message, ...] = ()


@dataclass
class Witness:
    """Hears of every call, and checks what is stored against it."""

    calls: dict[str, Call] = field(default_factory=dict[str, Call])
    faults: list[str] = field(default_factory=list[str])

    def begin(self, session: str, text: str) -> Call:
        call = self.calls[text] = Call(session, text, anyio.current_time())
        return call

    def end(self, call: Call, outcome: Outcome, messages: tuple[Message, ...] = ()) -> None:
        assert call.outcome is None, f"{call} ended twice"
        call.outcome, call.messages, call.ended_s = outcome, messages, anyio.current_time()

    def check_stored(self, store: MemoryStore) -> None:
        """After a recovery, before anything new: each call is stored as its outcome said, once, whole, in order."""
        assert self.faults == []
        assert store.scan_index(Index.OPEN_RUN) == [], "a run stays open"
        archive = Archive(store)
        for session in SESSIONS:
            messages = archive.messages(session)
            self.check_history(session, messages)
            self.check_turns(session, archive, messages)
            for row in store.scan(stream_of(session), Table.STEP):
                turn = int.from_bytes(row[0][:8], "big")
                statuses = [record.status for record in archive.runs(session) if record.turn == turn]
                assert statuses == ["interrupted"], "a step outlived the end of its turn"

    def check_history(self, session: str, messages: list[Message]) -> None:
        assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
        places = {message.text: message.seq for message in messages if message.role == "user"}
        assert len(places) == sum(message.role == "user" for message in messages), "a message is doubled"
        calls = [call for call in self.calls.values() if call.session == session]
        for call in calls:
            if call.outcome == "stored":
                first, last = call.messages[0].seq, call.messages[-1].seq
                assert tuple(messages[first - 1 : last]) == call.messages, f"{call.text} is not stored as it was told"
            elif call.outcome == "not stored":
                assert call.text not in places, f"{call.text} is stored, and its caller was told that it is not"
        assert places.keys() <= {call.text for call in calls}
        # What had ended before another call began stands before it.
        stored = sorted((call for call in calls if call.text in places), key=lambda call: places[call.text])
        latest_began_s = 0.0
        for call in stored:
            assert call.outcome != "stored" or call.ended_s >= latest_began_s, f"{call.text} is out of order"
            latest_began_s = max(latest_began_s, call.began_s)

    def check_turns(self, session: str, archive: Archive, messages: list[Message]) -> None:
        records = {record.id: record for record in archive.runs(session)}
        begun = [record for record in records.values() if record.turn]
        assert all(record.manual or record.status == "cancelled" for record in records.values() if not record.turn)
        turns = [record.turn for record in begun]
        assert len(turns) == len(set(turns)), "two runs had one turn"
        assert all(not record.is_open for record in records.values())
        last_turn = seq = 0
        for message in messages:
            if message.seq <= seq or message.run_id is None:
                continue
            record = records[message.run_id]
            group = messages[record.first_seq - 1 : record.last_seq]
            seq = record.last_seq
            assert record.first_seq == message.seq
            assert record.status == "completed"
            assert record.turn > last_turn, "turns go back"
            last_turn = record.turn
            assert {each.run_id for each in group} == {record.id}, "half a turn is visible"
            assert (group[0].role, group[-1].role, group[-1].tool_calls) == ("user", "assistant", ())
            assert units(group)  # raises where a tool call and its results are parted
        written = {message.run_id for message in messages if message.run_id is not None}
        assert written == {record.id for record in records.values() if record.first_seq}


class WildModel(ScriptedModel):
    """Answers, calls tools, fails, crashes and talks nonsense by chance; sees that it is called as it may be."""

    def __init__(self, chance: random.Random, witness: Witness, in_flight: dict[str, int]) -> None:
        super().__init__()
        self._chance = chance
        self._witness = witness
        self._in_flight_by = in_flight
        self._calls = 0

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        system, *history = request.messages
        session = system.text
        try:
            units(history)
        except ValueError as error:
            self._witness.faults.append(f"sent to the model: {error}")
        self._in_flight_by[session] = self._in_flight_by.get(session, 0) + 1
        if self._in_flight_by[session] > 1:
            self._witness.faults.append(f"two turns at once in session {session}")
        try:
            await anyio.sleep(self._chance.choice((0.0, 0.0, 0.1, 1.0, 20.0)) * self._chance.random())
            return self._say(on_delta)
        finally:
            self._in_flight_by[session] -= 1

    def _say(self, on_delta: OnDelta | None) -> ModelAnswer:
        self._calls += 1
        lot = self._chance.random()
        if lot < 0.45:
            return model_answer(f"answer {self._calls}")
        if lot < 0.75:
            names = self._chance.choices(("quick", "slow", "broken", "unknown"), k=self._chance.randint(1, 3))
            # Ids come again, as some servers make them.
            return model_answer(tool_calls=[ToolCall(f"call_{n}", name) for n, name in enumerate(names)])
        if lot < 0.85:
            raise self._chance.choice([ModelUnavailable("busy"), RateLimited("slow down", retry_after_s=3.0)])
        if lot < 0.90:
            raise RuntimeError("a crash")
        if lot < 0.95:
            return ModelAnswer(Message(role="assistant"), "stop")
        raise BadRequest("never")


async def quick() -> str:
    return "quick"


async def slow() -> str:
    await anyio.sleep(random.random())
    return "slow"


async def broken() -> str:
    raise RuntimeError("broken")


class Program:
    """One seed's lives."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.witness = Witness()
        self.store = MemoryStore()
        self._texts = 0

    async def run(self) -> None:
        for _ in range(self.chance.randint(2, 4)):
            with anyio.fail_after(100_000):  # of virtual seconds: whoever waits for ever is found
                await self._live()
            self.store = self.store.reopened()
        async with Runtime.on(lambda: self.store):
            self.witness.check_stored(self.store)
        assert all(call.outcome is not None for call in self.witness.calls.values()), "a call never ended"

    async def _live(self) -> None:
        """One process: open, check what is there, work, end well or crash."""
        store = self.store
        crashes = self.chance.random() < 0.5
        async with anyio.create_task_group() as callers:
            try:
                async with Runtime.on(lambda: store, drain_timeout_s=DRAIN_S) as runtime:
                    self.witness.check_stored(store)
                    in_flight: dict[str, int] = {}
                    agents = [self._agent(name, runtime, in_flight) for name in ("Ann", "Bob")]
                    for _ in range(self.chance.randint(3, 8)):
                        callers.start_soon(self._caller, runtime, agents, random.Random(self.chance.random()))
                    for _ in range(self.chance.randint(0, 4)):
                        await anyio.sleep(self.chance.random() * 4)
                        self._fail_store(store)
                    await anyio.sleep(self.chance.random() * 4)
                    if crashes:
                        self.store = store.reopened()  # from here on nothing of this life is stored
                        raise Crash
            except Crash:
                pass

    def _agent(self, name: str, runtime: Runtime, in_flight: dict[str, int]) -> Agent:
        return Agent(
            name,
            model=WildModel(random.Random(self.chance.random()), self.witness, in_flight),
            runtime=runtime,
            instructions=Template("$session_id"),
            tools=[quick, slow, broken],
            policy=RunPolicy(
                attempts_max=3, backoff=Backoff(first_s=0.1, max_s=1.0), model_calls_max=5, timeout_s=60.0
            ),
        )

    def _fail_store(self, store: MemoryStore) -> None:
        lot = self.chance.random()
        for _ in range(self.chance.choice((1, 1, 1, 3))):
            if lot < 0.3:
                store.fail_next_commit(StoreUnavailable("refused"))
            elif lot < 0.6:
                store.fail_next_commit(StoreUnavailable("answer lost", uncertain=True), after_write=True)
            elif lot < 0.8:
                store.fail_next_commit(StoreUnavailable("lost", uncertain=True))
            else:
                store.fail_next_read(StoreUnavailable("not read"))

    async def _caller(self, runtime: Runtime, agents: list[Agent], chance: random.Random) -> None:
        for _ in range(chance.randint(1, 5)):
            await anyio.sleep(chance.choice((0.0, 0.0, 0.5, 2.0)) * chance.random())
            try:
                session = Session(runtime, chance.choice(SESSIONS))
            except Rejected:
                return
            agent, lot = chance.choice(agents), chance.random()
            if lot < 0.5:
                await self._call(session, lambda text, a=agent, s=session: chat(a, s, text, chance), chance)
            elif lot < 0.65:
                await self._call(session, lambda text, a=agent, s=session: stream(a, s, text, chance), chance)
            elif lot < 0.85:
                await self._call(session, lambda text, s=session: append(s, text), chance)
            else:
                await look_around(session, chance)

    async def _call(
        self, session: Session, send: Callable[[str], Awaitable[tuple[Message, ...]]], chance: random.Random
    ) -> None:
        self._texts += 1
        call = self.witness.begin(session.id, f"text {self._texts}")
        patience_s = chance.choice((0.0, 0.2, 2.0, 10.0)) if chance.random() < 0.3 else 1e6
        outcome: Outcome = "unknown"  # also of a call that is given up, and of a stream that is left early
        messages: tuple[Message, ...] = ()
        with anyio.move_on_after(patience_s):
            try:
                messages = await send(call.text)
                outcome = "stored" if messages else "unknown"
            except Unknown:
                pass
            except (Failed, Rejected, StoreError):
                outcome = "not stored"
        self.witness.end(call, outcome, messages)


async def chat(agent: Agent, session: Session, text: str, chance: random.Random) -> tuple[Message, ...]:
    reply = await agent.chat(text, session=session, overlap="reject" if chance.random() < 0.1 else "queue")
    return reply.messages


async def stream(agent: Agent, session: Session, text: str, chance: random.Random) -> tuple[Message, ...]:
    events_max = chance.choice((0, 1, 5, 1_000))
    async with agent.stream(text, session=session) as events:
        async for _ in events:
            events_max -= 1
            if events_max <= 0:
                return ()
        return events.reply.messages


async def append(session: Session, text: str) -> tuple[Message, ...]:
    return (await session.add_message("user", text),)


async def look_around(session: Session, chance: random.Random) -> None:
    """What a display would ask for, and a run by hand, which is left open or not."""
    try:
        messages = await session.messages(limit=5)
        assert [message.seq for message in messages] == sorted({message.seq for message in messages})
        assert units([message for message in await session.messages() if message.run_id is not None]) is not None
        await session.update_metadata({"n": chance.random()})
        by_hand = await session.create_run()
        await by_hand.start()
        if chance.random() < 0.5:
            await by_hand.complete(tokens_used=1)
    except (Failed, Rejected, Unknown, StoreError):
        pass


@pytest.mark.parametrize("seed", SEEDS)
def test_sessions_keep_their_promises_through_whatever_happens(seed: int) -> None:
    print(f"seed {seed}: CALLBOARD_SEEDS={seed}:{seed + 1} repeats it")
    random.seed(seed)  # backoffs
    trio._core._run._r.seed(seed)  # type: ignore[attr-defined] # pyright: ignore -- trio has no public way to fix its schedule
    trio.run(Program(seed).run, clock=trio.testing.MockClock(autojump_threshold=0))
