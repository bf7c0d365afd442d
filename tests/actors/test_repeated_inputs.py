"""Idempotency keys: the same request again joins the run under way, gets the stored outcome, or goes on."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec
import pytest

from callboard import (
    Agent,
    ApprovalRequired,
    BadRequest,
    Busy,
    Delivered,
    Delta,
    KeyReused,
    Reply,
    RunFailed,
    Runtime,
    Session,
    ToolCall,
    UnknownSession,
    tool,
)
from callboard.actors.outcomes import OUTCOMES_KEPT_MS
from callboard.actors.turns import WAITING_MAX, Overlap
from callboard.store import MemoryStore, Table
from callboard.testing import ScriptedModel, model_answer

Run = Callable[[Callable[[], Awaitable[None]]], None]


class Colour(msgspec.Struct):
    name: str


def agent_on(runtime: Runtime, model: ScriptedModel | None = None, **options: Any) -> Agent[Any]:
    return Agent("Agent", model=model or ScriptedModel(delay_s=1.0), session=Session(runtime, "s"), **options)


def test_the_same_request_gets_the_stored_answer(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)

            first = await agent.chat("hello", key="k")
            again = await agent.chat("hello", key="k")

            assert again == first
            assert await Session(runtime, "s").message_count() == 2
            assert len(await Session(runtime, "s").runs()) == 1

    run(body)


def test_the_same_request_joins_the_run_that_is_under_way_or_waits(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent, other = agent_on(runtime), agent_on(runtime)
            replies: list[Reply[Any]] = []

            async def chat(each: Agent[Any]) -> None:
                replies.append(await each.chat("hello", key="k"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.chat, "before")
                for each in (agent, agent, other):
                    await anyio.sleep(0.4)
                    tasks.start_soon(chat, each)

            assert replies[0] == replies[1] == replies[2]
            assert await Session(runtime, "s").message_count() == 4

    run(body)


def test_who_joins_hears_the_whole_stream(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime, ScriptedModel(["one two three"], piece_delay_s=1.0))
            heard: list[list[str]] = []
            delivered: list[Delivered] = []

            async def listen() -> None:
                async with agent.stream("count", key="k") as stream:
                    pieces: list[str] = []
                    async for event in stream:
                        if isinstance(event, Delta):
                            pieces.append(event.text)
                        elif isinstance(event, Delivered):
                            delivered.append(event)
                    heard.append(pieces)
                    assert stream.reply.text == "one two three"

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await anyio.sleep(2.5)
                tasks.start_soon(listen)

            assert heard == [["one", " two", " three"]] * 2
            assert [each.how for each in delivered] == ["joined"]
            assert len(runtime.feeds) == 0

    run(body)


def test_a_joined_run_goes_on_when_its_first_caller_leaves(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)

            async def leave() -> None:
                with anyio.move_on_after(0.5):
                    await agent.chat("hello", key="k")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leave)
                await anyio.sleep(0.2)
                assert (await agent.chat("hello", key="k")).text == "echo: hello"

    run(body)


def test_another_request_with_the_key_is_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            reply = await agent.chat("hello", key="k")

            with pytest.raises(KeyReused, match="give each request its own key") as caught:
                await agent.chat("something else", key="k")
            with pytest.raises(KeyReused):
                await Agent("Other", model=ScriptedModel(), session=Session(runtime, "s")).chat("hello", key="k")

            assert caught.value.run_id == reply.run_id
            assert await Session(runtime, "s").message_count() == 2
            assert (await agent.chat("hello", session=Session(runtime, "other"), key="k")).run_id != reply.run_id

    run(body)


def test_a_failure_is_an_outcome_and_a_cancelled_run_is_none(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            model = ScriptedModel([BadRequest("no"), "late", "at last"], delay_s=1.0)
            agent = agent_on(runtime, model)

            failures: list[RunFailed] = []
            for _ in range(2):
                with pytest.raises(RunFailed) as caught:
                    await agent.chat("fails", key="fails")
                failures.append(caught.value)
            with anyio.move_on_after(0.5):
                await agent.chat("cancelled", key="cancelled")
            reply = await agent.chat("cancelled", key="cancelled")

            assert failures[0].run_id == failures[1].run_id
            assert failures[0].reason == failures[1].reason
            assert len(model.requests) == 3
            assert reply.text == "at last"

    run(body)


def test_a_pause_is_told_again(run: Run) -> None:
    async def body() -> None:
        @tool(approval=True)
        async def pay(amount: int) -> str:
            return f"paid {amount}"

        async with Runtime.in_memory() as runtime:
            calls = [ToolCall(id="c1", name="pay", arguments='{"amount":5}')]
            agent = agent_on(runtime, ScriptedModel([model_answer(tool_calls=calls), "done"]), tools=[pay])
            pauses: list[ApprovalRequired] = []
            for _ in range(2):
                with pytest.raises(ApprovalRequired) as caught:
                    await agent.chat("pay", key="k")
                pauses.append(caught.value)

            assert pauses[0].run_id == pauses[1].run_id
            await agent.resume(pauses[0].run_id, approve=True)
            reply = await agent.chat("pay", key="k")

            assert reply.text == "done"
            assert [message.role for message in reply.messages] == ["user", "assistant", "tool", "assistant"]

    run(body)


def test_a_structured_answer_is_read_anew(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime, ScriptedModel(['{"name":"red"}']), output=Colour)

            replies = [await agent.chat("which?", key="k") for _ in range(2)]

            assert [reply.output for reply in replies] == [Colour("red")] * 2

    run(body)


def test_an_outcome_is_kept_for_a_day_and_then_forgotten(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            agent = agent_on(runtime)
            first = await agent.chat("hello", key="k")
            await anyio.sleep(OUTCOMES_KEPT_MS / 1000 - 10)
            assert (await agent.chat("hello", key="k")).run_id == first.run_id
            await anyio.sleep(20)
            assert (await agent.chat("hello", key="k")).run_id != first.run_id
            await anyio.sleep(OUTCOMES_KEPT_MS / 1000 + 10)
            await agent.chat("hello", key="other")
            assert len(store.scan("session:s", Table.OUTCOME)) == 1, "old ones leave with newer ones"

    run(body)


def test_how_long_outcomes_are_kept_is_an_option(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(outcomes_kept_s=60.0) as runtime:
            agent = agent_on(runtime)
            first = await agent.chat("hello", key="k")
            await anyio.sleep(61.0)
            assert (await agent.chat("hello", key="k")).run_id != first.run_id

    run(body)


def test_a_key_outlives_the_process_and_has_an_interrupted_run_go_on(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        ran: list[str] = []

        @tool
        async def note(text: str) -> str:
            ran.append(text)
            return "noted"

        calls = [ToolCall(id="c1", name="note", arguments='{"text":"once"}')]
        async with anyio.create_task_group() as tasks:  # noqa: SIM117 -- the runtime is closed first
            async with Runtime.on(lambda: store, drain_timeout_s=0.5) as runtime:
                model = ScriptedModel([model_answer(tool_calls=calls), "never"], delay_s=1.0)
                agent = agent_on(runtime, model, tools=[note])

                async def cut_off() -> None:
                    with pytest.raises(RunFailed, match="the runtime was closed"):
                        await agent.chat("note it", key="k")

                tasks.start_soon(cut_off)
                await anyio.sleep(1.2)
        store = store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            agent = agent_on(runtime, ScriptedModel(["done"]), tools=[note])
            (interrupted,) = await Session(runtime, "s").runs()
            assert interrupted.status == "interrupted"

            reply = await agent.chat("note it", key="k")

            assert (reply.text, reply.run_id, ran) == ("done", interrupted.id, ["once"])

    run(body)


def test_keys_are_text_that_can_be_kept(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            wrong: Any
            for wrong, error in ((5, TypeError), ("", ValueError), ("x" * 401, ValueError), ("a\nb", ValueError)):
                with pytest.raises(error, match="key"):
                    await agent.chat("hello", key=wrong)
            with pytest.raises(TypeError, match="key= needs a session"):
                await Agent("Alone", model=ScriptedModel(), runtime=runtime).chat("hello", key="k")

    run(body)


@pytest.mark.parametrize("calls", ["chat chat", "chat submit", "submit submit", "chat other", "resume chat"])
def test_an_interrupted_run_goes_on_once_for_all_who_ask_for_it(run: Run, calls: str) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store, drain_timeout_s=0.1) as runtime:
            run_id = (await agent_on(runtime).submit("hello", key="k")).run_id
        store = store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            model = ScriptedModel(delay_s=1.0)
            agent, other = agent_on(runtime, model), agent_on(runtime, model)
            texts: list[str] = []

            async def call(how: str) -> None:
                if how == "submit":
                    submission = await agent.submit("hello", key="k")
                    texts.append((await submission.wait()).text)
                elif how == "resume":
                    texts.append((await agent.resume(run_id)).text)
                else:
                    texts.append((await (other if how == "other" else agent).chat("hello", key="k")).text)

            async def hold() -> None:
                async with Session(runtime, "s").turn():
                    await anyio.sleep(0.5)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold)
                await anyio.sleep(0.1)
                for how in calls.split():
                    tasks.start_soon(call, how)
                    await anyio.sleep(0.01)

            assert texts == ["echo: hello"] * 2
            assert len(model.requests) == 1
            assert [record.status for record in await Session(runtime, "s").runs()] == ["completed", "completed"]

    run(body)


def test_a_stream_of_a_run_that_has_ended_leaves_nothing_behind(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            await agent.chat("hello", key="k")
            for _ in range(3):
                async with agent.stream("hello", key="k") as stream:
                    assert [event async for event in stream] == [
                        Delivered(stream.run_id, "joined", 0, stream.reply.run_id)
                    ]

            assert len(runtime.feeds) == 0

    run(body)


def test_a_held_run_that_is_cancelled_in_a_new_session_ends_for_all_who_wait_for_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent, session = agent_on(runtime), Session(runtime, "s")
            failures: list[RunFailed] = []

            async def chat() -> None:
                with pytest.raises(RunFailed, match="never mind") as caught:
                    await agent.chat("hello", overlap="debounce", key="k")
                failures.append(caught.value)

            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(chat)
                    await anyio.sleep(0.1)
                (held,) = await session.runs()
                assert await session.cancel_run(held.id, reason="never mind")

            assert len(failures) == 2
            assert (await agent.chat("go on")).text == "echo: go on"

    run(body)


def test_so_many_inputs_may_be_held_and_no_more(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            refused: list[Busy] = []

            async def chat() -> None:
                try:
                    await agent.chat("hello", overlap="debounce")
                except Busy as error:
                    refused.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(WAITING_MAX + 5):
                    tasks.start_soon(chat)

            assert len(refused) == 5

    run(body)


def test_who_joins_a_run_that_its_last_caller_has_just_left_begins_anew_and_hears_it(run: Run) -> None:
    async def body() -> None:
        @tool
        async def linger() -> str:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.0)
            return "done"

        async with Runtime.in_memory() as runtime:
            calls = [ToolCall(id="c1", name="linger", arguments="{}")]
            agent = agent_on(runtime, ScriptedModel([model_answer(tool_calls=calls), "one two"]), tools=[linger])

            async def leave(after_s: float) -> None:
                with anyio.move_on_after(after_s):
                    await agent.chat("hello", key="k")

            heard: list[str] = []
            async with anyio.create_task_group() as tasks:
                for after_s in (0.3, 0.4):
                    tasks.start_soon(leave, after_s)
                    await anyio.sleep(0.1)
                await anyio.sleep(0.4)
                async with agent.stream("hello", key="k") as stream:
                    async for event in stream:
                        if isinstance(event, Delta):
                            heard.append(event.text)
                    assert stream.reply.text == "one two"

            assert heard == ["one", " two"]
            assert len(runtime.feeds) == 0

    run(body)


@pytest.mark.parametrize("keep_input", [True, False])
def test_what_a_run_took_in_is_kept_and_retried_with_its_input(run: Run, keep_input: bool) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime, ScriptedModel(["thinking", BadRequest("no"), "at last"], delay_s=1.0))
            failures: list[RunFailed] = []

            async def chat(text: str) -> None:
                with pytest.raises(RunFailed) as caught:
                    await agent.chat(text, overlap="steer", keep_input=keep_input)
                failures.append(caught.value)

            async with anyio.create_task_group() as tasks:
                for text in ("one", "two"):
                    tasks.start_soon(chat, text)
                    await anyio.sleep(0.1)

            session = Session(runtime, "s")
            assert [message.text for message in await session.messages()] == (["one", "two"] if keep_input else [])
            await agent.retry(failures[0].run_id)
            assert [message.text for message in await session.messages()] == ["one", "two", "at last"]

    run(body)


def test_a_session_that_is_deleted_before_it_exists_answers_nothing_that_was_held(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent, session = agent_on(runtime), Session(runtime, "s")

            async def chat() -> None:
                with pytest.raises(UnknownSession):
                    await agent.chat("hello", overlap="debounce")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chat)
                await anyio.sleep(0.1)
                assert not await session.delete()

            await anyio.sleep(5.0)
            assert await session.messages() == []

    run(body)


@pytest.mark.parametrize("overlap", ["merge", "steer", "debounce"])
def test_a_submitted_input_that_joined_another_run_is_answered_once(run: Run, overlap: Overlap) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = agent_on(runtime)
            await agent.submit("holds")
            submissions = [await agent.submit(text, overlap=overlap, key=text) for text in ("x", "y")]
            replies = [await each.wait() for each in submissions]

            again = [await agent.chat(text, key=text) for text in ("x", "y")]

            assert again == replies
            history = [message.text for message in await Session(runtime, "s").messages()]
            assert history.count("x") == history.count("y") == 1

    run(body)
