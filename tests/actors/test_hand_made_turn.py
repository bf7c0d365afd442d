"""Turns that the user's own code holds."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard import (
    Agent,
    CyclicAsk,
    Failed,
    Runtime,
    Session,
    StaleTurn,
)
from callboard.testing import ScriptedModel, crash_next

Run = Callable[[Callable[[], Awaitable[None]]], None]


def agent_on(runtime: Runtime, script: Any = (), **options: Any) -> Agent[Any]:
    model = ScriptedModel(script, delay_s=1.0)
    return Agent("Agent", model=model, session=Session(runtime, "s"), **options)


async def texts(runtime: Runtime) -> list[str]:
    return [message.text for message in await Session(runtime, "s").messages()]


def test_what_a_turn_made_by_hand_adds_is_stored_together_at_its_end(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"name": "Ann"})
            await session.add_message("user", "before")
            async with session.turn() as turn:
                assert [message.text for message in turn.messages] == ["before"]
                assert turn.metadata == {"name": "Ann"}
                turn.add("user", "asked", author="me")
                turn.add_messages([{"role": "assistant", "content": "answered"}])
                assert [message["content"] for message in turn.messages_for_llm()] == ["before", "asked", "answered"]
                assert await session.message_count() == 1
                assert (await session.run(turn.run_id)).status == "running"

            assert await texts(runtime) == ["before", "asked", "answered"]
            (record,) = await session.runs()
            assert (record.id, record.status, record.first_seq, record.last_seq) == (turn.run_id, "completed", 2, 3)

    run(body)


def test_turns_of_others_wait_for_one_made_by_hand(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            async with anyio.create_task_group() as tasks:
                async with session.turn() as turn:
                    turn.add("user", "first")
                    submission = await agent_on(runtime).submit("second")
                    await anyio.sleep(5.0)
                    assert await submission.status() == "queued"
                tasks.start_soon(submission.wait)

            assert await texts(runtime) == ["first", "second", "echo: second"]

    run(body)


def test_a_block_that_raises_adds_nothing_and_its_run_has_failed(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def fail() -> None:
                async with session.turn() as turn:
                    turn.add("user", "never")
                    raise KeyError("oh")

            with pytest.raises(KeyError, match="oh"):
                await fail()

            (record,) = await session.runs()
            assert (record.status, record.error) == ("failed", "KeyError: 'oh'")
            assert await texts(runtime) == []

    run(body)


def test_a_block_that_is_cancelled_adds_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            with anyio.move_on_after(1.0):
                async with session.turn() as turn:
                    turn.add("user", "never")
                    await anyio.sleep(5.0)
            with anyio.move_on_after(0.5):  # nor does one that waits for its turn, and nobody is held up by it
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(agent_on(runtime).chat, "runs")
                    await anyio.sleep(0.1)
                    async with session.turn():
                        pass

            await session.add_message("user", "after")
            assert await texts(runtime) == ["after"]
            assert [record.status for record in await session.runs()] == ["cancelled"] * 3

    run(body)


def test_a_block_that_takes_too_long_is_cut_off(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def dawdle() -> None:
                async with session.turn(timeout_s=2.0) as turn:
                    turn.add("user", "never")
                    await anyio.sleep(5.0)

            with pytest.raises(TimeoutError, match="it took longer than its 2 s"):
                await dawdle()

            assert [record.status for record in await session.runs()] == ["failed"]
            assert await texts(runtime) == []

    run(body)


def test_a_turn_that_was_stopped_adds_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def hold() -> None:
                async with session.turn() as turn:
                    turn.add("user", "never")
                    assert await session.cancel_run(turn.run_id)

            with pytest.raises(StaleTurn):
                await hold()

            assert await texts(runtime) == []

    run(body)


def test_within_a_turn_made_by_hand_nobody_waits_for_the_next(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            async with session.turn() as turn:
                turn.add("user", "mine")
                with pytest.raises(CyclicAsk):
                    await session.add_message("user", "waits for itself")
                with pytest.raises(CyclicAsk):
                    await agent_on(runtime).chat("so does this")
                with pytest.raises(CyclicAsk):
                    await session.turn().__aenter__()
            await session.add_message("user", "after")

            assert await texts(runtime) == ["mine", "after"]

    run(body)


def test_a_turn_is_used_within_its_block_only(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            turn = session.turn()
            with pytest.raises(RuntimeError, match="within its block only"):
                turn.add("user", "early")
            async with turn:
                pass
            with pytest.raises(RuntimeError, match="within its block only"):
                turn.add("user", "late")
            with pytest.raises(RuntimeError, match="entered once"):
                await turn.__aenter__()
            with pytest.raises(ValueError, match="timeout_s must be above 0"):
                session.turn(timeout_s=0)

    run(body)


def test_a_turn_made_by_hand_is_stored_where_its_session_crashes_at_its_end(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            async with session.turn() as turn:
                turn.add("user", "by hand")
                crash_next(runtime, "session", "s")

            assert await texts(runtime) == ["by hand"]
            assert (await agent_on(runtime).chat("goes on")).text == "echo: goes on"

    run(body)


def test_a_turn_made_by_hand_that_cannot_be_stored_is_ended(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def write() -> None:
                async with session.turn() as turn:
                    turn.add("user", "by hand")
                    for _ in range(3):
                        crash_next(runtime, "session", "s")

            with pytest.raises(Failed, match="attempts"):
                await write()

            assert [record.status for record in await session.runs()] == ["cancelled"]
            assert (await agent_on(runtime).chat("goes on")).text == "echo: goes on"

    run(body)
