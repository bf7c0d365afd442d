"""Runs: one for each chat, and those that are driven by hand; what they say and what they refuse."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    BadRequest,
    Failed,
    InvalidTransition,
    ModelUnavailable,
    Run as ByHand,
    RunFailed,
    RunPolicy,
    RunRecord,
    Runtime,
    Session,
    ToolCall,
    UnknownRun,
    Usage,
)
from callboard.runtime import Backoff
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


async def only_run(session: Session) -> RunRecord:
    (record,) = await session.runs()
    return record


def test_run_of_a_chat_tells_who_what_when_and_at_what_cost(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "before")
            model = ScriptedModel([model_answer("fine", usage=Usage(5, 2, 7, requests=1))], delay_s=0.05, name="wise-1")
            reply = await Agent("Agent", model=model, session=session).chat("hello")
            record = await session.run(reply.run_id)

            assert record == await only_run(session)
            assert (record.agent, record.model, record.status, record.attempts) == ("Agent", "wise-1", "completed", 1)
            assert (record.session_id, record.turn, record.error, record.manual) == ("s", reply.turn, None, False)
            assert [message.text for message in record.input] == ["hello"]
            assert (record.first_seq, record.last_seq) == (2, 3)
            assert record.usage == reply.usage == Usage(5, 2, 7, requests=1)
            assert record.duration_ms is not None
            assert 45 <= record.duration_ms < 5_000
            assert {message.run_id for message in reply.messages} == {reply.run_id}

    run(body)


def test_duration_does_not_count_the_queue(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.2), session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "first")
                tasks.start_soon(agent.chat, "second")
                await anyio.sleep(0.05)
                running, queued = await session.runs()

                assert (running.status, queued.status) == ("running", "queued")
                assert (queued.turn, queued.attempts, queued.started_at_ms) == (0, 0, None)
                assert await session.run(queued.id) == queued
            first, second = await session.runs()

            assert second.duration_ms is not None
            assert 195 <= second.duration_ms < 350
            assert second.started_at_ms is not None
            assert first.ended_at_ms is not None
            assert second.started_at_ms >= first.ended_at_ms
            assert second.created_at_ms < first.ended_at_ms

    run(body)


def test_usage_is_summed_over_model_calls_and_attempts(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def look(word: str) -> str:
                return word

            one = Usage(10, 1, 11, cached_tokens=4, reasoning_tokens=1, requests=1)
            call = model_answer(tool_calls=[ToolCall("c", "look", '{"word": "a"}')], usage=one)
            script = [call, ModelUnavailable("for now"), call, model_answer("fine", usage=one)]
            agent = Agent("Agent", model=ScriptedModel(script), session=session, tools=[look], policy=QUICK)
            reply = await agent.chat("hello")

            assert reply.usage == Usage(30, 3, 33, cached_tokens=12, reasoning_tokens=3, requests=3)
            assert reply.attempts == 2
            record = await only_run(session)
            assert (record.usage, record.attempts) == (reply.usage, 2)

    run(body)


def test_run_that_waits_for_its_next_attempt_says_so_and_why(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            policy = RunPolicy(backoff=Backoff(first_s=30.0, max_s=30.0), attempts_max=3)
            agent = Agent("Agent", model=ScriptedModel([ModelUnavailable("busy")]), session=session, policy=policy)
            with anyio.move_on_after(10.0) as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(agent.chat, "hello")
                    for _ in range(100):
                        await anyio.sleep(0.001)
                        if (await session.runs())[:1] and (await only_run(session)).status == "waiting":
                            break

                    record = await only_run(session)
                    assert (record.status, record.error, record.attempts) == ("waiting", "busy", 1)
                    assert record.ended_at_ms is None
                    scope.cancel()

    run(body)


@pytest.mark.parametrize("fault", [BadRequest("no such model"), RuntimeError("a bug of ours")])
def test_failed_run_keeps_its_input_and_reason_and_leaves_history_as_it_was(run: Run, fault: Exception) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "before")
            model = ScriptedModel(lambda _request: fault)
            agent = Agent("Agent", model=model, session=session, policy=QUICK)
            with pytest.raises(RunFailed, match=str(fault)) as caught:
                await agent.chat("hello")

            assert caught.value.__cause__ is fault
            record = await only_run(session)
            assert (record.id, record.status) == (caught.value.run_id, "failed")
            assert record.error is not None
            assert str(fault) in record.error
            assert record.input[0].text == "hello"
            assert (record.first_seq, record.last_seq) == (0, 0)
            assert await session.message_count() == 1
            permanent = isinstance(fault, BadRequest)
            assert len(model.requests) == record.attempts == (1 if permanent else QUICK.attempts_max)

    run(body)


def test_spans_name_each_model_call_and_tool_call_in_the_order_of_their_starts(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def good() -> str:
                return "fine"

            async def bad() -> str:
                raise RuntimeError("it broke")

            calls = [ToolCall("c1", "good"), ToolCall("c2", "bad")]
            script = [ModelUnavailable("for now"), model_answer(tool_calls=calls), "done"]
            agent = Agent("A", model=ScriptedModel(script), session=session, tools=[good, bad], policy=QUICK)
            reply = await agent.chat("hello")
            spans = await session.spans(reply.run_id)

            assert [span.number for span in spans] == [1, 2, 3, 4, 5]
            assert [span.kind for span in spans] == ["model", "model", "tool", "tool", "model"]
            assert {(span.name, span.status) for span in spans[2:4]} == {("good", "ok"), ("bad", "error")}
            assert (spans[0].status, spans[0].attributes["error"]) == ("error", "ModelUnavailable: for now")
            assert all(span.ended_at_ms is not None and span.run_id == reply.run_id for span in spans)
            assert sum(span.usage.requests for span in spans) == reply.usage.requests == 2

    run(body)


# By hand ------------------------------------------------------------------------------------------------------------


def test_run_by_hand_goes_along_the_table_and_its_handle_shows_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run(agent="me", model="mine")
            assert (by_hand.status, by_hand.duration_ms) == ("queued", None)
            await by_hand.start()
            await anyio.sleep(0.02)
            assert by_hand.status == "running"
            await by_hand.complete(usage=Usage(1, 2, 3))

            assert (by_hand.status, by_hand.record.usage) == ("completed", Usage(1, 2, 3))
            assert by_hand.duration_ms is not None
            assert by_hand.duration_ms >= 15
            assert by_hand.record == await only_run(session)
            assert (by_hand.record.agent, by_hand.record.model, by_hand.record.manual) == ("me", "mine", True)
            assert (await session.head()).run_count == 1

    run(body)


STEPS: dict[str, Callable[[ByHand], Awaitable[None]]] = {
    "start": lambda run: run.start(),
    "complete": lambda run: run.complete(),
    "fail": lambda run: run.fail("no"),
    "cancel": lambda run: run.cancel(),
}
WRONG = [
    ("complete",),
    ("start", "start"),
    *((end, then) for end in ("fail", "cancel") for then in STEPS),
    *(("start", end, then) for end in ("complete", "fail", "cancel") for then in STEPS),
]


@pytest.mark.parametrize("steps", WRONG, ids="-".join)
def test_wrong_transition_raises_and_the_run_stays_as_it_is(run: Run, steps: tuple[str, ...]) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()
            for step in steps[:-1]:
                await STEPS[step](by_hand)
            before = await only_run(session)
            with pytest.raises(InvalidTransition) as caught:
                await STEPS[steps[-1]](by_hand)

            assert caught.value.run_id == by_hand.id
            assert caught.value.status == before.status == by_hand.status
            assert await only_run(session) == before

    run(body)


def test_of_two_ends_at_once_one_holds_and_the_other_is_refused(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            for _ in range(10):
                by_hand = await session.create_run()
                await by_hand.start()
                outcomes: list[str] = []

                async def end(name: str, by_hand: ByHand = by_hand, outcomes: list[str] = outcomes) -> None:
                    try:
                        await STEPS[name](by_hand)
                        outcomes.append(name)
                    except InvalidTransition:
                        outcomes.append("refused")

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(end, "complete")
                    tasks.start_soon(end, "fail")

                assert outcomes.count("refused") == 1
                status = (await session.run(by_hand.id)).status
                assert {"complete": "completed", "fail": "failed"}[min(set(outcomes) - {"refused"})] == status

    run_in_real_time(body)


def test_run_of_a_chat_cannot_be_driven_by_hand(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.1), session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "hello")
                await anyio.sleep(0.05)
                running = ByHand(runtime.session_actor("s"), await only_run(session))
                for step in STEPS.values():
                    with pytest.raises(InvalidTransition):
                        await step(running)

            assert (await only_run(session)).status == "completed"

    run(body)


def test_run_by_hand_of_a_deleted_session_is_unknown(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()
            async with anyio.create_task_group() as tasks:
                deleting = anyio.Event()

                async def delete() -> None:
                    deleting.set()
                    await session.delete()

                tasks.start_soon(delete)
                await deleting.wait()
                with pytest.raises((UnknownRun, InvalidTransition)):
                    await by_hand.start()  # the delete is on its way to the disk
            with pytest.raises(UnknownRun):
                await by_hand.start()
            with pytest.raises(UnknownRun):
                await by_hand.refresh()

            assert runtime.statistics().crashes == 0
            assert await session.runs() == []

    run_in_real_time(body)


def test_latest_runs_are_given_oldest_first_also_where_an_old_one_is_still_open(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            still_open = await session.create_run()
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            ids = [still_open.id, *[(await agent.chat(str(number))).run_id for number in range(4)]]

            assert [record.id for record in await session.runs()] == ids
            assert [record.id for record in await session.runs(limit=2)] == ids[-2:]

    run(body)


def test_handle_that_refreshes_sees_what_another_did(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            mine = await session.create_run()
            other = ByHand(runtime.session_actor("s"), await session.run(mine.id))
            await mine.start()
            await mine.fail(ValueError("that was wrong"))
            assert other.status == "queued"
            await other.refresh()

            assert (other.status, other.record.error) == ("failed", "ValueError: that was wrong")

    run(body)


def test_failed_run_is_failed_also_for_those_who_only_know_the_kernels_errors(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = Agent("Agent", model=ScriptedModel([BadRequest("no")]), session=Session(runtime, "s"))
            with pytest.raises(Failed):
                await agent.chat("hello")

    run(body)
