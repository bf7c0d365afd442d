"""Answers as values from llama.cpp's real server, whose grammar holds a small model to the schema."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, TypeAlias

import pytest
from msgspec import Meta, Struct

from callboard import Agent, Delta, ModelSettings, OpenAIChat, Runtime, Session
from callboard.local_server import LOCAL_MODEL

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

pytestmark = pytest.mark.real_server

BRIEF = ModelSettings(max_tokens=120, temperature=0.0)


class Weather(Struct):
    """The weather in a city."""

    city: Literal["Paris", "Lyon"]
    degrees: Annotated[int, Meta(ge=-50, le=50)]
    sky: Literal["sunny", "rainy"] = "sunny"
    wind: Literal["none", "strong"] | None = None


class Ship(Struct, tag="ship"):
    decks: Literal[1, 2]


class Train(Struct, tag="train"):
    cars: Literal[3, 4]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_real_model_is_held_to_the_type_of_its_answer(run: Run, llama_url: str, streamed: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = OpenAIChat(base_url=llama_url, api_key="none", model=LOCAL_MODEL)
            agent = Agent("Agent", model=model, session=session, settings=BRIEF, output=Weather)
            text = "It rains in Paris, 9 degrees. Describe that."

            if streamed:
                async with agent.stream(text) as stream:
                    deltas = [event.text async for event in stream if isinstance(event, Delta)]
                reply = stream.reply
                assert "".join(deltas) == reply.text
            else:
                reply = await agent.chat(text)

            assert isinstance(reply.output, Weather)
            assert -50 <= reply.output.degrees <= 50
            # The grammar held it: nothing had to be mended, and nothing stands around the JSON.
            assert reply.usage.requests == 1
            assert (reply.text[0], reply.text[-1]) == ("{", "}")

    run(body)


def test_real_model_is_held_to_a_union_and_to_a_json_schema(run: Run, llama_url: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = OpenAIChat(base_url=llama_url, api_key="none", model=LOCAL_MODEL)
            agent = Agent("Agent", model=model, runtime=runtime, settings=BRIEF)
            schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}

            travel = await agent.chat("How do I get over the river?", output=Ship | Train)
            asked = await agent.chat("Is Paris in France?", output=schema)

            assert isinstance(travel.output, Ship | Train)
            assert isinstance(asked.output["yes"], bool)
            assert (travel.usage.requests, asked.usage.requests) == (1, 1)

    run(body)
