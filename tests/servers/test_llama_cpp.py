"""Whole turns of agents against llama.cpp's real server and a real model, SmolLM2-135M."""

import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import httpx
import msgspec
import pytest
from msgspec.structs import replace

from callboard import (
    Agent,
    BadRequest,
    ContextOverflow,
    Delta,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelSettings,
    ModelUnavailable,
    OpenAIChat,
    Reply,
    RunEvent,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    ToolFinished,
)
from callboard.actors.model import OnDelta, OutputSchema
from callboard.local_server import LOCAL_MODEL, open_local_server

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

pytestmark = pytest.mark.real_server

SLOTS = 2
"""Answers at once of the server that `llama_url` names."""

BRIEF = ModelSettings(max_tokens=40, temperature=0.0)
ONCE = RunPolicy(attempts_max=1)
ONE_CALL = ("\n<tool_call>",)
"""Where a second call would begin: this model likes to make each twice, whatever parallel_tool_calls says."""
streamed_or_not = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])


def client_of(url: str, *, connections_max: int = 8) -> OpenAIChat:
    return OpenAIChat(base_url=url, api_key="none", model=LOCAL_MODEL, connections_max=connections_max)


class Prompted:
    """A model of 135 M parameters calls a tool only where its answer was begun with one: so this one does.

    The opening tag makes the grammar of tool_choice "required" start with a call; once there are results, the model
    answers by itself.
    """

    def __init__(self, model: OpenAIChat, *, stop: tuple[str, ...] = ()) -> None:
        self._model = model
        self._stop = stop

    @property
    def name(self) -> str:
        return self._model.name

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        if not any(message.role == "tool" for message in request.messages):
            begun = Message(role="assistant", content="<tool_call>\n")
            settings = replace(request.settings, tool_choice="required", max_tokens=100, stop=self._stop)
            request = replace(request, messages=(*request.messages, begun), settings=settings)
        return await self._model.complete(request, on_delta=on_delta)

    async def aclose(self) -> None:
        await self._model.aclose()


async def turn(
    agent: Agent, text: str, *, streamed: bool, session: Session | None = None
) -> tuple[Reply, list[RunEvent]]:
    events: list[RunEvent] = []
    if not streamed:
        return await agent.chat(text, session=session), events
    async with agent.stream(text, session=session) as stream:
        async for event in stream:
            events.append(event)
    return stream.reply, events


# Tools --------------------------------------------------------------------------------------------------------------


@streamed_or_not
def test_an_agent_calls_a_tool_and_answers_from_its_result(
    run: Run, llama_url: str, tmp_path: Path, streamed: bool
) -> None:
    asked: list[str] = []

    async def weather(city: str) -> str:
        """The weather of a city, now."""
        asked.append(city)
        return "It is raining, 9 C."

    async def body() -> None:
        async with Runtime(tmp_path / "store") as runtime:
            session, model = Session(runtime, "s"), Prompted(client_of(llama_url), stop=ONE_CALL)
            agent = Agent("Agent", model=model, session=session, tools=[weather], settings=BRIEF, policy=ONCE)
            reply, events = await turn(agent, "How is the weather in Paris?", streamed=streamed)

            assert asked == ["Paris"]
            assert "rain" in reply.text.lower()
            assert [message.role for message in reply.messages] == ["user", "assistant", "tool", "assistant"]
            _, call, result, told = await session.messages()
            assert [each.name for each in call.tool_calls] == ["weather"]
            assert result.tool_call_id == call.tool_calls[0].id
            assert told.text == reply.text
            assert reply.usage.requests == 2
            assert reply.usage.completion_tokens > 5
            assert [span.kind for span in await session.spans(reply.run_id)][:3] == ["model", "tool", "model"]
            if streamed:
                finished = next(place for place, event in enumerate(events) if isinstance(event, ToolFinished))
                before, after = events[:finished], events[finished + 1 :]
                assert any(isinstance(event, Delta) and event.kind == "tool_call" for event in before)
                pieces = [event.text for event in after if isinstance(event, Delta)]
                assert len(pieces) > 1
                assert "".join(pieces) == reply.text

    run(body)


@streamed_or_not
def test_two_calls_of_one_answer_run_side_by_side(run: Run, llama_url: str, streamed: bool) -> None:
    async def body() -> None:
        asked: list[str] = []
        both = anyio.Event()

        async def weather(city: str) -> str:
            """The weather of a city, now."""
            asked.append(city)
            if len(asked) == 2:
                both.set()
            await both.wait()  # for ever, if they came one after the other
            return f"{city}: 9 C."

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent(
                "Agent",
                model=Prompted(client_of(llama_url)),
                session=session,
                tools=[weather],
                settings=BRIEF,
                policy=ONCE,
            )
            question = "How is the weather in Rome and in Paris? Call weather for each of the two cities."
            reply, _ = await turn(agent, question, streamed=streamed)

            assert sorted(asked) == ["Paris", "Rome"]
            _, call, first, second, _ = reply.messages
            assert [each.id for each in call.tool_calls] == [first.tool_call_id, second.tool_call_id]
            assert len({first.tool_call_id, second.tool_call_id}) == 2
            told = {each.id: msgspec.json.decode(each.arguments)["city"] for each in call.tool_calls}
            assert all(told[str(result.tool_call_id)] in result.text for result in (first, second))

    run(body)


# Answers ------------------------------------------------------------------------------------------------------------


@streamed_or_not
def test_the_grammar_keeps_an_answer_to_its_json_schema(run: Run, llama_url: str, streamed: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "celsius": {"type": "integer"}},
        "required": ["city", "celsius"],
        "additionalProperties": False,
    }

    async def body() -> None:
        model = client_of(llama_url)
        question = Message(role="user", content="Tell me a long story about 9 degrees in Paris.")
        request = ModelRequest(
            (question,), settings=replace(BRIEF, max_tokens=200), output=OutputSchema("weather", schema)
        )
        got = await model.complete(request, on_delta=(lambda _: None) if streamed else None)
        await model.aclose()

        told = msgspec.json.decode(got.message.text)
        assert set(told) == {"city", "celsius"}
        assert type(told["celsius"]) is int

    run(body)


def test_whole_and_streamed_the_answer_and_its_cost_are_the_same(run: Run, llama_url: str) -> None:
    async def body() -> None:
        model = client_of(llama_url)
        question = Message(role="user", content="What is the capital of France? Answer in one short sentence.")
        request = ModelRequest((question,), settings=replace(BRIEF, seed=1, max_tokens=6))
        whole = await model.complete(request)
        streamed = await model.complete(request, on_delta=lambda _: None)
        await model.aclose()

        assert whole.finish_reason == streamed.finish_reason == "length"
        assert whole.usage.prompt_tokens == streamed.usage.prompt_tokens > 10
        assert whole.usage.completion_tokens == streamed.usage.completion_tokens == 6
        assert whole.message.text == streamed.message.text

    run(body)


# Errors -------------------------------------------------------------------------------------------------------------


@streamed_or_not
def test_a_turn_that_overflows_the_context_fails_for_good_and_the_session_goes_on(
    run: Run, llama_url: str, streamed: bool
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=client_of(llama_url), session=session, settings=BRIEF)
            with pytest.raises(RunFailed) as caught:
                await turn(agent, "word " * 5_000, streamed=streamed)
            reply, _ = await turn(agent, "What is the capital of France?", streamed=streamed)

            assert isinstance(caught.value.__cause__, ContextOverflow)
            assert caught.value.__cause__.status == 400
            assert not caught.value.__cause__.transient
            assert [record.status for record in await session.runs()] == ["failed", "completed"]
            assert [record.attempts for record in await session.runs()] == [1, 1]
            assert [message.text for message in await session.messages()][1] == reply.text

    run(body)


REFUSED: dict[str, tuple[str, dict[str, object], int]] = {
    "unknown route": ("/nothing", {}, 404),
    "field of the wrong type": ("", {"temperature": "hot"}, 400),
    "no messages": ("", {"messages": "none"}, 400),
}
"""What is asked for: a path behind the URL, and fields of the body; and the status that comes."""


@streamed_or_not
@pytest.mark.parametrize("what", REFUSED)
def test_what_the_server_refuses_is_a_bad_request_at_once(run: Run, llama_url: str, what: str, streamed: bool) -> None:
    path, extra, status = REFUSED[what]

    async def body() -> None:
        model = client_of(llama_url + path)
        request = ModelRequest((Message(role="user", content="hello"),), settings=ModelSettings(extra_body=extra))
        with pytest.raises(BadRequest) as caught:
            await model.complete(request, on_delta=(lambda _: None) if streamed else None)
        await model.aclose()

        assert (type(caught.value), caught.value.status) == (BadRequest, status)

    run(body)


def test_a_server_that_dies_in_the_middle_of_an_answer_is_unavailable(run: Run) -> None:
    async def body() -> None:
        async with open_local_server(slots=1) as server, Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=client_of(server.url), session=session, policy=ONCE)

            async def kill_at_a_piece() -> None:
                pieces = 0
                async with agent.stream("Tell me a long story.") as stream:
                    async for event in stream:
                        pieces += isinstance(event, Delta)
                        if pieces == 3:
                            os.kill(server.pid, signal.SIGKILL)

            with pytest.raises(RunFailed) as caught:
                await kill_at_a_piece()

            assert isinstance(caught.value.__cause__, ModelUnavailable)
            assert await session.messages() == []
            assert [record.status for record in await session.runs()] == ["failed"]

    run(body)


# Cancellation -------------------------------------------------------------------------------------------------------


async def slots_in_use(url: str) -> int:
    """How many slots of the server generate at this moment."""
    async with httpx.AsyncClient(trust_env=False) as client:
        slots = (await client.get(f"{url.removesuffix('/v1')}/slots")).json()
    return sum(slot["is_processing"] for slot in slots)


async def wait_idle(url: str) -> None:
    with anyio.fail_after(30.0):
        while await slots_in_use(url):  # noqa: ASYNC110 - another process's state has no event
            await anyio.sleep(0.02)


def test_a_stream_that_is_left_stops_the_server_and_the_next_turn_is_served(run: Run, llama_url: str) -> None:
    endless = ModelSettings(max_tokens=1_500, temperature=0.0)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), client_of(llama_url, connections_max=SLOTS)
            agent = Agent("Agent", model=model, session=session, settings=endless)
            for _ in range(2 * SLOTS):
                pieces = 0
                async with agent.stream("Count from one to a thousand.") as stream:
                    async for event in stream:
                        pieces += isinstance(event, Delta)
                        if pieces == 2:
                            assert await slots_in_use(llama_url) == 1
                            break
                await wait_idle(llama_url)
            brief = Agent("Brief", model=model, session=session, settings=BRIEF)
            reply = await brief.chat("What is the capital of France?")

            assert reply.text
            assert [run.status for run in await session.runs()] == ["cancelled"] * (2 * SLOTS) + ["completed"]
            assert [message.text for message in await session.messages()][1:] == [reply.text]

    run(body)


def test_turns_cancelled_at_any_moment_leave_every_slot_of_the_server_and_the_client(run: Run, llama_url: str) -> None:
    dice = random.Random(0)
    # Few tokens: a body that nobody waits for any more is generated to its end all the same.
    settings = replace(BRIEF, max_tokens=12)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = client_of(llama_url, connections_max=SLOTS)
            agent = Agent("Agent", model=model, runtime=runtime, settings=settings)
            sessions = [Session(runtime, f"s{number}") for number in range(4)]
            cancelled = 0

            async def cancel_some(session: Session) -> None:
                nonlocal cancelled
                for number in range(5):
                    with anyio.move_on_after(dice.random() * 0.4) as scope:
                        await turn(agent, "Tell me a story.", streamed=bool(number % 2), session=session)
                    cancelled += scope.cancelled_caught

            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(cancel_some, session)
            await wait_idle(llama_url)
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(lambda session=session: agent.chat("hello", session=session))

            assert cancelled > 5
            records = [record for session in sessions for record in await session.runs()]
            assert not [record for record in records if record.is_open]

    run(body)
