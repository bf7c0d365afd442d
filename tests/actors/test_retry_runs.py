"""Turns that end without an answer: what becomes of their input, and how they are tried again."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
from recorded_store import Recorded
from tool_turns import World, agent_of, approve_all, paused

from callboard import (
    Agent,
    BadRequest,
    Budget,
    BudgetExceeded,
    InvalidTransition,
    Message,
    RunFailed,
    RunPolicy,
    RunRecord,
    Runtime,
    Session,
    Spending,
    ToolCall,
    UnknownRun,
)
from callboard.actors.session_messages import BeginTurn, CancelTurn
from callboard.testing import ScriptedModel, model_answer, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

NO = BadRequest("no")
CALL = model_answer(tool_calls=[ToolCall("c", "look", "{}")])


def agent_in(session: Session, script: Any = (), *, delay_s: float = 0.0) -> Agent:
    return Agent("Agent", model=ScriptedModel(script, delay_s=delay_s), session=session)


async def texts(session: Session) -> list[str]:
    return [f"{message.role}: {message.text}" for message in await session.messages()]


def asked(agent_model: ScriptedModel, number: int = -1) -> list[str]:
    return [message.text for message in agent_model.requests[number].messages]


async def failing(agent: Agent, text: str, **options: Any) -> str:
    with pytest.raises(RunFailed) as caught:
        await agent.chat(text, **options)
    return caught.value.run_id


@pytest.mark.parametrize("keep_input", [False, True])
def test_a_retry_asks_again_in_a_new_run_and_history_has_the_question_once(run: Run, keep_input: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "before")
            model = ScriptedModel([NO, NO, NO, "at last"])
            agent = Agent("Agent", model=model, session=session)
            first = await failing(agent, "why?", keep_input=keep_input)
            assert await texts(session) == ["user: before", *(["user: why?"] if keep_input else [])]
            for _ in range(2):
                with pytest.raises(RunFailed):
                    await agent.retry(first)
            reply = await agent.retry(first)

            assert await texts(session) == ["user: before", "user: why?", "assistant: at last"]
            assert [asked(model, number) for number in range(4)] == [["before", "why?"]] * 4
            runs = await session.runs()
            assert [record.retry_of for record in runs] == ["", first, first, first]
            assert [record.status for record in runs] == ["failed", "failed", "failed", "completed"]
            assert all(record.input == runs[0].input for record in runs)
            assert reply.messages == tuple((await session.messages())[-len(reply.messages) :])
            assert len(reply.messages) == (1 if keep_input else 2)

    run(body)


def test_a_retry_of_a_retry_knows_that_the_question_stands_already(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, [NO, NO, "one", "two"])
            first = await failing(agent, "why?")
            with pytest.raises(RunFailed) as caught:
                await agent.retry(first)
            await agent.retry(caught.value.run_id)
            await agent.retry(first)  # as somebody does who wants another answer

            assert await texts(session) == ["user: why?", "assistant: one", "assistant: two"]
            assert [record.retry_of for record in await session.runs()] == ["", first, first, first]

    run(body)


def test_a_kept_question_is_read_last_though_others_wrote_behind_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel([NO, "the answer"])
            agent = Agent("Agent", model=model, session=session)
            first = await failing(agent, "why?", keep_input=True)
            await session.add_messages([Message(role="user", content="x"), Message(role="assistant", content="y")])
            await agent.retry(first)

            assert asked(model) == ["x", "y", "why?"]
            assert await texts(session) == ["user: why?", "user: x", "assistant: y", "assistant: the answer"]

    run(body)


def test_a_question_that_an_edit_took_out_is_put_there_again(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, [NO, "yes"])
            first = await failing(agent, "why?", keep_input=True)
            await session.pop()
            await agent.retry(first)

            assert await texts(session) == ["user: why?", "assistant: yes"]

    run(body)


def test_a_turn_that_is_cancelled_leaves_its_question_too(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, delay_s=60.0)
            with anyio.move_on_after(1.0):
                await agent.chat("why?", keep_input=True)
            await until_quiet(runtime)
            (record,) = await session.runs()
            assert record.status == "cancelled"
            assert (await session.messages())[record.input_seq - 1].text == "why?"
            reply = await agent_in(session, ["so"]).retry(record.id)

            assert reply.text == "so"
            assert await texts(session) == ["user: why?", "assistant: so"]

    run(body)


def test_a_question_that_never_had_its_turn_leaves_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, delay_s=1.0)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "first")
                await anyio.sleep(0.1)
                with anyio.move_on_after(0.1):
                    await agent.chat("second", keep_input=True)

            assert await texts(session) == ["user: first", "assistant: echo: first"]
            (cancelled,) = await session.runs(status="cancelled")
            with pytest.raises(RunFailed):
                await agent_in(session, [NO]).retry(cancelled.id)  # this one has a turn, and keeps it as was asked for
            assert await texts(session) == ["user: first", "assistant: echo: first", "user: second"]

    run(body)


def test_a_turn_that_others_end_leaves_its_question_for_the_next_one_to_see(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, ref = Session(runtime, "s"), runtime.session_actor("s")
            await session.add_message("user", "before")
            said = (Message(role="user", content="why?"),)
            record = RunRecord(id="run_1", session_id="s", created_at_ms=1, agent="A", input=said, keep_input=True)
            await ref.ask(BeginTurn(record, "queue", session.defaults))
            assert await ref.ask(CancelTurn("run_1", "its agent is gone", "failed"))
            model = ScriptedModel(["so"])
            await Agent("A", model=model, session=session).chat("and?")

            assert asked(model) == ["before", "why?", "and?"]
            assert await texts(session) == ["user: before", "user: why?", "user: and?", "assistant: so"]
            assert (await session.run("run_1")).input_seq == 2

    run(body)


@pytest.mark.parametrize("how", ["resume", "retry"])
def test_a_crash_leaves_the_question_once_and_the_run_can_go_on_or_be_tried_again(run: Run, how: str) -> None:
    async def body() -> None:
        left = await crashed_in_a_turn(keep_input=True)
        for _ in range(2):  # a second crash, or restart, changes nothing
            async with Runtime.on(lambda left=left: left):
                left = Recorded(left)
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            (record,) = await session.runs()
            assert (record.status, await texts(session)) == ("interrupted", ["user: go"])
            agent = agent_of(World(), session)
            reply = await (agent.resume(record.id) if how == "resume" else agent.retry(record.id))

            roles = [message.role for message in await session.messages()]
            assert (reply.text, roles[:2], roles.count("user")) == ("done", ["user", "assistant"], 1)
            assert all(message.role != "user" for message in reply.messages)

    run(body)


def test_a_crash_without_keep_input_leaves_history_as_it_was(run: Run) -> None:
    async def body() -> None:
        left = await crashed_in_a_turn(keep_input=False)
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")
            (record,) = await session.runs()
            assert (record.status, await texts(session)) == ("interrupted", [])
            await agent_of(World(), session).retry(record.id)
            with pytest.raises(RunFailed):  # its journal went with the answer to its question
                await agent_in(session, [NO]).chat("next")

            assert [record.status for record in await session.runs()] == ["interrupted", "completed", "failed"]

    run(body)


async def crashed_in_a_turn(*, keep_input: bool) -> Recorded:
    """The store as a crash leaves it to the next process while a tool of the turn runs."""
    store = left = Recorded()
    async with Runtime.on(lambda: store) as runtime:
        session = Session(runtime, "s")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: agent_of(World(wait_s=5.0), session).chat("go", keep_input=keep_input))
            await anyio.sleep(1.0)
            left = Recorded(store)
            tasks.cancel_scope.cancel()
    return left


def test_a_run_that_waits_for_an_approval_shows_its_question_and_goes_on_behind_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(World(), session, approval=True)
            with pytest.raises(Exception, match="waits for an approval") as pause:
                await agent.chat("go", keep_input=True)
            run_id = getattr(pause.value, "run_id", "")
            assert await texts(session) == ["user: go"]
            assert await approve_all(agent, run_id) == "done"

            assert (await texts(session)).count("user: go") == 1
            assert (await session.run(run_id)).status == "completed"

    run(body)


def test_a_paused_run_that_is_cancelled_without_keep_input_leaves_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_of(World(), session, approval=True)
            pause = await paused(agent)
            assert await session.cancel_run(pause.run_id)

            assert await texts(session) == []
            reply = await agent_of(World(), session).retry(pause.run_id)
            assert (await texts(session))[0] == "user: go"
            assert reply.text == "done"

    run(body)


def test_a_retry_behind_a_part_that_was_kept_asks_again_behind_it(run: Run) -> None:
    async def look() -> str:
        return "seen"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            policy = RunPolicy(budget=Budget(model_calls=1, keep_partial=True))
            agent = Agent("A", model=ScriptedModel([CALL]), session=session, tools=[look], policy=policy)
            with pytest.raises(BudgetExceeded) as caught:
                await agent.chat("why?")
            await Agent("A", model=ScriptedModel(["so"]), session=session).retry(caught.value.run_id)

            assert await texts(session) == ["user: why?", "assistant: ", "tool: seen", "user: why?", "assistant: so"]

    run(body)


def test_an_interrupted_question_without_any_answer_is_not_asked_twice(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, delay_s=10.0)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(failing, agent, "one")
                await anyio.sleep(1.0)
                await agent.chat("two", overlap="interrupt")
            (stopped,) = await session.runs(status="cancelled")
            reply = await agent.retry(stopped.id)

            assert (stopped.partial, stopped.input_seq, reply.text) == (False, 1, "echo: one")
            said = ["user: one", "user: two", "assistant: echo: two", "assistant: echo: one"]
            assert await texts(session) == said

    run(body)


def test_a_retry_may_have_a_budget_and_a_form_of_its_own(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, [NO, '{"value": [1, 2]}'])
            first = await failing(agent, "why?")
            spending = Spending(Budget(model_calls=1))
            reply = await agent.retry(first, spending=spending, output=list[int])

            assert (reply.output, spending.model_calls) == ([1, 2], 1)

    run(body)


def test_only_a_run_of_this_agent_that_ended_without_an_answer_is_retried(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, ["fine", NO])
            reply = await agent.chat("one")
            failed = await failing(agent, "two")
            by_hand = await session.create_run(agent="Agent")
            await by_hand.start()
            await by_hand.fail("no")
            waiting = await paused(agent_of(World(), session, approval=True))

            with pytest.raises(InvalidTransition, match="'completed' and cannot become 'retried'"):
                await agent.retry(reply.run_id)
            with pytest.raises(InvalidTransition, match="'waiting'"):
                await agent_of(World(), session, approval=True).retry(waiting.run_id)
            with pytest.raises(ValueError, match="made by hand"):
                await agent.retry(by_hand.id)
            with pytest.raises(ValueError, match="one of agent 'Agent'"):
                await agent_of(World(), session).retry(failed)
            with pytest.raises(UnknownRun):
                await agent.retry("run_that_never_was")
            with pytest.raises(TypeError, match="retried in its session"):
                await Agent("Agent", model=ScriptedModel(), runtime=runtime).retry(failed)
            assert await session.message_count() == 2

    run(body)


@pytest.mark.parametrize("submitted", [False, True])
def test_the_same_key_after_a_run_that_was_cancelled_tries_again_what_it_kept(run: Run, *, submitted: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, delay_s=1.0)
            with anyio.move_on_after(0.5):
                await agent.chat("asked", key="k", keep_input=True)
            await until_quiet(runtime)
            await session.add_message("user", "meanwhile")
            assert await texts(session) == ["user: asked", "user: meanwhile"]

            if submitted:
                await (await agent.submit("asked", key="k", keep_input=True)).wait()
            else:
                await agent.chat("asked", key="k", keep_input=True)

            assert await texts(session) == ["user: asked", "user: meanwhile", "assistant: echo: asked"]
            first, second = await session.runs()
            assert (first.status, second.status, second.retry_of) == ("cancelled", "completed", first.id)

    run(body)
