"""Finding, making, listing and deleting sessions, also while they change."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TypeAlias

import anyio

from callboard import Agent, Runtime, Session, SessionManager
from callboard.testing import ScriptedModel

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


async def ids_of(manager: SessionManager, *, limit: int = 3) -> list[str]:
    """All pages, joined."""
    ids, page = list[str](), await manager.list(limit=limit)
    while True:
        ids += [head.id for head in page.sessions]
        if page.cursor is None:
            return ids
        page = await manager.list(limit=limit, cursor=page.cursor)


def test_first_calls_at_once_make_one_session_with_what_the_first_gave(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            manager = SessionManager(runtime)
            arrived: list[int] = []
            sessions: list[Session] = []

            async def first_call(number: int) -> None:
                arrived.append(number)
                sessions.append(await manager.get_or_create("s", metadata={"by": number}, owner=f"owner-{number}"))

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(first_call, number)

            assert [await session.metadata() for session in sessions] == [{"by": arrived[0]}] * 50
            assert [head.owner for head in (await manager.list()).sessions] == [f"owner-{arrived[0]}"]
            assert (await sessions[0].head()).revision == 1

    run_in_real_time(body)


def test_session_that_was_got_is_durable_though_empty(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            await SessionManager(runtime).get_or_create("s", owner="ann")
        async with Runtime(tmp_path / "db") as runtime:
            session = await SessionManager(runtime).get("s")
            assert session is not None

            assert (await session.head()).owner == "ann"
            assert await session.messages() == []

    run_in_real_time(body)


def test_session_that_is_got_again_keeps_what_it_has(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await manager.get_or_create("s", metadata={"a": 1})
            again = await manager.get_or_create("s", metadata={"b": 2}, tags=("t",))

            assert await again.metadata() == {"a": 1}
            assert (await again.head()).tags == ()

    run(body)


def test_unknown_session_is_none_and_asking_makes_none(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)

            assert await manager.get("nobody") is None
            assert not await manager.delete("nobody")
            assert (await manager.list()).sessions == []

    run(body)


def test_list_has_the_most_recently_changed_first_by_whatever_change(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            sessions = [await manager.get_or_create(name) for name in "abcd"]
            await anyio.sleep(0.01)
            await sessions[2].update_metadata({"n": 1})
            await anyio.sleep(0.01)
            await Agent("Agent", model=ScriptedModel(), session=sessions[0]).chat("hello")
            await anyio.sleep(0.01)
            await sessions[1].add_message("user", "x")
            await anyio.sleep(0.01)
            await sessions[3].create_run()

            assert await ids_of(manager) == ["d", "b", "a", "c"]

    run(body)


def test_updated_after_takes_a_moment_with_a_time_zone_or_milliseconds(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            old = await manager.get_or_create("old")
            await anyio.sleep(0.01)
            await manager.get_or_create("new")
            at_ms = (await old.head()).updated_at_ms
            moment = datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=5))) + timedelta(hours=5, milliseconds=at_ms)

            for after in (at_ms, moment):
                assert [head.id for head in (await manager.list(updated_after=after)).sessions] == ["new"]
            for after in (at_ms - 1, moment - timedelta(milliseconds=1)):
                assert [head.id for head in (await manager.list(updated_after=after)).sessions] == ["new", "old"]

    run(body)


def test_paging_while_sessions_change_gives_those_that_stay_once_each(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            manager = SessionManager(runtime)
            for number in range(40):
                await manager.get_or_create(f"s{number:02}")
            seen, cursor = list[str](), None
            for page_number in range(100):
                page = await manager.list(limit=7, cursor=cursor)
                seen += [head.id for head in page.sessions]
                cursor = page.cursor
                if cursor is None:
                    break
                # One that was shown moves to the front, one that was not is deleted, one is new.
                await Session(runtime, seen[0]).update_metadata({"page": page_number})
                await manager.delete(f"s{page_number:02}")
                await manager.get_or_create(f"new{page_number}")

            assert len(seen) == len(set(seen))
            deleted = {f"s{number:02}" for number in range(6)}
            assert {f"s{number:02}" for number in range(40)} - set(seen) <= deleted

    run_in_real_time(body)


def test_deleted_session_is_in_no_list_and_can_be_made_again(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            for name in ("a", "b"):
                await (await manager.get_or_create(name, owner="ann", tags=("t",))).add_message("user", "x")
            assert await manager.delete("a")

            for page in (await manager.list(), await manager.list(owner="ann"), await manager.list(tag="t")):
                assert [head.id for head in page.sessions] == ["b"]
            anew = await manager.get_or_create("a", owner="bob")
            assert await anew.message_count() == 0
            assert [head.id for head in (await manager.list(owner="bob")).sessions] == ["a"]

    run(body)
