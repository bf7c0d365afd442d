"""Finding runs by status, agent and time: in one session and across, in pages, and going on with those interrupted."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from recorded_store import Recorded
from tool_turns import World, agent_of, paused

from callboard import (
    Agent,
    ApprovalRequired,
    BadRequest,
    ResumedRuns,
    RunFailed,
    RunPage,
    RunRecord,
    Runtime,
    Session,
    SessionManager,
)
from callboard.actors.run_queries import RunWalk, run_filter
from callboard.actors.run_record import OPEN, RUN_STATUSES, RunStatus
from callboard.actors.session_records import HEAD_CODEC, RUN_CODEC, SessionHead, index_changes, status_value, stream_of
from callboard.store import Batch, Index, IndexRow, MemoryStore, Row, Table
from callboard.testing import ScriptedModel, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

KEY = bytes(range(32))


def agent_in(session: Session, name: str, *script: Any, delay_s: float = 0.0) -> Agent:
    return Agent(name, model=ScriptedModel(script, delay_s=delay_s), session=session)


async def fail(agent: Agent, **options: Any) -> None:
    with pytest.raises(RunFailed):
        await agent.chat("go", **options)


async def some_runs(runtime: Runtime) -> None:
    """In each of the sessions a and b: a completed run of Ann, a failed one of Bob, one by hand, and one that waits."""
    for name in ("a", "b"):
        session = Session(runtime, name)
        await agent_in(session, "Ann", "fine").chat("go")
        await fail(agent_in(session, "Bob", BadRequest("no")))
        by_hand = await session.create_run()
        await by_hand.start()
        await paused(agent_of(World(), session, approval=True))


def told(runs: Sequence[RunRecord]) -> list[tuple[str, str, str]]:
    return [(record.session_id, record.agent, record.status) for record in runs]


def test_runs_of_a_session_are_found_by_status_agent_and_time(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            await some_runs(runtime)
            session = Session(runtime, "a")
            everything = await session.runs()

            assert told(await session.runs(status="failed")) == [("a", "Bob", "failed")]
            assert told(await session.runs(status=["waiting", "completed"])) == [
                ("a", "Ann", "completed"),
                ("a", "Clerk", "waiting"),
            ]
            assert [record.agent for record in await session.runs(agent="")] == [""]
            assert told(await session.runs(agent="Ann", status="failed")) == []
            assert await session.runs(status=RUN_STATUSES, limit=2) == everything[-2:]
            since_ms = everything[-1].created_at_ms + 1
            assert await session.runs(since_ms=since_ms) == []
            await anyio.sleep(1.0)
            await agent_in(session, "Ann", "later").chat("go")
            assert told(await session.runs(since_ms=since_ms)) == [("a", "Ann", "completed")]

    run(body)


def test_a_run_that_waits_for_its_turn_is_found_in_its_session_as_it_is_now(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = agent_in(session, "Ann", delay_s=5.0)
            async with anyio.create_task_group() as tasks:
                for text in ("one", "two"):
                    tasks.start_soon(agent.chat, text)
                    await anyio.sleep(0.5)

                assert [record.input[0].text for record in await session.runs(status="queued")] == ["two"]
                assert [record.input[0].text for record in await session.runs(status="running")] == ["one"]
                assert len(await session.runs(status=list(OPEN), limit=1)) == 1

            assert await session.runs(status=["queued", "running"]) == []

    run(body)


def test_a_filter_finds_old_runs_behind_many_that_it_does_not_want(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await fail(agent_in(session, "Bob", BadRequest("no")))
            ann = agent_in(session, "Ann")
            for number in range(300):
                await ann.chat(str(number))

            assert told(await session.runs(status="failed", limit=1)) == [("s", "Bob", "failed")]
            page = await SessionManager(runtime).runs(agent="Bob")
            assert (told(page.runs), page.cursor) == ([("s", "Bob", "failed")], None)

    run(body)


@pytest.mark.parametrize("sealed", [False, True])
def test_runs_of_all_sessions_are_found_by_status_newest_first(
    run_in_real_time: Run, tmp_path: Path, sealed: bool
) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db", master_key=KEY if sealed else None) as runtime:
            manager = SessionManager(runtime)
            await some_runs(runtime)

            assert told((await manager.runs(status="failed")).runs) == [("b", "Bob", "failed"), ("a", "Bob", "failed")]
            assert told((await manager.runs(status=["running", "failed"])).runs) == [
                ("b", "", "running"),
                ("b", "Bob", "failed"),
                ("a", "", "running"),
                ("a", "Bob", "failed"),
            ]
            assert told((await manager.runs(status="completed")).runs) == [
                ("b", "Ann", "completed"),
                ("a", "Ann", "completed"),
            ]
            assert told((await manager.runs(status=list(OPEN), agent="Clerk", session_id="a")).runs) == [
                ("a", "Clerk", "waiting")
            ]
            assert [record.session_id for record in (await manager.runs()).runs] == ["b"] * 4 + ["a"] * 4
            await manager.delete("b")
            assert told((await manager.runs(status="failed")).runs) == [("a", "Bob", "failed")]

    run_in_real_time(body)


async def walked(manager: SessionManager, **filters: Any) -> list[RunRecord]:
    """All pages, with two runs each."""
    runs: list[RunRecord] = []
    cursor: str | None = None
    while True:
        page: RunPage = await manager.runs(**filters, limit=2, cursor=cursor)
        runs += page.runs
        cursor = page.cursor
        assert len(page.runs) == 2 or cursor is None
        if cursor is None:
            return runs


def test_pages_together_are_the_whole_whatever_the_filter(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await some_runs(runtime)
            await some_runs(runtime)
            tried: list[dict[str, Any]] = [
                {},
                {"session_id": "a"},
                {"status": "failed"},
                {"status": OPEN},
                {"agent": "Ann"},
            ]
            for filters in tried:
                whole = await manager.runs(**filters, limit=1000)

                assert whole.cursor is None
                assert await walked(manager, **filters) == whole.runs
                assert len({record.id for record in whole.runs}) == len(whole.runs) >= 2

    run(body)


def test_a_cursor_is_refused_by_a_list_of_others(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await some_runs(runtime)
            cursor = (await manager.runs(status="failed", limit=1)).cursor
            assert cursor is not None
            for other in (cursor[:-4], "?", cursor + "AA"):
                with pytest.raises(ValueError, match="no cursor of this list"):
                    await manager.runs(status="failed", cursor=other)
            with pytest.raises(ValueError, match="no cursor of this list"):
                await manager.runs(status="cancelled", cursor=cursor)
            wrong: Any = 3
            with pytest.raises(TypeError, match="must be a string"):
                await manager.runs(cursor=wrong)
            wrong = "lost"
            with pytest.raises(ValueError, match="no status 'lost'"):
                await manager.runs(status=wrong)
            with pytest.raises(ValueError, match="limit"):
                await manager.runs(limit=0)
            wrong = 1.5
            with pytest.raises(TypeError, match="since_ms"):
                await manager.runs(since_ms=wrong)

    run(body)


records = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from(RUN_STATUSES), st.sampled_from(["Ann", "Bob"]), st.integers(0, 9)
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    made=records,
    statuses=st.sets(st.sampled_from(RUN_STATUSES)),
    agent=st.none() | st.just("Ann"),
    since=st.none() | st.integers(0, 12),
    stops=st.sets(st.integers(0, 40)),
)
def test_every_walk_gives_what_a_look_at_all_records_gives(
    *,
    made: list[tuple[str, RunStatus, str, int]],
    statuses: set[RunStatus],
    agent: str | None,
    since: int | None,
    stops: set[int],
) -> None:
    store, written = MemoryStore(), list[RunRecord]()
    store.claim()
    for number, (session_id, status, name, time) in enumerate(made):
        created_at_ms = 100_000 * (number // 4) + time  # ids are in the order of time but for a little
        written.append(
            RunRecord(
                id=f"run_{number:04}", session_id=session_id, status=status, agent=name, created_at_ms=created_at_ms
            )
        )
    for session_id in "abc":
        store.commit([batch_of(session_id, [record for record in written if record.session_id == session_id])])
    since_ms = None if since is None else 100_000 * since + 3
    wanted = run_filter(statuses, agent, since_ms)

    found: list[str] = []
    walk = RunWalk(store, wanted, session_id=None, cursor=None)
    while True:
        for record in walk:
            if record is not None:
                found.append(record.id)
                if len(found) in stops:
                    walk = RunWalk(store, wanted, session_id=None, cursor=walk.cursor)
                    break
        else:
            break

    expected = {record.id for record in written if wanted.takes(record)}
    assert sorted(found) == sorted(expected)
    if statuses and "completed" not in statuses:
        assert found == sorted(expected, reverse=True)


def batch_of(session_id: str, runs: list[RunRecord]) -> Batch:
    updated_at_ms = max([record.created_at_ms for record in runs], default=0) + 1
    head = SessionHead(id=session_id, created_at_ms=0, updated_at_ms=updated_at_ms)
    rows = tuple(Row(Table.RUN, record.id.encode(), RUN_CODEC.encode(record)) for record in runs)
    entries = index_changes(None, head)
    for record in runs:
        if record.is_open:
            entries.append(IndexRow(Index.OPEN_RUN, record.id.encode()))
        elif record.status != "completed":
            entries.append(IndexRow(Index.RUN_STATUS, status_value(record.status, record.id)))
    return Batch(stream_of(session_id), 1, 0, HEAD_CODEC.encode(head), rows, tuple(entries))


# Going on with many -------------------------------------------------------------------------------------------------


async def crashed_in_turns(sessions: int) -> Recorded:
    """What a crash leaves while a tool runs in each of so many sessions."""
    store = left = Recorded()
    async with Runtime.on(lambda: store) as runtime, anyio.create_task_group() as tasks:
        for number in range(sessions):
            agent = agent_of(World(wait_s=50.0), Session(runtime, f"s-{number}"))
            tasks.start_soon(agent.chat, "go")
        await anyio.sleep(1.0)
        left = Recorded(store)
        tasks.cancel_scope.cancel()
    return left


def test_all_interrupted_runs_go_on_and_are_completed(run: Run) -> None:
    async def body() -> None:
        left, world = await crashed_in_turns(70), World()
        async with Runtime.on(lambda: left) as runtime:
            manager = SessionManager(runtime)
            assert len((await manager.runs(status="interrupted", limit=1000)).runs) == 70
            resumed = await manager.resume_interrupted([agent_of(world, Session(runtime, "other"))])

            assert (len(resumed.replies), resumed.errors) == (70, {})
            assert {reply.text for reply in resumed.replies} == {"done"}
            assert (await manager.runs(status="interrupted")).runs == []
            assert runtime.store.scan_index(Index.RUN_STATUS) == []  # or each walk would pass over them for ever
            assert len((await manager.runs(status="completed", limit=1000)).runs) == 70
            assert await manager.resume_interrupted([agent_of(world, Session(runtime, "other"))]) == ResumedRuns()

    run(body)


def test_runs_that_one_session_lost_in_two_crashes_go_on_in_their_order(run: Run) -> None:
    async def body() -> None:
        left = twice = await crashed_in_turns(1)
        async with Runtime.on(lambda: left) as runtime, anyio.create_task_group() as tasks:
            agent = agent_of(World(wait_s=50.0), Session(runtime, "s-0"))
            tasks.start_soon(agent.chat, "and again")
            await anyio.sleep(1.0)
            twice = Recorded(left)
            tasks.cancel_scope.cancel()
        async with Runtime.on(lambda: twice) as runtime:
            session = Session(runtime, "s-0")
            resumed = await SessionManager(runtime).resume_interrupted([agent_of(World(), session)])

            assert [reply.messages[0].text for reply in resumed.replies] == ["go", "and again"]
            said = [message.text for message in await session.messages() if message.role == "user"]
            assert said == ["go", "and again"]

    run(body)


def test_only_runs_of_these_agents_and_since_then_are_resumed_and_errors_are_told(run: Run) -> None:
    async def body() -> None:
        left = await crashed_in_turns(2)
        async with Runtime.on(lambda: left) as runtime:
            manager = SessionManager(runtime)
            stranger = agent_in(Session(runtime, "x"), "Stranger")
            assert await manager.resume_interrupted([stranger]) == ResumedRuns()
            (newest, oldest) = (await manager.runs(status="interrupted")).runs
            late = await manager.resume_interrupted([stranger], since_ms=newest.created_at_ms + 1)
            assert late == ResumedRuns()
            asking = agent_of(World(), Session(runtime, "x"), approval=True)
            resumed = await manager.resume_interrupted([asking, stranger])

            assert resumed.replies == []
            assert sorted(resumed.errors) == [oldest.id, newest.id]
            assert {type(error) for error in resumed.errors.values()} == {ApprovalRequired}
            assert [record.status for record in (await manager.runs(status=list(OPEN))).runs] == ["waiting"] * 2

    run(body)


def test_what_cannot_be_asked_to_resume_is_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, Runtime.in_memory() as other:
            manager = SessionManager(runtime)
            wrong: Any = "Ann"
            ann = agent_in(Session(runtime, "s"), "Ann")
            with pytest.raises(TypeError, match="is none"):
                await manager.resume_interrupted([wrong])
            with pytest.raises(ValueError, match="two agents"):
                await manager.resume_interrupted([ann, agent_in(Session(runtime, "t"), "Ann")])
            with pytest.raises(ValueError, match="another runtime"):
                await manager.resume_interrupted([agent_in(Session(other, "s"), "Ann")])
            await until_quiet(runtime)

    run(body)
