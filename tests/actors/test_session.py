"""The session's handle: what is written is what is read, in the order of the calls, also after a restart."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from callboard import Agent, CallboardError, CyclicAsk, Message, Runtime, Session, ToolCall, UnknownSession
from callboard.testing import ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


def test_session_is_made_by_its_first_write_and_not_by_reading_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"a": 1}, owner="ann", tags=("x", "x", "y"))
            with pytest.raises(UnknownSession):
                await session.head()
            assert await session.messages() == []
            assert await session.runs() == []
            assert await session.message_count() == 0
            assert await session.metadata() == {"a": 1}
            assert not await session.delete()
            with pytest.raises(UnknownSession):
                await session.head()
            await session.add_message("user", "hello")

            head = await session.head()
            assert (head.id, head.owner, head.tags, head.metadata) == ("s", "ann", ("x", "y"), {"a": 1})
            assert (head.message_count, head.run_count, head.revision) == (1, 0, 1)
            assert head.created_at_ms == head.updated_at_ms > 1_600_000_000_000

    run(body)


def test_session_that_exists_keeps_what_it_has_whatever_a_handle_gives(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            await Session(runtime, "s", metadata={"first": 1}, owner="ann").add_message("user", "x")
            second = Session(runtime, "s", metadata={"second": 2}, owner="bob", tags=("t",))
            await second.add_message("user", "y")

            head = await second.head()
            assert (head.metadata, head.owner, head.tags) == ({"first": 1}, "ann", ())
            assert await second.metadata() == {"first": 1}

    run(body)


def test_stored_messages_have_their_place_id_time_and_author(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            first = await session.add_message("user", "one", author="ann")
            second, third = await session.add_messages(
                [{"role": "assistant", "content": "two"}, Message(role="user", content="three", id="mine")]
            )

            assert [first, second, third] == await session.messages()
            assert [(m.seq, m.id) for m in (first, second, third)] == [
                (1, "msg_00000001"),
                (2, "msg_00000002"),
                (3, "msg_00000003"),
            ]
            assert [m.author for m in (first, second, third)] == ["ann", None, None]
            assert all(message.run_id is None for message in (first, second, third))
            assert first.created_at_ms <= second.created_at_ms == third.created_at_ms

    run(body)


@pytest.mark.parametrize("reloaded", [False, True])
def test_limit_gives_the_latest_and_before_seq_pages_back_through_all(
    run_in_real_time: Run, tmp_path: Path, reloaded: bool
) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            await Session(runtime, "s").add_messages([{"role": "user", "content": str(n)} for n in range(1, 11)])
            if not reloaded:
                await check(Session(runtime, "s"))
        if reloaded:
            async with Runtime(tmp_path / "db") as runtime:
                await check(Session(runtime, "s"))

    async def check(session: Session) -> None:
        pages, before = list[list[str]](), None
        while page := await session.messages(limit=4, before_seq=before):
            pages.append([message.text for message in page])
            before = page[0].seq

        assert pages == [["7", "8", "9", "10"], ["3", "4", "5", "6"], ["1", "2"]]
        assert [m.seq for m in await session.messages(before_seq=3)] == [1, 2]
        assert len(await session.messages(before_seq=99)) == 10
        for nothing in (1, 0, -5):
            assert await session.messages(before_seq=nothing) == []

    run_in_real_time(body)


def test_appends_called_at_once_are_stored_in_the_order_of_the_calls(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")
            arrived: list[str] = []

            async def add(text: str) -> None:
                arrived.append(text)
                assert (await session.add_message("user", text)).text == text

            async with anyio.create_task_group() as tasks:
                for number in range(300):
                    tasks.start_soon(add, str(number))

            assert await texts_of(session) == arrived

    run_in_real_time(body)


def test_list_of_messages_is_stored_whole_with_nothing_between(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")

            async def add(name: str) -> None:
                await session.add_messages([{"role": "user", "content": f"{name}{n}"} for n in range(5)])

            async with anyio.create_task_group() as tasks:
                for name in "abcdefgh":
                    tasks.start_soon(add, name)

            texts = await texts_of(session)
            groups = [texts[start : start + 5] for start in range(0, 40, 5)]
            assert all(group == [f"{group[0][0]}{n}" for n in range(5)] for group in groups)

    run_in_real_time(body)


def test_reads_wait_for_nobody_and_show_no_turn_before_its_end(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"n": 1})
            await session.add_message("user", "before")
            agent = Agent("Agent", model=ScriptedModel(delay_s=1.0), session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "hello")
                await anyio.sleep(0.1)
                tasks.start_soon(session.add_message, "user", "behind")
                await anyio.sleep(0.1)
                with anyio.fail_after(0.1):
                    assert await texts_of(session) == ["before"]
                    assert await session.message_count() == 1
                    assert [each.status for each in await session.runs()] == ["running"]
                    assert await session.update_metadata({"n": 2}) == {"n": 2}
                    assert await session.metadata() == {"n": 2}

            assert await texts_of(session) == ["before", "hello", "echo: hello", "behind"]

    run(body)


def test_append_that_is_cancelled_while_it_waits_for_its_turn_is_not_stored(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.3), session=session)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "hello")
                await anyio.sleep(0.1)
                with anyio.move_on_after(0.1):
                    await session.add_message("user", "never")
                    pytest.fail("it should wait for the turn")
                tasks.start_soon(session.add_message, "user", "behind")

            assert await texts_of(session) == ["hello", "echo: hello", "behind"]

    run(body)


def test_what_a_caller_changes_in_what_it_was_given_does_not_reach_the_session(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            mine: dict[str, Any] = {"list": [1]}
            session = Session(runtime, "s", metadata=mine)
            mine["list"].append(2)
            for given in (
                await session.metadata(),
                await session.update_metadata({"more": {"a": [1]}}),
                (await session.head()).metadata,
                await session.metadata(),
                (await session.head()).metadata,
            ):
                given["list"].append("spoilt")
                given["new"] = object()
            await session.add_message("user", "writes the head again")

            assert await session.metadata() == {"list": [1], "more": {"a": [1]}}

    run(body)


def test_metadata_that_a_tool_changes_in_its_context_does_not_reach_the_session(run: Run) -> None:
    async def spoil(context: Any) -> str:
        context.metadata["list"].append("spoilt")
        return "done"

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"list": [1]})
            script = [model_answer(tool_calls=[ToolCall("c", "spoil")]), "done"]
            await Agent("Agent", model=ScriptedModel(script), session=session, tools=[spoil]).chat("hello")

            assert await session.metadata() == {"list": [1]}

    run(body)


def test_messages_for_llm_have_every_call_answered_and_no_result_astray(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            await session.add_messages(
                [
                    {"role": "tool", "tool_call_id": "nobody's", "content": "astray"},
                    {"role": "user", "content": "hello"},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "user", "content": "and?"},
                ]
            )
            sent = await session.messages_for_llm()

            assert [message["role"] for message in sent] == ["user", "assistant", "tool", "user"]
            assert sent[1]["tool_calls"] == [call]
            assert sent[2]["tool_call_id"] == "c1"
            assert await session.message_count() == 4

    run(body)


def test_tool_that_waits_for_its_own_turn_is_refused_at_once(run: Run) -> None:
    refused: list[str] = []

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def remember(text: str) -> str:
                for call in (lambda: session.add_message("user", text), lambda: agent.chat(text)):
                    with pytest.raises(CyclicAsk) as caught:
                        await call()
                    refused.append(str(caught.value))
                await Session(runtime, "other").add_message("user", text)  # another session is no matter
                return "noted"

            script = [model_answer(tool_calls=[ToolCall("c", "remember", '{"text": "a"}')]), "done"]
            agent = Agent("Agent", model=ScriptedModel(script), session=session, tools=[remember])
            reply = await agent.chat("hello")

            assert reply.text == "done"
            assert len(refused) == 2
            assert await texts_of(Session(runtime, "other")) == ["a"]
            await session.add_message("user", "afterwards")  # the refusal ended with the turn

    run(body)


def test_deleted_session_is_gone_with_all_its_content_and_begins_anew(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s", owner="ann")
            reply = await Agent("Agent", model=ScriptedModel(), session=session).chat("hello")
            assert await session.delete()
            assert await session.messages() == []
            assert await session.runs() == []
            assert await session.spans(reply.run_id) == []
            assert not await session.delete()
            fresh = await Session(runtime, "s", owner="bob").add_message("user", "anew")

            assert (fresh.seq, fresh.id) == (1, "msg_00000001")
            assert (await session.head()).owner == "bob"
        async with Runtime(tmp_path / "db") as runtime:
            assert await texts_of(Session(runtime, "s")) == ["anew"]

    run_in_real_time(body)


def test_delete_fails_what_waits_refuses_what_runs_and_lets_the_next_ones_work(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(delay_s=0.3), session=session)
            outcomes: dict[str, str] = {}

            async def attempt(name: str, call: Callable[[], Awaitable[object]]) -> None:
                try:
                    await call()
                    outcomes[name] = "done"
                except CallboardError as error:
                    outcomes[name] = type(error).__name__

            async with anyio.create_task_group() as tasks:
                for name in ("running", "waiting"):
                    tasks.start_soon(attempt, name, lambda name=name: agent.chat(name))
                    await anyio.sleep(0.01)
                tasks.start_soon(attempt, "append", lambda: session.add_message("user", "append"))
                await anyio.sleep(0.01)
                assert await session.delete()
                await attempt("next", lambda: agent.chat("next"))

            expected = {
                "running": "UnknownSession",
                "waiting": "UnknownSession",
                "append": "UnknownSession",
                "next": "done",
            }
            assert outcomes == expected
            assert await texts_of(session) == ["next", "echo: next"]
            assert [each.status for each in await session.runs()] == ["completed"]

    run(body)


def test_writes_around_a_delete_are_stored_in_their_order(run_in_real_time: Run, tmp_path: Path) -> None:
    """On disk several commits are under way at once: none of the old session may come back into the new one."""

    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            model = ScriptedModel()
            for round_number in range(20):
                session = Session(runtime, f"s{round_number}")
                agent = Agent("Agent", model=model, session=session)
                async with anyio.create_task_group() as tasks:
                    for call in (
                        lambda session=session: session.add_message("user", "old"),
                        session.delete,
                        lambda session=session: session.add_message("user", "new"),
                        lambda agent=agent: agent.chat("hello"),
                        session.messages,
                    ):
                        await run_until_it_waits(tasks, call)

                assert await texts_of(session) == ["new", "hello", "echo: hello"]
                assert [m.content for m in model.requests[-1].messages] == ["new", "hello"]

    run_in_real_time(body)


async def run_until_it_waits(tasks: Any, call: Callable[[], Awaitable[object]]) -> None:
    """Start the call and return when it has been sent: tasks of one batch start in random order under trio."""
    sent = anyio.Event()

    async def send() -> None:
        sent.set()
        await call()

    tasks.start_soon(send)
    await sent.wait()


def test_everything_survives_a_restart_without_further_code(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s", metadata={"a": [1, {"b": None}]}, owner="ann", tags=("x",))
            call = ToolCall("c1", "f", '{"a": 1}', {"thought": "deep"})
            await session.add_messages(
                [
                    Message(role="user", content=[{"type": "text", "text": "look"}], name="n", extra={"kept": [1]}),
                    Message(role="assistant", tool_calls=(call,), extra={"reasoning_content": "hm"}),
                    Message(role="tool", content="r", tool_call_id="c1"),
                ]
            )
            reply = await Agent("Agent", model=ScriptedModel(), session=session).chat("hello")
            before = (await session.head(), await session.messages(), await session.runs())
            spans = await session.spans(reply.run_id)
        async with Runtime(tmp_path / "db") as runtime:
            session = Session(runtime, "s")

            assert (await session.head(), await session.messages(), await session.runs()) == before
            assert await session.spans(reply.run_id) == spans
            assert before[1][1].tool_calls[0].extra == {"thought": "deep"}

    run_in_real_time(body)
