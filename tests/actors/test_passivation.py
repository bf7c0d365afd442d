"""Sessions and agents leave memory when nobody needs them, and nobody notices. Both backends, memory and real LMDB."""

import gc
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from callboard import Agent, Failed, RunFailed, Runtime, Session, ToolCall
from callboard.actors.session_records import SESSION_KIND
from callboard.testing import ScriptedModel, crash_next, model_answer, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

SESSIONS = 1000
KEPT = 50
IDLE_S = 30.0


def state_of(runtime: Runtime, session_id: str) -> str:
    return runtime.inspect(SESSION_KIND, session_id).state


async def texts(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


async def talk_in_many_sessions(runtime: Runtime, begun: set[str]) -> None:
    """A second turn in sessions that have been out of memory since their first, a few at a time."""
    agent = Agent("a", model=ScriptedModel(), runtime=runtime)
    limiter = anyio.CapacityLimiter(20)

    async def one_turn(number: int, text: str) -> None:
        session = Session(runtime, f"s{number}", metadata={"number": number})
        async with limiter:
            await agent.chat(f"{text} {number}", session=session)
        begun.add(session.id)

    for text in ("one", "two"):
        async with anyio.create_task_group() as tasks:
            for number in range(SESSIONS):
                tasks.start_soon(one_turn, number, text)


async def check_histories(runtime: Runtime) -> None:
    for number in range(SESSIONS):
        session = Session(runtime, f"s{number}")
        wanted = [f"one {number}", f"echo: one {number}", f"two {number}", f"echo: two {number}"]
        assert await texts(session) == wanted
        assert [run.status for run in await session.runs()] == ["completed", "completed"]
        assert await session.metadata() == {"number": number}


def test_many_sessions_in_little_memory_keep_their_histories(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(actors_max=KEPT) as runtime:
            begun: set[str] = set()
            await talk_in_many_sessions(runtime, begun)

            await check_histories(runtime)

            seen = runtime.statistics()
            assert len(begun) == SESSIONS
            assert (seen.crashes, seen.restarts) == (0, 0)
            assert seen.resident <= KEPT
            assert seen.passivations >= 2 * SESSIONS

    run(body)


def test_many_sessions_in_little_memory_keep_their_histories_on_a_disk(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / str(id(tmp_path))
        async with Runtime(path, durability="async", actors_max=KEPT) as runtime:
            await talk_in_many_sessions(runtime, set())

            await check_histories(runtime)

            seen = runtime.statistics()
            assert (seen.crashes, seen.restarts) == (0, 0)
            assert seen.resident <= KEPT
        async with Runtime(path, durability="async", actors_max=KEPT) as runtime:
            await check_histories(runtime)

    run_in_real_time(body)


def test_a_session_that_is_idle_too_long_comes_back_as_it_was(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(idle_s=IDLE_S) as runtime:
            session = Session(runtime, "s", metadata={"plan": "pro"})
            agent = Agent("a", model=ScriptedModel(), session=session)
            await agent.chat("hello")
            by_hand = await session.create_run(agent="by hand")
            await by_hand.start()
            before = (await session.head(), await session.messages(), await session.runs())

            await anyio.sleep(IDLE_S / 2)
            kept = state_of(runtime, "s")
            await anyio.sleep(IDLE_S)
            gone = state_of(runtime, "s")

            assert (kept, gone) == ("ready", "absent")
            assert (await session.head(), await session.messages(), await session.runs()) == before
            await by_hand.complete()
            await agent.chat("again")
            assert await texts(session) == ["hello", "echo: hello", "again", "echo: again"]
            assert [run.status for run in await session.runs()] == ["completed", "completed", "completed"]

    run(body)


def test_a_session_stays_while_a_turn_runs_or_waits(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(idle_s=IDLE_S) as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("a", model=ScriptedModel(delay_s=10 * IDLE_S), session=session)
            tasks.start_soon(agent.chat, "slow")
            await anyio.sleep(0.1)
            epoch = runtime.inspect(SESSION_KIND, "s").epoch

            tasks.start_soon(session.add_message, "user", "behind it")
            assert not runtime.session_actor("s").passivate()
            await anyio.sleep(9 * IDLE_S)
            assert runtime.inspect(SESSION_KIND, "s").epoch == epoch
            await anyio.sleep(1.5 * IDLE_S)

            assert await texts(session) == ["slow", "echo: slow", "behind it"]
            assert runtime.session_actor("s").passivate()

    run(body)


def test_a_run_that_waits_between_attempts_is_still_shown_so_after_a_long_time(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(idle_s=IDLE_S) as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            released = anyio.Event()

            async def wait_for_it() -> str:
                """Waits."""
                await released.wait()
                return "done"

            calls = [ToolCall("1", "wait_for_it", "{}")]
            agent = Agent(
                "a", model=ScriptedModel([model_answer(tool_calls=calls), "ok"]), session=session, tools=[wait_for_it]
            )
            tasks.start_soon(agent.chat, "go")
            await anyio.sleep(5 * IDLE_S)

            assert [run.status for run in await session.runs()] == ["running"]
            assert state_of(runtime, "s") == "ready"
            released.set()
            await until_quiet(runtime)
            assert (await texts(session))[-1] == "ok"

    run(body)


def test_a_session_says_how_large_its_head_and_its_history_are(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("a", model=ScriptedModel(), session=session)

            def size_bytes() -> int:
                return runtime.inspect(SESSION_KIND, "s").size_bytes

            await session.add_message("user", "x" * 100_000)
            appended = size_bytes()
            await session.update_metadata({"notes": "y" * 10_000})
            described = size_bytes()
            await agent.chat("hi")
            whole = size_bytes()
            assert runtime.session_actor("s").passivate()
            assert size_bytes() == 0
            await session.message_count()
            again = size_bytes()

            assert appended < 10_000  # the store has it, nobody has read it
            assert appended + 10_000 < described < appended + 30_000
            assert described + 100_000 < whole < described + 110_000  # a turn needs it all
            assert again == pytest.approx(described, abs=1000)

    run(body)


def test_few_bytes_push_large_sessions_out(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(actors_bytes_max=300_000) as runtime:
            agent = Agent("a", model=ScriptedModel(), runtime=runtime)
            sessions = [Session(runtime, f"s{number}") for number in range(10)]
            for session in sessions:
                await agent.chat("x" * 50_000, session=session)

            seen = runtime.statistics()

            assert seen.resident_bytes <= 300_000
            assert 1 <= seen.resident <= 4
            assert [await session.message_count() for session in sessions] == [2] * 10

    run(body)


def test_an_agent_leaves_memory_with_its_object_and_comes_back_while_that_is_there(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel()
            kept = Agent("kept", model=model, runtime=runtime)
            for _ in range(20):
                await Agent("dropped", model=model, runtime=runtime).chat("hi")
            await kept.chat("one")
            assert runtime.statistics().actors == 21

            await anyio.sleep(120.0)

            assert runtime.statistics().actors == 0
            assert (await kept.chat("two")).text == "echo: two"
            assert runtime.statistics().actors == 1
            gc.collect()
            assert len(runtime._specs) == 1  # pyright: ignore[reportPrivateUsage] - nothing else shows that they are gone

    run(body)


def test_a_dropped_agent_finishes_the_run_that_is_under_way(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(idle_s=IDLE_S) as runtime:
            session = Session(runtime, "s")
            pending = Agent("a", model=ScriptedModel(delay_s=400.0), session=session).stream("slow")
            async with pending:
                gc.collect()
                async for _ in pending:
                    pass

            assert pending.reply.text == "echo: slow"
            assert await texts(session) == ["slow", "echo: slow"]

    run(body)


def test_a_turn_whose_session_failed_is_ended_when_that_is_resumed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            agent = Agent("a", model=ScriptedModel(delay_s=60.0), session=session)
            await agent.chat("first")
            async with anyio.create_task_group() as tasks:

                async def fails() -> None:
                    with pytest.raises(RunFailed, match="has failed"):
                        await agent.chat("second")

                tasks.start_soon(fails)
                await anyio.sleep(0.5)
                await spend_budget(runtime)
            assert state_of(runtime, "s") == "failed"
            await anyio.sleep(600.0)

            runtime.resume(SESSION_KIND, "s")
            reply = await agent.chat("third")

            assert reply.text == "echo: third"
            assert await texts(session) == ["first", "echo: first", "third", "echo: third"]
            assert [run.status for run in await session.runs()] == ["completed", "failed", "completed"]
            await anyio.sleep(120.0)
            assert runtime.statistics().actors <= 1  # the agent, too, is done with it

    run(body)


async def spend_budget(runtime: Runtime) -> None:
    while state_of(runtime, "s") != "failed":
        crash_next(runtime, SESSION_KIND, "s")
        with pytest.raises(Failed, match="as crash_next has ordered"):
            await Session(runtime, "s").message_count()
