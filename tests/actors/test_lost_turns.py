"""Turns whose agent crashes, or fails, at the wrong moment: the session does not wait for ever."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from callboard import (
    Agent,
    Failed,
    RunRecord,
    Runtime,
    Session,
    SessionManager,
    ToolCall,
    Unknown,
    Usage,
)
from callboard.actors.turns import Overlap
from callboard.runtime import ActorFailed, RestartPolicy
from callboard.testing import ScriptedModel, crash_next, model_answer

Run = Callable[[Callable[[], Awaitable[None]]], None]


async def ended(session: Session) -> list[RunRecord]:
    runs = await session.runs()
    assert not any(record.is_open for record in runs)
    return sorted(runs, key=lambda record: record.created_at_ms)


async def hold(session: Session, seconds: float = 30.0) -> None:
    async with session.turn() as turn:
        await anyio.sleep(seconds)
        turn.add("user", "by hand")


async def queue_behind_a_held_turn(
    tasks: TaskGroup, session: Session, call: Callable[[], Coroutine[Any, Any, None]], *, held_s: float = 30.0
) -> None:
    tasks.start_soon(hold, session, held_s)
    await anyio.sleep(0.1)
    tasks.start_soon(call)
    await anyio.sleep(0.1)


def test_agent_that_crashes_on_its_grant_gives_the_turn_back(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("A", model=ScriptedModel(["never", "two"]), session=session)

            async def lost() -> None:
                with pytest.raises(Unknown):
                    await agent.chat("one")

            await queue_behind_a_held_turn(tasks, session, lost)
            crash_next(runtime, "agent", "A#1")
            await anyio.sleep(60)
            with anyio.fail_after(60):
                reply = await agent.chat("two")

            assert [message.text for message in await session.messages()] == ["by hand", "two", reply.text]
            assert [(each.status, each.error) for each in await ended(session)][1] == (
                "cancelled",
                "the agent gave the run up",
            )

    run(body)


def test_submitted_run_whose_agent_crashes_on_its_grant_can_go_on(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("A", model=ScriptedModel(["answered"]), session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold, session)
                await anyio.sleep(0.1)
                submission = await agent.submit("one")
                crash_next(runtime, "agent", "A#1")
                await anyio.sleep(60)
                assert [each.status for each in await ended(session)][1] == "interrupted"

                assert (await agent.retry(submission.run_id)).text == "answered"

    run(body)


def test_turn_of_an_agent_that_has_failed_is_ended_by_the_session(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            bad = Agent("Bad", model=ScriptedModel(delay_s=600), session=session)
            good = Agent("Good", model=ScriptedModel(["good"]), session=session)

            async def lost() -> None:
                with pytest.raises(Unknown):
                    await bad.chat("one")

            await queue_behind_a_held_turn(tasks, session, lost)
            for _ in range(RestartPolicy().restarts_max + 1):
                crash_next(runtime, "agent", "Bad#1")
                with pytest.raises(Failed):
                    await bad.chat("it crashes")
            with pytest.raises(ActorFailed):
                await bad.chat("it has failed")
            with anyio.fail_after(60):
                assert (await good.chat("two")).text == "good"

            assert [each.status for each in await ended(session)] == ["completed", "interrupted", "completed"]

    run(body)


@pytest.mark.parametrize("crashes", [False, True])
def test_what_a_submission_has_joined_goes_on_when_its_caller_leaves(run: Run, *, crashes: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("A", model=ScriptedModel(["answered"], delay_s=5), session=session)

            async def leave() -> None:
                with anyio.move_on_after(32):  # it has its turn by then
                    await agent.chat("asked", key="k")

            await queue_behind_a_held_turn(tasks, session, leave)
            submission = await agent.submit("asked", key="k")
            if crashes:
                crash_next(runtime, "session", "s")
                with pytest.raises(Failed):
                    await session.update_metadata({"a": 1})

            assert (await submission.wait()).text == "answered"

    run(body)


@pytest.mark.parametrize("overlap", ["queue", "merge"])
def test_run_that_a_submission_has_joined_can_go_on_after_its_agent_crashed(run: Run, overlap: Overlap) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("A", model=ScriptedModel(["answered"]), session=session)

            async def lost() -> None:
                with pytest.raises(Unknown):
                    await agent.chat("asked", key="k", overlap=overlap)

            await queue_behind_a_held_turn(tasks, session, lost)
            if overlap == "merge":
                submission = await agent.submit("and this", overlap=overlap)
            else:
                submission = await agent.submit("asked", key="k")
            crash_next(runtime, "agent", "A#1")
            await anyio.sleep(60)
            assert (await submission.record()).status == "interrupted"

            resumed = await SessionManager(runtime).resume_interrupted([agent])
            assert [reply.text for reply in resumed.replies] == ["answered"]
            assert (await submission.wait()).text == "answered"

    run(body)


def test_run_whose_session_has_failed_and_is_resumed_does_not_stay_queued(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("A", model=ScriptedModel(), session=session)
            tasks.start_soon(agent.chat, "first")  # the session is there
            await anyio.sleep(1)

            async def lost() -> None:
                with pytest.raises(ActorFailed):
                    await agent.chat("asked", key="k")

            await queue_behind_a_held_turn(tasks, session, lost, held_s=300.0)
            submission = await agent.submit("asked", key="k")
            for _ in range(RestartPolicy().restarts_max + 1):
                await session.message_count()  # it is there again, with what it was asked before
                crash_next(runtime, "session", "s")
                with pytest.raises(Failed):
                    await session.update_metadata({"a": 1})
            runtime.resume("session", "s")
            await anyio.sleep(600)

            assert await submission.status() == "interrupted"

    run(body)


def test_usage_of_a_run_whose_agent_fails_is_kept(run: Run) -> None:
    async def body() -> None:
        usage = Usage(prompt_tokens=900, completion_tokens=100, total_tokens=1_000, requests=1)
        call = model_answer(tool_calls=[ToolCall("c", "slow")], usage=usage)

        async def slow() -> str:
            await anyio.sleep(100)
            return "never"

        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session, other = Session(runtime, "s"), Session(runtime, "other")
            agent = Agent("A", model=ScriptedModel([call]), session=session, tools=[slow])
            for _ in range(RestartPolicy().restarts_max):
                crash_next(runtime, "agent", "A#1")
                with pytest.raises(Failed):
                    await agent.chat("crash", session=other)

            async def lost() -> None:
                with pytest.raises(Unknown):
                    await agent.chat("asked")

            tasks.start_soon(lost)
            await anyio.sleep(8)
            crash_next(runtime, "agent", "A#1")
            with pytest.raises(Failed):
                await agent.chat("crash", session=other)
            await anyio.sleep(60)

            (record,) = await session.runs()
            assert (record.status, record.usage.total_tokens) == ("interrupted", 1_000)
            assert await session.spans(record.id)

    run(body)
