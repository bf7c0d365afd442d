"""State at rest and on its way: over restarts, exports, forks, deletes, seals, checks, and an app that is down."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
from state_turns import QUICK, call_tool, worker_on

from callboard import Agent, AppState, Retention, Runtime, Session, SessionManager, ToolContext, UserState
from callboard.actors import host
from callboard.actors.session_check import check_sessions, repair_sessions
from callboard.actors.state_records import OUTBOX_DUE, STATE_KIND, read_values
from callboard.actors.transfer import check_export, export_store, import_store
from callboard.store import Batch, Index, IndexRow, MemoryStore, Row, Table
from callboard.testing import ScriptedModel, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

WORKED = {"list": [1, {"a": None}], "turns": 1}


def change_all(context: ToolContext) -> None:
    for state in (context.session_state, context.user_state, context.app_state):
        state["list"] = [1, {"a": None}]
        state.increment("turns")


async def work(context: ToolContext) -> str:
    """Change everything; then the app goes down, before the turn's end."""
    change_all(context)
    assert context.session is not None
    await context.session.runtime.actor(STATE_KIND, "app").stop()
    return "worked"


def clerk_on(runtime: Runtime) -> Agent:
    return Agent("Clerk", model=ScriptedModel(call_tool("work")), runtime=runtime, tools=[work], policy=QUICK)


async def store_with_a_delta_on_its_way(*, delete: bool = False) -> MemoryStore:
    """One turn, of which the session and the user know, and the app does not; the process has ended."""
    store = MemoryStore()
    async with Runtime.on(lambda: store, drain_timeout_s=1.0) as runtime:
        session = Session(runtime, "s", owner="ann")
        await clerk_on(runtime).chat("go", session=session)
        await anyio.sleep(0.01)
        if delete:
            await session.delete()
    left = store.reopened()
    assert read_values(left, "state:user:ann") == WORKED
    assert read_values(left, "state:app") == {}
    assert len(left.scan("session:s", Table.OUTBOX)) == 1
    assert [hit.stream for hit in left.scan_index(Index.OUTBOX_DUE)] == ["session:s"]
    return left


async def delivered(store: MemoryStore) -> None:
    """A process on this store delivers what is on its way, without any call; and no other does so again."""
    for _ in range(2):
        async with Runtime.on(lambda opened=store: opened) as runtime:
            assert read_values(store, "state:app") == WORKED
            assert await AppState(runtime).get() == WORKED
            assert await UserState(runtime, "ann").get() == WORKED
        store = store.reopened()
    assert store.scan("session:s", Table.OUTBOX) == store.scan("state:app", Table.OUTBOX) == []
    assert store.scan_index(Index.OUTBOX_DUE) == []


@pytest.mark.parametrize("delete", [False, True])
def test_process_that_starts_delivers_what_an_earlier_one_left_also_of_a_deleted_session(
    run: Run, delete: bool
) -> None:
    async def body() -> None:
        store = await store_with_a_delta_on_its_way(delete=delete)
        async with Runtime.on(lambda: store) as runtime:
            assert await Session(runtime, "s").state.get() == ({} if delete else WORKED)
        await delivered(store.reopened())

    run(body)


def test_process_starts_all_the_same_where_what_is_on_its_way_does_not_arrive(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "DELIVERY_TIMEOUT_S", 0.1)

    async def body() -> None:
        store = await store_with_a_delta_on_its_way()
        guard = store.load("state:app")
        version = guard.version if guard is not None else 0
        newer = Batch("state:app", guard.epoch if guard is not None else 0, version, head=b"\xff")
        assert store.commit([newer]) == [None]
        again = store.reopened()
        async with Runtime.on(lambda: again) as runtime:
            assert await Session(runtime, "s").state.get() == WORKED

        assert "what session 's' did to app or user state is still on its way" in caplog.text
        assert len(again.reopened().scan("session:s", Table.OUTBOX)) == 1

    run(body)


def test_app_that_is_down_holds_up_no_turn_but_those_that_must_see_what_it_missed(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, seen = Session(runtime, "s", owner="ann"), list[object]()
            await clerk_on(runtime).chat("go", session=session)
            await Agent("Talker", model=ScriptedModel(), runtime=runtime).chat("hello", session=session)
            looker = worker_on(runtime, lambda context: seen.append(dict(context.app_state)))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(looker.chat, "look", session=session))
                await anyio.sleep(0.3)
                assert seen == []
                runtime.resume(STATE_KIND, "app")

            assert seen == [WORKED]

    run(body)


def test_session_stays_in_memory_while_something_of_it_is_on_its_way(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            await clerk_on(runtime).chat("go", session=Session(runtime, "s", owner="ann"))
            await anyio.sleep(0.05)
            actor = runtime.session_actor("s")
            assert not actor.passivate()
            runtime.resume(STATE_KIND, "app")
            while not actor.passivate():  # noqa: ASYNC110 - nobody tells when it may
                await anyio.sleep(0.05)

            assert await AppState(runtime).get() == WORKED
            assert await Session(runtime, "s").state.get() == WORKED

    run(body)


def test_expired_sessions_deltas_still_come_to_the_app(run: Run) -> None:
    async def body() -> None:
        store = await store_with_a_delta_on_its_way()
        async with Runtime.on(lambda: store) as runtime:
            await runtime.actor(STATE_KIND, "app").stop()
            await anyio.sleep(0.01)
            expiry = await SessionManager(runtime).expire([Retention(tag=None, keep_days=0)])
            assert expiry.deleted == 1
        await delivered(store.reopened())

    run(body)


def test_fork_has_the_state_of_its_session_and_goes_its_own_way(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann")
            agent = worker_on(runtime, change_all)
            await agent.chat("go", session=session)
            fork = await session.fork("f")
            await agent.chat("go", session=fork)
            await session.state.update({"list": None})
            await until_quiet(runtime)

            assert await fork.state.get() == {**WORKED, "turns": 2}
            assert await session.state.get() == {"turns": 1}
            assert await AppState(runtime).get() == await fork.user_state.get() == {**WORKED, "turns": 2}

    run_in_real_time(body)


# Exports, checks, seals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delete", [False, True])
def test_export_carries_state_and_what_is_on_its_way(run: Run, delete: bool) -> None:
    async def body() -> None:
        source = await store_with_a_delta_on_its_way(delete=delete)
        lines = list(export_store(source))
        check_export(lines)
        target = MemoryStore()
        import_store(target, lines)

        rows = [
            line for line in map(json.loads, lines) if line["type"] == "row" and line["table"] in ("state", "outbox")
        ]
        assert {row["record"]["type"] for row in rows} == {"value", "outbox"}
        assert list(export_store(target))[1:] != []
        assert read_values(target, "session:s") == ({} if delete else WORKED)
        await delivered(target.reopened())

    run(body)


@pytest.mark.parametrize("delete", [False, True])
def test_sessions_with_state_and_an_outbox_are_found_sound_and_a_lost_entry_is_made_anew(
    run: Run, delete: bool
) -> None:
    async def body() -> None:
        store = await store_with_a_delta_on_its_way(delete=delete)
        assert list(check_sessions(store)) == []
        if delete:
            return
        guard = store.load("session:s")
        assert guard is not None
        lost = IndexRow(Index.OUTBOX_DUE, OUTBOX_DUE, present=False)
        assert store.commit([Batch("session:s", guard.epoch, guard.version, index_rows=(lost,))]) == [None]

        assert len(repair_sessions(store)) == 1
        assert list(check_sessions(store)) == []
        await delivered(store.reopened())

    run(body)


def test_value_that_cannot_be_read_is_left_out_and_found(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            await Session(runtime, "s").state.update({"a": 1, "b": 2})
            await AppState(runtime).update({"a": 1, "b": 2})
        store = store.reopened()
        for stream in ("session:s", "state:app"):
            guard = store.load(stream)
            assert guard is not None
            spoilt = Row(Table.STATE, b"a", b"\x01\xff")
            assert store.commit([Batch(stream, guard.epoch, guard.version, rows=(spoilt,))]) == [None]
        store = store.reopened()
        async with Runtime.on(lambda: store) as runtime:
            assert await Session(runtime, "s").state.get() == await AppState(runtime).get() == {"b": 2}
            assert await AppState(runtime).update({"a": 3}) == {"a": 3, "b": 2}
        assert [finding.where for finding in check_sessions(store.reopened())] == ["state 61 of session 's'"]

    run(body)


def test_sealed_store_shows_nothing_of_state(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        def tell(context: ToolContext) -> None:
            context.session_state["secret-key"] = "secret-value"
            context.user_state["secret-key"] = "secret-value"
            context.app_state["secret-key"] = "secret-value"

        path = tmp_path / "sealed.lmdb"
        async with Runtime(path, master_key=bytes(range(32))) as runtime:
            session = Session(runtime, "s", owner="secret-owner")
            await worker_on(runtime, tell).chat("go", session=session)
            await until_quiet(runtime)
        assert all(b"secret" not in file.read_bytes() for file in path.iterdir())
        async with Runtime(path, master_key=bytes(range(32))) as runtime:
            session = Session(runtime, "s")
            for state in (session.state, session.user_state, AppState(runtime)):
                assert await state.get() == {"secret-key": "secret-value"}
                assert await state.update({"secret-key": None, "more": 1}) == {"more": 1}

    run_in_real_time(body)
