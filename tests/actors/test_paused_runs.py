"""Runs that pause until calls of theirs are approved: stored, without a turn, and going on in any process."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from tool_turns import ALL_CALLS, World, agent_of, approve_all, paused, results_of, what_is_open

from callboard import (
    Agent,
    Failed,
    InvalidTransition,
    Runtime,
    Session,
    SessionManager,
    StoreUnavailable,
    ToolCall,
    Unknown,
    UnknownRun,
)
from callboard.actors.agent_actor import AGENT_KIND
from callboard.actors.approvals import Denied
from callboard.actors.errors import ApprovalRequired
from callboard.actors.reply import ApprovalRequested
from callboard.actors.retention import Retention
from callboard.actors.session_check import check_sessions, repair_sessions
from callboard.actors.session_messages import ResumeTurn
from callboard.actors.session_records import SESSION_KIND, stream_of
from callboard.actors.tools import tool
from callboard.store import Batch, MemoryStore
from callboard.testing import ScriptedModel, crash_next, model_answer, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def test_run_pauses_and_gives_its_turn_back(run: Run) -> None:
    async def body() -> None:
        world = World()
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(world, session, approval=True)
            waiting = await paused(agent)
            record = await session.run(waiting.run_id)

            assert [call.call_id for call in waiting.calls] == ["charge-1"]
            assert (record.status, record.pending, record.ended_at_ms) == ("waiting", waiting.calls, None)
            assert world.times("look") == {"look-1": 1}
            assert world.times("charge") == {}
            assert await session.messages() == []
            assert [span.kind for span in await session.spans(record.id)] == ["model", "tool"]
            assert (await Agent("Other", model=ScriptedModel(), session=session).chat("hi")).text == "echo: hi"
            assert await approve_all(agent, record.id) == "done"
            texts = [message.text for message in await session.messages() if message.role == "user"]
            assert texts == ["hi", "go"]
            assert list(results_of(await session.messages())) == ALL_CALLS
            assert set(world.begun.values()) == {1}
            assert len(world.begun) == 4
            assert (await session.run(record.id)).pending == ()
            spans = await session.spans(record.id)
            assert [span.number for span in spans] == list(range(1, len(spans) + 1))
            assert [span.name for span in spans].count("charge") == 2
            assert what_is_open(runtime) == 0

    run(body)


def test_run_waits_through_a_restart_and_goes_on_in_another_process(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        world = World()
        async with Runtime(tmp_path / "db") as runtime:
            waiting = await paused(agent_of(world, Session(runtime, "s"), approval=True))
        async with Runtime(tmp_path / "db"):
            pass  # a start that looks at open runs
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            record = await session.run(waiting.run_id)
            assert (record.status, record.pending) == ("waiting", waiting.calls)
            assert list(check_sessions(runtime.store)) == []
            agent = agent_of(world, session, approval=True)
            with pytest.raises(ApprovalRequired) as caught:
                await agent.resume(record.id, approve={"charge-1": Denied("not yet")})

            assert [call.call_id for call in caught.value.calls] == ["charge-2"]
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            reply = await agent_of(world, session, approval=True).resume(record.id, approve=True)
            results = results_of(await session.messages())

            assert (reply.text, reply.attempts) == ("done", 3)
            assert results["charge-1"] == "[denied] This call was not approved: not yet"
            assert results["charge-2"] == "charge-2 done, attempt 3"
            assert world.times("charge") == {"charge-2": 1}
            assert world.times("look") == {"look-1": 1, "look-2": 1}
            assert {message.run_id for message in await session.messages()} == {record.id}

    run_in_real_time(body)


def test_stream_tells_that_approval_is_wanted_and_ends_as_chat_does(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_of(World(), Session(runtime, "s"), approval=True)
            events = list[object]()

            async def read() -> None:
                async with agent.stream("go") as stream:
                    async for event in stream:
                        events.append(event)

            with pytest.raises(ApprovalRequired) as caught:
                await read()

            assert events[-1] == ApprovalRequested(caught.value.run_id, caught.value.calls)

    run(body)


def test_verdict_for_some_calls_leaves_the_others_waiting(run: Run) -> None:
    async def body() -> None:
        ran = list[str]()

        @tool(approval=True)
        async def charge(name: str) -> str:
            ran.append(name)
            return name

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            calls = [ToolCall(name, "charge", f'{{"name": "{name}"}}') for name in ("a", "b", "c")]
            agent = Agent(
                "Clerk", model=ScriptedModel([model_answer(tool_calls=calls)]), session=session, tools=[charge]
            )
            waiting = await paused(agent)
            with pytest.raises(ApprovalRequired) as caught:
                await agent.resume(waiting.run_id, approve={"b": True})
            assert [call.call_id for call in caught.value.calls] == ["a", "c"]
            assert ran == ["b"]
            with pytest.raises(ApprovalRequired):
                await agent.resume(waiting.run_id)
            reply = await agent.resume(waiting.run_id, approve={"a": False, "c": True})

            assert ran == ["b", "c"]
            assert results_of(reply.messages) == {"a": "[denied] This call was not approved.", "b": "b", "c": "c"}

    run(body)


def test_verdict_on_what_a_run_waited_for_before_is_refused_once_it_went_on(run: Run) -> None:
    async def body() -> None:
        world = World()
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(world, session, approval=True)
            waiting = await paused(agent)
            outcomes = list[str]()

            async def resume(who: Agent) -> None:
                try:
                    await who.resume(waiting.run_id, approve=True)
                except (ApprovalRequired, InvalidTransition) as error:
                    outcomes.append(type(error).__name__)

            async with anyio.create_task_group() as tasks:  # both have read that charge-1 waits
                tasks.start_soon(resume, agent)
                tasks.start_soon(resume, agent_of(world, session, approval=True))

            assert sorted(outcomes) == ["ApprovalRequired", "InvalidTransition"]
            # It waits again by now, for another call: what comes as late as this is on the first one all the same.
            late = ResumeTurn(waiting.run_id, turn=1, decisions={0: None})
            with pytest.raises(InvalidTransition):
                await runtime.session_actor("s").ask(late)
            assert world.times("charge") == {"charge-1": 1}

    run(body)


@pytest.mark.parametrize("after_write", [False, True])
def test_commit_that_fails_anywhere_in_a_run_that_pauses_repeats_no_call(run: Run, after_write: bool) -> None:
    async def body() -> None:
        refused = 0
        for number in range(16):
            world = World()
            async with Runtime.in_memory() as runtime:
                session = Session(runtime, "s")
                await session.add_message("user", "before")
                agent = agent_of(world, session, approval=True)
                commits, commit = 0, runtime.store.commit

                def failing(batches: Any) -> Any:
                    nonlocal commits
                    commits += 1
                    if commits == number:  # noqa: B023 -- used in this round only
                        if after_write:
                            commit(batches)  # noqa: B023 -- likewise
                        raise StoreUnavailable("this commit fails", uncertain=after_write)
                    return commit(batches)  # noqa: B023 -- likewise

                runtime.store.commit = failing
                for _ in range(6):  # as a caller does who is told that nothing, or perhaps something, was stored
                    open_runs = [record for record in await session.runs() if record.status != "cancelled"]
                    assert number == 1 or len(open_runs) == len(await session.runs())
                    try:
                        if not open_runs:
                            await agent.chat("go")
                        else:
                            await agent.resume(open_runs[0].id, approve=True)
                    except ApprovalRequired:
                        pass
                    except (Failed, Unknown):
                        refused += 1
                        await until_quiet(runtime)
                    else:
                        break

                assert list(results_of(await session.messages())) == ALL_CALLS, number
                assert set(world.begun.values()) == {1}, number
                assert what_is_open(runtime) == 0, number

        assert refused == 3  # the grants of three turns are the caller's to repeat, all else is done again here

    run(body)


def test_session_that_crashes_and_is_loaded_anew_knows_what_waits(run: Run) -> None:
    async def body() -> None:
        world = World()
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(world, session, approval=True)
            waiting = await paused(agent)
            for _ in range(2):
                crash_next(runtime, SESSION_KIND, "s")
                await session.add_message("user", "asked again after the crash")
                assert (await session.run(waiting.run_id)).status == "waiting"

            assert await approve_all(agent, waiting.run_id) == "done"
            assert set(world.begun.values()) == {1}

    run(body)


def test_agent_that_crashes_before_its_run_goes_on_leaves_a_run_that_can(run: Run) -> None:
    async def body() -> None:
        world = World()
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(world, session, approval=True)
            waiting = await paused(agent)

            async def resume() -> None:
                with pytest.raises(Unknown):
                    await agent.resume(waiting.run_id, approve=True)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Agent("Slow", model=ScriptedModel(delay_s=0.5), session=session).chat, "long")
                await anyio.sleep(0.05)
                tasks.start_soon(resume)
                await anyio.sleep(0.05)
                crash_next(runtime, AGENT_KIND, "Clerk#1")
                with pytest.raises(Failed):
                    await agent.chat("it crashes")
            await until_quiet(runtime)

            assert (await session.run(waiting.run_id)).status == "interrupted"  # its turn came, and nobody took it
            assert await approve_all(agent, waiting.run_id) == "done"
            assert set(world.begun.values()) == {1}

    run(body)


def test_request_to_go_on_that_is_withdrawn_from_the_queue_changes_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            waiting = await paused(agent_of(World(), session, approval=True))
            before = await session.run(waiting.run_id)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Agent("Slow", model=ScriptedModel(delay_s=0.5), session=session).chat, "long")
                await anyio.sleep(0.05)
                with anyio.move_on_after(0.05):
                    await runtime.session_actor("s").ask(ResumeTurn(waiting.run_id, turn=1, decisions={0: None}))
            await until_quiet(runtime)

            assert await session.run(waiting.run_id) == before

    run(body)


def test_deleted_session_takes_the_runs_that_wait_along(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(World(), session, approval=True)
            waiting = await paused(agent)
            await session.delete()

            assert what_is_open(runtime) == 0
            with pytest.raises(UnknownRun):
                await agent.resume(waiting.run_id, approve=True)
            assert await session.runs() == []

    run(body)


def test_run_that_waits_spares_its_session_from_expiry_unless_that_is_wanted(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await paused(agent_of(World(), Session(runtime, "s"), approval=True))
            await anyio.sleep(0.02)
            policies = [Retention(tag=None, keep_days=1e-9)]

            assert (await manager.expire(policies)).deleted == 0
            assert (await manager.expire(policies, even_running=True)).deleted == 1
            assert what_is_open(runtime) == 0

    run(body)


def test_head_that_was_lost_is_made_anew_with_the_runs_that_wait(run: Run) -> None:
    async def body() -> None:
        world = World()
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            waiting = await paused(agent_of(world, Session(runtime, "s"), approval=True))
        left = store.reopened()
        stored = left.load(stream_of("s"))
        assert stored is not None
        assert left.commit([Batch(stream_of("s"), stored.epoch, stored.version, b"\x01 no head")]) == [None]
        repair_sessions(left)
        async with Runtime.on(left.reopened) as runtime:
            session = Session(runtime, "s")

            assert (await session.run(waiting.run_id)).status == "waiting"
            assert await approve_all(agent_of(world, session, approval=True), waiting.run_id) == "done"
            assert set(world.begun.values()) == {1}

    run(body)
