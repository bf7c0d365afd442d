"""Editing history: what is taken out is gone for everybody and stays in the audit; places are given once."""

import base64
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    CyclicAsk,
    Failed,
    ForkOrigin,
    Message,
    Runtime,
    Session,
    StoreUnavailable,
    TooLarge,
    ToolCall,
    UnknownRun,
    Usage,
)
from callboard.actors import session_edits
from callboard.actors.archive import Archive
from callboard.actors.session_check import check_sessions, repair_sessions
from callboard.actors.session_records import EDIT_CODEC, stream_of
from callboard.store import Batch, MemoryStore, Row, Table
from callboard.testing import ScriptedModel, model_answer

GOLDEN = Path(__file__).parent.parent / "golden" / "edited_session.json"
"""A head and rows of edits, as the version wrote them that had edits first. Never changed."""

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def numbered(count: int, *, first: int = 1) -> list[Message]:
    return [Message(role="user", content=f"text {number}") for number in range(first, first + count)]


async def seqs_of(session: Session) -> list[int]:
    return [message.seq for message in await session.messages()]


def test_pop_takes_the_latest_messages_and_gives_them_back(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            assert await session.pop() == []
            stored = await session.add_messages(numbered(5))

            assert await session.pop() == stored[4:]
            assert await session.pop(2) == stored[2:4]
            assert await session.messages() == stored[:2]
            assert await session.message_count() == 2
            assert await session.pop(9) == stored[:2]
            assert await session.pop() == []

    run(body)


def test_a_place_is_given_once_whatever_was_taken_out(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(3))
            await session.pop(2)
            again = await session.add_message("user", "again")
            await session.clear()
            last = await session.add_message("user", "last")

            assert (again.seq, again.id, last.seq) == (4, "msg_00000004", 5)
            assert await seqs_of(session) == [5]
            assert (await session.head()).message_count == 1

    run(body)


def test_rewind_keeps_a_message_and_all_before_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(6))

            assert await session.rewind(4) == 2
            assert await session.rewind(4) == 0
            assert await session.rewind(99) == 0
            assert await seqs_of(session) == [1, 2, 3, 4]
            await session.add_messages(numbered(2))
            assert await session.rewind(6) == 2  # a place that is not visible: what is behind it goes
            assert await session.rewind(0) == 4
            assert await seqs_of(session) == []

    run(body)


def test_rewind_before_a_run_takes_what_it_wrote_and_all_behind_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            await agent.chat("first")
            second = await agent.chat("second")
            await session.add_message("user", "by hand")
            by_hand = await session.create_run()
            with pytest.raises(UnknownRun, match="no run 'run_of_nobody'"):
                await session.rewind(before_run="run_of_nobody")

            assert await session.rewind(before_run=second.run_id) == 3
            assert await session.rewind(before_run=second.run_id) == 0
            assert await session.rewind(before_run=by_hand.id) == 0  # it wrote nothing
            assert [message.text for message in await session.messages()] == ["first", "echo: first"]
            assert (await session.run(second.run_id)).status == "completed"

    run(body)


def test_clear_keeps_metadata_and_runs(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"plan": "pro"})
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            await agent.chat("hello")

            assert await session.clear() == 2
            assert await session.clear() == 0
            assert await session.messages() == []
            assert await session.metadata() == {"plan": "pro"}
            assert len(await session.runs()) == 1

    run(body)


def test_an_edit_of_a_session_that_does_not_exist_makes_none(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            assert (await session.pop(), await session.rewind(3), await session.clear()) == ([], 0, 0)
            assert Archive(runtime.store).head("s") is None
            assert (await session.audit()).messages == []

    run(body)


def test_the_model_sees_history_as_edits_have_left_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            agent = Agent("Agent", model=model, session=session)
            await agent.chat("first")
            await agent.chat("second")
            await session.pop(2)
            await agent.chat("third")

            assert [each.text for each in model.requests[-1].messages] == ["first", "echo: first", "third"]

    run(body)


def test_an_edit_waits_for_the_turn_that_runs_and_those_before_it(run: Run) -> None:
    async def body() -> None:
        popped: list[Message] = []
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            await session.add_message("user", "before")
            agent = Agent("Agent", model=ScriptedModel(["done"], delay_s=0.2), session=session)

            async def pop() -> None:
                popped.extend(await session.pop(2))

            for call in (partial(agent.chat, "hello"), partial(session.add_message, "user", "queued"), pop):
                tasks.start_soon(call)
                await anyio.sleep(0.02)
            assert await seqs_of(session) == [1]
            assert popped == []

        assert [message.text for message in popped] == ["done", "queued"]

    run(body)


def test_an_edit_whose_caller_goes_away_while_it_waits_takes_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            await session.add_message("user", "before")
            agent = Agent("Agent", model=ScriptedModel(["done"], delay_s=0.2), session=session)
            tasks.start_soon(agent.chat, "hello")
            await anyio.sleep(0.02)
            with anyio.move_on_after(0.05) as scope:
                await session.clear()
            await session.add_message("user", "after")

            assert scope.cancelled_caught
            assert [each.text for each in await session.messages()] == ["before", "hello", "done", "after"]
            assert (await session.audit()).edits == []

    run(body)


def test_an_edit_within_a_turn_of_the_same_session_is_refused(run: Run) -> None:
    caught: list[BaseException] = []

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")

            async def forget() -> str:
                """Forget all."""
                try:
                    await session.clear()
                except CyclicAsk as error:
                    caught.append(error)
                return "forgotten"

            model = ScriptedModel([model_answer(tool_calls=(ToolCall(id="c", name="forget"),)), "done"])
            await Agent("Agent", model=model, session=session, tools=[forget]).chat("hello")

            assert [type(error) for error in caught] == [CyclicAsk]
            assert "editing history" in str(caught[0])
            assert await session.message_count() == 4

    run(body)


def test_an_edit_that_parts_a_tool_call_from_its_result_leaves_a_view_fit_to_be_sent(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            calls = (ToolCall(id="a", name="f"), ToolCall(id="b", name="f"))
            await session.add_messages(
                [
                    Message(role="user", content="hello"),
                    Message(role="assistant", tool_calls=calls),
                    Message(role="tool", content="1", tool_call_id="a"),
                    Message(role="tool", content="2", tool_call_id="b"),
                ]
            )
            await session.pop()
            shown = [message["role"] for message in await session.messages_for_llm()]
            await Agent("Agent", model=model, session=session).chat("and now?")

            assert shown == ["user", "assistant", "tool", "tool"]
            assert [message.role for message in model.requests[-1].messages] == [*shown, "user"]

    run(body)


def test_the_audit_has_all_that_was_said_and_who_took_it_out_and_why(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            stored = await session.add_messages(numbered(3))
            await session.pop(by="ann", reason="a typo")
            stored += await session.add_messages(numbered(2))
            await session.rewind(1, by="bob")
            audit = await session.audit()

            assert audit.messages == stored
            assert [(edit.kind, edit.removed, edit.by, edit.reason) for edit in audit.edits] == [
                ("pop", ((3, 3),), "ann", "a typo"),
                ("rewind", ((2, 2), (4, 5)), "bob", ""),
            ]
            assert [edit.number for edit in audit.edits] == [2, 4]
            assert [edit.revision for edit in audit.edits] == [2, 4]
            removers = [audit.removed_by(message) for message in audit.messages]
            assert removers == [None, audit.edits[1], audit.edits[0], audit.edits[1], audit.edits[1]]

    run(body)


@pytest.mark.parametrize("count", [1, 200])
def test_edits_survive_a_restart(run: Run, count: int) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(count + 2))
            await session.pop(1)
            await session.rewind(count, by="ann")
        successor = store.reopened()
        assert list(check_sessions(successor)) == []
        async with Runtime.on(lambda: successor) as runtime:
            session = Session(runtime, "s")

            assert await seqs_of(session) == list(range(1, count + 1))
            assert (await session.add_message("user", "new")).seq == count + 3
            assert len((await session.audit()).messages) == count + 3
            assert [each.seq for each in await session.pop(2)] == [count, count + 3]

    run(body)


def test_readers_see_what_an_edit_takes_until_it_is_durable(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(4))
            seen = [1, 2, 3, 4]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.pop, 2)
                tasks.start_soon(session.pop, 1)
                while seen == [1, 2, 3, 4]:
                    await anyio.lowlevel.checkpoint()
                    seen = await seqs_of(session)
            assert seen in ([1, 2], [1, 2, 3], [1])
            assert await seqs_of(session) == [1]

    run_in_real_time(body)


def test_an_edit_that_could_not_be_stored_has_taken_nothing(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(3))
            store.fail_next_commit(StoreUnavailable("not now"))
            with pytest.raises(Failed, match="nothing of the request was stored"):
                await session.pop()

            assert await seqs_of(session) == [1, 2, 3]
            assert [message.seq for message in await session.pop()] == [3]
            assert len((await session.audit()).edits) == 1

    run(body)


def test_a_history_of_too_many_gaps_takes_no_more_edits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_edits, "REMOVED_RANGES_MAX", 3)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            for _ in range(3):
                await session.add_messages(numbered(2))
                await session.pop()
            await session.add_messages(numbered(2))
            with pytest.raises(TooLarge, match="go on with a fork"):
                await session.pop()
            assert await seqs_of(session) == [1, 3, 5, 7, 8]

            assert await session.rewind(2) == 4  # it closes gaps
            assert await seqs_of(session) == [1]

    run(body)


def test_a_head_that_was_lost_is_made_anew_with_what_edits_have_removed() -> None:
    store = MemoryStore()

    async def body() -> None:
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(6))
            await session.pop(2)
            await session.add_messages(numbered(2))
            await session.rewind(3)

    anyio.run(body, backend="trio")
    successor = store.reopened()
    stored = successor.load(stream_of("s"))
    assert stored is not None
    successor.commit([Batch(stream_of("s"), stored.epoch, stored.version, b"\x01lost")])

    repair_sessions(successor)

    head = Archive(successor).head("s")
    assert head is not None
    assert (head.removed, head.last_seq, head.message_count) == (((4, 8),), 8, 3)
    assert head.last_turn == 4
    assert [message.seq for message in Archive(successor).messages("s")] == [1, 2, 3]


def test_a_run_that_ended_before_an_edit_keeps_its_record(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            reply = await Agent("Agent", model=ScriptedModel(), session=session).chat("hello")
            before = await session.run(reply.run_id)
            await session.clear()

            assert await session.run(reply.run_id) == before
            assert before.usage != Usage()
            wrote = [each for each in (await session.audit()).messages if each.run_id == reply.run_id]
            assert [each.seq for each in wrote] == [before.first_seq, before.last_seq]

    run(body)


def test_a_session_that_is_deleted_and_begun_anew_has_nothing_of_its_edits(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(3))
            await session.pop(2)
            await session.delete()
            assert (await session.audit()).edits == []
            await session.add_messages(numbered(3))

            assert await seqs_of(session) == [1, 2, 3]
            assert (await session.audit()).edits == []
            assert (await session.head()).removed == ()

    run(body)


def test_the_records_of_edits_are_read_as_they_were_first_written() -> None:
    told = json.loads(GOLDEN.read_text())
    head_bytes = base64.b64decode(told["head"])
    rows = [Row(Table.EDIT, base64.b64decode(key), base64.b64decode(value)) for key, value in told["edits"]]
    store = MemoryStore()
    assert store.commit([Batch(stream_of("s"), 1, 0, head_bytes, tuple(rows))]) == [None]
    head = Archive(store).head("s")
    assert head is not None

    assert (head.last_seq, head.message_count, head.removed) == (9, 4, ((3, 4), (7, 9)))
    assert head.forked_from == ForkOrigin("origin", 2)
    edits = Archive(store).edits("s")
    assert [(edit.number, edit.kind, edit.removed, edit.revision) for edit in edits] == [
        (4, "pop", ((3, 4),), 4),
        (6, "rewind", ((7, 9),), 7),
    ]
    assert [(edit.by, edit.reason, edit.run_id) for edit in edits] == [("ann", "a typo", None), (None, "", "run_1")]
    assert [row.value for row in rows] == [EDIT_CODEC.encode(edit) for edit in edits]


WRONG: dict[str, tuple[type[Exception], str, Callable[[Session], Awaitable[object]]]] = {
    "no count": (ValueError, "count must be from 1", lambda s: s.pop(0)),
    "a count that is no number": (TypeError, "count must be a whole number", lambda s: s.pop(True)),
    "nowhere to rewind to": (TypeError, "rewind goes to a place or before a run", lambda s: s.rewind()),
    "two places": (TypeError, "rewind goes to a place or before a run", lambda s: s.rewind(1, before_run="r")),
    "a negative place": (ValueError, "from 0", lambda s: s.rewind(-1)),
    "a place that is too large": (ValueError, "from 0", lambda s: s.rewind(2**63)),
    "a run that is no id": (ValueError, "run id", lambda s: s.rewind(before_run="")),
    "nobody": (ValueError, "author", lambda s: s.clear(by="")),
    "half a character": (ValueError, "reason", lambda s: s.clear(reason="\ud800")),
    "a book": (ValueError, "2001 characters", lambda s: s.clear(reason="x" * 2001)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_refused_at_the_door(run: Run, case: str) -> None:
    error, words, call = WRONG[case]

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(2))
            with pytest.raises(error, match=words):
                await call(session)

            assert await seqs_of(session) == [1, 2]

    run(partial(body))
