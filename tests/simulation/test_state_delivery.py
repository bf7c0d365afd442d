"""Deltas of turns reach app and users exactly once, whatever fails or crashes, and wherever.

First every commit and every read of a small program, with each kind of fault, and with a crash before and after it;
then generated programs in virtual time, repeatable by their seeds.

    CALLBOARD_STATE_SEEDS=1000:3000 pytest tests/simulation/test_state_delivery.py      other programs than those of CI

What must hold: a delta is applied once where its turn is in history, and never where it is not; in one session, what a
later turn set stays; at the end nothing is on its way, and nobody remembers deliveries.
"""

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import count
from typing import Any, Literal, TypeAlias

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from callboard import (
    Agent,
    AppState,
    CallboardError,
    ModelAnswer,
    ModelRequest,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    StoreUnavailable,
    Tool,
    ToolCall,
    ToolContext,
    Unknown,
    UserState,
)
from callboard.actors.archive import Archive
from callboard.actors.state_records import STATE_KIND, read_values
from callboard.runtime import Backoff
from callboard.store import Batch, Index, MemoryStore, Table
from callboard.store.contract import Head, Refusal
from callboard.testing import ScriptedModel, crash_next, model_answer

_first, _last = (int(number) for number in os.environ.get("CALLBOARD_STATE_SEEDS", "0:30").split(":"))
SEEDS = range(_first, _last)

OWNERS = {"s1": "ann", "s2": "ann", "s3": "bob"}
POLICY = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.1), timeout_s=200.0)


class FaultyStore(MemoryStore):
    """Does what `at` orders just before the commit, or the read, of this number, counted from 0.

    `crash`: from then on nothing is stored, and `left` is what the next process finds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[tuple[str, int], Callable[[], None]] = {}
        self.counts: Counter[str] = Counter()
        self.left: MemoryStore | None = None

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        self._next("commit")
        return super().commit(batches)

    def load(self, stream: str) -> Head | None:
        self._next("read")
        return super().load(stream)

    def scan(self, stream: str, table: Table, **options: Any) -> list[tuple[bytes, bytes]]:
        self._next("read")
        return super().scan(stream, table, **options)

    def crash(self) -> None:
        self.left = self.reopened()

    def _next(self, what: str) -> None:
        fault = self.at.get((what, self.counts[what]))
        self.counts[what] += 1
        if fault is not None:
            fault()


def say(request: ModelRequest) -> ModelAnswer:
    if request.messages[-1].role == "tool":
        return model_answer("done")
    return model_answer(tool_calls=[ToolCall("call_1", "work")])


async def work(context: ToolContext) -> str:
    """The turn of this run: its id is counted, and the session's latest turn is set, in each scope."""
    await anyio.lowlevel.checkpoint()
    for state in (context.session_state, context.user_state, context.app_state):
        state.increment("turns")
        state[context.run_id[-60:]] = context.turn
        state[f"last of {context.session_id}"] = context.turn
    return "worked"


def worker_on(runtime: Runtime) -> Agent:
    return Agent("Worker", model=ScriptedModel(say), runtime=runtime, tools=[work], policy=POLICY)


async def chat(runtime: Runtime, agent: Agent, session_id: str) -> None:
    """Whatever becomes of it: what is stored says."""
    with suppress(CallboardError):
        await agent.chat("go", session=Session(runtime, session_id, owner=OWNERS[session_id]))


def in_virtual_time(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(100_000):
            await body()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def completed_turns(store: MemoryStore) -> dict[str, list[tuple[str, int]]]:
    """By session, the runs in history with their turns, in order."""
    archive = Archive(store)
    turns: dict[str, list[tuple[str, int]]] = {}
    for session_id in OWNERS:
        records = [record for record in archive.runs(session_id) if record.status == "completed"]
        turns[session_id] = sorted(((record.id, record.turn) for record in records), key=lambda each: each[1])
        in_history = {message.run_id for message in archive.messages(session_id)}
        assert in_history == {id for id, _ in turns[session_id]}
    return turns


def expected(turns: dict[str, list[tuple[str, int]]]) -> dict[str, Any]:
    """What the turns of these sessions leave in a scope that they share."""
    values: dict[str, Any] = {}
    for session_id, of_session in turns.items():
        for run_id, turn in of_session:
            values[run_id[-60:]] = turn
            values[f"last of {session_id}"] = turn
        if of_session:
            values["turns"] = values.get("turns", 0) + len(of_session)
    return values


def check_all_delivered(store: MemoryStore) -> dict[str, list[tuple[str, int]]]:
    """Each delta of a turn in history was applied once, no other was; returns these turns."""
    store = store.reopened()
    in_virtual_time(partial(look_at, store))
    store = store.reopened()
    turns = completed_turns(store)
    for session_id in OWNERS:
        assert read_values(store, f"session:{session_id}") == expected({session_id: turns[session_id]})
        assert store.scan(f"session:{session_id}", Table.OUTBOX) == []
    streams = {"state:app": list(OWNERS), "state:user:ann": ["s1", "s2"], "state:user:bob": ["s3"]}
    for stream, sessions in streams.items():
        assert read_values(store, stream) == expected({id: turns[id] for id in sessions}), stream
        assert store.scan(stream, Table.OUTBOX) == [], "a delivery is remembered for ever"
    assert store.scan_index(Index.OUTBOX_DUE) == []
    return turns


async def look_at(store: MemoryStore) -> None:
    """Start a process, and load all who have state."""
    async with Runtime.on(lambda: store) as runtime:
        assert store.scan_index(Index.OUTBOX_DUE) == []
        for state in (AppState(runtime), UserState(runtime, "ann"), UserState(runtime, "bob")):
            await state.get()


async def until_delivered(runtime: Runtime) -> None:
    """Until nothing is on its way; the pauses after failures are part of it."""
    with anyio.fail_after(100):
        # Nobody tells of the end of a pause: virtual time passes.
        while runtime.store.scan_index(Index.OUTBOX_DUE) or not await runtime.wait_quiet(timeout_s=10):  # noqa: ASYNC110
            await anyio.sleep(0.2)


# Every fault point ----------------------------------------------------------------------------------------------------


async def play(store: MemoryStore) -> None:
    """Two turns in a row in one session, and one beside them in another."""
    async with Runtime.on(lambda: store, drain_timeout_s=100.0) as runtime:
        agent = worker_on(runtime)
        async with anyio.create_task_group() as tasks:
            for session_id in ("s1", "s1", "s3"):
                tasks.start_soon(chat, runtime, agent, session_id)
        await until_delivered(runtime)


@cache
def points() -> Counter[str]:
    """How many commits and reads the program makes where nothing fails."""
    store = FaultyStore()
    in_virtual_time(partial(play, store))
    counts = Counter(store.counts)
    assert sorted(len(turns) for turns in check_all_delivered(store).values()) == [0, 1, 2]
    return counts


Kind: TypeAlias = Literal["refused", "lost", "answer lost"]


@pytest.mark.parametrize("kind", ["refused", "lost", "answer lost"])
def test_delta_is_applied_once_whichever_commit_fails(kind: Kind) -> None:
    for number in range(points()["commit"]):
        store = FaultyStore()
        error = StoreUnavailable("the disk says no", uncertain=kind != "refused")
        fail = partial(store.fail_next_commit, error, after_write=kind == "answer lost")
        store.at["commit", number] = fail

        in_virtual_time(partial(play, store))

        turns = check_all_delivered(store)
        assert sum(map(len, turns.values())) >= 2, f"commit {number}: one fault costs more than its own turn"


def test_delta_is_applied_once_whichever_read_fails() -> None:
    for number in range(points()["read"]):
        store = FaultyStore()
        store.at["read", number] = partial(store.fail_next_read, StoreUnavailable("not read"))

        in_virtual_time(partial(play, store))

        check_all_delivered(store)


async def play_for_a_while(store: MemoryStore) -> None:
    """A process whose store is gone does not come to its end."""
    with suppress(StoreUnavailable), anyio.move_on_after(60):
        await play(store)


async def recover(store: MemoryStore) -> None:
    async with Runtime.on(lambda: store) as runtime:
        await until_delivered(runtime)


def test_delta_is_applied_once_where_the_process_crashes_at_any_commit() -> None:
    complete = 0
    for number in range(points()["commit"]):
        store = FaultyStore()
        store.at["commit", number] = store.crash
        in_virtual_time(partial(play_for_a_while, store))
        assert store.left is not None

        in_virtual_time(partial(recover, store.left))

        complete += sum(map(len, check_all_delivered(store.left).values())) == 3
    assert 3 <= complete < points()["commit"], "crashes must come before the last turn's end, and behind it"


# Generated programs ---------------------------------------------------------------------------------------------------


class Crash(Exception):
    """The process ends here."""


class Program:
    """One seed's lives: chats, deletes, actors that crash or leave memory, a store that fails, processes that crash.

    Each turn has a mark, which it puts into the state of its user and of the app. `stored` are those whose chats got a
    reply, `failed` those of which their caller was told that nothing is stored; of others nobody knows.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.store = MemoryStore()
        self.stored: set[str] = set()
        self.failed: set[str] = set()
        self.deleted = 0
        self._marks = count(1)
        self._marked: dict[str, str] = {}

    async def run(self) -> None:
        for _ in range(self.chance.randint(2, 4)):
            with anyio.fail_after(100_000):
                await self._live()
            self.store = self.store.reopened()
        await recover(self.store)
        self.store = self.store.reopened()
        await look_at(self.store)

    def check(self) -> None:
        store = self.store.reopened()
        app = read_values(store, "state:app")
        marks = {key for key in app if key.startswith("mark ")}
        assert self.stored <= marks
        assert not self.failed & marks
        assert app.get("turns", 0) == len(marks), "a delta was doubled or lost"
        for session_id, owner in OWNERS.items():
            own = [app[mark] for mark in marks if mark.endswith(session_id)]
            assert app.get(f"last of {session_id}", 0) == max(own, default=0), "a delta came behind a later one"
            user = read_values(store, f"state:user:{owner}")
            sessions = [id for id in OWNERS if OWNERS[id] == owner]
            assert {key for key in user if key.startswith("mark ")} == {
                mark for mark in marks if mark.split()[-1] in sessions
            }
        for stream in ("state:app", "state:user:ann", "state:user:bob", *(f"session:{id}" for id in OWNERS)):
            assert store.scan(stream, Table.OUTBOX) == []
        assert store.scan_index(Index.OUTBOX_DUE) == []

    async def _live(self) -> None:
        store, chance = self.store, self.chance
        crashes = chance.random() < 0.5
        async with anyio.create_task_group() as callers:
            with suppress(Crash):
                async with Runtime.on(
                    lambda: store, drain_timeout_s=5.0, idle_s=chance.choice((0.3, 300.0))
                ) as runtime:
                    tools = [Tool(self._work, name="work")]
                    agent = Agent("Worker", model=ScriptedModel(say), runtime=runtime, tools=tools, policy=POLICY)
                    for _ in range(chance.randint(2, 5)):
                        callers.start_soon(self._caller, runtime, agent, random.Random(chance.random()))
                    for _ in range(chance.randint(1, 6)):
                        await anyio.sleep(chance.random() * chance.choice((0.0, 0.1, 1.0)))
                        self._disturb(runtime, store)
                    await anyio.sleep(chance.random() * chance.choice((0.0, 0.1, 3.0)))
                    if crashes:
                        self.store = store.reopened()
                        raise Crash

    def _disturb(self, runtime: Runtime, store: MemoryStore) -> None:
        lot = self.chance.random()
        if lot < 0.25:
            store.fail_next_commit(StoreUnavailable("refused"))
        elif lot < 0.5:
            store.fail_next_commit(StoreUnavailable("answer lost", uncertain=True), after_write=True)
        elif lot < 0.65:
            store.fail_next_read(StoreUnavailable("not read"))
        elif lot < 0.85:
            crash_next(runtime, STATE_KIND, self.chance.choice(("app", "user:ann")))
        else:
            crash_next(runtime, "session", self.chance.choice(list(OWNERS)))

    async def _work(self, context: ToolContext) -> str:
        await anyio.sleep(random.random() * 0.01)
        number = next(self._marks)
        mark = f"mark {number} {context.session_id}"
        self._marked[context.run_id] = mark
        for state in (context.user_state, context.app_state):
            state.increment("turns")
            state[mark] = state[f"last of {context.session_id}"] = number
        return "worked"

    async def _caller(self, runtime: Runtime, agent: Agent, chance: random.Random) -> None:
        for _ in range(chance.randint(1, 4)):
            await anyio.sleep(chance.random() * chance.choice((0.0, 0.05, 1.0)))
            session_id = chance.choice(list(OWNERS))
            try:
                session = Session(runtime, session_id, owner=OWNERS[session_id])
                if chance.random() < 0.1:
                    self.deleted += await session.delete()
                else:
                    reply = await agent.chat("go", session=session)
                    self.stored.add(self._marked[reply.run_id])
            except RunFailed as failure:
                if failure.run_id in self._marked and not isinstance(failure.__cause__, Unknown):
                    self.failed.add(self._marked[failure.run_id])
            except CallboardError:
                pass


@pytest.mark.parametrize("seed", SEEDS)
def test_generated_program_applies_each_delta_once(seed: int) -> None:
    random.seed(seed)
    program = Program(seed)
    in_virtual_time(program.run)
    program.check()
