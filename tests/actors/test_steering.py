"""Input that enters a turn which runs, through the public API."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from callers import Callers, said, slow

from callboard import (
    Agent,
    ModelRequest,
    Runtime,
    Session,
    ToolCall,
    tool,
)
from callboard.testing import ScriptedModel, model_answer

Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_steering_input_enters_the_turn_before_its_next_model_call(run: Run) -> None:
    async def body() -> None:
        @tool
        async def look_up(topic: str) -> str:
            await anyio.sleep(1.0)
            return f"facts on {topic}"

        def script(request: ModelRequest) -> Any:
            if request.messages[-1].role == "user" and len(request.messages) == 1:
                return model_answer(tool_calls=[ToolCall(id="c1", name="look_up", arguments='{"topic":"tides"}')])
            return "in short: " + " / ".join(message.text for message in request.messages if message.role == "user")

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(script), session=session, tools=[look_up])
            async with Callers() as callers:
                await callers.begin(agent, "tides?")
                await anyio.sleep(0.5)
                await callers.begin(agent, "be brief", overlap="steer")

            messages = await session.messages()
            assert [message.role for message in messages] == ["user", "assistant", "tool", "user", "assistant"]
            assert (messages[3].text, messages[3].author) == ("be brief", None)
            assert messages[4].text == "in short: tides? / be brief"
            assert callers.replies["tides?"] == callers.replies["be brief"]

    run(body)


def test_steering_input_that_comes_during_the_last_model_call_has_the_model_called_again(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                await callers.begin(agent, "first")
                await callers.begin(agent, "and also", overlap="steer")

            history = ["first", "echo: first", "and also", "echo: and also"]
            assert said(await session.messages()) == history
            assert [record.turn for record in await session.runs()] == [1, 0]
            assert callers.replies["first"].text == callers.replies["and also"].text == "echo: and also"

    run(body)


def test_steering_input_steers_the_turn_of_another_agent_too(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            one, other = (Agent(name, model=slow(), session=session) for name in ("One", "Other"))
            async with Callers() as callers:
                await callers.begin(one, "first")
                await callers.begin(other, "and also", overlap="steer")

            assert [message.author for message in await session.messages()] == [None, "One", None, "One"]
            assert callers.replies["and also"].run_id == callers.replies["first"].run_id

    run(body)


def test_steering_input_gets_a_turn_of_its_own_where_none_takes_it_in(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="steer")
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            async with session.turn() as turn:
                turn.add("user", "by hand")
            reply = await agent.chat("alone")

            assert reply.text == "echo: alone"
            assert said(await session.messages()) == ["by hand", "alone", "echo: alone"]

    run(body)
