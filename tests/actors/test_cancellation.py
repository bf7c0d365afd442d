"""Cancellation of a run in each phase, drains and crashes: a turn always ends, history stays whole."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
import trio.testing

from callboard import (
    Agent,
    BadRequest,
    Busy,
    Failed,
    Message,
    ModelUnavailable,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    Stopping,
    ToolCall,
    Unknown,
)
from callboard.actors.archive import Archive
from callboard.runtime import Backoff
from callboard.store import MemoryStore
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

PATIENT = RunPolicy(timeout_s=1e9)
QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


async def statuses_of(session: Session) -> list[str]:
    return [record.status for record in await session.runs()]


# Cancellation -------------------------------------------------------------------------------------------------------


class Stage:
    """An agent whose turn stops where a test wants it to: at `reached` it is there, and goes on when `go` is set."""

    def __init__(self, runtime: Runtime, phase: str) -> None:
        self.session = Session(runtime, "s")
        self.reached = anyio.Event()
        self.cut: list[str] = []
        script = [model_answer(tool_calls=[ToolCall("c", "hang")]), "done"] if phase == "tool" else []
        model = ScriptedModel(script, delay_s=1e6 if phase == "model" else 0.0)
        if phase == "backoff":
            model.queue(ModelUnavailable("for now"))
        policy = RunPolicy(backoff=Backoff(first_s=1e6, max_s=1e6), timeout_s=1e9)
        self.agent = Agent("Agent", model=model, session=self.session, tools=[self.hang], policy=policy)

    async def hang(self) -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cut.append("tool")
            raise
        return "never"


@pytest.mark.parametrize("phase", ["model", "tool", "backoff"])
def test_chat_that_is_cancelled_ends_its_turn_at_once_and_leaves_history_as_it_was(run: Run, phase: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            stage = Stage(runtime, phase)
            await stage.session.add_message("user", "before")
            with anyio.move_on_after(0.05):
                await stage.agent.chat("never")
            await stage.session.add_message("user", "behind")  # it waits for the turn to end

            assert await texts_of(stage.session) == ["before", "behind"]
            (record,) = await stage.session.runs()
            assert (record.status, record.error) == ("cancelled", "the caller went away")
            assert record.input[0].text == "never"
            assert stage.cut == (["tool"] if phase == "tool" else [])
            assert runtime.statistics().children == 0

    run(body)


def test_chat_that_is_cancelled_while_it_queues_never_runs_and_holds_up_nobody(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(delay_s=0.1)
            agent = Agent("Agent", model=model, session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "first")
                await anyio.sleep(0.02)
                with anyio.move_on_after(0.02):
                    await agent.chat("never")
                tasks.start_soon(agent.chat, "second")

            assert await texts_of(session) == ["first", "echo: first", "second", "echo: second"]
            assert len(model.requests) == 2
            records = [(record.turn, record.status, record.duration_ms is None) for record in await session.runs()]
            assert records == [(1, "completed", False), (0, "cancelled", True), (2, "completed", False)]

    run(body)


def test_chat_that_is_cancelled_at_any_moment_is_stored_whole_or_not_at_all(run: Run) -> None:
    """Cancelled after each number of scheduler rounds: sent, granted, calling, closing, answered."""

    async def body() -> None:
        for rounds in range(25):
            async with Runtime.in_memory() as runtime:
                session = Session(runtime, "s")
                agent = Agent("Agent", model=ScriptedModel(), session=session)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(agent.chat, "hello")
                    for _ in range(rounds):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                await session.add_message("user", "behind")

                texts = await texts_of(session)
                assert texts in (["behind"], ["hello", "echo: hello", "behind"])
                assert all(not record.is_open for record in await session.runs())

    run(body)


def test_reject_tells_who_runs_and_starts_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.1), session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "first")
                await anyio.sleep(0.02)
                tasks.start_soon(agent.chat, "second")
                await anyio.sleep(0.02)
                with pytest.raises(Busy) as caught:
                    await agent.chat("never", overlap="reject")
                running = (await session.runs())[0]

                assert (caught.value.session_id, caught.value.run_id) == ("s", running.id)
                assert caught.value.queue_length == 1
            assert await texts_of(session) == ["first", "echo: first", "second", "echo: second"]
            assert (await agent.chat("third", overlap="reject")).text == "echo: third"

    run(body)


# The end of the runtime, and crashes --------------------------------------------------------------------------------


def test_leaving_the_runtime_finishes_the_turns_that_run_and_those_that_wait(run: Run) -> None:
    async def body() -> None:
        texts: list[str] = []
        async with anyio.create_task_group() as tasks, Runtime.in_memory() as runtime:
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.05), session=Session(runtime, "s"))

            async def chat(text: str) -> None:
                texts.append((await agent.chat(text)).text)

            for number in range(3):
                tasks.start_soon(chat, str(number))
                await anyio.sleep(0.005)

        assert texts == ["echo: 0", "echo: 1", "echo: 2"]
        assert runtime.cut == []

    run(body)


async def test_turns_that_outlast_the_drain_are_interrupted_and_their_callers_are_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, told = MemoryStore(), list[str]()
    runtime = Runtime.on(lambda: store, drain_timeout_s=10.0)
    left_at = 0.0
    async with anyio.create_task_group() as tasks, runtime:
        agent = Agent("Agent", model=ScriptedModel(delay_s=1e6), session=Session(runtime, "s"), policy=PATIENT)

        async def chat(text: str) -> None:
            with pytest.raises((Failed, Stopping)):
                await agent.chat(text)
            told.append(text)

        for text in ("runs", "waits"):
            tasks.start_soon(chat, text)
            await anyio.sleep(0.1)
        left_at = anyio.current_time()

    assert 10.0 <= anyio.current_time() - left_at < 15.0
    assert sorted(told) == ["runs", "waits"]
    assert any("agent:Agent" in each for each in runtime.cut)
    archive = Archive(store.reopened())
    assert archive.with_open_runs() == []  # already now, not only when the store is opened again
    assert [(record.status, record.error) for record in archive.runs("s")] == [
        ("interrupted", "the runtime was closed")
    ] * 2
    assert archive.messages("s") == []


def test_runtime_that_is_left_by_an_error_interrupts_its_turns_at_once(run: Run) -> None:
    async def body() -> None:
        store, told = MemoryStore(), list[str]()
        async with anyio.create_task_group() as tasks:

            async def chat(agent: Agent) -> None:
                with pytest.raises((Failed, Stopping)):
                    await agent.chat("hello")
                told.append("told")

            async def leave_by_an_error() -> None:
                async with Runtime.on(lambda: store) as runtime:
                    model = ScriptedModel(delay_s=1e6)
                    tasks.start_soon(chat, Agent("Agent", model=model, session=Session(runtime, "s")))
                    await anyio.sleep(0.05)
                    raise ValueError("of the host's own")

            with anyio.fail_after(3.0), pytest.raises(ValueError, match="of the host's own"):
                await leave_by_an_error()

        assert told == ["told"]
        assert [record.status for record in Archive(store.reopened()).runs("s")] == ["interrupted"]

    run(body)


def test_tool_that_is_slow_to_be_cancelled_is_waited_for_and_its_turn_is_interrupted(run: Run) -> None:
    async def stubborn() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.2)
        return "at last"

    async def body() -> None:
        store = MemoryStore()
        runtime = Runtime.on(lambda: store, drain_timeout_s=0.05)
        async with anyio.create_task_group() as tasks, runtime:
            model = ScriptedModel([model_answer(tool_calls=[ToolCall("c", "stubborn")])])
            agent = Agent("Agent", model=model, session=Session(runtime, "s"), tools=[stubborn])

            async def chat() -> None:
                with pytest.raises((Failed, Stopping)):
                    await agent.chat("hello")

            tasks.start_soon(chat)
            await anyio.sleep(0.02)

        assert [record.status for record in Archive(store.reopened()).runs("s")] == ["interrupted"]

    run(body)


class FickleModel(ScriptedModel):
    """Its name cannot be told while `broken`: that crashes the agent's own actor, not only a run."""

    broken = False

    @property
    def name(self) -> str:
        if self.broken:
            raise RuntimeError("no name today")
        return "fickle"


def test_crash_of_the_agents_actor_ends_its_turns_and_the_agent_goes_on(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), FickleModel(delay_s=0.2)
            agent = Agent("Agent", model=model, session=session)
            other = Agent("Other", model=ScriptedModel(), session=session)
            told: list[str] = []

            async def chat(text: str) -> None:
                with pytest.raises((Failed, Unknown)):
                    await agent.chat(text)
                told.append(text)

            async with anyio.create_task_group() as tasks:
                for text in ("runs", "waits"):
                    tasks.start_soon(chat, text)
                    await anyio.sleep(0.02)
                tasks.start_soon(other.chat, "of another agent")
                await anyio.sleep(0.02)
                model.broken = True
                await chat("crashes")
                model.broken = False
            reply = await agent.chat("again")

            assert reply.text == "echo: again"
            assert sorted(told) == ["crashes", "runs", "waits"]
            expected = ["of another agent", "echo: of another agent", "again", "echo: again"]
            assert await texts_of(session) == expected
            assert all(not record.is_open for record in await session.runs())

    run(body)


def test_one_agent_works_in_many_sessions_at_once(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel(delay_s=0.1)
            agent = Agent("Agent", model=model, runtime=runtime)
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    session = Session(runtime, f"s{number}")
                    tasks.start_soon(lambda session=session: agent.chat("hello", session=session))

            assert model.in_flight_max == 20

    run(body)


def test_chat_without_a_session_stores_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = Agent("Agent", model=ScriptedModel(), runtime=runtime, instructions="Be ${kind}.")
            reply = await agent.chat(Message(role="user", content="hello"))
            with pytest.raises(RunFailed):
                await Agent("B", model=ScriptedModel([BadRequest("no")]), runtime=runtime).chat("hello")

            assert (reply.text, reply.turn, reply.session_id) == ("echo: hello", 0, None)
            assert [message.role for message in reply.messages] == ["user", "assistant"]
            assert runtime.store.statistics().streams == 0

    run(body)
