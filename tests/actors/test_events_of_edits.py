"""The events of sessions whose history is edited or forked: what was said stays one, and so is what took it away."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from callboard import HistoryEdited, MessageAdded, Runtime, Session, SessionEvent
from callboard.actors.event_log import last_number

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


async def all_of(session: Session) -> list[SessionEvent]:
    last = last_number(await session.head())
    async with session.events(after=0) as events:
        return [await anext(events) for _ in range(last)]


def places(events: list[SessionEvent]) -> list[int]:
    return [event.message.seq for event in events if isinstance(event, MessageAdded)]


def test_an_edit_is_an_event_behind_the_messages_that_it_takes_out_of_sight(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages([{"role": "user", "content": text} for text in "abcd"])
            async with session.events() as live:
                await session.pop(2)
                await session.add_message("user", "e")
                seen = [await anext(live), await anext(live)]
            events = await all_of(session)

            assert seen == events[4:]
            assert seen[0] == HistoryEdited(5, "pop", ((3, 4),))
            assert places(events) == [1, 2, 3, 4, 5]
            assert [event.number for event in events] == [1, 2, 3, 4, 5, 6]
            assert [message.text for message in await session.messages()] == ["a", "b", "e"]

    run_in_real_time(body)


def test_a_fork_begins_with_its_messages_and_has_numbers_of_its_own(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages([{"role": "user", "content": text} for text in "abcd"])
            await session.update_metadata({"a": 1})
            await session.pop(2)
            fork = await session.fork("fork")
            await fork.add_message("user", "f")
            events = await all_of(fork)

            texts = [event.message.text for event in events if isinstance(event, MessageAdded)]
            assert texts[-1] == "f"
            assert set("ab") <= set(texts)
            assert [event.number for event in events] == list(range(1, len(events) + 1))

    run_in_real_time(body)
