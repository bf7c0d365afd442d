"""Runs whose answers have a form: the value in the reply, the model that mends its answer, and what becomes history."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
from msgspec import Struct

from callboard import (
    Agent,
    AttemptFailed,
    Delta,
    Message,
    ModelAnswer,
    ModelUnavailable,
    OpenAIChat,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    ToolCall,
    ToolFinished,
    Usage,
)
from callboard.actors.errors import BadOutput, Refusal
from callboard.actors.output import Output
from callboard.actors.reply import OutputRepair
from callboard.runtime import Backoff
from callboard.testing import FakeUpstream, ScriptedModel, model_answer, refuse

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))
GOOD = '{"city": "Paris", "degrees": 9}'
WRONG = '{"city": "Paris", "degrees": "nine"}'


class Weather(Struct):
    city: str
    degrees: int


async def measure(city: str) -> int:
    """The temperature in a city."""
    return len(city)


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


def refusal(text: str) -> ModelAnswer:
    return ModelAnswer(Message(role="assistant", content="", extra={"refusal": text}), "stop", Usage(requests=1))


def measuring(city: str) -> ModelAnswer:
    return model_answer(tool_calls=[ToolCall(f"call_{city}", "measure", json.dumps({"city": city}))])


def test_reply_has_the_value_and_the_model_hears_of_the_form(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([GOOD])
            agent = Agent("Agent", model=model, session=session, output=Weather)

            reply = await agent.chat("How is Paris?")

            assert reply.output == Weather("Paris", 9)
            assert reply.text == GOOD
            assert model.requests[0].output == Output.of(Weather).schema
            assert await texts_of(session) == ["How is Paris?", GOOD]

    run(body)


def test_without_a_form_there_is_no_value(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([GOOD, refusal("No.")])
            agent = Agent("Agent", model=model, runtime=runtime)

            first, second = await agent.chat("How is Paris?"), await agent.chat("Hello")

            assert (first.output, second.output) == (None, None)
            assert model.requests[0].output is None

    run(body)


def test_form_of_one_chat_goes_before_the_agents(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel(["[1, 2]", GOOD, '{"a": 1}'])
            agent = Agent("Agent", model=model, runtime=runtime, output=Weather)

            numbers = await agent.chat("Count.", output=list[int])
            weather = await agent.chat("How is Paris?")
            by_schema = await agent.chat("a?", output={"type": "object", "properties": {"a": {"type": "integer"}}})

            assert (numbers.output, weather.output, by_schema.output) == ([1, 2], Weather("Paris", 9), {"a": 1})
            assert [request.output and request.output.name for request in model.requests] == [
                "list", "Weather", "output",
            ]  # fmt: skip

    run(body)


def test_wrong_answer_is_mended_and_only_the_good_one_becomes_history(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            usage = Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15, requests=1)
            model = ScriptedModel([model_answer(each, usage=usage) for each in ("It is nice.", WRONG, GOOD)])
            agent = Agent("Agent", model=model, session=session, output=Weather, instructions="Be exact.")

            reply = await agent.chat("How is Paris?")

            assert (reply.output, reply.attempts) == (Weather("Paris", 9), 1)
            assert reply.usage == Usage(prompt_tokens=30, completion_tokens=15, total_tokens=45, requests=3)
            assert [message.role for message in model.requests[2].messages] == [
                "system", "user", "assistant", "user", "assistant", "user",
            ]  # fmt: skip
            assert [message.text for message in model.requests[2].messages[2:5:2]] == ["It is nice.", WRONG]
            assert "`$.degrees`" in model.requests[2].messages[-1].text
            assert await texts_of(session) == ["How is Paris?", GOOD]
            assert [message.text for message in reply.messages] == ["How is Paris?", GOOD]
            record = (await session.runs())[0]
            assert (record.status, record.usage.requests) == ("completed", 3)

    run(body)


def test_next_turn_knows_nothing_of_a_mended_answer(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([WRONG, GOOD, GOOD])
            agent = Agent("Agent", model=model, session=session, output=Weather)

            await agent.chat("How is Paris?")
            await agent.chat("And now?")

            assert [message.text for message in model.requests[-1].messages] == ["How is Paris?", GOOD, "And now?"]

    run(body)


@pytest.mark.parametrize("repairs_max", [0, 1, 2])
def test_run_fails_when_the_repairs_are_spent(run: Run, repairs_max: int) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel(lambda request: f"no. {len(request.messages)}")
            policy = RunPolicy(output_repairs_max=repairs_max)
            agent = Agent("Agent", model=model, session=session, output=Weather, policy=policy)

            with pytest.raises(RunFailed) as failed:
                await agent.chat("How is Paris?")

            cause = failed.value.__cause__
            assert isinstance(cause, BadOutput)
            assert (cause.text, cause.problem) == (f"no. {1 + 2 * repairs_max}", "it holds no JSON")
            assert len(model.requests) == 1 + repairs_max
            assert await texts_of(session) == []
            record = (await session.runs())[0]
            assert (record.status, record.attempts) == ("failed", 1)
            assert record.error == "the answer is not the output asked for: it holds no JSON"

    run(body)


def test_refusal_ends_the_run_at_once(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([refusal("I can't help with that.")])
            agent = Agent("Agent", model=model, session=session, output=Weather)

            with pytest.raises(RunFailed) as failed:
                await agent.chat("How is Paris?")

            assert isinstance(failed.value.__cause__, Refusal)
            assert failed.value.__cause__.text == "I can't help with that."
            assert len(model.requests) == 1
            assert await texts_of(session) == []

    run(body)


def test_with_tools_only_the_answer_without_calls_has_the_form(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([measuring("Paris"), WRONG, GOOD])
            agent = Agent("Agent", model=model, session=session, tools=[measure], output=Weather)

            reply = await agent.chat("How is Paris?")

            assert reply.output == Weather("Paris", 9)
            assert [request.output is not None for request in model.requests] == [True] * 3
            assert [message.role for message in model.requests[2].messages] == [
                "user", "assistant", "tool", "assistant", "user",
            ]  # fmt: skip
            assert [message.role for message in await session.messages()] == ["user", "assistant", "tool", "assistant"]

    run(body)


def test_model_that_calls_a_tool_instead_of_mending_hears_no_more_of_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([WRONG, measuring("Paris"), WRONG, GOOD])
            agent = Agent("Agent", model=model, session=session, tools=[measure], output=Weather)

            reply = await agent.chat("How is Paris?")

            assert reply.output == Weather("Paris", 9)
            assert [message.role for message in model.requests[2].messages] == ["user", "assistant", "tool"]
            assert [message.role for message in await session.messages()] == ["user", "assistant", "tool", "assistant"]

    run(body)


def test_attempts_do_not_multiply_the_repairs(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            down = ModelUnavailable("down")
            model = ScriptedModel([WRONG, down, WRONG, down, WRONG, GOOD])
            agent = Agent("Agent", model=model, runtime=runtime, output=Weather, policy=QUICK)

            with pytest.raises(RunFailed) as failed:
                await agent.chat("How is Paris?")

            assert isinstance(failed.value.__cause__, BadOutput)
            assert len(model.requests) == 5
            # The next attempt goes on where the one before was: the model still hears what was wrong.
            assert [len(request.messages) for request in model.requests] == [1, 3, 3, 5, 5]

    run(body)


def test_repairs_count_as_model_calls(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([WRONG] * 9)
            policy = RunPolicy(model_calls_max=2, output_repairs_max=5)
            agent = Agent("Agent", model=model, runtime=runtime, output=Weather, policy=policy)

            with pytest.raises(RunFailed, match="model_calls_max"):
                await agent.chat("How is Paris?")

            assert len(model.requests) == 2

    run(body)


def test_reader_of_a_stream_is_told_that_what_was_shown_is_void(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([measuring("Paris"), WRONG, ModelUnavailable("down"), GOOD])
            agent = Agent("Agent", model=model, session=session, tools=[measure], output=Weather, policy=QUICK)

            shown: list[str] = []
            repairs: list[OutputRepair] = []
            async with agent.stream("How is Paris?") as stream:
                async for event in stream:
                    if isinstance(event, Delta) and event.kind == "text":
                        shown.append(event.text)
                    elif isinstance(event, OutputRepair | AttemptFailed | ToolFinished):
                        shown.clear()
                    if isinstance(event, OutputRepair):
                        repairs.append(event)

            assert "".join(shown) == GOOD == stream.reply.text
            assert stream.reply.output == Weather("Paris", 9)
            assert [repair.repair for repair in repairs] == [1]
            assert "`$.degrees`" in repairs[0].problem

    run(body)


def test_run_cancelled_while_it_mends_leaves_nothing_behind(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([WRONG, GOOD, GOOD], delay_s=1.0)
            agent = Agent("Agent", model=model, session=session, output=Weather)

            with anyio.move_on_after(1.5):
                await agent.chat("How is Paris?")
            asked_until_then = len(model.requests)
            reply = await agent.chat("How is it now?")

            assert asked_until_then == 2
            assert reply.output == Weather("Paris", 9)
            assert (len(model.requests[2].messages), model.in_flight) == (1, 0)
            assert await texts_of(session) == ["How is it now?", GOOD]
            assert sorted(record.status for record in await session.runs()) == ["cancelled", "completed"]

    run(body)


@pytest.mark.parametrize("form", [5, Weather("Paris", 9), {"city": "Paris"}])
def test_form_that_is_none_is_refused_at_the_door(run: Run, form: Any) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([GOOD])
            agent = Agent("Agent", model=model, runtime=runtime)

            with pytest.raises((TypeError, ValueError), match="output="):
                await agent.chat("How is Paris?", output=form)
            with pytest.raises((TypeError, ValueError), match="output="):
                agent.stream("How is Paris?", output=form)
            with pytest.raises((TypeError, ValueError), match="output="):
                Agent("Other", model=model, runtime=runtime, output=form)

            assert model.requests == []

    run(body)


def test_less_than_no_repairs_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="output_repairs_max"):
        RunPolicy(output_repairs_max=-1)


def test_whole_way_over_the_wire(run_in_real_time: Run) -> None:
    async def body() -> None:
        refused = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
        refusing = {"choices": [{"index": 0, "message": refused, "finish_reason": "stop"}]}
        script = [f"Sure!\n```json\n{WRONG}\n```", GOOD, refuse(200, body=json.dumps(refusing).encode())]
        async with FakeUpstream(script) as upstream, Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = OpenAIChat(base_url=upstream.url, model="fake")
            agent = Agent("Agent", model=model, session=session, output=Weather)

            reply = await agent.chat("How is Paris?")
            with pytest.raises(RunFailed) as failed:
                await agent.chat("How is Lyon?")

            assert reply.output == Weather("Paris", 9)
            assert isinstance(failed.value.__cause__, Refusal)
            form = Output.of(Weather).schema
            asked = {"name": "Weather", "schema": form.schema, "strict": True}
            bodies = upstream.requests
            assert [each["response_format"] for each in bodies] == [{"type": "json_schema", "json_schema": asked}] * 3
            assert form.instruction in bodies[1]["messages"][-1]["content"]
            assert len(await session.messages()) == 2

    run_in_real_time(body)
