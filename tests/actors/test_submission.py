"""Runs that are submitted, and runs that are stopped in one way or another."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from callboard import (
    Agent,
    BadRequest,
    Busy,
    Delta,
    RunFailed,
    Runtime,
    Session,
    Submission,
    ToolCall,
    ToolContext,
    UnknownRun,
    tool,
)
from callboard.actors.turns import WAITING_MAX, Overlap
from callboard.store import MemoryStore
from callboard.testing import ScriptedModel, model_answer

Run = Callable[[Callable[[], Awaitable[None]]], None]

LOOK_UP = [ToolCall(id="c1", name="look_up", arguments='{"topic":"tides"}')]


@tool
async def look_up(topic: str) -> str:
    await anyio.sleep(1.0)
    return f"facts on {topic}"


def agent_on(runtime: Runtime, script: Any = (), **options: Any) -> Agent[Any]:
    model = ScriptedModel(script, delay_s=1.0)
    return Agent("Agent", model=model, session=Session(runtime, "s"), tools=[look_up], **options)


async def texts(runtime: Runtime) -> list[str]:
    return [message.text for message in await Session(runtime, "s").messages()]


# Submitting -----------------------------------------------------------------------------------------------------------


def test_what_is_submitted_is_answered_by_and_by(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)

            first, second = await agent.submit("first"), await agent.submit("second")

            assert (await first.status(), await second.status()) == ("running", "queued")
            assert await texts(runtime) == []
            replies = [await each.wait() for each in (second, first)]
            assert [reply.text for reply in replies] == ["echo: second", "echo: first"]
            assert await texts(runtime) == ["first", "echo: first", "second", "echo: second"]
            assert await first.wait() == replies[1], "as often as one likes"
            assert (await first.record()).finish_reason == "stop"

    run(body)


def test_a_submitted_run_goes_on_without_its_caller(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            submission = await agent.submit("hello")
            with anyio.move_on_after(0.5):
                await submission.wait()

            assert (await submission.wait()).text == "echo: hello"

    run(body)


def test_a_submission_is_found_again_by_its_key_and_by_its_run(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)

            submissions = [await agent.submit("hello", key="k") for _ in range(2)]
            submissions.append(agent.submission(submissions[0].run_id))
            chat = await agent.chat("hello", key="k")

            assert {each.run_id for each in submissions} == {chat.run_id}
            assert [await each.wait() for each in submissions] == [chat] * 3

    run(body)


def test_a_submitted_run_that_its_process_did_not_begin_is_interrupted_and_can_go_on(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store, drain_timeout_s=0.1) as runtime:
            agent = agent_on(runtime)
            begun, queued = await agent.submit("begun"), await agent.submit("queued", key="k")
            await anyio.sleep(0.5)
        store = store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            agent = agent_on(runtime)
            again = [agent.submission(each.run_id) for each in (begun, queued)]
            assert [await each.status() for each in again] == ["interrupted", "interrupted"]
            with pytest.raises(RunFailed, match="the runtime was closed"):
                await again[1].wait()

            submission = await agent.submit("queued", key="k")
            reply = await submission.wait()
            await agent.resume(begun.run_id)

            assert (submission.run_id, reply.text) == (queued.run_id, "echo: queued")
            assert await texts(runtime) == ["queued", "echo: queued", "begun", "echo: begun"]

    run(body)


@pytest.mark.parametrize("place", ["running", "queued"])
def test_a_submitted_run_can_be_cancelled(run: Run, place: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            submissions = [await agent.submit(text) for text in ("first", "second")]
            submission = submissions[place == "queued"]

            assert await submission.cancel(reason="changed my mind")

            assert await submission.status() == "cancelled"
            with pytest.raises(RunFailed, match="changed my mind"):
                await submission.wait()
            assert not await submission.cancel()
            await submissions[place == "running"].wait()
            assert len(await texts(runtime)) == 2
            assert (await Session(runtime, "s").head()).queued_runs == ()

    run(body)


def test_the_events_of_a_submission_end_with_its_run(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel(["one two three"], piece_delay_s=1.0)
            agent = Agent("Agent", model=model, session=Session(runtime, "s"))

            async def pieces(submission: Submission[Any]) -> list[str]:
                async with aclosing(submission.events()) as events:
                    return [event.text async for event in events if isinstance(event, Delta)]

            submission = await agent.submit("count")
            assert await pieces(submission) == ["one", " two", " three"]
            assert await pieces(submission) == [], "it has ended"
            assert len(runtime.feeds) == 0

    run(body)


def test_a_submission_fails_as_its_run_does(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime, [BadRequest("no")])
            submission = await agent.submit("hello")

            with pytest.raises(RunFailed, match="no") as caught:
                await submission.wait()
            assert caught.value.run_id == submission.run_id
            with pytest.raises(UnknownRun):
                await agent.submission("run_nobody_knows").wait()
            with pytest.raises(TypeError, match="is stored in a session"):
                await Agent("Alone", model=ScriptedModel(), runtime=runtime).submit("hello")

    run(body)


def test_what_cannot_have_a_turn_is_not_accepted(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            await agent.submit("runs")
            with pytest.raises(Busy):
                await agent.submit("refused", overlap="reject", key="k")
            refused: list[Busy] = []

            async def submit() -> None:
                try:
                    await agent.submit("waits")
                except Busy as error:
                    refused.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(WAITING_MAX + 5):
                    tasks.start_soon(submit)

            assert len(refused) == 5
            assert len((await Session(runtime, "s").head()).queued_runs) == WAITING_MAX

    run(body)


@pytest.mark.parametrize("overlap", ["queue", "debounce"])
def test_what_was_accepted_can_go_on_after_the_runtime_was_closed(run: Run, overlap: Overlap) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store, drain_timeout_s=0.3) as runtime:
            session = Session(runtime, "s", debounce_s=10.0)
            agent = Agent("Agent", model=ScriptedModel(delay_s=1.0), session=session)
            submissions = [await agent.submit("hello", overlap=overlap) for _ in range(2)]
        store = store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            agent = agent_on(runtime)
            assert [await agent.submission(each.run_id).status() for each in submissions] == ["interrupted"] * 2
            for each in submissions:
                assert (await agent.resume(each.run_id)).text == "echo: hello"

    run(body)


@pytest.mark.parametrize("overlap", ["queue", "debounce"])
def test_a_submission_that_joins_a_chat_which_waits_is_stored_and_outlives_the_chats_caller(
    run: Run, overlap: Overlap
) -> None:
    async def body() -> None:
        store, run_id = MemoryStore(), ""
        async with Runtime.on(lambda: store, drain_timeout_s=0.0) as runtime:
            agent, session = agent_on(runtime), Session(runtime, "s", debounce_s=5.0)

            async def leave() -> None:
                with anyio.move_on_after(0.5):
                    await agent.chat("asked", session=session, key="k", overlap=overlap)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "before")
                await anyio.sleep(0.1)
                tasks.start_soon(leave)
                await anyio.sleep(0.1)
                submission = await agent.submit("asked", session=session, key="k", overlap=overlap)
                await anyio.sleep(0.5)
                assert await submission.status() == "queued"
                run_id = submission.run_id
                tasks.cancel_scope.cancel()
        store = store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            assert await agent_on(runtime).submission(run_id).status() == "interrupted"
            assert (await agent_on(runtime).resume(run_id)).text == "echo: asked"

    run(body)


def test_a_submission_whose_input_was_taken_into_another_run_is_what_that_is(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            first = await agent.submit("first")
            merged = [await agent.submit(text, overlap="merge") for text in ("second", "third")]
            steered = await agent.submit("and also", overlap="steer")

            replies = [await each.wait() for each in (first, *merged, steered)]

            assert [await each.status() for each in (first, *merged, steered)] == ["completed"] * 4
            assert replies[0] == replies[3]
            assert replies[1] == replies[2]

    run(body)


def test_a_tool_may_submit_to_the_session_that_it_works_in(run: Run) -> None:
    async def body() -> None:
        submissions: list[Submission[Any]] = []

        @tool
        async def go_on_later(context: ToolContext) -> str:
            submissions.append(await other.submit("later", session=context.session))
            return "it will"

        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            calls = [ToolCall(id="c1", name="go_on_later", arguments="{}")]
            model = ScriptedModel([model_answer(tool_calls=calls), "done"])
            other = Agent("Other", model=ScriptedModel(), session=session)
            await Agent("Agent", model=model, session=session, tools=[go_on_later]).chat("now")

            await submissions[0].wait()

            assert (await texts(runtime))[-2:] == ["later", "echo: later"]

    run(body)


# Stopping -------------------------------------------------------------------------------------------------------------


async def stopped(runtime: Runtime, at_s: float, **how: Any) -> list[str]:
    """What history has where a run of three model calls, a second each with a second of tools between, was stopped."""
    agent = agent_on(runtime, [model_answer(tool_calls=LOOK_UP), model_answer(tool_calls=LOOK_UP), "done"])
    submission = await agent.submit("tides?")
    await anyio.sleep(at_s)
    assert await submission.cancel(**how)
    return [message.role for message in await Session(runtime, "s").messages()]


@pytest.mark.parametrize(
    ("how", "at_s", "left", "status", "ends_s"),
    [
        ({}, 1.5, [], "cancelled", 1.5),
        ({"keep_partial": True}, 1.5, ["user", "assistant", "tool"], "cancelled", 1.5),
        ({"keep_partial": True}, 0.5, ["user"], "cancelled", 0.5),
        ({"when": "after_step"}, 1.5, [], "cancelled", 2.0),
        ({"when": "after_step", "keep_partial": True}, 1.5, ["user", "assistant", "tool"], "cancelled", 2.0),
        ({"when": "after_step", "keep_partial": True}, 2.5, ["user", *2 * ["assistant", "tool"]], "cancelled", 4.0),
        ({"when": "after_step"}, 4.5, ["user", *2 * ["assistant", "tool"], "assistant"], "completed", 5.0),
        ({"when": "after_turn"}, 0.5, ["user", *2 * ["assistant", "tool"], "assistant"], "completed", 5.0),
    ],
)
def test_a_run_is_stopped_as_it_is_wished(
    run: Run, *, how: dict[str, Any], at_s: float, left: list[str], status: str, ends_s: float
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            began_s = anyio.current_time()
            roles = await stopped(runtime, at_s, **how)

            assert anyio.current_time() - began_s == pytest.approx(ends_s, abs=0.1)
            assert roles == left
            assert (await Session(runtime, "s").runs())[0].status == status

    run(body)


def test_after_the_turn_no_failed_attempt_is_repeated(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([TimeoutError("lost"), "never"], delay_s=1.0)
            agent = Agent("Agent", model=model, session=Session(runtime, "s"))
            submission = await agent.submit("hello")
            await anyio.sleep(0.5)

            await submission.cancel(when="after_turn")

            assert await submission.status() == "failed"
            assert len(model.requests) == 1

    run(body)


def test_when_is_one_of_three(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            wrong: Any = "later"
            with pytest.raises(ValueError, match="when= is one of now, after_step, after_turn, not 'later'"):
                await Session(runtime, "s").cancel_run("run_1", when=wrong)

    run(body)


def test_what_is_kept_of_an_answer_begins_with_its_beginning_whoever_listens(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel(["a b c d e f"], piece_delay_s=1.0)
            agent = Agent("Agent", model=model, session=session)
            async with session.events():
                submission = await agent.submit("letters")
                await anyio.sleep(2.5)
                async with aclosing(submission.events()) as events:
                    await anext(events)
                    assert await submission.cancel(keep_partial=True)

            assert await texts(runtime) == ["letters", "a b c"]

    run(body)
