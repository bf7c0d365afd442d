"""State of turns that pause, are interrupted or are tried again: kept with the journal, committed once, at the end."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
from state_turns import QUICK

from callboard import (
    Agent,
    AppState,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    Runtime,
    Session,
    Tool,
    ToolCall,
    ToolContext,
)
from callboard.actors.errors import ApprovalRequired, RunFailed
from callboard.store import Index, MemoryStore
from callboard.testing import ScriptedModel, model_answer, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def say(request: ModelRequest) -> ModelAnswer:
    """Call `note`, then `charge`, then say "done"."""
    calls = sum(bool(message.tool_calls) for message in request.messages)
    name = ("note", "charge", "")[calls]
    return model_answer(tool_calls=[ToolCall(f"call_{calls}", name)]) if name else model_answer("done")


async def note(context: ToolContext) -> str:
    context.session_state["noted"] = [1]
    context.session_state["gone"] = True
    context.user_state["noted"] = 1
    context.app_state.increment("turns")
    return "noted"


async def charge(context: ToolContext) -> str:
    context.session_state["noted"].append(2)
    del context.session_state["gone"]
    context.app_state.increment("turns", 10)
    return f"{dict(context.session_state)} {dict(context.user_state)} {dict(context.app_state)}"


def clerk_on(runtime: Runtime, model: ScriptedModel | None = None, *, approval: bool = True) -> Agent:
    tools = [note, Tool(charge, approval=approval)]
    return Agent("Clerk", model=model or ScriptedModel(say), runtime=runtime, tools=tools, policy=QUICK)


DONE = {"noted": [1, 2]}


def test_run_that_pauses_keeps_its_changes_in_another_process_and_shows_them_to_nobody(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            session, app = Session(runtime, "s", owner="ann"), AppState(runtime)
            await app.update({"turns": 100})
            with pytest.raises(ApprovalRequired) as paused:
                await clerk_on(runtime).chat("go", session=session)
            await until_quiet(runtime)
            assert (await session.state.get(), await session.user_state.get()) == ({}, {})
            await app.update({"turns": 200})
            await session.state.update({"meanwhile": True})
        again = store.reopened()
        async with Runtime.on(lambda: again) as runtime:
            session, app = Session(runtime, "s"), AppState(runtime)
            assert await app.get() == {"turns": 200}
            reply = await clerk_on(runtime).resume(paused.value.run_id, approve=True, session=session)
            await until_quiet(runtime)

            seen = "{'meanwhile': True, 'noted': [1, 2]} {'noted': 1} {'turns': 211}"
            assert [message.text for message in reply.messages if message.role == "tool"] == ["noted", seen]
            assert await session.state.get() == {"meanwhile": True, **DONE}
            assert await session.user_state.get() == {"noted": 1}
            assert await app.get() == {"turns": 211}

    run(body)


def test_run_that_is_resumed_by_an_agent_without_tools_commits_what_was_journaled(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            with pytest.raises(ApprovalRequired) as paused:
                await clerk_on(runtime).chat("go", session=session)
            bare = Agent("Clerk", model=ScriptedModel(), runtime=runtime)
            await bare.resume(paused.value.run_id, approve=False, session=session)
            await until_quiet(runtime)

            assert await session.state.get() == {"noted": [1], "gone": True}
            assert await AppState(runtime).get() == {"turns": 1}

    run(body)


def test_run_that_pauses_and_is_cancelled_leaves_no_state(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            with pytest.raises(ApprovalRequired) as paused:
                await clerk_on(runtime).chat("go", session=session)
            assert await session.cancel_run(paused.value.run_id)
            await until_quiet(runtime)

            assert await session.state.get() == await session.user_state.get() == await AppState(runtime).get() == {}
            assert runtime.store.scan_index(Index.OUTBOX_DUE) == []

    run(body)


def test_run_that_the_closing_runtime_interrupts_goes_on_with_its_changes(run: Run) -> None:
    async def body() -> None:
        store, begun = MemoryStore(), anyio.Event()

        async def slow(context: ToolContext) -> str:
            context.session_state["slow"] = "began"
            begun.set()
            await anyio.sleep(1000)
            return "never"

        async def quick(context: ToolContext) -> str:
            return str(dict(context.session_state))

        def calls(name: str) -> list[Tool]:
            return [Tool(note), Tool(slow if name == "slow" else quick, name="charge", repeatable=True)]

        async with anyio.create_task_group() as tasks, Runtime.on(lambda: store, drain_timeout_s=0.01) as runtime:
            agent = Agent("Clerk", model=ScriptedModel(say), runtime=runtime, tools=calls("slow"), policy=QUICK)

            async def chat() -> None:
                with pytest.raises(RunFailed, match="closed"):
                    await agent.chat("go", session=Session(runtime, "s", owner="ann"))

            tasks.start_soon(chat)
            await begun.wait()
        async with Runtime.on(store.reopened) as again:
            session = Session(again, "s")
            (record,) = await session.runs()
            assert record.status == "interrupted"
            assert await session.state.get() == {}
            agent = Agent("Clerk", model=ScriptedModel(say), runtime=again, tools=calls("quick"), policy=QUICK)
            reply = await agent.resume(record.id, session=session)
            await until_quiet(again)

            assert reply.messages[-2].text == "{'noted': [1], 'gone': True}"
            assert await AppState(again).get() == {"turns": 1}

    run(body)


def test_run_that_is_tried_again_changes_state_once(run: Run) -> None:
    async def body() -> None:
        failures = iter([False, True, False, True, False, False])

        def moody(request: ModelRequest) -> ModelAnswer | ModelUnavailable:
            return ModelUnavailable("busy") if next(failures) else say(request)

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            reply = await clerk_on(runtime, ScriptedModel(moody), approval=False).chat("go", session=session)
            await until_quiet(runtime)

            assert reply.attempts == 3
            assert await session.state.get() == DONE
            assert await AppState(runtime).get() == {"turns": 11}

    run(body)


def test_run_whose_attempts_are_spent_leaves_no_state(run: Run) -> None:
    async def body() -> None:
        def broken(request: ModelRequest) -> ModelAnswer | ModelUnavailable:
            return ModelUnavailable("down") if request.messages[-1].role == "tool" else say(request)

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            with pytest.raises(RunFailed):
                await clerk_on(runtime, ScriptedModel(broken), approval=False).chat("go", session=session)
            await until_quiet(runtime)

            assert await session.state.get() == await session.user_state.get() == await AppState(runtime).get() == {}

    run(body)
