"""The handles on state, for code outside of turns: what they change, what they refuse, and what they wait for."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import anyio
import pytest
from state_turns import call_tool, set_all, worker_on

from callboard import Agent, AppState, CyclicAsk, Runtime, Session, TooLarge, ToolContext, UserState
from callboard.actors.scopes import State
from callboard.testing import ScriptedModel, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def scopes_of(runtime: Runtime) -> list[State]:
    session = Session(runtime, "s", owner="ann")
    return [session.state, session.user_state, UserState(runtime, "bob"), AppState(runtime)]


def test_update_sets_and_removes_keys_and_gives_all(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            for state in scopes_of(runtime):
                assert await state.get() == {}
                assert await state.update({"a": {"b": [1, None]}, "c": 2.5}) == {"a": {"b": [1, None]}, "c": 2.5}
                assert await state.update({"a": None, "never": None}) == {"c": 2.5}
                assert await state.get() == {"c": 2.5}
                await state.clear()
                assert await state.get() == {}

    run(body)


def test_increments_add_up(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            for state in scopes_of(runtime):
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(state.increment, "n")

                assert await state.increment("n", -0.5) == 9.5
                assert await state.get() == {"n": 9.5}

    run(body)


def test_refused_change_from_outside_says_why_and_changes_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            for state in scopes_of(runtime):
                await state.update({"text": "x"})
                wrong: Any = {"key": {1}}
                with pytest.raises(TypeError, match=r'patch\["key"\] is a set'):
                    await state.update(wrong)
                with pytest.raises(ValueError, match="65 bytes long"):
                    await state.update({"k" * 65: 1})
                with pytest.raises(TypeError, match=r"only a number can be incremented"):
                    await state.increment("text")
                with pytest.raises(TypeError, match="incremented by a number, not by True"):
                    await state.increment("n", True)
                await state.update({"half": "x" * 40_000})
                with pytest.raises(TooLarge, match="more than the 65536 that fit"):
                    await state.update({"other half": "x" * 40_000})

                assert await state.get() == {"text": "x", "half": "x" * 40_000}

    run(body)


def test_session_without_an_owner_has_no_users_state(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            for access in (Session(runtime, "s").user_state.get(), Session(runtime, "s").user_state.update({"a": 1})):
                with pytest.raises(ValueError, match="session 's' has no owner"):
                    await access
        nobody: Any = None
        with pytest.raises(TypeError, match="AppState\\(runtime\\)"):
            AppState(nobody)
        with pytest.raises(TypeError, match="that of an owner"):
            UserState(runtime, nobody)

    run(body)


def test_state_of_a_session_changes_behind_the_turn_that_runs(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, began = Session(runtime, "s"), anyio.Event()

            def act(context: ToolContext) -> None:
                context.session_state["by"] = ["turn"]
                began.set()

            async def update() -> None:
                await began.wait()
                assert await session.state.get() == {}
                await session.state.update({"by": ["outside"]})

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(worker_on(runtime, act, delay_s=0.05).chat, "go", session=session))
                tasks.start_soon(update)

            assert await session.state.get() == {"by": ["outside"]}

    run(body)


def test_tool_that_changes_its_sessions_state_from_outside_is_refused_at_once(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            refused: list[CyclicAsk] = []

            async def change() -> str:
                with pytest.raises(CyclicAsk) as caught:
                    await session.state.update({"a": 1})
                refused.append(caught.value)
                return "done"

            agent = Agent("Clerk", model=ScriptedModel(call_tool("change")), runtime=runtime, tools=[change])
            await agent.chat("go", session=session)

            assert len(refused) == 1
            assert await session.state.get() == {}

    run(body)


def test_state_of_a_deleted_session_is_gone_and_what_it_did_to_others_stays(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            await worker_on(runtime, set_all).chat("go", session=session)
            await session.delete()
            await until_quiet(runtime)

            assert await session.state.get() == {}
            assert await UserState(runtime, "ann").get() == await AppState(runtime).get() == {"key": 1}
            await session.add_message("user", "anew")
            assert await session.state.get() == {}

    run(body)
