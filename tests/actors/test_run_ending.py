"""Runs that end with a tool call, and runs without an input."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from callboard import GO_ON, Agent, Message, RunFailed, RunPolicy, Runtime, Session, ToolCall, tool
from callboard.actors.approvals import Denied, denied_result
from callboard.actors.conversation import INTERRUPTED_RESULT, units
from callboard.actors.progress import Progress
from callboard.actors.run_ending import ended_by_tool, is_failure
from callboard.actors.session_records import Step
from callboard.actors.tools import ToolSet
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


@tool(ends_run=True)
async def finish(verdict: str) -> str:
    """Say what came out."""
    return f"noted: {verdict}"


async def look() -> str:
    """Look."""
    return "seen"


FINISH = ToolCall("c1", "finish", '{"verdict": "good"}')
LOOK = ToolCall("c2", "look")


def progress(*results: Message, calls: tuple[ToolCall, ...] = (FINISH,)) -> Progress:
    answer = Message(role="assistant", tool_calls=calls)
    return Progress([Step(1, (answer,)), Step(2, (), settled=dict(enumerate(results)))])


def result(text: str, call_id: str = "c1") -> Message:
    return Message(role="tool", content=text, tool_call_id=call_id)


# What ends a run ----------------------------------------------------------------------------------------------------


def test_a_call_that_succeeded_ends_the_run_once_all_beside_it_have_their_results() -> None:
    tools = ToolSet([finish, look])

    assert ended_by_tool(progress(result("noted")), tools)
    assert not ended_by_tool(progress(result("noted"), calls=(FINISH, LOOK)), tools)
    assert ended_by_tool(progress(result("noted"), result("seen", "c2"), calls=(FINISH, LOOK)), tools)
    assert not ended_by_tool(progress(result("seen", "c2"), calls=(LOOK,)), tools)
    assert not ended_by_tool(Progress(), tools)


@pytest.mark.parametrize(
    "failure",
    [
        result("Error: finish failed: ValueError"),
        denied_result("c1", Denied("no")),
        denied_result("c1", Denied()),
        result(INTERRUPTED_RESULT),
        Message(role="tool", content="half", tool_call_id="c1", interrupted=True),
    ],
    ids=["failed", "denied with a reason", "denied", "cut off", "marked"],
)
def test_a_call_that_did_not_succeed_ends_no_run(failure: Message) -> None:
    assert is_failure(failure)
    assert not ended_by_tool(progress(failure), ToolSet([finish]))


# Runs ---------------------------------------------------------------------------------------------------------------


def test_a_run_ends_with_the_call_and_its_turn_is_history(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([model_answer("so", tool_calls=[FINISH, LOOK]), "never said"])
            agent = Agent("Ann", model=model, session=session, tools=[finish, look])
            reply = await agent.chat("hello")

            assert len(model.requests) == 1
            assert (reply.text, reply.finish_reason, reply.output) == ("so", "tool_calls", None)
            assert reply.message == reply.messages[1]
            assert [m.role for m in reply.messages] == ["user", "assistant", "tool", "tool"]
            assert [m.author for m in await session.messages()] == [None, "Ann", "Ann", "Ann"]
            assert len(units(await session.messages())) == 2
            assert (await session.run(reply.run_id)).status == "completed"

    run(body)


def test_a_call_that_fails_is_read_by_the_model_which_goes_on(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            bad = ToolCall("c1", "finish", '{"verdict": 5}')
            model = ScriptedModel([model_answer(tool_calls=[bad]), model_answer(tool_calls=[FINISH]), "never said"])
            reply = await Agent("Ann", model=model, session=session, tools=[finish]).chat("hello")

            assert len(model.requests) == 2
            assert [m.role for m in reply.messages] == ["user", "assistant", "tool", "assistant", "tool"]
            assert reply.message == reply.messages[3]

    run(body)


def test_a_run_without_a_session_ends_with_the_call_too(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([model_answer(tool_calls=[FINISH])])
            reply = await Agent("Ann", model=model, runtime=runtime, tools=[finish]).chat("hello")

            assert [m.text for m in reply.messages] == ["hello", "", "noted: good"]

    run(body)


def test_an_answer_that_has_a_form_may_be_ended_by_a_tool_without_a_value(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([model_answer(tool_calls=[FINISH]), '{"value": 3}'])
            agent = Agent("Ann", model=model, session=Session(runtime, "s"), tools=[finish], output=list[int] | int)

            assert (await agent.chat("hello")).output is None
            assert (await agent.chat("hello")).output == 3

    run(body)


# Without an input ---------------------------------------------------------------------------------------------------


def test_an_agent_without_input_answers_what_history_ends_with(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel(["an answer"])
            await session.add_message("user", "a question")
            reply = await Agent("Ann", model=model, session=session).chat(GO_ON)

            assert [m.text for m in model.requests[0].messages] == ["a question"]
            assert [m.text for m in reply.messages] == ["an answer"]
            assert [m.text for m in await session.messages()] == ["a question", "an answer"]
            assert (await session.run(reply.run_id)).input == ()

    run(body)


def test_behind_an_answer_a_cue_is_sent_and_not_stored(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([model_answer(tool_calls=[LOOK]), "second"])
            await Agent("Ann", model=ScriptedModel(["first"]), session=session).chat("hello")
            await Agent("Bob", model=model, session=session, tools=[look]).chat(GO_ON)

            sent = [[(m.role, m.name) for m in request.messages] for request in model.requests]
            assert sent[0] == [("user", None), ("assistant", "Ann"), ("user", None)]
            assert sent[1] == [*sent[0], ("assistant", None), ("tool", None)]
            assert [m.role for m in await session.messages()] == ["user", "assistant", "assistant", "tool", "assistant"]
            assert (await session.messages())[1].name is None

    run(body)


def test_without_a_session_there_is_nothing_to_go_on_from(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            with pytest.raises(ValueError, match="GO_ON needs a session"):
                await Agent("Ann", model=ScriptedModel(), runtime=runtime).chat(GO_ON)

    run(body)


# More tools ---------------------------------------------------------------------------------------------------------


def test_the_same_agent_with_more_tools_leaves_the_first_one_as_it_is(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel(["a", "b"])
            agent = Agent("Ann", model=model, session=Session(runtime, "s"), tools=[look], policy=RunPolicy(1))
            more = agent.with_tools(finish)
            await agent.chat("one")
            await more.chat("two")

            assert [[tool.name for tool in request.tools] for request in model.requests] == [
                ["look"],
                ["look", "finish"],
            ]
            assert more.name == "Ann"
            assert model.requests[1].messages[1].name is None  # one name, one agent
            with pytest.raises(ValueError, match="two tools are called 'look'"):
                agent.with_tools(look)

    run(body)


def test_a_run_that_may_call_once_cannot_call_a_tool_that_ends_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([model_answer(tool_calls=[FINISH])])
            agent = Agent(
                "Ann", model=model, runtime=runtime, tools=[finish], policy=RunPolicy(attempts_max=1, model_calls_max=1)
            )
            with pytest.raises(RunFailed, match="no answer after 1 model calls"):
                await agent.chat("hello")

    run(body)
