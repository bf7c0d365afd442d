"""While a commit is on its way to the disk: what is shown, what is told, and what a cancellation then may still do."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
import trio.testing
from slow_store import SlowStore

from callboard import Agent, Failed, Message, Reply, Runtime, Session, Stopping, StoreUnavailable, ToolCall, Unknown
from callboard.actors.archive import Archive
from callboard.actors.conversation import units
from callboard.actors.persistence import persist
from callboard.testing import ScriptedModel

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


async def sent(tasks: anyio.abc.TaskGroup, call: Callable[[], Awaitable[object]]) -> None:
    """Start the call; when this returns it has been sent."""
    begun = anyio.Event()

    async def send() -> None:
        begun.set()
        await call()

    tasks.start_soon(send)
    await begun.wait()


async def until(ask: Callable[[], Awaitable[int]], answer: int) -> None:
    with anyio.fail_after(5.0):
        while await ask() != answer:  # noqa: ASYNC110 - what is asked tells nobody when it changes
            await anyio.sleep(0.002)


async def open_runs(session: Session) -> int:
    return sum(record.is_open for record in await session.runs())


async def calls_under_way(model: ScriptedModel) -> int:
    return model.in_flight


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


def test_reads_show_what_is_durable_and_do_not_wait_for_the_disk(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = SlowStore()
        async with Runtime.on(lambda: store) as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            await agent.chat("hello")  # its history is in memory now
            store.held = True
            await sent(tasks, lambda: session.add_message("user", "on its way"))
            await sent(tasks, lambda: session.update_metadata({"n": 1}))
            await store.wait_for_commit()
            with anyio.fail_after(1.0):
                assert await texts_of(session) == ["hello", "echo: hello"]
                assert await session.message_count() == 2
                assert await session.metadata() == {}
            store.let_all()

        assert [message.text for message in Archive(store.reopened()).messages("s")][2:] == ["on its way"]

    run_in_real_time(body)


def test_old_session_is_shown_until_its_delete_is_durable_and_never_mixed_with_the_new(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = SlowStore()
        async with Runtime.on(lambda: store) as runtime, anyio.create_task_group() as tasks:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(), session=session)
            await session.add_message("user", "old 1")
            store.held = True
            await sent(tasks, lambda: session.add_message("user", "old 2"))
            await store.wait_for_commit()
            await sent(tasks, session.delete)
            await sent(tasks, lambda: session.add_message("user", "new"))
            await sent(tasks, lambda: agent.chat("hello"))  # it has the new history loaded
            assert await texts_of(session) == ["old 1"]
            store.let()
            await store.wait_for_commit()
            await until(session.message_count, 2)  # that the first is durable is told in a moment
            assert await texts_of(session) == ["old 1", "old 2"]
            store.let_all()
        assert runtime.cut == []
        assert [m.text for m in Archive(store.reopened()).messages("s")] == ["new", "hello", "echo: hello"]

    run_in_real_time(body)


@pytest.mark.parametrize("refuses", [False, True])
def test_run_that_is_cancelled_says_who_cancelled_it_also_where_the_disk_is_slow_or_refuses(
    run_in_real_time: Run, refuses: bool
) -> None:
    async def body() -> None:
        store = SlowStore()
        async with Runtime.on(lambda: store) as runtime:
            session = Session(runtime, "s")
            model = ScriptedModel(delay_s=1e6)
            agent = Agent("Agent", model=model, session=session)
            async with anyio.create_task_group() as tasks:
                await sent(tasks, lambda: agent.chat("never"))
                await until(lambda: calls_under_way(model), 1)
                store.held = True
                tasks.cancel_scope.cancel()
            await store.wait_for_commit()
            if refuses:
                store.fail_next_commit(StoreUnavailable("for now"))
            store.let_all()
            await until(lambda: open_runs(session), 0)

            (record,) = await session.runs()
            assert (record.status, record.error) == ("cancelled", "the caller went away")

    run_in_real_time(body)


def test_answer_whose_turn_is_being_stored_when_the_drain_ends_is_given_and_not_cut(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = SlowStore()
        replies: list[Reply] = []

        async def chat(agent: Agent) -> None:
            replies.append(await agent.chat("hello"))

        async with anyio.create_task_group() as tasks:

            async def let_later() -> None:
                await anyio.sleep(0.3)  # longer than the drain, shorter than the grace for what was cancelled
                store.let_all()

            async with Runtime.on(lambda: store, drain_timeout_s=0.05) as runtime:
                agent = Agent("Agent", model=ScriptedModel(), session=Session(runtime, "s"))
                await Session(runtime, "s").add_message("user", "before")
                store.held = True
                await sent(tasks, lambda: chat(agent))
                await store.wait_for_commit()  # the turn's beginning
                store.let()
                await store.wait_for_commit()  # its end
                tasks.start_soon(let_later)

        archive = Archive(store.reopened())
        assert [message.text for message in archive.messages("s")] == ["before", "hello", "echo: hello"]
        assert [reply.text for reply in replies] == ["echo: hello"]
        assert [record.status for record in archive.runs("s")] == ["completed"]

    run_in_real_time(body)


def test_history_with_a_call_left_open_is_repaired_before_it_is_sent_and_stays_as_it_is(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            await session.add_messages(
                [
                    Message(role="tool", content="astray", tool_call_id="nobody's"),
                    Message(role="assistant", tool_calls=(ToolCall("c1", "f"),)),
                    Message(role="user", content="and?"),
                ]
            )
            await Agent("Agent", model=model, session=session).chat("hello")

            assert [m.role for m in model.requests[0].messages] == ["assistant", "tool", "user", "user"]
            assert len(units(model.requests[0].messages)) == 3  # raises where a call and its result are parted
            assert await session.message_count() == 5

    run(body)


# persist ------------------------------------------------------------------------------------------------------------


def failing(*outcomes: Exception | str) -> Callable[[], Awaitable[str]]:
    left = list(outcomes)

    async def send() -> str:
        await anyio.lowlevel.checkpoint()
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, str):
            return outcome
        raise outcome

    return send


def refused() -> Failed:
    error = Failed("nothing was stored")
    error.__cause__ = StoreUnavailable("for now")
    return error


async def test_request_is_sent_until_the_store_has_it(autojump_clock: trio.testing.MockClock) -> None:
    failures = (refused(), Unknown("lost"), StoreUnavailable("not read"), refused())
    assert await persist(failing(*failures, "stored")) == "stored"


@pytest.mark.parametrize("last", [refused(), Stopping("closed"), Failed("a crash"), StoreUnavailable("not read")])
async def test_once_unknown_it_stays_unknown_whatever_the_last_try_says(
    autojump_clock: trio.testing.MockClock, last: Exception
) -> None:
    with pytest.raises(Unknown, match="lost"):
        await persist(failing(refused(), Unknown("lost"), refused(), last))


async def test_failure_that_is_no_outage_is_not_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(Failed, match="a crash"):
        await persist(failing(Failed("a crash"), "stored"))


async def test_outage_that_lasts_is_given_up_with_its_reason(autojump_clock: trio.testing.MockClock) -> None:
    before = anyio.current_time()
    with pytest.raises(Failed) as caught:
        await persist(failing(refused()))

    assert isinstance(caught.value.__cause__, StoreUnavailable)
    assert 25.0 < anyio.current_time() - before <= 30.0
