"""Whole turns of agents against `transformers serve`, the most deviant server that we know: no [DONE], errors in a form
of its own, tool calls in one piece. `make transformers` installs it, teaches it one conversation, and runs these tests.
"""

import os
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    BadRequest,
    Delta,
    Message,
    ModelError,
    ModelRequest,
    ModelSettings,
    ModelUnavailable,
    OpenAIChat,
    RunPolicy,
    Runtime,
    Session,
    ToolFinished,
)

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

pytestmark = pytest.mark.transformers_server

QUESTION = "How is the weather in Paris?"
ANSWER = "It is raining in Paris, 9 °C."
EXACT = ModelSettings(max_tokens=120, temperature=0.0)
streamed_or_not = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])


def client_of(url: str, *, connections_max: int = 8) -> OpenAIChat:
    name = os.environ["CALLBOARD_TRANSFORMERS_MODEL"]
    return OpenAIChat(base_url=url, api_key="none", model=name, settings=EXACT, connections_max=connections_max)


@streamed_or_not
def test_an_agent_calls_a_tool_and_answers_from_its_result(run: Run, transformers_url: str, streamed: bool) -> None:
    asked: list[str] = []

    async def weather(city: str) -> str:
        """The weather of a city, now."""
        asked.append(city)
        return "It is raining, 9 C."

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, shown = Session(runtime, "s"), ""
            policy = RunPolicy(attempts_max=1)
            agent = Agent("Agent", model=client_of(transformers_url), session=session, tools=[weather], policy=policy)
            if streamed:
                async with agent.stream(QUESTION) as stream:
                    async for event in stream:
                        if isinstance(event, ToolFinished):
                            shown = ""
                        elif isinstance(event, Delta):
                            shown += event.text
                reply = stream.reply
                assert shown == ANSWER
            else:
                reply = await agent.chat(QUESTION)

            assert asked == ["Paris"]
            assert reply.text == ANSWER
            assert reply.finish_reason == "stop"
            assert [message.role for message in await session.messages()] == ["user", "assistant", "tool", "assistant"]
            assert reply.usage.requests == 2
            assert reply.usage.completion_tokens > len(ANSWER)

    run(body)


@streamed_or_not
def test_gibberish_is_an_answer_too(run: Run, transformers_url: str, streamed: bool) -> None:
    async def body() -> None:
        model = client_of(transformers_url)
        pieces: list[Delta] = []
        request = ModelRequest((Message(role="user", content="zzz"),), settings=ModelSettings(max_tokens=60))
        got = await model.complete(request, on_delta=pieces.append if streamed else None)
        await model.aclose()

        assert got.finish_reason in ("stop", "length")
        assert 0 < got.usage.completion_tokens <= 60
        if streamed:
            assert "".join(piece.text for piece in pieces if piece.kind == "text") == got.message.text

    run(body)


REFUSED: dict[str, tuple[str, dict[str, object], type[ModelError], int]] = {
    "unknown route": ("/nothing", {}, BadRequest, 404),
    "another model": ("", {"model": "another"}, BadRequest, 400),
    "unknown field": ("", {"a_field_of_nobody": 1}, BadRequest, 422),
    "crash of the server": ("", {"messages": "no list"}, ModelUnavailable, 500),
}
"""What is asked for: a path behind the URL, and fields of the body; and what comes."""


@streamed_or_not
@pytest.mark.parametrize("what", REFUSED)
def test_errors_in_its_own_form_are_typed(run: Run, transformers_url: str, what: str, streamed: bool) -> None:
    path, extra, kind, status = REFUSED[what]

    async def body() -> None:
        model = client_of(transformers_url + path)
        request = ModelRequest((Message(role="user", content="hello"),), settings=ModelSettings(extra_body=extra))
        with pytest.raises(ModelError) as caught:
            await model.complete(request, on_delta=(lambda _: None) if streamed else None)
        await model.aclose()

        assert (type(caught.value), caught.value.status) == (kind, status)

    run(body)


def test_a_stream_that_is_left_frees_its_connection_and_the_next_turn_is_served(
    run: Run, transformers_url: str
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), client_of(transformers_url, connections_max=1)
            agent = Agent("Agent", model=model, session=session, settings=ModelSettings(max_tokens=1_000))
            for _ in range(3):
                async with agent.stream("zzz") as stream:
                    async for event in stream:
                        if isinstance(event, Delta):
                            break
            with anyio.fail_after(60):
                reply = await Agent("Exact", model=model, session=session).chat("zzz")

            assert reply.usage.completion_tokens > 0
            assert [record.status for record in await session.runs()] == ["cancelled"] * 3 + ["completed"]

    run(body)
