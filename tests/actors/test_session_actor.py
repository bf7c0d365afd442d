"""The session's actor when the store fails it: each turn happens once or not at all, and always ends."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import anyio
import anyio.lowlevel
import pytest
import trio.testing

from callboard import (
    Agent,
    Failed,
    Message,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    StaleTurn,
    StoreUnavailable,
    ToolCall,
    Unknown,
    UnknownSession,
)
from callboard.actors.ledger import RunEnd
from callboard.actors.session_messages import CloseTurn
from callboard.runtime import Backoff
from callboard.store import Batch, MemoryStore, Table
from callboard.store.contract import Refusal
from callboard.testing import ModelScript, ScriptedModel, model_answer

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RunPolicy(backoff=Backoff(first_s=0.01, max_s=0.02))


def on(store: MemoryStore) -> AbstractAsyncContextManager[Runtime]:
    return Runtime.on(lambda: store, drain_timeout_s=5.0)


class PlannedStore(MemoryStore):
    """Orders a fault just before the commit of this number, counted from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: dict[int, Callable[[MemoryStore], None]] = {}
        self._count = 0

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        fault = self.plan.get(self._count)
        self._count += 1
        if fault is not None:
            fault(self)
        return super().commit(batches)


def refuse_commit(store: MemoryStore) -> None:
    store.fail_next_commit(StoreUnavailable("the disk says no"))


def lose_commit_answer(store: MemoryStore) -> None:
    store.fail_next_commit(StoreUnavailable("the disk said nothing", uncertain=True), after_write=True)


def lose_commit(store: MemoryStore) -> None:
    store.fail_next_commit(StoreUnavailable("the disk said nothing", uncertain=True))


FAULTS = [refuse_commit, lose_commit_answer, lose_commit]
Fault: TypeAlias = Callable[[MemoryStore], None]


def agent_of(session: Session, script: ModelScript = (), *, delay_s: float = 0.0) -> Agent:
    async def look_up(word: str) -> str:  # async: a clock that jumps does not see threads
        return f"{word} is a word"

    return Agent("Agent", model=ScriptedModel(script, delay_s=delay_s), session=session, tools=[look_up], policy=QUICK)


async def chat_in_the_end(agent: Agent, text: str) -> None:
    """Try until the store has no more faults to give."""
    for _ in range(10):
        try:
            await agent.chat(text)
        except (Failed, Unknown):
            continue
        return
    pytest.fail("the store's faults should be used up")


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


@pytest.mark.parametrize("fault", FAULTS)
def test_turn_whose_beginning_is_not_known_to_be_stored_fails_and_the_next_one_runs(run: Run, fault: Fault) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with on(store) as runtime:
            session = Session(runtime, "s")
            agent = agent_of(session)
            await agent.chat("first")
            fault(store)
            with pytest.raises((Failed, Unknown)):
                await agent.chat("lost")
            reply = await agent.chat("second")

            assert reply.text == "echo: second"
            assert await texts_of(session) == ["first", "echo: first", "second", "echo: second"]
            assert [each.status for each in await session.runs() if each.is_open] == []

    run(body)


@pytest.mark.parametrize("fault", FAULTS)
def test_turn_ends_also_where_the_store_refuses_again_and_again_to_end_it(run: Run, fault: Fault) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with on(store) as runtime:
            session = Session(runtime, "s")
            agent = agent_of(session)
            await session.add_message("user", "before")
            lose_commit_answer(store)
            for _ in range(4):
                fault(store)
            with pytest.raises(Unknown):
                await agent.chat("lost")
            await chat_in_the_end(agent, "second")

            assert await texts_of(session) == ["before", "second", "echo: second"]
            *others, last = [each.status for each in await session.runs()]
            assert last == "completed"
            assert set(others) == {"cancelled"}

    run(body)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("commits_before", range(5))
def test_turn_with_a_tool_happens_once_whichever_of_its_commits_fails(
    run: Run, fault: Fault, commits_before: int
) -> None:
    """Commits: 0 the turn's beginning, 1 and 2 its steps, 3 its end; 4 is that of the turn behind it."""

    async def body() -> None:
        store = PlannedStore()
        store.plan[commits_before] = fault
        call = model_answer(tool_calls=[ToolCall("c1", "look_up", '{"word": "a"}')])
        async with on(store) as runtime:
            session = Session(runtime, "s")
            agent = agent_of(session, [call, call, "done"])
            ended: list[str] = []

            async def chat(text: str) -> None:
                try:
                    await agent.chat(text)
                    ended.append(text)
                except (Failed, Unknown):
                    ended.append(f"not {text}")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chat, "first")
                await anyio.lowlevel.checkpoint()
                tasks.start_soon(chat, "second")
            await session.add_message("user", "last")

            texts = await texts_of(session)
            assert len(ended) == 2
            assert texts.count("first") == ended.count("first")
            assert texts.count("second") == ended.count("second")
            assert texts[-1] == "last"
            assert [message.seq for message in await session.messages()] == list(range(1, len(texts) + 1))
            assert [each.status for each in await session.runs() if each.is_open] == []
            if commits_before in (1, 2, 3):  # a turn that has begun outlives a store that fails once
                assert "first" in ended
                assert texts.index("done") == 5
            assert store.scan("session:s", Table.STEP) == []

    run(body)


async def test_reply_whose_turn_may_have_been_stored_is_unknown_and_not_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def store_and_fall_silent(store: MemoryStore) -> None:
        lose_commit_answer(store)
        for _ in range(1_000):
            store.fail_next_read(StoreUnavailable("the disk sleeps"))

    store = PlannedStore()
    store.plan[1] = store_and_fall_silent  # the turn's end
    with anyio.fail_after(200):
        async with on(store) as runtime:
            agent = agent_of(Session(runtime, "s"))
            with pytest.raises(Unknown):
                await agent.chat("hello")

    async with on(store.reopened()) as runtime:
        assert await texts_of(Session(runtime, "s")) == ["hello", "echo: hello"]


async def test_run_is_failed_in_the_end_when_the_store_was_away_for_longer_than_its_turn_may_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def fall_silent(store: MemoryStore) -> None:
        refuse_commit(store)
        for _ in range(60):  # at up to 5 s each
            store.fail_next_read(StoreUnavailable("the disk sleeps"))

    store = PlannedStore()
    store.plan[1] = fall_silent
    async with on(store) as runtime:
        session = Session(runtime, "s")
        agent = agent_of(session)
        with pytest.raises(RunFailed):
            await agent.chat("hello")
        await session.add_message("user", "afterwards")

        assert await texts_of(session) == ["afterwards"]
        assert [each.status for each in await session.runs()] == ["failed"]


def test_message_that_cannot_be_read_fails_the_chat_and_holds_up_nobody(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with on(store) as runtime:
            await Session(runtime, "s").add_message("user", "before")
        store = store.reopened()
        async with on(store) as runtime:
            session = Session(runtime, "s")
            agent = agent_of(session)
            assert await session.message_count() == 1  # it is loaded, but for its messages
            store.fail_next_read(StoreUnavailable("a bad sector"))
            with pytest.raises(StoreUnavailable):
                await agent.chat("lost")
            await agent.chat("second")

            assert await texts_of(session) == ["before", "second", "echo: second"]
            assert [each.status for each in await session.runs()] == ["completed"]

    run(body)


def test_turns_that_wait_keep_their_order_when_the_session_is_loaded_anew(run: Run) -> None:
    async def body() -> None:
        store = PlannedStore()
        async with on(store) as runtime:
            session = Session(runtime, "s")
            agent = agent_of(session, delay_s=0.05)
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(agent.chat, f"turn {number}")
                    await anyio.sleep(0.001)
                tasks.start_soon(session.add_message, "user", "an append")
                await anyio.sleep(0.001)
                tasks.start_soon(agent.chat, "turn 5")
                await anyio.sleep(0.001)
                refuse_commit(store)
                with pytest.raises(Failed):
                    await session.update_metadata({"makes": "a commit"})

            asked = [text for text in await texts_of(session) if not text.startswith("echo")]
            assert asked == [*(f"turn {number}" for number in range(5)), "an append", "turn 5"]
            assert [run.turn for run in await session.runs()] == [1, 2, 3, 4, 5, 7]
            assert runtime.inspect("session", "s").restarts == 1

    run(body)


@pytest.mark.parametrize("fault", FAULTS)
def test_appends_are_stored_once_or_not_at_all_as_their_outcome_says(run: Run, fault: Fault) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with on(store) as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "before")
            fault(store)
            with pytest.raises((Failed, Unknown)) as caught:
                await session.add_messages([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
            await session.add_message("user", "after")

            texts = await texts_of(session)
            assert texts in (["before", "after"], ["before", "a", "b", "after"])
            if isinstance(caught.value, Failed):
                assert texts == ["before", "after"]
            assert [message.seq for message in await session.messages()] == list(range(1, len(texts) + 1))

    run(body)


def test_late_words_of_a_deleted_turn_are_refused_by_the_one_that_has_its_number(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with on(store) as runtime:
            session = Session(runtime, "s")
            slow, quick = agent_of(session, ["late"], delay_s=0.2), agent_of(session, delay_s=0.3)
            async with anyio.create_task_group() as tasks:

                async def chat_too_late() -> None:
                    with pytest.raises(UnknownSession, match="deleted while its turn ran"):
                        await slow.chat("old")

                tasks.start_soon(chat_too_late)
                await anyio.sleep(0.1)
                (old,) = await session.runs()
                assert old.turn == 1
                assert await session.delete()
                refuse_commit(store)  # and a reload forgets the number too
                with pytest.raises(Failed):
                    await session.add_message("user", "never")
                tasks.start_soon(quick.chat, "new")
                await anyio.sleep(0.1)
                late = CloseTurn(old.id, old.turn, RunEnd("completed"), (Message(role="user", content="old"),))
                with pytest.raises(StaleTurn):
                    await runtime.session_actor("s").ask(late)

            assert [run.turn for run in await session.runs()] == [1]
            assert await texts_of(session) == ["new", "echo: new"]
            assert [each.status for each in await session.runs()] == ["completed"]

    run(body)
