"""The events of a session: typed, in order, once each; whoever reads them, how slowly, from what number on."""

import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    BadRequest,
    Delta,
    EventsDropped,
    EventStream,
    Failed,
    MessageAdded,
    MetadataChanged,
    RunChanged,
    RunFailed,
    RunProgress,
    Runtime,
    Session,
    SessionDeleted,
    SessionEvent,
    Stopping,
    ToolCall,
    ToolFinished,
)
from callboard.actors.archive import Archive
from callboard.actors.boards import FEED_MAX, Feed
from callboard.actors.event_log import EVENTS_PAGE, last_number
from callboard.actors.reply import RunStarted
from callboard.actors.session_records import SESSION_KIND, stream_of
from callboard.runtime.waking import current_backend
from callboard.store import MemoryStore, Table
from callboard.testing import ScriptedModel, crash_next, model_answer, run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def told(event: SessionEvent) -> str:
    """An event in a word or two."""
    match event:
        case MessageAdded(_, message):
            return f"{message.role}: {message.text}"
        case RunChanged(_, _, status, _, _):
            return status
        case MetadataChanged(_, keys):
            return f"metadata {' '.join(keys)}"
        case RunProgress(_, _, _, Delta(_, text)):
            return f"+{text}"
        case RunProgress(_, _, _, inner):
            return type(inner).__name__
        case _:
            return type(event).__name__


async def take(events: EventStream, count: int) -> list[SessionEvent]:
    return [await anext(events) for _ in range(count)]


async def all_of(session: Session, *, after: int = 0) -> list[SessionEvent]:
    """All there is behind a number."""
    last = last_number(await session.head())
    async with session.events(after=after, progress=False) as events:
        return await take(events, last - after)


def chatting(session: Session, *script: str, piece_delay_s: float = 0.0) -> Agent:
    return Agent("Ann", model=ScriptedModel(list(script), piece_delay_s=piece_delay_s), session=session)


def test_what_lasts_is_numbered_without_gaps_in_the_order_in_which_it_happened(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await chatting(session, "hello").chat("hi")
            await session.update_metadata({"plan": "gold", "old": None})
            await session.add_messages([{"role": "user", "content": "one"}, {"role": "user", "content": "two"}])
            events = await all_of(session)

            assert [told(event) for event in events] == [
                "running",
                "user: hi",
                "assistant: hello",
                "completed",
                "metadata plan old",
                "user: one",
                "user: two",
            ]
            assert [event.number for event in events] == list(range(1, 8))
            assert [event.message for event in events if isinstance(event, MessageAdded)] == await session.messages()

    run(body)


def test_a_reader_from_any_number_on_gets_just_the_rest(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = chatting(session)
            for number in range(3):
                await agent.chat(f"text {number}")
                await session.add_message("user", "between")
                await session.update_metadata({"n": number})
            whole = await all_of(session)

            assert len(whole) == 18
            for after in range(len(whole) + 1):
                assert await all_of(session, after=after) == whole[after:]

    run(body)


def test_events_come_while_they_happen_with_what_goes_on_inside_of_runs(run: Run) -> None:
    async def look(word: str) -> str:
        return word.upper()

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            call = ToolCall("c", "look", '{"word":"a"}')
            model = ScriptedModel([model_answer(tool_calls=[call]), "it is"], piece_delay_s=0.1)
            agent = Agent("Ann", model=model, session=session, tools=[look])
            seen: list[SessionEvent] = []
            async with session.events() as events, anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "hi")
                seen += await take(events, 11)

            assert [told(event) for event in seen] == [
                "running",
                "RunStarted",
                '+{"word":"a"}',
                "ToolFinished",
                "+it",
                "+ is",
                "user: hi",
                "assistant: ",
                "tool: A",
                "assistant: it is",
                "completed",
            ]
            assert [event.number for event in seen] == [1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6]
            progress = [event for event in seen if isinstance(event, RunProgress)]
            run_ids = {event.run_id for event in seen if isinstance(event, RunChanged)}
            assert {(event.run_id, event.agent) for event in progress} == {(run_ids.pop(), "Ann")}
            assert progress[2].event == ToolFinished("look", "c", "A", False)

    run(body)


def test_without_progress_a_reader_gets_what_lasts_and_models_need_not_stream(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = chatting(session, "one two three", piece_delay_s=1.0)
            seen: list[SessionEvent] = []
            began_s = anyio.current_time()
            async with session.events(progress=False) as events, anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "hi")
                seen += await take(events, 4)

            assert [told(event) for event in seen] == ["running", "user: hi", "assistant: one two three", "completed"]
            assert anyio.current_time() - began_s < 1.0  # a stream would have taken three seconds

    run(body)


def test_a_stream_of_the_agent_and_readers_of_the_session_see_the_same_pieces(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            async with session.events() as events, chatting(session, "a b c").stream("hi") as stream:
                streamed = [event async for event in stream]
                seen = await take(events, len(streamed) + 1)

            assert [event.event for event in seen if isinstance(event, RunProgress)] == streamed

    run(body)


def test_what_becomes_of_an_input_that_waits_is_told_too(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Ann", model=ScriptedModel(delay_s=1), session=session)
            seen: list[SessionEvent] = []
            async with session.events() as events, anyio.create_task_group() as tasks:
                tasks.start_soon(agent.chat, "one")
                await anyio.sleep(0.1)
                tasks.start_soon(agent.chat, "two")
                seen += await take(events, 3)
                tasks.cancel_scope.cancel()

            assert [told(event) for event in seen] == ["running", "RunStarted", "Delivered"]

    run(body)


def test_a_run_that_fails_waits_or_is_driven_by_hand_tells_every_status(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("Ann", model=ScriptedModel([BadRequest("never")]), session=session)
            with pytest.raises(RunFailed):
                await agent.chat("hi")
            by_hand = await session.create_run(agent="Bob")
            await by_hand.start()
            await by_hand.cancel("enough")
            changes = [event for event in await all_of(session) if isinstance(event, RunChanged)]

            assert [(event.agent, event.status, event.error) for event in changes] == [
                ("Ann", "running", None),
                ("Ann", "failed", "never"),
                ("Bob", "queued", None),
                ("Bob", "running", None),
                ("Bob", "cancelled", "enough"),
            ]

    run(body)


def test_a_reader_may_come_before_the_session_is_made(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            async with session.events() as events:
                await session.add_message("user", "first")

                assert told(await anext(events)) == "user: first"

    run(body)


def test_a_deleted_session_ends_its_readers_and_a_new_one_of_its_name_has_numbers_of_its_own(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.update_metadata({"a": 1})
            await session.add_messages([{"role": "user", "content": text} for text in "abc"])
            async with session.events(after=3) as events:
                await session.delete()
                await session.add_message("user", "anew")
                seen = [event async for event in events]

            assert [told(event) for event in seen] == ["user: c", "SessionDeleted"]
            assert seen[-1] == SessionDeleted(4)
            assert (await session.events(after=0).__anext__()).number == 1
            assert [told(event) for event in await all_of(session)] == ["user: anew"]
            with pytest.raises(ValueError, match="has 1 events"):
                await anext(session.events(after=3))

    run(body)


def test_readers_that_wait_are_told_when_the_runtime_closes(run: Run) -> None:
    async def body() -> None:
        outcomes: list[str] = []

        async def read(session: Session) -> None:
            try:
                await anext(session.events())
            except Stopping:
                outcomes.append("stopping")

        async with anyio.create_task_group() as tasks, Runtime.in_memory() as runtime:
            tasks.start_soon(read, Session(runtime, "s"))
            await anyio.sleep(1)

        assert outcomes == ["stopping"]

    run(body)


def test_a_slow_reader_holds_nobody_and_loses_only_what_does_not_last(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            answer = " ".join(["word"] * 700)
            agent = chatting(session, answer, answer, answer)
            async with session.events() as events:
                for _ in range(3):
                    await agent.chat("hi")  # 701 pieces each, and nobody reads
                seen: list[SessionEvent] = []
                while events.number < 12 or not isinstance(seen[-1], RunChanged):
                    seen.append(await anext(events))

            lasting = [told(event) for event in seen if not isinstance(event, RunProgress | EventsDropped)]
            assert lasting == ["running", "user: hi", f"assistant: {answer}", "completed"] * 3
            dropped = [event.count for event in seen if isinstance(event, EventsDropped)]
            kept = sum(isinstance(event, RunProgress) for event in seen)
            assert dropped == [FEED_MAX * 2]
            assert sum(dropped) + kept == 3 * 701
            assert [event.number for event in seen] == sorted(event.number for event in seen)

    run(body)


def test_a_feed_that_overflows_says_once_how_much_it_dropped(run: Run) -> None:
    async def body() -> None:
        feed = Feed(current_backend(), wants_progress=True)
        for number in range(FEED_MAX + 1):
            feed.put(RunProgress(number, "r", "a", RunStarted("r", 1)))

        assert (feed.dropped, feed.dropped_at, [each.number for each in feed.progress]) == (1024, 1023, [FEED_MAX])

    run(body)


def test_more_than_a_page_comes_in_order(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            texts = [str(number) for number in range(EVENTS_PAGE + 100)]
            await session.add_messages([{"role": "user", "content": text} for text in texts])
            await session.update_metadata({"a": 1})
            await session.add_message("user", "last")
            events = await all_of(session)

            assert [told(event) for event in events] == [*(f"user: {t}" for t in texts), "metadata a", "user: last"]

    run(body)


def test_readers_outlive_a_crash_and_a_passivation_of_the_session(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory(idle_s=5.0) as runtime:
            session = Session(runtime, "s")
            async with session.events() as events:
                await session.add_message("user", "one")
                crash_next(runtime, SESSION_KIND, "s", RuntimeError("on purpose"))
                await session.add_message("user", "two")
                await anyio.sleep(60)
                assert runtime.inspect(SESSION_KIND, "s").state == "absent"
                await session.add_message("user", "three")

                assert [told(event) for event in await take(events, 3)] == ["user: one", "user: two", "user: three"]

    run(body)


def test_a_reader_that_waits_for_the_session_to_be_loaded_begins_behind_what_it_finds(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = chatting(session, " ".join(["word"] * 99), piece_delay_s=0.01)
            async with agent.stream("hi") as stream:
                while not isinstance(await anext(stream), Delta):
                    pass
                crash_next(runtime, SESSION_KIND, "s", RuntimeError("on purpose"))
                with pytest.raises(Failed):
                    await session.message_count()
                async with session.events() as events:  # pieces may come while this waits, and nobody knows behind what
                    seen = await take(events, 5)

            assert {event.number for event in seen} == {1}

    run(body)


def test_a_cancelled_reader_goes_on_where_it_was(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            events = session.events(after=0)
            with anyio.move_on_after(1):
                await anext(events)
            await session.add_message("user", "one")

            assert told(await anext(events)) == "user: one"

    run(body)


def test_whoever_drops_its_stream_has_left_and_costs_nothing_more(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "one")
            async for _ in session.events(after=0):
                break
            gc.collect()
            await session.add_message("user", "two")
            assert not runtime.boards
            async with session.events():
                assert runtime.boards
            assert not runtime.boards

    run(body)


def test_an_event_stream_that_was_closed_gives_no_more(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "one")
            events = session.events(after=0)
            await events.aclose()
            await events.aclose()

            assert [event async for event in events] == []
            with pytest.raises(RuntimeError, match="was closed"):
                await events.__aenter__()

    run(body)


@pytest.mark.parametrize("after", [-1, 1.0, "1", True])
def test_a_number_that_is_none_is_refused_at_the_door(after: int) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            with pytest.raises(ValueError, match="after must be"):
                Session(runtime, "s").events(after=after)

    run_in_virtual_time(body)


def test_events_are_read_on_in_a_later_life_of_the_store_and_without_a_runtime(tmp_path: Path) -> None:
    async def first() -> None:
        async with Runtime(tmp_path / "store") as runtime:
            session = Session(runtime, "s")
            await chatting(session).chat("hi")
            await (await session.create_run()).start()

    async def second() -> None:
        async with Runtime(tmp_path / "store") as runtime:
            session = Session(runtime, "s")
            await session.add_message("user", "later")
            seen.extend(await all_of(session, after=3))

    seen: list[SessionEvent] = []
    anyio.run(first)
    anyio.run(second, backend="trio")
    with Archive.open(tmp_path / "store") as archive:  # as any other process would
        beside = archive.events("s", after=3)
        none = archive.events("another")

    assert [told(event) for event in seen] == ["completed", "queued", "running", "interrupted", "user: later"]
    assert (beside, none) == (seen, [])


def test_sessions_of_an_older_store_number_their_messages_and_go_on_from_there(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            await Session(runtime, "s").add_messages([{"role": "user", "content": text} for text in "ab"])
        older = store.reopened()  # nothing but messages: what a store has that knew of no events
        assert older.scan(stream_of("s"), Table.EVENT) == []
        async with Runtime.on(lambda: older) as runtime:
            session = Session(runtime, "s")
            await chatting(session, "hello").chat("hi")

            assert [told(event) for event in await all_of(session)] == [
                "user: a", "user: b", "running", "user: hi", "assistant: hello", "completed",
            ]  # fmt: skip

    run(body)
