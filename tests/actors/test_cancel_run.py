"""Any run can be ended by its id: queued, running, waiting for an approval, or driven by hand."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
from slow_store import SlowStore
from tool_turns import World, agent_of, paused, what_is_open

from callboard import (
    Agent,
    InvalidTransition,
    RunFailed,
    Runtime,
    Session,
    UnknownRun,
)
from callboard.actors.session_check import check_sessions
from callboard.testing import ScriptedModel

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.mark.parametrize("when", ["queued", "running", "in a tool"])
def test_any_run_can_be_cancelled_by_its_id(run: Run, when: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            told = list[str]()
            world = World(wait_s=5.0)
            slow = Agent("Slow", model=ScriptedModel(delay_s=5.0), session=session)
            agent = agent_of(world, session) if when == "in a tool" else slow

            async def chat(who: Agent) -> None:
                try:
                    await who.chat("go")
                except RunFailed as failure:
                    told.append(failure.reason)

            with anyio.move_on_after(2.0):
                async with anyio.create_task_group() as tasks:
                    if when == "queued":
                        tasks.start_soon(chat, Agent("First", model=ScriptedModel(delay_s=0.5), session=session))
                        await anyio.sleep(0.05)
                    tasks.start_soon(chat, agent)
                    await anyio.sleep(0.1)
                    (record,) = [each for each in await session.runs() if each.agent == agent.name]
                    assert await session.cancel_run(record.id, reason="enough")

                    ended = await session.run(record.id)
                    assert (ended.status, ended.error) == ("cancelled", "enough")
            assert [reason.endswith("enough") for reason in told] == [True]
            assert what_is_open(runtime) == 0
            assert (await Agent("Next", model=ScriptedModel(), session=session).chat("hi")).text == "echo: hi"

    run(body)


def test_run_can_be_cancelled_while_its_turn_is_on_its_way(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = SlowStore()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            told = list[str]()

            async def chat() -> None:
                with pytest.raises(RunFailed) as caught:
                    await Agent("Clerk", model=ScriptedModel(), session=session).chat("go")
                told.append(caught.value.reason)

            async def cancel(run_id: str) -> None:
                assert await session.cancel_run(run_id, reason="enough")

            async with anyio.create_task_group() as tasks:
                store.held = True
                tasks.start_soon(chat)
                await store.wait_for_commit()
                (record,) = await session.runs()
                tasks.start_soon(cancel, record.id)
                await anyio.wait_all_tasks_blocked()
                store.let_all()

            assert told == ["enough"]
            assert [record.status for record in await session.runs()] == ["cancelled"]
            assert await session.messages() == []

    run_in_real_time(body)


def test_run_by_hand_is_cancelled_by_its_id_too(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()

            assert await session.cancel_run(by_hand.id)
            assert (await session.run(by_hand.id)).status == "cancelled"
            assert not await session.cancel_run(by_hand.id)

    run(body)


def test_run_that_waits_can_be_cancelled_and_goes_on_no_more(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(World(), session, approval=True)
            waiting = await paused(agent)

            assert await agent.cancel_run(waiting.run_id, reason="changed my mind")
            record = await session.run(waiting.run_id)
            assert (record.status, record.error, record.pending) == ("cancelled", "changed my mind", ())
            assert what_is_open(runtime) == 0
            assert not await session.cancel_run(waiting.run_id)
            with pytest.raises(InvalidTransition, match="is 'cancelled'"):
                await agent.resume(waiting.run_id, approve=True)
            with pytest.raises(UnknownRun):
                await session.cancel_run("run_none")
            assert await session.messages() == []
            assert list(check_sessions(runtime.store)) == []

    run(body)


def test_run_that_waits_for_its_next_turn_is_cancelled_and_who_resumed_it_is_told(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(World(), session, approval=True)
            waiting = await paused(agent)
            told = list[str]()

            async def resume() -> None:
                with pytest.raises(RunFailed) as caught:
                    await agent.resume(waiting.run_id, approve=True)
                told.append(caught.value.reason)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Agent("Slow", model=ScriptedModel(delay_s=0.5), session=session).chat, "long")
                await anyio.sleep(0.05)
                tasks.start_soon(resume)
                await anyio.sleep(0.05)
                assert await session.cancel_run(waiting.run_id, reason="no longer")

            assert "no longer" in told[0]
            assert (await session.run(waiting.run_id)).status == "cancelled"
            assert what_is_open(runtime) == 0

    run(body)
