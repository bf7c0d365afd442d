"""A run that is cut off anywhere goes on: no call that has settled is repeated, none that may have had an effect is."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import anyio
import pytest
from msgspec.structs import replace
from tool_turns import ALL_CALLS, World, agent_of, cut_off, results_of, say, what_is_open

from callboard import (
    Agent,
    Corrupt,
    Failed,
    InvalidTransition,
    ModelAnswer,
    ModelRequest,
    Reply,
    RunFailed,
    RunRecord,
    Runtime,
    Session,
    StoreUnavailable,
    ToolContext,
    Unknown,
    UnknownRun,
    Usage,
)
from callboard.actors.archive import Archive
from callboard.actors.session_records import step_key, stream_of
from callboard.store import Batch, MemoryStore, Row, Table
from callboard.store.contract import Refusal
from callboard.testing import ScriptedModel

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


class RecordingStore(MemoryStore):
    """Keeps what was committed, and what the world had seen when the commit after it came: no more can have happened
    before a crash between the two."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.commits: list[Sequence[Batch]] = []
        self.seen: list[World] = []
        self.world = world

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        self.commits.append(batches)
        self.seen.append(self.world.copy())
        return super().commit(batches)

    def left_after(self, commits: int) -> tuple[MemoryStore, World]:
        """The store as a crash after so many commits leaves it to the next process."""
        store = MemoryStore()
        store.claim()
        for batches in self.commits[:commits]:
            assert store.commit(batches) == [None] * len(batches)
        return store, [*self.seen, self.world][commits].copy()


class FailingStore(MemoryStore):
    """Fails its commit of one number, before or after it was written."""

    def __init__(self, number: int, *, after_write: bool) -> None:
        super().__init__()
        self.number = number
        self.after_write = after_write
        self.commits = 0

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        self.commits += 1
        if self.commits != self.number:
            return super().commit(batches)
        if self.after_write:
            super().commit(batches)
        raise StoreUnavailable("this commit fails", uncertain=self.after_write)


async def only_run(session: Session) -> RunRecord:
    (record,) = await session.runs()
    return record


async def played() -> RecordingStore:
    """A message, and a turn with tools behind it."""
    store = RecordingStore(World(wait_s=0.01))
    async with Runtime.on(lambda: store) as runtime:
        session = Session(runtime, "s")
        await session.add_message("user", "before")
        await agent_of(store.world, session).chat("go")
    return store


def settled_in(store: MemoryStore) -> dict[str, str]:
    """The results that the journal of turn 2 has, by call id."""
    steps = Archive(store).steps("s", 2)
    return {result.tool_call_id or "": result.text for step in steps for result in step.settled.values()}


async def check_resumed(reply: Reply, session: Session, world: World, settled: dict[str, str]) -> None:
    results = results_of(await session.messages())
    assert [reply.text, *(message.text for message in reply.messages if message.role == "user")] == ["done", "go"]
    assert list(results) == ALL_CALLS
    assert {call_id: results[call_id] for call_id in settled} == settled
    assert set(world.times("charge").values()) <= {1}
    for call_id, result in results.items():
        if cut_off(result):
            assert call_id.startswith("charge")
        else:
            assert world.done[f"{reply.run_id}:{call_id}"] >= 1


def test_crash_after_any_commit_is_made_good_and_no_call_happens_twice(run: Run) -> None:
    async def body() -> None:
        store = await played()
        resumed = cut = 0
        for commits in range(2, len(store.commits)):
            left, world = store.left_after(commits)
            settled = settled_in(left)
            async with Runtime.on(lambda left=left: left) as runtime:
                session = Session(runtime, "s")
                record = await only_run(session)
                assert record.status == "interrupted"
                assert [message.text for message in await session.messages()] == ["before"]
                reply = await agent_of(world, session).resume(record.id)
                resumed += 1

                await check_resumed(reply, session, world, settled)
                cut += any(map(cut_off, results_of(await session.messages()).values()))
                assert (await only_run(session)).status == "completed"
                assert what_is_open(runtime) == 0

        assert resumed >= 6  # the turn begins, then for each round an answer and its results
        assert cut >= 2  # in each round at least the moment after the answer

    run(body)


@pytest.mark.parametrize("after_write", [False, True])
def test_commit_that_fails_anywhere_in_a_turn_repeats_no_call(run: Run, after_write: bool) -> None:
    async def body() -> None:
        outcomes: list[str] = []
        for number in range(1, 12):
            world = World(wait_s=0.01)
            store = FailingStore(number, after_write=after_write)
            async with Runtime.on(lambda store=store: store) as runtime:
                session = Session(runtime, "s")
                try:
                    await agent_of(world, session).chat("go")
                except (Failed, Unknown) as error:
                    outcomes.append(type(error).__name__)
                else:
                    outcomes.append("reply")
                    assert list(results_of(await session.messages())) == ALL_CALLS
                assert set(world.begun.values()) <= {1}
                assert [record.status for record in await session.runs()] in ([], ["cancelled"], ["completed"])
                assert what_is_open(runtime) == 0

        assert outcomes[1:] == ["reply"] * 10  # only the first one, which grants the turn, is the caller's to repeat
        assert outcomes[0] == ("Unknown" if after_write else "Failed")

    run(body)


def test_run_that_was_interrupted_before_any_call_begins_anew(run: Run) -> None:
    async def body() -> None:
        left, _ = (await played()).left_after(2)
        world = World()
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            record = await only_run(session)
            reply = await agent_of(world, session).resume(record.id)

            assert reply.run_id == record.id
            assert (record.turn, reply.turn) == (2, 3)
            assert (record.attempts, reply.attempts) == (1, 2)
            assert list(world.begun.values()) == [1] * 4
            assert results_of(await session.messages())["look-1"] == "look-1 done, attempt 2"

    run(body)


def test_resumed_run_stands_behind_what_others_wrote_meanwhile_and_sees_it(run: Run) -> None:
    async def body() -> None:
        left, world = (await played()).left_after(4)
        asked: list[list[str]] = []

        def listen(request: ModelRequest) -> ModelAnswer:
            asked.append([message.text for message in request.messages])
            return say(request)

        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            record = await only_run(session)
            await session.add_message("user", "meanwhile")
            await agent_of(world, session, script=listen).resume(record.id)

            assert [message.text for message in await session.messages()][:3] == ["before", "meanwhile", "go"]
            assert asked[0][:3] == ["before", "meanwhile", "go"]

    run(body)


def test_turns_own_state_is_there_when_it_goes_on_and_is_gone_with_it(run: Run) -> None:
    async def body() -> None:
        store = await played()
        seen: list[list[str]] = []

        async def charge(round: int, context: ToolContext) -> str:
            seen.append(list(context.state.get("acted", [])))
            return "charged"

        settled = [n for n in range(2, len(store.commits)) if len(settled_in(store.left_after(n)[0])) == 2]
        left, _ = store.left_after(settled[0])
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            agent = Agent("Clerk", model=ScriptedModel(say), session=session, tools=[charge])
            await agent.resume((await only_run(session)).id)
            await agent.chat("again")

        assert [sorted(acted) for acted in seen] == [["charge-1", "look-1"], [], []]

    run(body)


def test_usage_and_spans_are_of_the_whole_run(run: Run) -> None:
    async def body() -> None:
        def costly(request: ModelRequest) -> ModelAnswer:
            return replace(say(request), usage=Usage(10, 1, 11, requests=1))

        world = World()
        store = RecordingStore(world)
        async with Runtime.on(lambda: store) as runtime:
            await agent_of(world, Session(runtime, "s"), script=costly).chat("go")
        left, _ = store.left_after(3)  # an answer and its results are journaled
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            record = await only_run(session)
            assert record.usage == Usage(10, 1, 11, requests=1)
            reply = await agent_of(world, session, script=costly).resume(record.id)

            assert reply.usage == (await only_run(session)).usage == Usage(30, 3, 33, requests=3)
            numbers = [span.number for span in await session.spans(record.id)]
            assert numbers == list(range(1, len(numbers) + 1))

    run(body)


def test_run_that_the_closing_runtime_interrupted_goes_on_later(run: Run) -> None:
    async def body() -> None:
        world = World(wait_s=5.0)
        store = MemoryStore()
        runtime = Runtime.on(lambda: store, drain_timeout_s=0.05)
        async with anyio.create_task_group() as tasks, runtime:
            session = Session(runtime, "s")

            async def chat() -> None:
                with pytest.raises(RunFailed, match="closed"):
                    await agent_of(world, session).chat("go")

            tasks.start_soon(chat)
            await anyio.sleep(0.2)
            assert world.begun
        world.wait_s = 0.0
        async with Runtime.on(store.reopened) as again:
            session = Session(again, "s")
            record = await only_run(session)
            assert record.status == "interrupted"
            await agent_of(world, session).resume(record.id)

            results = results_of(await session.messages())
            assert [call_id for call_id, result in results.items() if cut_off(result)] == ["charge-1"]
            assert world.times("charge") == {"charge-1": 1, "charge-2": 1}
            assert world.times("look") == {"look-1": 2, "look-2": 1}
            assert what_is_open(again) == 0

    run(body)


def test_journal_that_cannot_be_read_refuses_to_go_on_and_the_run_can_be_ended(run: Run) -> None:
    async def body() -> None:
        left, world = (await played()).left_after(4)
        stored = left.load(stream_of("s"))
        assert stored is not None
        rows = (Row(Table.STEP, step_key(2, 1), None),)
        assert left.commit([Batch(stream_of("s"), stored.epoch, stored.version, rows=rows)]) == [None]
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            record = await only_run(session)
            with pytest.raises(Corrupt, match="journal of turn 2"):
                await agent_of(world, session).resume(record.id)

            assert (await only_run(session)).status == "interrupted"
            assert (await agent_of(World(), session).chat("go")).text == "done"  # others are not held up

    run(body)


def test_who_may_not_go_on_is_told_why(run: Run) -> None:
    async def body() -> None:
        left, world = (await played()).left_after(3)
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            interrupted = (await only_run(session)).id
            done = await agent_of(World(), session).chat("go")
            by_hand = await session.create_run(agent="Clerk")
            agent, other = agent_of(world, session), Agent("Other", model=ScriptedModel(), session=session)
            refused: list[tuple[Agent, str, type[Exception], str]] = [
                (agent, "run_none", UnknownRun, "no run 'run_none'"),
                (agent, done.run_id, InvalidTransition, "is 'completed'"),
                (agent, by_hand.id, ValueError, "made by hand"),
                (other, interrupted, ValueError, "is one of agent 'Clerk'"),
            ]
            for who, run_id, error, reason in refused:
                with pytest.raises(error, match=reason):
                    await who.resume(run_id)
            with pytest.raises(ValueError, match="names the call 'look-1', which does not wait"):
                await agent.resume(interrupted, approve={"look-1": True})
            with pytest.raises(TypeError, match="resumed in its session"):
                await Agent("Clerk", model=ScriptedModel(), runtime=runtime).resume(interrupted)

            await agent.resume(interrupted)
            with pytest.raises(InvalidTransition, match="is 'completed'"):
                await agent.resume(interrupted)

    run(body)


def test_of_two_that_go_on_at_once_one_does(run: Run) -> None:
    async def body() -> None:
        left, world = (await played()).left_after(3)
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            run_id = (await only_run(session)).id
            outcomes: list[str] = []

            async def resume(agent: Agent) -> None:
                try:
                    outcomes.append((await agent.resume(run_id)).text)
                except InvalidTransition as error:
                    outcomes.append(error.status)

            same = agent_of(world, session)
            async with anyio.create_task_group() as tasks:
                for agent in (same, same, agent_of(world, session)):
                    tasks.start_soon(resume, agent)

            assert outcomes.count("done") == 1
            assert set(world.times("charge").values()) <= {1}

    run(body)


def test_resume_that_is_cancelled_in_the_queue_leaves_the_run_as_it_was(run: Run) -> None:
    async def body() -> None:
        left, world = (await played()).left_after(4)
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            before = await only_run(session)
            agent = agent_of(world, session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Agent("Slow", model=ScriptedModel(delay_s=1.0), session=session).chat, "long")
                await anyio.sleep(0.1)
                with anyio.move_on_after(0.1) as scope:
                    await agent.resume(before.id)
                assert scope.cancelled_caught
                await anyio.sleep(0.1)
                assert await session.run(before.id) == before
            reply = await agent.resume(before.id)

            assert reply.text == "done"
            assert set(world.times("charge").values()) <= {1}

    run(body)
