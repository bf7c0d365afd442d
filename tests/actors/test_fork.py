"""A fork begins as another session is now, at once or not at all, and goes its own way from there."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    ForkOrigin,
    Message,
    Runtime,
    Session,
    SessionExists,
    SessionManager,
    TooLarge,
    UnknownSession,
)
from callboard.actors.archive import Archive
from callboard.actors.session_check import check_sessions
from callboard.store import MemoryStore, Table
from callboard.testing import ScriptedModel

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def numbered(count: int, *, first: int = 1) -> list[Message]:
    return [Message(role="user", content=f"text {number}") for number in range(first, first + count)]


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


def test_a_fork_has_messages_metadata_owner_tags_and_state_of_its_session(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"plan": "pro", "n": 1}, owner="ann", tags=("a", "b"))
            await session.add_messages(numbered(3))
            await session.state.update({"step": 2, "list": [1]})
            fork = await session.fork("f", metadata={"n": None, "of": "s"})
            head, origin = await fork.head(), await session.head()

            assert await texts_of(fork) == ["text 1", "text 2", "text 3"]
            assert (head.owner, head.tags, head.metadata) == ("ann", ("a", "b"), {"plan": "pro", "of": "s"})
            assert await fork.state.get() == {"step": 2, "list": [1]}
            assert head.forked_from == ForkOrigin("s", 3)
            assert origin.metadata == {"plan": "pro", "n": 1}
            listed = (await SessionManager(runtime).list(owner="ann", tag="b")).sessions
            assert [each.id for each in listed] == ["f", "s"]

    run(body)


def test_a_fork_and_its_session_go_their_own_ways(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"deep": {"n": 1}})
            await session.add_messages(numbered(2))
            await session.state.update({"k": 1})
            fork = await session.fork("f")
            await session.clear()
            await session.add_message("user", "here")
            await session.state.update({"k": 2})
            await Agent("Agent", model=ScriptedModel(), session=fork).chat("there")
            await fork.update_metadata({"deep": {"n": 2}})

            assert await texts_of(session) == ["here"]
            assert await texts_of(fork) == ["text 1", "text 2", "there", "echo: there"]
            assert [message.seq for message in await fork.messages()] == [1, 2, 3, 4]
            assert (await session.metadata(), await fork.metadata()) == ({"deep": {"n": 1}}, {"deep": {"n": 2}})
            assert (await fork.state.get(), await session.state.get()) == ({"k": 1}, {"k": 2})
            assert await session.delete()
            assert len(await fork.messages()) == 4

    run(body)


@pytest.mark.parametrize(
    ("at_seq", "texts"),
    [(None, [1, 2, 3, 6, 7]), (0, []), (2, [1, 2]), (4, [1, 2, 3]), (6, [1, 2, 3, 6]), (99, [1, 2, 3, 6, 7])],
)
def test_a_fork_takes_what_is_visible_up_to_a_place_and_numbers_it_anew(
    run: Run, at_seq: int | None, texts: list[int]
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(5))
            await session.pop(2)
            await session.add_messages(numbered(2, first=6))
            fork = await session.fork("f", at_seq=at_seq)
            messages = await fork.messages()

            assert [message.text for message in messages] == [f"text {number}" for number in texts]
            assert [(each.seq, each.id) for each in messages] == [
                (seq, f"msg_{seq:08d}") for seq in range(1, len(texts) + 1)
            ]
            assert (await fork.head()).forked_from == ForkOrigin("s", texts[-1] if texts else 0)
            audit = await fork.audit()
            assert (audit.messages, audit.edits) == (messages, [])

    run(body)


def test_a_fork_is_a_handle_with_the_options_of_the_one_it_comes_from(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", max_messages=7, overlap="reject", debounce_s=2.0)
            await session.add_message("user", "hello")
            fork = await session.fork("f")

            assert (fork.id, fork.overlap, fork.debounce_s) == ("f", "reject", 2.0)
            assert fork.window == session.window

    run(body)


def test_a_fork_of_a_fork_can_be_rewound_to_before_a_run_of_the_first(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            await agent.chat("one")
            reply = await agent.chat("two")
            fork = await (await session.fork("f")).fork("g")

            assert await fork.rewind(before_run=reply.run_id) == 2
            assert await texts_of(fork) == ["one", "echo: one"]
            assert await session.message_count() == 4

    run(body)


def test_a_long_fork_of_an_edited_session_has_places_without_gaps(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(200))
            await session.rewind(50)
            await session.add_messages(numbered(100, first=51))  # from place 201 on
            fork = await session.fork("f")

            assert await texts_of(fork) == [f"text {number}" for number in range(1, 151)]
            assert [message.seq for message in await fork.messages()] == list(range(1, 151))

    run(body)


@pytest.mark.parametrize("at_seq", [None, 12, 5])
def test_a_fork_has_the_summary_and_the_cuts_of_its_session_where_they_hold_for_it(
    run: Run, at_seq: int | None
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s", max_messages=4), ScriptedModel()
            agent = Agent("Agent", model=model, session=session)
            await session.add_messages(numbered(5))
            await session.pop(3)  # places 3 to 5
            for number in range(6):
                await agent.chat(f"chat {number}")
            summary = await session.compact(ScriptedModel(["short"]), keep_messages=6)
            assert summary is not None
            assert (summary.last_seq, summary.message_count) == (11, 8)
            cuts = (await session.head()).window_cuts
            fork = await session.fork("f", at_seq=at_seq)
            made = await fork.overlay()

            if at_seq == 5:
                assert (made, (await fork.head()).window_cuts) == (None, ())
                return
            assert made is not None
            assert (made.text, made.last_seq, made.message_count) == ("short", 8, 8)
            shown = await fork.messages_for_llm(strategy="summary", max_messages=9)
            assert shown[0]["content"] == made.message().text
            if at_seq is None:
                assert (await fork.head()).window_cuts == tuple((name, cut - 3) for name, cut in cuts)
                assert cuts
                for each in (session, fork):
                    await agent.chat("and now?", session=each)
                texts = [[message.text for message in request.messages] for request in model.requests[-2:]]
                assert texts[0] == texts[1]
            await fork.rewind(6)
            assert await fork.overlay() is None

    run(body)


def test_a_fork_does_not_wait_for_a_turn_and_has_nothing_of_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            await session.add_messages(numbered(1))
            tasks.start_soon(Agent("Agent", model=ScriptedModel(delay_s=0.1), session=session).chat, "hello")
            await anyio.sleep(0.02)
            fork = await session.fork("f")

            assert await texts_of(fork) == ["text 1"]
            assert ((await fork.head()).open_turn, await fork.runs()) == (None, [])

    run(body)


def test_a_turn_right_behind_a_fork_sees_all_of_it(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path) as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            await session.add_messages(numbered(3))
            agent = Agent("Agent", model=model, session=Session(runtime, "f"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.fork, "f")
                while Archive(runtime.store).head("f") is None:
                    await anyio.lowlevel.checkpoint()
                await agent.chat("hello")

            assert [each.text for each in model.requests[0].messages] == ["text 1", "text 2", "text 3", "hello"]

    run_in_real_time(body)


def test_a_large_fork_is_one_commit_and_survives_a_restart(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path) as runtime:
            session = Session(runtime, "s")
            await session.add_messages([Message(role="user", content="x" * 3_000) for _ in range(4_000)])
            fork = await session.fork("f")
            assert (await fork.head()).revision == 1
        async with Runtime(tmp_path) as runtime:
            assert list(check_sessions(runtime.store)) == []
            assert [each.seq for each in await Session(runtime, "f").messages()] == list(range(1, 4_001))

    run_in_real_time(body)


def test_a_session_that_is_there_is_left_alone(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, other = Session(runtime, "s"), Session(runtime, "other")
            await session.add_messages(numbered(2))
            await other.add_message("user", "mine")
            for taken in ("other", "s"):
                with pytest.raises(SessionExists, match=f"there is a session '{taken}' already"):
                    await session.fork(taken)
            assert await texts_of(other) == ["mine"]
            await other.delete()

            assert await texts_of(await session.fork("other")) == ["text 1", "text 2"]

    run(body)


def test_two_forks_to_one_id_make_one_session(run: Run) -> None:
    async def body() -> None:
        refused: list[SessionExists] = []
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(2))

            async def fork() -> None:
                try:
                    await session.fork("f")
                except SessionExists as error:
                    refused.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(fork)

            assert len(refused) == 2
            assert len(await Session(runtime, "f").messages()) == 2

    run(body)


def test_what_cannot_be_forked_makes_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"a": "x" * 40_000})
            with pytest.raises(UnknownSession, match="there is no session 's' yet"):
                await session.fork("f")
            await session.add_message("user", "hello")
            wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
                (TooLarge, "metadata is", {"metadata": {"b": "x" * 40_000}}),
                (ValueError, "from 0", {"at_seq": -1}),
                (TypeError, "a place is", {"at_seq": "1"}),
                (TypeError, "metadata", {"metadata": {"b": object()}}),
            ]
            for error, words, options in wrong:
                with pytest.raises(error, match=words):
                    await session.fork("f", **options)
            with pytest.raises(ValueError, match="session id"):
                await session.fork("")

            assert Archive(runtime.store).head("f") is None

    run(body)


class Noticing(MemoryStore):
    """Says when messages are read."""

    read: anyio.Event | None = None

    def scan(self, stream: str, table: Table, **options: Any) -> list[tuple[bytes, bytes]]:
        if table is Table.MESSAGE and self.read is not None:
            self.read.set()
        return super().scan(stream, table, **options)


def test_what_comes_while_a_fork_is_read_is_not_in_it(run: Run) -> None:
    async def body() -> None:
        store = Noticing()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(300))
            store.read = anyio.Event()

            async def edit() -> None:
                assert store.read is not None
                await store.read.wait()
                await session.rewind(200)
                await session.add_message("user", "late")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(edit)
                await session.fork("f")

            assert await session.message_count() == 201
            assert await texts_of(Session(runtime, "f")) == [f"text {number}" for number in range(1, 301)]

    run(body)


def test_a_session_that_is_deleted_while_it_is_forked_makes_none(run: Run) -> None:
    async def body() -> None:
        store = Noticing()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            await session.add_messages(numbered(300))
            store.read = anyio.Event()

            async def delete() -> None:
                assert store.read is not None
                await store.read.wait()
                await session.delete()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(delete)
                with pytest.raises(UnknownSession, match="deleted while it was forked"):
                    await session.fork("f")

            assert Archive(store).head("f") is None

    run(body)
