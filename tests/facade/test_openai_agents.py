"""AgentsSession does what the OpenAI Agents SDK's own SQLiteSession does, item for item, also under its Runner."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from callboard import Agent, Message, Runtime, Session, ToolCall
from callboard.openai_agents import AgentsSession, as_items, as_session_messages
from callboard.testing import Body, FakeUpstream, ScriptedModel, ScriptStep, answer

pytest.importorskip("agents", reason="needs callboard[openai-agents]")

import agents
import openai

T = TypeVar("T")

REASONING = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "Weather is asked for."}],
    "encrypted_content": None,
}
ITEMS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Paris and Rome?"},
    REASONING,
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'},
    {
        "type": "function_call",
        "call_id": "c2",
        "name": "weather",
        "arguments": '{"city":"Rome"}',
        "status": "completed",
    },
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Rain and sun.", "annotations": [], "logprobs": None}],
    },
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
    {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"}]},
    {"type": "message", "role": "assistant", "content": "A cat."},
]


def in_asyncio(body: Callable[[], Awaitable[T]]) -> T:
    """The SDK knows no other event loop."""
    return anyio.run(body, backend="asyncio")


# Item for item --------------------------------------------------------------------------------------------------------


def test_it_is_a_session_of_the_sdk() -> None:
    async def body() -> object:
        async with Runtime.in_memory() as runtime:
            return AgentsSession(Session(runtime, "s"))

    assert isinstance(in_asyncio(body), agents.Session)


Operation = tuple[str, Any]
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("add"), st.lists(st.sampled_from(ITEMS), max_size=6)),
    st.tuples(st.just("get"), st.none() | st.integers(-1, 8)),
    st.tuples(st.just("pop"), st.none()),
    st.tuples(st.just("clear"), st.none()),
)


async def play(session: Any, operations: list[Operation]) -> list[Any]:
    """What the operations give, and what is there at the end."""
    given: list[Any] = []
    for name, argument in operations:
        if name == "add":
            await session.add_items(argument)
        elif name == "get":
            given.append(await session.get_items(argument))
        elif name == "pop":
            given.append(await session.pop_item())
        else:
            await session.clear_session()
    return [*given, await session.get_items()]


@given(st.lists(OPERATIONS, max_size=12))
@settings(max_examples=60, deadline=None)
def test_whatever_is_done_to_it_it_gives_what_the_sdks_own_session_gives(operations: list[Operation]) -> None:
    async def body() -> tuple[list[Any], list[Any]]:
        theirs = agents.SQLiteSession("s")
        try:
            async with Runtime.in_memory() as runtime:
                return await play(AgentsSession(Session(runtime, "s")), operations), await play(theirs, operations)
        finally:
            theirs.close()

    ours, theirs = in_asyncio(body)

    assert ours == theirs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8), st.lists, max_leaves=5
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["type", "role", "content", "call_id", "name", "output"]), JSON), max_size=6
    )
)
@settings(max_examples=50, deadline=None)
def test_items_of_any_form_come_back_as_they_were(items: list[dict[str, Any]]) -> None:
    assert as_items(as_session_messages(items)) == items


def test_items_are_taken_one_by_one_also_where_several_are_one_message() -> None:
    async def body() -> list[Any]:
        async with Runtime.in_memory() as runtime:
            session = AgentsSession(Session(runtime, "s"))
            await session.add_items(ITEMS)
            return [await session.pop_item() for _ in range(len(ITEMS) + 1)]

    assert in_asyncio(body) == [*reversed(ITEMS), None]


def test_the_limit_of_its_settings_holds_where_none_is_given() -> None:
    async def body() -> tuple[list[Any], list[Any]]:
        async with Runtime.in_memory() as runtime:
            session = AgentsSession(Session(runtime, "s"), session_settings=agents.SessionSettings(limit=2))
            await session.add_items(ITEMS)
            return await session.get_items(), await session.get_items(3)

    assert in_asyncio(body) == (ITEMS[-2:], ITEMS[-3:])


# What others see ------------------------------------------------------------------------------------------------------


def test_parallel_calls_with_their_thoughts_are_one_message_which_its_results_follow() -> None:
    messages = as_session_messages(ITEMS)

    assert [message.role for message in messages[:6]] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert [call.id for call in messages[2].tool_calls] == ["c1", "c2"]
    assert messages[5].text == "Rain and sun."
    assert messages[0].extra == {}


def test_answers_in_a_row_are_messages_of_their_own_and_a_call_joins_the_text_before_it() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}

    messages = as_session_messages([{"role": "assistant", "content": text} for text in ("one", "two")] + [call])

    assert [(message.text, len(message.tool_calls)) for message in messages] == [("one", 0), ("two", 1)]


def test_what_an_agent_of_callboard_wrote_is_items_and_it_sees_theirs() -> None:
    model = ScriptedModel(["A cat, I said."])

    async def body() -> list[Any]:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await AgentsSession(session).add_items(ITEMS)
            await Agent("Clerk", model=model, session=session).chat("Sure?")
            return await AgentsSession(session).get_items(limit=2)

    latest = in_asyncio(body)

    assert latest == [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "A cat, I said."}]
    seen = [message.role for message in model.requests[0].messages]
    assert seen[:6] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert seen[-2:] == ["assistant", "user"]


def test_calls_and_parts_of_callboards_own_messages_are_items_that_the_api_takes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    messages = [
        Message(role="user", content=[{"type": "text", "text": "This?"}, picture]),
        Message(role="assistant", content="Let me look.", tool_calls=(ToolCall("c1", "look", "{}"),)),
        Message(role="tool", content="a cat", tool_call_id="c1"),
    ]

    items = as_items(messages)

    assert items[0]["content"] == [
        {"type": "input_text", "text": "This?"},
        {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "auto"},
    ]
    assert [item.get("type") for item in items[1:]] == [None, "function_call", "function_call_output"]


# Under the SDK's Runner -----------------------------------------------------------------------------------------------


def forecaster(body: Body) -> ScriptStep:
    """Two calls side by side, then an answer, after which it remembers."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return answer("Rain and sun.", reasoning="Two cities.")
    if "weather" in str(last["content"]):
        return answer(
            tool_calls=[("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})], reasoning="Two calls."
        )
    return f"I have seen {len(body['messages'])} messages."


async def converse(session: Any, url: str) -> tuple[list[str], list[Any]]:
    """Two runs of an agent of the SDK; what it said, and the items that are left."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none")

    @agents.function_tool
    async def weather(city: str) -> str:
        return f"wet in {city}"

    model = agents.OpenAIChatCompletionsModel(model="fake", openai_client=client)
    agent: agents.Agent[None] = agents.Agent("Forecaster", instructions="Be brief.", model=model, tools=[weather])
    config = agents.RunConfig(tracing_disabled=True)
    said = [
        (await agents.Runner.run(agent, text, session=session, run_config=config)).final_output
        for text in ("How is the weather?", "How many?")
    ]
    await client.close()
    return said, await session.get_items()


def test_the_runner_writes_the_same_items_as_into_its_own_session_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        async with FakeUpstream(forecaster) as upstream:
            own = agents.SQLiteSession("s")
            theirs = await converse(own, upstream.url)
            own.close()
            async with Runtime(tmp_path) as runtime:
                ours = await converse(AgentsSession(Session(runtime, "s")), upstream.url)
            async with Runtime(tmp_path) as runtime:
                reopened = await AgentsSession(Session(runtime, "s")).get_items()

        assert ours == theirs
        assert reopened == ours[1]
        assert ours[0] == ["Rain and sun.", "I have seen 7 messages."]
        kinds = [item.get("type", "message") for item in ours[1]]
        assert kinds.count("function_call") == kinds.count("function_call_output") == 2

    in_asyncio(body)
