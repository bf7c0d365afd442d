"""Turns whose agent crashes, or fails, at the wrong moment: the session does not wait for ever."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from callboard import Agent, Failed, RunRecord, Runtime, Session, Unknown
from callboard.runtime import ActorFailed, RestartPolicy
from callboard.testing import ScriptedModel, crash_next

Run = Callable[[Callable[[], Awaitable[None]]], None]


async def ended(session: Session) -> list[RunRecord]:
    runs = await session.runs()
    assert not any(record.is_open for record in runs)
    return sorted(runs, key=lambda record: record.created_at_ms)


async def hold(session: Session) -> None:
    async with session.turn() as turn:
        await anyio.sleep(30.0)
        turn.add("user", "by hand")


def test_agent_that_crashes_on_its_grant_gives_the_turn_back(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("A", model=ScriptedModel(["never", "two"]), session=session)

            async def lost() -> None:
                with pytest.raises(Unknown):
                    await agent.chat("one")

            tasks.start_soon(hold, session)
            await anyio.sleep(0.1)
            tasks.start_soon(lost)
            await anyio.sleep(0.1)
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

            tasks.start_soon(hold, session)
            await anyio.sleep(0.1)
            tasks.start_soon(lost)
            await anyio.sleep(0.1)
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
