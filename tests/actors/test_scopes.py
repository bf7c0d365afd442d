"""State of app, user and session as a program has it: what turns see, what stays, and what a turn that fails leaves."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from state_turns import Work, call_tool, fail_behind_the_call, set_all, worker_on

from callboard import (
    Agent,
    AppState,
    InstructionContext,
    ModelAnswer,
    ModelRequest,
    RunFailed,
    Runtime,
    Session,
    Template,
    ToolCall,
    ToolContext,
    UserState,
)
from callboard.actors.session_records import session_id_of
from callboard.store import Batch, MemoryStore, Table
from callboard.testing import ScriptedModel, model_answer, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def turns_with_deltas(store: MemoryStore) -> list[Batch]:
    """The commits of turns that changed app or user, in order."""
    batches = (batch for group in store.committed for batch in group if session_id_of(batch.stream) is not None)
    return [batch for batch in batches if any(row.table is Table.OUTBOX and row.value for row in batch.rows)]


def test_turn_changes_all_scopes_and_later_turns_see_it(run: Run) -> None:
    async def body() -> None:
        seen: list[Any] = []

        def act(context: ToolContext) -> None:
            seen.append((dict(context.session_state), dict(context.user_state), dict(context.app_state)))
            set_all(context, len(seen))

        async with Runtime.in_memory() as runtime:
            agent = worker_on(runtime, act)
            for session_id, owner in (("a1", "ann"), ("a1", "ann"), ("a2", "ann"), ("b1", "bob")):
                await agent.chat("go", session=Session(runtime, session_id, owner=owner))
                await until_quiet(runtime)
            session = Session(runtime, "a1")

            assert seen == [
                ({}, {}, {}),
                ({"key": 1}, {"key": 1}, {"key": 1}),
                ({}, {"key": 2}, {"key": 2}),
                ({}, {}, {"key": 3}),
            ]
            assert await session.state.get() == {"key": 2}
            assert await session.user_state.get() == await UserState(runtime, "ann").get() == {"key": 3}
            assert await UserState(runtime, "bob").get() == await AppState(runtime).get() == {"key": 4}

    run(body)


def test_turn_sees_what_the_turn_before_it_did_without_any_pause(run: Run) -> None:
    async def body() -> None:
        def act(context: ToolContext) -> None:
            context.app_state["n"] = context.app_state.get("n", 0) + 1
            context.user_state["n"] = context.user_state.get("n", 0) + 1

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            agent = worker_on(runtime, act)
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(partial(agent.chat, "go", session=session))
            await until_quiet(runtime)

            assert await AppState(runtime).get() == await session.user_state.get() == {"n": 20}

    run(body)


def test_reader_finds_what_a_turn_changed_from_its_reply_on(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        def act(context: ToolContext) -> None:
            for state in (context.session_state, context.user_state, context.app_state):
                state.increment("n")

        async with Runtime(tmp_path / "support.lmdb") as runtime:
            session = Session(runtime, "s", owner="ann")
            agent = worker_on(runtime, act)
            for turn in range(1, 11):
                await agent.chat("go", session=session)

                for state in (session.state, session.user_state, AppState(runtime)):
                    assert await state.get() == {"n": turn}

    run_in_real_time(body)


def test_everything_survives_a_restart(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            await worker_on(runtime, set_all).chat("go", session=Session(runtime, "s", owner="ann"))
        again = store.reopened()
        async with Runtime.on(lambda: again) as runtime:
            session = Session(runtime, "s")

            assert await session.state.get() == await session.user_state.get() == {"key": 1}
            assert await AppState(runtime).get() == {"key": 1}

    run(body)


def test_turn_that_fails_leaves_no_state(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            agent = worker_on(runtime, set_all, script=fail_behind_the_call)
            with pytest.raises(RunFailed):
                await agent.chat("go", session=session)
            await until_quiet(runtime)

            assert await session.state.get() == await session.user_state.get() == await AppState(runtime).get() == {}

    run(body)


def test_turn_that_is_cancelled_leaves_no_state(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            changed = anyio.Event()

            def act(context: ToolContext) -> None:
                set_all(context)
                changed.set()

            agent = worker_on(runtime, act, delay_s=0.05)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(agent.chat, "go", session=session))
                await changed.wait()
                tasks.cancel_scope.cancel()
            await until_quiet(runtime)

            assert [record.status for record in await session.runs()] == ["cancelled"]
            assert await session.state.get() == await session.user_state.get() == await AppState(runtime).get() == {}

    run(body)


def test_turn_sees_the_states_as_they_were_when_it_began(run: Run) -> None:
    async def body() -> None:
        seen: list[Any] = []
        async with Runtime.in_memory() as runtime:
            app, begun, updated = AppState(runtime), anyio.Event(), anyio.Event()

            async def look(context: ToolContext) -> str:
                seen.append(dict(context.app_state))
                begun.set()
                await updated.wait()
                seen.append(dict(context.app_state))
                return "looked"

            await app.update({"n": 1})
            agent = Agent("Reader", model=ScriptedModel(call_tool("look")), runtime=runtime, tools=[look])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(agent.chat, "go", session=Session(runtime, "s")))
                await begun.wait()
                await app.update({"n": 2})
                updated.set()

        assert seen == [{"n": 1}, {"n": 1}]

    run(body)


def test_of_turns_side_by_side_each_increment_counts_and_the_last_set_that_commits_stays(run: Run) -> None:
    async def body() -> None:
        def act(context: ToolContext) -> None:
            assert dict(context.app_state) == {}
            context.app_state.increment("visits")
            context.app_state.increment("sum", 2)
            context.app_state["last"] = context.session_id

        store = MemoryStore(keep_history=True)
        async with Runtime.on(lambda: store) as runtime:
            agent = worker_on(runtime, act, delay_s=0.05)
            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    tasks.start_soon(partial(agent.chat, "go", session=Session(runtime, f"s{number}")))
            await until_quiet(runtime)

            commits = [session_id_of(batch.stream) for batch in turns_with_deltas(store)]
            assert await AppState(runtime).get() == {"visits": 30, "sum": 60, "last": commits[-1]}
            assert sorted(filter(None, commits)) == sorted(f"s{number}" for number in range(30))

    run(body)


def test_change_inside_of_a_value_counts(run: Run) -> None:
    async def body() -> None:
        def act(context: ToolContext) -> None:
            context.session_state.setdefault("cart", []).append({"item": "tea", "n": 1.5})
            context.session_state["cart"][0]["item"] += "!"

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            for _ in range(2):
                await worker_on(runtime, act).chat("go", session=session)

            assert await session.state.get() == {"cart": [{"item": "tea!!", "n": 1.5}, {"item": "tea", "n": 1.5}]}

    run(body)


def forget(context: ToolContext) -> None:
    del context.session_state["gone"]
    context.app_state.pop("gone")
    context.app_state.pop("never", None)


def test_key_that_a_turn_removes_is_gone(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, app = Session(runtime, "s"), AppState(runtime)
            await session.state.update({"gone": 1, "kept": 2})
            await app.update({"gone": 1, "kept": 2})
            await worker_on(runtime, forget).chat("go", session=session)
            await until_quiet(runtime)

            assert await session.state.get() == await app.get() == {"kept": 2}

    run(body)


def put_a_set_inside(context: ToolContext) -> None:
    context.session_state["list"] = []
    context.session_state["list"].append({1, 2})


def put_too_much(context: ToolContext) -> None:
    context.app_state["text"] = "x" * 70_000


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (put_a_set_inside, r'a tool\'s state cannot be stored: session_state\["list"\]\[0\] is a set'),
        (put_too_much, "a tool's state cannot be stored: app_state is 700"),
    ],
)
def test_state_that_cannot_be_stored_fails_the_run_with_the_place(run: Run, act: Work, reason: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            with pytest.raises(RunFailed, match=reason):
                await worker_on(runtime, act).chat("go", session=session)

            assert await session.messages() == []
            assert await session.state.get() == await AppState(runtime).get() == {}

    run(body)


def put_a_set(context: ToolContext) -> None:
    context.session_state["key"] = {1}


def use_a_long_key(context: ToolContext) -> None:
    context.app_state["k" * 65] = 1


def increment_a_text(context: ToolContext) -> None:
    context.app_state["text"] = "x"
    context.app_state.increment("text")


def change_nobodys(context: ToolContext) -> None:
    assert dict(context.user_state) == {}
    context.user_state["key"] = 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (put_a_set, 'session_state["key"] is a set, which JSON does not have'),
        (use_a_long_key, "is 65 bytes long: use at most 64 bytes of UTF-8"),
        (increment_a_text, "app_state[\"text\"] is 'x': only a number can be incremented"),
        (change_nobodys, "user_state cannot be changed: the session has no owner"),
    ],
)
def test_change_that_cannot_be_is_an_error_that_the_model_reads(run: Run, act: Work, reason: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await worker_on(runtime, act).chat("go", session=session)

            told = [message.text for message in await session.messages() if message.role == "tool"]
            assert len(told) == 1
            assert reason in told[0]

    run(body)


def test_run_without_a_session_has_empty_states_that_cannot_be_changed(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            await AppState(runtime).update({"n": 1})
            reply = await worker_on(runtime, set_all).chat("go")

            assert "session_state cannot be changed: this run has no session" in reply.messages[2].text

    run(body)


def test_instructions_speak_of_metadata_and_state(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann", metadata={"address": {"city": "Bonn"}, "plans": ["gold", 7]})
            await session.state.update({"step": 3})
            await session.user_state.update({"name": "Ann"})
            await AppState(runtime).update({"motd": ["hello"]})
            template = Template(
                "${app_state.motd.0} ${user_state.name} of ${address.city}, ${plans.1}, ${session_state.step}"
            )

            def function(context: InstructionContext) -> str:
                states = (context.session_state["step"], context.user_state["name"], context.app_state["motd"])
                return f"{context.metadata['address']['city']} {states}"

            told: list[str] = []
            for instructions in (template, function):
                model = ScriptedModel()
                agent = Agent("Reader", model=model, runtime=runtime, instructions=instructions)
                await agent.chat("go", session=session)
                told.append(model.requests[0].messages[0].text)

            assert told == ["hello Ann of Bonn, 7, 3", "Bonn (3, 'Ann', ['hello'])"]

    run(body)


def test_what_a_function_of_instructions_changes_reaches_nobody(run: Run) -> None:
    async def body() -> None:
        def spoil(context: InstructionContext) -> str:
            context.session_state["list"].append(1)
            context.app_state["list"].append(1)
            return "spoilt"

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.state.update({"list": []})
            await AppState(runtime).update({"list": []})
            await worker_on(runtime, lambda context: None, instructions=spoil).chat("go", session=session)
            (await session.state.get())["list"].append(2)

            assert await session.state.get() == await AppState(runtime).get() == {"list": []}

    run(body)


def test_sync_tools_side_by_side_in_threads_lose_no_change(run_in_real_time: Run) -> None:
    async def body() -> None:
        def work(context: ToolContext) -> str:
            for number in range(200):
                context.app_state.increment("n")
                context.session_state[f"{context.call_id} {number % 5}"] = number
            return "worked"

        def say(request: ModelRequest) -> ModelAnswer:
            if request.messages[-1].role == "tool":
                return model_answer("done")
            return model_answer(tool_calls=[ToolCall(f"call_{number}", "work") for number in range(8)])

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Worker", model=ScriptedModel(say), runtime=runtime, tools=[work])
            await agent.chat("go", session=session)

            assert await AppState(runtime).get() == {"n": 8 * 200}
            assert await session.state.get() == {
                f"call_{call} {place}": 195 + place for call in range(8) for place in range(5)
            }

    run_in_real_time(body)


def test_metadata_that_a_tool_patches_counts_at_once_and_in_the_next_turns_instructions(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"seats": [{"row": 1}], "price": 2.5, "old": True})
            read: list[Any] = []

            async def move(context: ToolContext) -> str:
                assert context.session is not None
                seats = [*context.metadata["seats"], {"row": 7}]
                await context.session.update_metadata({"seats": seats, "old": None})
                read.append((dict(context.metadata), await context.session.metadata()))
                return "moved"

            model = ScriptedModel(call_tool("move"))
            instructions = Template("Row ${seats.1.row} at ${price}")
            agent = Agent("Usher", model=model, runtime=runtime, tools=[move], session=session)
            await agent.chat("move")
            talker = ScriptedModel()
            await Agent("Usher", model=talker, runtime=runtime, instructions=instructions).chat("hi", session=session)

            before = {"seats": [{"row": 1}], "price": 2.5, "old": True}
            after = {"seats": [{"row": 1}, {"row": 7}], "price": 2.5}
            assert read == [(before, after)]
            assert await session.metadata() == after
            assert talker.requests[0].messages[0].text == "Row 7 at 2.5"

    run(body)
