"""Agents: attempts, tools and instructions: a turn always ends, history stays whole."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
import trio.testing

from callboard import (
    Agent,
    BadRequest,
    BadResponse,
    InstructionContext,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelSettings,
    ModelUnavailable,
    RateLimited,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    Template,
    ToolCall,
)
from callboard.runtime import Backoff
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

PATIENT = RunPolicy(timeout_s=1e9)
QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


async def statuses_of(session: Session) -> list[str]:
    return [record.status for record in await session.runs()]


# Attempts -----------------------------------------------------------------------------------------------------------


def test_transient_failures_are_tried_again_and_leave_no_trace_in_history(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            script = [ModelUnavailable("a"), RuntimeError("b"), RateLimited("c", retry_after_s=0.01), "fine"]
            model = ScriptedModel(script)
            reply = await Agent("Agent", model=model, session=session, policy=QUICK).chat("hello")

            assert (reply.text, reply.attempts) == ("fine", 4)
            assert await texts_of(session) == ["hello", "fine"]
            assert len({tuple(message.text for message in request.messages) for request in model.requests}) == 1

    run(body)


def test_attempt_goes_on_from_the_last_journaled_step_and_calls_no_tool_twice(run: Run) -> None:
    called: list[str] = []

    async def pay(amount: int) -> str:
        called.append(f"paid {amount}")
        return called[-1]

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            calls = model_answer(
                tool_calls=[ToolCall("c1", "pay", '{"amount": 1}'), ToolCall("c2", "pay", '{"amount": 2}')]
            )
            model = ScriptedModel([calls, ModelUnavailable("for now"), "done"])
            reply = await Agent("Agent", model=model, session=session, tools=[pay], policy=QUICK).chat("hello")

            assert sorted(called) == ["paid 1", "paid 2"]
            assert [m.role for m in reply.messages] == ["user", "assistant", "tool", "tool", "assistant"]
            assert [m.tool_call_id for m in reply.messages] == [None, None, "c1", "c2", None]
            assert [m.text for m in reply.messages[2:4]] == ["paid 1", "paid 2"]
            assert [m.author for m in reply.messages] == [None, "Agent", "Agent", "Agent", "Agent"]
            assert [m.role for m in model.requests[1].messages] == [m.role for m in model.requests[2].messages]

    run(body)


async def test_wait_between_attempts_is_the_servers_own_where_it_names_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Runtime.in_memory() as runtime:
        model = ScriptedModel([RateLimited("slow down", retry_after_s=100.0), "fine"])
        before = anyio.current_time()
        await Agent("Agent", model=model, session=Session(runtime, "s")).chat("hello")

        assert 100.0 <= anyio.current_time() - before < 101.0


async def test_server_that_wants_too_long_a_wait_fails_the_run(autojump_clock: trio.testing.MockClock) -> None:
    async with Runtime.in_memory() as runtime:
        session = Session(runtime, "s")
        agent = Agent("Agent", model=ScriptedModel([RateLimited("tomorrow", retry_after_s=86_400.0)]), session=session)
        with pytest.raises(RunFailed, match="tomorrow"):
            await agent.chat("hello")

        assert await statuses_of(session) == ["failed"]


async def test_run_ends_at_its_deadline_and_the_next_turn_begins(autojump_clock: trio.testing.MockClock) -> None:
    async with Runtime.in_memory() as runtime:
        session = Session(runtime, "s")
        slow = Agent("Slow", model=ScriptedModel(delay_s=1e9), session=session, policy=RunPolicy(timeout_s=60.0))
        quick = Agent("Quick", model=ScriptedModel(), session=session)
        before = anyio.current_time()
        async with anyio.create_task_group() as tasks:

            async def chat_in_vain() -> None:
                with pytest.raises(RunFailed, match="60 s"):
                    await slow.chat("slow")

            tasks.start_soon(chat_in_vain)
            await anyio.sleep(1.0)
            tasks.start_soon(quick.chat, "quick")

        assert anyio.current_time() - before < 61.0
        assert await texts_of(session) == ["quick", "echo: quick"]
        assert await statuses_of(session) == ["failed", "completed"]


def test_choice_that_demands_a_tool_holds_until_one_was_called(run: Run) -> None:
    async def look() -> str:
        return "sunny"

    async def body() -> None:
        def answer(request: ModelRequest) -> ModelAnswer | str:
            demanded = request.settings.tool_choice == "required"
            return model_answer(tool_calls=[ToolCall("c", "look")]) if demanded else "it is sunny"

        async with Runtime.in_memory() as runtime:
            model = ScriptedModel(answer)
            settings = ModelSettings(tool_choice="required")
            agent = Agent("Agent", model=model, session=Session(runtime, "s"), tools=[look], settings=settings)
            first, second = await agent.chat("weather?"), await agent.chat("and now?")

            assert (first.text, second.text) == ("it is sunny", "it is sunny")
            assert [request.settings.tool_choice for request in model.requests] == ["required", "auto"] * 2

    run(body)


def test_model_that_never_stops_calling_tools_is_stopped(run: Run) -> None:
    called: list[str] = []

    async def again() -> str:
        called.append("again")
        return "again"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel(lambda _request: model_answer(tool_calls=[ToolCall("c", "again")]))
            policy = RunPolicy(model_calls_max=3)
            with pytest.raises(RunFailed, match="model_calls_max"):
                await Agent("Agent", model=model, session=session, tools=[again], policy=policy).chat("hello")

            assert len(model.requests) == 3
            assert len(called) == 2, "what the last answer asks for could not be told any more"
            assert await session.messages() == []

    run(body)


ODD_ANSWERS: dict[str, Any] = {
    "no content": Message(role="assistant"),
    "another role": Message(role="user", content="hello"),
    "two calls of one id": Message(role="assistant", tool_calls=(ToolCall("c", "f"), ToolCall("c", "f"))),
    "a call without an id": Message(role="assistant", tool_calls=(ToolCall("", "f"),)),
    "half a character": Message(role="assistant", content="\ud800"),
    "too large": Message(role="assistant", content="x" * 4_200_000),
    "no message": "a text",
}


@pytest.mark.parametrize("name", ODD_ANSWERS)
def test_answer_that_could_not_be_stored_or_sent_back_fails_the_run_and_spoils_nothing(run: Run, name: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([ModelAnswer(ODD_ANSWERS[name], "stop")] * QUICK.attempts_max)
            agent = Agent("Agent", model=model, session=session, policy=QUICK)
            with pytest.raises(RunFailed) as caught:
                await agent.chat("hello")

            assert isinstance(caught.value.__cause__, BadResponse)
            assert (await agent.chat("again")).text == "echo: again"
            assert await texts_of(session) == ["again", "echo: again"]
            assert await statuses_of(session) == ["failed", "completed"]
            assert runtime.statistics().crashes == 0

    run(body)


def test_error_with_words_that_no_store_takes_fails_the_run_all_the_same(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel([BadRequest("half \ud800 a character")]), session=session)
            with pytest.raises(RunFailed):
                await agent.chat("hello")

            (record,) = await session.runs()
            assert (record.status, record.error) == ("failed", "half ? a character")
            assert (await agent.chat("again")).text == "echo: again"

    run(body)


# Tools and instructions ---------------------------------------------------------------------------------------------


def test_tools_of_one_answer_run_side_by_side_and_their_results_keep_the_order_of_the_calls(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            running = [0]
            most = [0]

            async def wait(seconds: float) -> str:
                running[0] += 1
                most[0] = max(most[0], running[0])
                await anyio.sleep(seconds)
                running[0] -= 1
                return f"waited {seconds}"

            calls = [ToolCall(f"c{n}", "wait", f'{{"seconds": {0.03 - n / 100}}}') for n in range(3)]
            model = ScriptedModel([model_answer(tool_calls=calls), "done"])
            reply = await Agent("Agent", model=model, session=Session(runtime, "s"), tools=[wait]).chat("hello")

            assert most == [3]
            assert [message.tool_call_id for message in reply.messages[2:5]] == ["c0", "c1", "c2"]

    run(body)


def test_tool_that_fails_or_is_unknown_or_is_called_wrongly_answers_the_model(run: Run) -> None:
    async def divide(a: int, b: int) -> str:
        return str(a // b)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            calls = [
                ToolCall("c1", "divide", '{"a": 1, "b": 0}'),
                ToolCall("c2", "multiply", "{}"),
                ToolCall("c3", "divide", "{broken"),
                ToolCall("c4", "divide", '{"a": 6, "b": 2}'),
            ]
            model = ScriptedModel([model_answer(tool_calls=calls), "done"])
            reply = await Agent("Agent", model=model, session=Session(runtime, "s"), tools=[divide]).chat("hello")

            results = [message.text for message in reply.messages if message.role == "tool"]
            assert ["ZeroDivisionError" in results[0], "no tool" in results[1], "do not fit" in results[2]] == [
                True
            ] * 3
            assert results[3] == "3"
            assert [schema.name for schema in model.requests[0].tools] == ["divide"]

    run(body)


def test_instructions_that_cannot_be_made_fail_the_run_without_a_call(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()

            def speak(context: InstructionContext) -> str:
                return f"Speak {context.metadata['language']}."

            for instructions in (Template("Speak ${language}."), speak):
                agent = Agent("Agent", model=model, session=session, instructions=instructions)
                with pytest.raises(RunFailed, match="language"):
                    await agent.chat("hello")

            assert model.requests == []
            assert await statuses_of(session) == ["failed", "failed"]

    run(body)
