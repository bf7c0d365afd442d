"""What becomes of an input that comes while a turn runs, by each overlap policy, through the public API."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from callers import Callers, said, slow

from callboard import (
    Agent,
    Busy,
    CyclicAsk,
    Delivered,
    Delta,
    RunFailed,
    Runtime,
    Session,
    StaleTurn,
    Superseded,
    ToolCall,
    ToolContext,
    tool,
)
from callboard.actors.turns import Overlap
from callboard.testing import ScriptedModel, model_answer

Run = Callable[[Callable[[], Awaitable[None]]], None]


OVERLAPS_TOLD: tuple[Overlap, ...] = ("queue", "latest", "steer", "debounce")


def test_merged_inputs_are_answered_in_one_turn_and_all_callers_get_its_reply(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="merge")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                for text in ("first", "second", "third"):
                    await callers.begin(agent, text)

            assert said(await session.messages()) == ["first", "echo: first", "second", "third", "echo: third"]
            second, third = callers.replies["second"], callers.replies["third"]
            assert second == third
            assert second.run_id == (await session.runs())[1].id
            joined = (await session.runs())[2]
            assert (joined.status, joined.joined) == ("cancelled", second.run_id)

    run(body)


def test_an_append_between_two_inputs_keeps_its_place(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="merge")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                await callers.begin(agent, "first")
                await callers.begin(agent, "second")
                callers.tasks.start_soon(session.add_message, "user", "aside")
                await anyio.sleep(0.001)
                await callers.begin(agent, "third")

            history = ["first", "echo: first", "second", "echo: second", "aside", "third", "echo: third"]
            assert said(await session.messages()) == history

    run(body)


def test_inputs_to_different_agents_are_not_merged(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="merge")
            one, other = (Agent(name, model=slow(), session=session) for name in ("One", "Other"))
            async with Callers() as callers:
                await callers.begin(one, "running")
                await callers.begin(one, "to one")
                await callers.begin(other, "to other")

            assert [message.author for message in await session.messages()][1::2] == ["One", "One", "Other"]

    run(body)


def test_a_merged_run_goes_on_as_long_as_anybody_waits_for_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="merge")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                await callers.begin(agent, "first")
                with anyio.move_on_after(1.5):  # gone half-way through the merged turn, which is of its run
                    async with Callers() as impatient:
                        await impatient.begin(agent, "leaves")
                        await callers.begin(agent, "stays")

            assert callers.replies["stays"].text == "echo: stays"
            assert said(await session.messages())[2:] == ["leaves", "stays", "echo: stays"]

    run(body)


def test_a_merged_run_ends_when_nobody_waits_for_it_any_more(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="merge")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                await callers.begin(agent, "first")
                with anyio.move_on_after(1.5):
                    async with Callers() as leaving:
                        for text in ("a", "b"):
                            await leaving.begin(agent, text)

            await anyio.sleep(0.1)
            assert said(await session.messages()) == ["first", "echo: first"]
            assert [record.status for record in await session.runs()] == ["completed", "cancelled", "cancelled"]

    run(body)


def test_the_latest_input_takes_the_place_of_those_that_wait(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="latest")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                for text in ("first", "old", "older", "newest"):
                    await callers.begin(agent, text)

            assert said(await session.messages()) == ["first", "echo: first", "newest", "echo: newest"]
            assert [type(callers.errors[text]) for text in ("old", "older")] == [Superseded, Superseded]
            assert [record.status for record in await session.runs()] == [
                "completed",
                "cancelled",
                "cancelled",
                "completed",
            ]

    run(body)


def test_debounced_inputs_wait_for_quiet_and_are_answered_together(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="debounce", debounce_s=0.3)
            model = ScriptedModel()
            agent = Agent("Agent", model=model, session=session)
            async with Callers() as callers:
                for text in ("he", "hello", "hello you"):
                    await callers.begin(agent, text)
                    await anyio.sleep(0.2)
                    assert model.requests == []
                await anyio.sleep(0.2)
                assert len(model.requests) == 1

            assert said(await session.messages()) == ["he", "hello", "hello you", "echo: hello you"]
            assert len(callers.replies) == 3

    run(body)


def test_debounced_inputs_that_never_stop_are_answered_all_the_same(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="debounce", debounce_s=0.3)
            model = ScriptedModel()
            agent = Agent("Agent", model=model, session=session)
            async with Callers() as callers:
                for number in range(20):
                    await callers.begin(agent, f"{number}")
                    await anyio.sleep(0.2)

            assert len(model.requests) == 2, "after ten times the quiet that was waited for"
            assert len(callers.replies) == 20

    run(body)


def test_a_debounced_input_whose_caller_leaves_is_not_answered(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="debounce", debounce_s=0.3)
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            with anyio.move_on_after(0.1):
                await agent.chat("never mind")
            await anyio.sleep(1.0)

            assert await session.messages() == []

    run(body)


def test_an_interrupted_turn_leaves_what_it_has_said_and_the_new_input_goes_next(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            heard: list[str] = []
            model = ScriptedModel(["one two three four", "well then"], piece_delay_s=1.0)
            agent = Agent("Agent", model=model, session=session)
            async with Callers() as callers:

                async def listen() -> None:
                    async with agent.stream("count") as stream:
                        async for event in stream:
                            if isinstance(event, Delta):
                                heard.append(event.text)

                async def hear_it_stop() -> None:
                    with pytest.raises(RunFailed, match="a newer input stopped it"):
                        await listen()

                callers.tasks.start_soon(hear_it_stop)
                await anyio.sleep(2.5)
                await callers.begin(agent, "queued")
                await callers.begin(agent, "stop", overlap="interrupt")

            assert heard == ["one", " two"]
            messages = await session.messages()
            assert said(messages) == ["count", "one two", "stop", "well then", "queued", "echo: queued"]
            assert [message.interrupted for message in messages] == [False, True, False, False, False, False]
            assert [record.status for record in await session.runs()] == ["cancelled", "completed", "completed"]

    run(body)


def test_an_interrupted_tool_call_has_a_result_that_says_so(run: Run) -> None:
    async def body() -> None:
        @tool
        async def look_up(topic: str) -> str:
            await anyio.sleep(100.0)
            return topic

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            calls = [ToolCall(id="c1", name="look_up", arguments='{"topic":"tides"}')]
            model = ScriptedModel([model_answer(tool_calls=calls), "well then"])
            agent = Agent("Agent", model=model, session=session, tools=[look_up])
            async with Callers() as callers:
                await callers.begin(agent, "tides?")
                await anyio.sleep(1.0)
                await callers.begin(agent, "stop", overlap="interrupt")

            messages = await session.messages()
            assert [message.role for message in messages] == ["user", "assistant", "tool", "user", "assistant"]
            assert messages[2].interrupted

    run(body)


def test_a_turn_that_is_rolled_back_leaves_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                await callers.begin(agent, "first")
                await callers.begin(agent, "instead", overlap="rollback")

            assert said(await session.messages()) == ["instead", "echo: instead"]
            assert isinstance(callers.errors["first"], RunFailed)

    run(body)


def test_the_last_of_several_that_stop_is_the_one_that_is_answered(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="rollback")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                for text in ("first", "second", "third"):
                    await callers.begin(agent, text)

            assert said(await session.messages()) == ["third", "echo: third"]
            assert sorted(callers.errors) == ["first", "second"]

    run(body)


def test_a_turn_made_by_hand_is_stopped_too(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(), session=session)

            async def hold() -> None:
                async with session.turn() as turn:
                    turn.add("user", "never stored")
                    await anyio.sleep(1.0)

            async def find_it_over() -> None:
                with pytest.raises(StaleTurn):
                    await hold()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(find_it_over)
                await anyio.sleep(0.5)
                await agent.chat("stop", overlap="interrupt")

            assert said(await session.messages()) == ["stop", "echo: stop"]

    run(body)


def test_deliveries_are_told_to_those_who_stream(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=slow(), session=session)
            heard: dict[Overlap, list[Delivered]] = {}

            async def listen(overlap: Overlap) -> None:
                events: list[Delivered] = heard.setdefault(overlap, [])
                with suppress(Superseded):
                    async with agent.stream(overlap, overlap=overlap) as stream:
                        async for event in stream:
                            if isinstance(event, Delivered):
                                events.append(event)

            async with Callers() as callers:
                await callers.begin(agent, "first")
                for overlap in OVERLAPS_TOLD:
                    callers.tasks.start_soon(listen, overlap)
                    await anyio.sleep(0.001)
                await callers.begin(agent, "newest", overlap="latest")

            how = {
                overlap: [(each.how, each.position, each.into) for each in events] for overlap, events in heard.items()
            }
            first = (await session.runs())[0].id
            assert how == {
                "queue": [("queued", 1, "")],
                "latest": [("queued", 2, "")],
                "steer": [("queued", 3, ""), ("steered", 0, first)],
                "debounce": [("held", 0, ""), ("queued", 4, "")],
            }

    run(body)


def test_input_behind_a_turn_is_invisible_to_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = slow()
            agent = Agent("Agent", model=model, session=session)
            async with Callers() as callers:
                await callers.begin(agent, "first")
                await callers.begin(agent, "second")
                assert await session.messages() == []

            assert said(list(model.requests[0].messages)) == ["first"]
            assert said(list(model.requests[1].messages)) == ["first", "echo: first", "second"]

    run(body)


@pytest.mark.parametrize("overlap", ["queue", "merge", "debounce", "latest", "interrupt", "rollback", "steer"])
def test_a_tool_cannot_wait_for_its_own_turn_by_any_policy(run: Run, overlap: Overlap) -> None:
    async def body() -> None:
        errors: list[BaseException] = []

        @tool
        async def ask_again(context: ToolContext) -> str:
            try:
                await agent.chat("again", session=context.session, overlap=overlap)
            except CyclicAsk as error:
                errors.append(error)
            return "no"

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            calls = [ToolCall(id="c1", name="ask_again", arguments="{}")]
            model = ScriptedModel([model_answer(tool_calls=calls), "done"])
            agent = Agent("Agent", model=model, session=session, tools=[ask_again])
            reply = await agent.chat("go")

            assert reply.text == "done"
            assert len(errors) == 1

    run(body)


def test_reject_names_who_runs(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", overlap="reject")
            agent = Agent("Agent", model=slow(), session=session)
            async with Callers() as callers:
                await callers.begin(agent, "first")
                await callers.begin(agent, "second")

            error = callers.errors["second"]
            assert isinstance(error, Busy)
            assert error.run_id == callers.replies["first"].run_id

    run(body)


def test_a_session_refuses_a_policy_that_there_is_not(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            wrong: Any = "later"
            with pytest.raises(ValueError, match="no overlap policy 'later'"):
                Session(runtime, "s", overlap=wrong)
            with pytest.raises(ValueError, match="debounce_s must be a finite number of seconds above 0"):
                Session(runtime, "s", debounce_s=0)

    run(body)
