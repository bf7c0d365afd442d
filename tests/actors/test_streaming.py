"""Streams: events as they come, the outcome of `chat`, and a run that ends however the reader leaves."""

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    AttemptFailed,
    BadRequest,
    Busy,
    Delivered,
    Delta,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    RunFailed,
    RunPolicy,
    RunStarted,
    Runtime,
    Session,
    ToolCall,
    ToolFinished,
)
from callboard.actors.chat_stream import ChatStream
from callboard.actors.model import OnDelta
from callboard.runtime import Backoff
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


def told(event: object) -> str:
    if isinstance(event, Delta):
        return event.text
    return type(event).__name__


async def read(stream: ChatStream) -> list[str]:
    async with stream:
        return [told(event) async for event in stream]


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


def test_pieces_come_while_the_model_speaks(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel(["one two three"], piece_delay_s=0.1)
            agent = Agent("Agent", model=model, session=session)
            came_at: list[float] = []
            async with agent.stream("hello") as stream:
                async for event in stream:
                    if isinstance(event, Delta):
                        came_at.append(anyio.current_time())
                        if len(came_at) < 3:  # at the last one the turn may end any moment
                            assert await session.messages() == []

            gaps = [later - earlier for earlier, later in pairwise(came_at)]
            assert len(gaps) == 2
            assert all(gap > 0.05 for gap in gaps)
            assert stream.reply.text == "one two three"
            assert await session.messages() == list(stream.reply.messages)

    run(body)


def test_events_tell_the_whole_run_in_order_and_a_failed_attempt_is_void(run: Run) -> None:
    async def look(word: str) -> str:
        return word.upper()

    class Breaking(ScriptedModel):
        """Fails in the middle of its second answer."""

        async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
            if len(self.requests) == 1 and on_delta is not None:
                on_delta(Delta("text", "half an ans"))
                self.requests.append(request)
                raise ModelUnavailable("cut")
            return await super().complete(request, on_delta=on_delta)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            call = ToolCall("c", "look", '{"word":"a"}')
            model = Breaking([model_answer(tool_calls=[call]), "it is A"])
            agent = Agent("Agent", model=model, session=Session(runtime, "s"), tools=[look], policy=QUICK)
            events = await read(agent.stream("hello"))

            assert events == [
                "RunStarted",
                '{"word":"a"}',
                "ToolFinished",
                "half an ans",
                "AttemptFailed",
                "it",
                " is",
                " A",
            ]

    run(body)


def test_events_carry_what_a_display_needs(run: Run) -> None:
    async def fail() -> str:
        raise RuntimeError("broken")

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            script = [model_answer(tool_calls=[ToolCall("c", "fail")]), ModelUnavailable("busy"), "done"]
            agent = Agent("A", model=ScriptedModel(script), session=Session(runtime, "s"), tools=[fail], policy=QUICK)
            async with agent.stream("hello") as stream:
                events = [event async for event in stream]

            started = next(event for event in events if isinstance(event, RunStarted))
            assert (started.run_id, started.turn) == (stream.reply.run_id, 1)
            finished = next(event for event in events if isinstance(event, ToolFinished))
            assert (finished.name, finished.call_id, finished.is_error) == ("fail", "c", True)
            failed = next(event for event in events if isinstance(event, AttemptFailed))
            assert (failed.attempt, failed.reason) == (1, "busy")
            assert 0 <= failed.delay_s <= 0.02

    run(body)


@pytest.mark.parametrize("events_read", [0, 1, 2])
def test_stream_that_is_left_early_ends_its_run_and_stores_nothing(run: Run, events_read: int) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel(["one two three"], piece_delay_s=0.05)
            agent = Agent("Agent", model=model, session=session)
            async with agent.stream("never") as stream:
                for _ in range(events_read):
                    await anext(stream)
            await agent.chat("second")

            assert await texts_of(session) == ["second", "echo: second"]
            records = await session.runs()
            assert [record.status for record in records][-1] == "completed"
            assert {record.status for record in records[:-1]} <= {"cancelled"}
            with pytest.raises(RuntimeError, match="ended by itself"):
                _ = stream.reply
            assert model.in_flight == 0

    run(body)


def test_stream_whose_reader_raises_ends_its_run_and_lets_the_error_through(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(piece_delay_s=0.05), session=session)

            async def read_badly() -> None:
                async with agent.stream("never") as stream:
                    async for _ in stream:
                        raise ValueError("of the reader")

            with pytest.raises(ValueError, match="of the reader"):
                await read_badly()
            await session.add_message("user", "behind")

            assert await texts_of(session) == ["behind"]
            assert [record.status for record in await session.runs()] == ["cancelled"]

    run(body)


def test_stream_that_is_read_in_a_cancelled_scope_ends_its_run(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(delay_s=60.0), session=session)
            with anyio.move_on_after(0.05):
                await read(agent.stream("never"))
            await session.add_message("user", "behind")

            assert await texts_of(session) == ["behind"]

    run(body)


def test_stream_that_nobody_reads_while_its_run_goes_on_keeps_all_events(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            words = " ".join(str(number) for number in range(500))
            agent = Agent("Agent", model=ScriptedModel([words]), session=session)
            async with agent.stream("hello") as stream:
                await session.add_message("user", "behind")  # it waits for the run to end
                pieces = [event.text async for event in stream if isinstance(event, Delta)]

            assert "".join(pieces) == words == stream.reply.text

    run(body)


def test_stream_that_was_never_entered_starts_no_run(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            Agent("Agent", model=model, session=session).stream("never")
            await anyio.sleep(0.05)

            assert model.requests == []
            assert await session.runs() == []

    run(body)


def test_failure_comes_at_the_end_of_the_events_as_chat_would_raise_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel([BadRequest("no such model")]), session=session)
            events: list[str] = []

            async def follow() -> None:
                async with agent.stream("hello") as stream:
                    async for event in stream:
                        events.append(told(event))

            with pytest.raises(RunFailed, match="no such model"):
                await follow()
            assert events == ["RunStarted"]
            assert await session.messages() == []

    run(body)


def test_refusal_of_a_busy_session_comes_without_events(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.1), session=Session(runtime, "s"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "first")
                await anyio.sleep(0.02)
                with pytest.raises(Busy):
                    await read(agent.stream("never", overlap="reject"))

    run(body)


def test_stream_that_waits_for_its_turn_says_so_and_goes_on_with_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.1), session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "first")
                await anyio.sleep(0.02)
                async with agent.stream("second") as stream:
                    assert await anext(stream) == Delivered(stream.run_id, "queued", 1)
                    started = await anext(stream)
                    assert await session.message_count() == 2
                    assert isinstance(started, RunStarted)
                    async for _ in stream:
                        pass
                    assert started.turn == stream.reply.turn == 2

    run(body)


def test_two_streams_of_one_agent_get_each_its_own_events(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = Agent("Agent", model=ScriptedModel(piece_delay_s=0.01), runtime=runtime)
            heard: dict[str, str] = {}

            async def follow(name: str) -> None:
                async with agent.stream(f"{name} " * 5, session=Session(runtime, name)) as stream:
                    heard[name] = "".join([event.text async for event in stream if isinstance(event, Delta)])

            async with anyio.create_task_group() as tasks:
                for name in ("a", "b", "c"):
                    tasks.start_soon(follow, name)

            assert heard == {name: f"echo: {name} {name} {name} {name} {name} " for name in "abc"}

    run(body)


def test_listeners_are_gone_when_streams_have_ended(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = Agent("Agent", model=ScriptedModel(), runtime=runtime)
            await read(agent.stream("hello"))
            async with agent.stream("left early"):
                pass

            assert len(agent._spec.listeners) == 0  # pyright: ignore[reportPrivateUsage] -- a leak is seen nowhere else

    run(body)
