"""Runs that are submitted, runs that are stopped in one way or another, and turns made by hand."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from callboard import (
    Agent,
    BadRequest,
    CyclicAsk,
    Delta,
    RunFailed,
    Runtime,
    Session,
    StaleTurn,
    Submission,
    ToolCall,
    ToolContext,
    UnknownRun,
    tool,
)
from callboard.store import MemoryStore
from callboard.testing import ScriptedModel, model_answer, run_in_virtual_time

Run = Callable[[Callable[[], Awaitable[None]]], None]

LOOK_UP = [ToolCall(id="c1", name="look_up", arguments='{"topic":"tides"}')]


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return lambda body: run_in_virtual_time(body, backend=request.param)


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


def test_a_submission_that_gets_no_turn_ends(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            await agent.submit("runs")
            refused = await agent.submit("refused", overlap="reject", key="k")

            with pytest.raises(RunFailed, match="is busy with run"):
                await refused.wait()
            assert await refused.status() == "cancelled"
            assert (await agent.chat("refused", key="k")).text == "echo: refused"

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


# Turns made by hand ---------------------------------------------------------------------------------------------------


def test_what_a_turn_made_by_hand_adds_is_stored_together_at_its_end(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"name": "Ann"})
            await session.add_message("user", "before")
            async with session.turn() as turn:
                assert [message.text for message in turn.messages] == ["before"]
                assert turn.metadata == {"name": "Ann"}
                turn.add("user", "asked", author="me")
                turn.add_messages([{"role": "assistant", "content": "answered"}])
                assert [message["content"] for message in turn.messages_for_llm()] == ["before", "asked", "answered"]
                assert await session.message_count() == 1
                assert (await session.run(turn.run_id)).status == "running"

            assert await texts(runtime) == ["before", "asked", "answered"]
            (record,) = await session.runs()
            assert (record.id, record.status, record.first_seq, record.last_seq) == (turn.run_id, "completed", 2, 3)

    run(body)


def test_turns_of_others_wait_for_one_made_by_hand(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            async with anyio.create_task_group() as tasks:
                async with session.turn() as turn:
                    turn.add("user", "first")
                    submission = await agent_on(runtime).submit("second")
                    await anyio.sleep(5.0)
                    assert await submission.status() == "queued"
                tasks.start_soon(submission.wait)

            assert await texts(runtime) == ["first", "second", "echo: second"]

    run(body)


def test_a_block_that_raises_adds_nothing_and_its_run_has_failed(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def fail() -> None:
                async with session.turn() as turn:
                    turn.add("user", "never")
                    raise KeyError("oh")

            with pytest.raises(KeyError, match="oh"):
                await fail()

            (record,) = await session.runs()
            assert (record.status, record.error) == ("failed", "KeyError: 'oh'")
            assert await texts(runtime) == []

    run(body)


def test_a_block_that_is_cancelled_adds_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            with anyio.move_on_after(1.0):
                async with session.turn() as turn:
                    turn.add("user", "never")
                    await anyio.sleep(5.0)
            with anyio.move_on_after(0.5):  # nor does one that waits for its turn, and nobody is held up by it
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(agent_on(runtime).chat, "runs")
                    await anyio.sleep(0.1)
                    async with session.turn():
                        pass

            await session.add_message("user", "after")
            assert await texts(runtime) == ["after"]
            assert [record.status for record in await session.runs()] == ["cancelled"] * 3

    run(body)


def test_a_block_that_takes_too_long_is_cut_off(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def dawdle() -> None:
                async with session.turn(timeout_s=2.0) as turn:
                    turn.add("user", "never")
                    await anyio.sleep(5.0)

            with pytest.raises(TimeoutError, match="it took longer than its 2 s"):
                await dawdle()

            assert [record.status for record in await session.runs()] == ["failed"]
            assert await texts(runtime) == []

    run(body)


def test_a_turn_that_was_stopped_adds_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def hold() -> None:
                async with session.turn() as turn:
                    turn.add("user", "never")
                    assert await session.cancel_run(turn.run_id)

            with pytest.raises(StaleTurn):
                await hold()

            assert await texts(runtime) == []

    run(body)


def test_within_a_turn_made_by_hand_nobody_waits_for_the_next(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            async with session.turn() as turn:
                turn.add("user", "mine")
                with pytest.raises(CyclicAsk):
                    await session.add_message("user", "waits for itself")
                with pytest.raises(CyclicAsk):
                    await agent_on(runtime).chat("so does this")
                with pytest.raises(CyclicAsk):
                    await session.turn().__aenter__()
            await session.add_message("user", "after")

            assert await texts(runtime) == ["mine", "after"]

    run(body)


def test_a_turn_is_used_within_its_block_only(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            turn = session.turn()
            with pytest.raises(RuntimeError, match="within its block only"):
                turn.add("user", "early")
            async with turn:
                pass
            with pytest.raises(RuntimeError, match="within its block only"):
                turn.add("user", "late")
            with pytest.raises(RuntimeError, match="entered once"):
                await turn.__aenter__()
            with pytest.raises(ValueError, match="timeout_s must be above 0"):
                session.turn(timeout_s=0)

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
