"""A deleted session stays deleted: no write that comes late revives it, whoever sends it, also after a crash."""

from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeAlias

import anyio
import pytest

from callboard import Agent, Runtime, Session, SessionManager, UnknownSession
from callboard.actors.archive import Archive
from callboard.actors.session_records import stream_of
from callboard.runtime import Failed
from callboard.store import Batch, Conflict, Fenced, Index, LmdbStore, MemoryStore, Row, Store, Table
from callboard.testing import ScriptedModel, run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both event loops with a clock that jumps."""
    backend: Literal["trio", "asyncio"] = request.param
    return lambda body: run_in_virtual_time(body, backend=backend)


def traces(store: Store, session_id: str = "s") -> list[object]:
    """All that is left of a session but its guard."""
    stream = stream_of(session_id)
    head = store.load(stream)
    rows = [row for table in Table for row in store.scan(stream, table)]
    hits = [hit for index in Index for hit in store.scan_index(index) if hit.stream == stream]
    return [*([head.head] if head is not None and head.head else []), *rows, *store.entries(stream), *hits]


def test_a_turn_that_ends_after_the_delete_leaves_nothing(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", owner="ann", tags=("t",))
            agent = Agent("A", model=ScriptedModel(delay_s=10), session=session)

            async def chat() -> None:
                with pytest.raises(UnknownSession, match="was deleted"):
                    await agent.chat("a question")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chat)
                await anyio.sleep(1)
                assert await session.delete()
                await anyio.sleep(60)

            assert traces(runtime.store) == []
            assert await SessionManager(runtime).get("s") is None

    run(body)


def test_appends_that_wait_when_it_is_deleted_fail_and_later_ones_make_a_new_session(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            agent = Agent("A", model=ScriptedModel(delay_s=10), session=session)
            ended: list[str] = []

            async def append(text: str) -> None:
                try:
                    await session.add_message("user", text)
                except UnknownSession:
                    ended.append(f"no {text}")
                else:
                    ended.append(text)

            async def chat() -> None:
                with pytest.raises(UnknownSession):
                    await agent.chat("a question")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chat)
                await anyio.sleep(1)
                for number in range(3):
                    tasks.start_soon(append, f"queued {number}")
                await anyio.sleep(1)
                await session.delete()
                await append("after")

            assert sorted(ended) == ["after", "no queued 0", "no queued 1", "no queued 2"]
            assert [(message.seq, message.text) for message in await session.messages()] == [(1, "after")]
            assert (await session.head()).run_count == 0

    run(body)


@pytest.mark.parametrize("seed", range(20))
def test_deletes_among_appends_leave_what_was_acknowledged_after_the_last_of_them(seed: int) -> None:
    store = MemoryStore(keep_history=True)

    async def program() -> None:
        async with Runtime.on(lambda: store) as runtime, anyio.create_task_group() as tasks:
            for number in range(40):
                call = session_calls(Session(runtime, "s"), number)
                tasks.start_soon(call)

    run_in_virtual_time(program, seed=seed)
    kept: list[int] = []
    for (batch,) in store.committed:
        kept = [] if batch.erase else kept
        kept += [row.key[-1] for row in batch.rows if row.table is Table.MESSAGE]
    successor = store.reopened()

    assert [message.seq for message in Archive(successor).messages("s")] == kept
    head = Archive(successor).head("s")
    assert (head.message_count if head is not None else 0) == len(kept)
    assert kept or traces(successor) == []


def session_calls(session: Session, number: int) -> Callable[[], Coroutine[Any, Any, object]]:
    return session.delete if number % 8 == 5 else lambda: session.add_message("user", f"{number}")


def test_a_stale_owners_batch_is_refused_after_a_delete_by_its_successor() -> None:
    store = MemoryStore()
    stream = stream_of("s")
    first, second = store.claim() << 32, store.claim() << 32
    store.commit([Batch(stream, first, 0, b"head", (Row(Table.MESSAGE, b"1", b"x"),))])
    store.commit([Batch(stream, second, 1, b"", erase=True)])

    late = store.commit(
        [
            Batch(stream, first, 1, b"late", (Row(Table.MESSAGE, b"2", b"y"),)),  # on what it knew
            Batch(stream, first, 2, b"late", (Row(Table.MESSAGE, b"2", b"y"),)),  # on the right version by chance
            Batch(stream, second, 1, b"late", (Row(Table.MESSAGE, b"2", b"y"),)),  # the right owner's, of before
        ]
    )

    assert [type(answer) for answer in late] == [Fenced, Fenced, Conflict]
    assert traces(store) == []


def test_a_runtime_that_was_replaced_cannot_revive_what_its_successor_deleted() -> None:
    store = MemoryStore()

    async def program() -> None:
        async with Runtime.on(lambda: store) as first, Runtime.on(lambda: store) as second:
            await Session(first, "s").add_message("user", "x")
            await SessionManager(second).delete("s")
            for _ in range(3):
                with pytest.raises(Failed):
                    await Session(first, "s").add_message("user", "late")

            assert traces(store) == []

    run_in_virtual_time(program)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_delete_survives_a_crash_and_the_replay_of_the_log(tmp_path: Path, checkpointed: bool) -> None:
    """The log holds the whole life of the session; the directory is copied as a crash would leave it."""
    stream = stream_of("s")
    store = LmdbStore(tmp_path / "live")
    epoch = store.claim() << 32
    store.commit([Batch(stream, epoch, 0, b"head", (Row(Table.MESSAGE, b"1", b"x" * 20_000),))])
    if checkpointed:
        store.checkpoint()
    store.commit([Batch(stream, epoch, 1, None, (Row(Table.MESSAGE, b"2", b"y"),))])
    store.commit([Batch(stream, epoch, 2, b"", erase=True)])
    (tmp_path / "crashed").mkdir()
    (tmp_path / "crashed" / "data.mdb").write_bytes((tmp_path / "live" / "data.mdb").read_bytes())
    store.close()

    for _ in range(2):
        crashed = LmdbStore(tmp_path / "crashed")
        late = crashed.commit([Batch(stream, epoch, 2, b"late"), Batch(stream, epoch - 1, 3, b"late")])

        assert [type(answer) for answer in late] == [Conflict, Fenced]
        assert traces(crashed) == []
        crashed.close()
