"""What an earlier process left open is put right before the runtime is ready; what cannot be read hurts only itself."""

import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
import trio.testing
from anyio.streams.buffered import BufferedByteReceiveStream

from callboard import (
    Agent,
    Corrupt,
    Message,
    Rejected,
    RunRecord,
    Runtime,
    Session,
    SessionManager,
    StoreUnavailable,
    ToolCall,
)
from callboard.actors.archive import Archive
from callboard.actors.conversation import INTERRUPTED_RESULT
from callboard.actors.ledger import Ledger, RunEnd
from callboard.actors.session_records import SessionDefaults, Step, message_key, stream_of
from callboard.store import Batch, Index, MemoryStore, Row, Table
from callboard.testing import ScriptedModel

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

HELLO = Message(role="user", content="hello")


class EarlierProcess:
    """Wrote to a store and ended without a word."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._epoch = (self.store.claim() << 32) + 1

    def write(self, session_id: str, change: Callable[[Ledger], None]) -> None:
        archive, stored = Archive(self.store), self.store.load(stream_of(session_id))
        head = archive.head(session_id)
        ledger = Ledger(session_id, head, open_runs=[run for run in archive.runs(session_id) if run.is_open])
        ledger.ensure(SessionDefaults(), at_ms=1_000)
        change(ledger)
        taken = ledger.take()
        assert taken is not None
        version = stored.version if stored is not None else 0
        self._commit(Batch(stream_of(session_id), self._epoch, version, taken.head, taken.rows, taken.index_rows))

    def overwrite(
        self, session_id: str, *, head: bytes | None = None, run: tuple[str, bytes | None] | None = None
    ) -> None:
        """Put these bytes in the place of the head, or of a run's record; None drops the record."""
        stored = self.store.load(stream_of(session_id))
        assert stored is not None
        rows = (Row(Table.RUN, run[0].encode(), run[1]),) if run is not None else ()
        self._commit(Batch(stream_of(session_id), self._epoch, stored.version, head, rows))

    def spoil_messages(self, session_id: str, first_seq: int) -> None:
        stored = self.store.load(stream_of(session_id))
        assert stored is not None
        row = Row(Table.MESSAGE, message_key(first_seq), b"\x02 no messages")
        self._commit(Batch(stream_of(session_id), self._epoch, stored.version, rows=(row,)))

    def _commit(self, batch: Batch) -> None:
        assert self.store.commit([batch]) == [None]

    def left(self) -> MemoryStore:
        """The store, as the next process finds it."""
        return self.store.reopened()


def queued(run_id: str, *, manual: bool = False) -> RunRecord:
    return RunRecord(id=run_id, session_id="s", created_at_ms=1_000, input=(HELLO,), manual=manual)


def begin_turn(ledger: Ledger) -> None:
    """Some history, then a turn with one step journaled."""
    ledger.append([Message(role="user", content="before")], at_ms=1_000)
    ledger.open_turn(7, queued("run_turn"), at_ms=2_000)
    ledger.journal(Step(1, (Message(role="assistant", content="half an answer"),)))


def book_runs(ledger: Ledger) -> None:
    """A run by hand that waits, one that runs and one that has ended."""
    for name in ("run_queued", "run_running", "run_ended"):
        ledger.create_run(queued(name, manual=True), at_ms=1_000)
    ledger.move_run(ledger.runs["run_running"], RunEnd("running"), at_ms=2_000)
    ledger.move_run(ledger.runs["run_ended"], RunEnd("cancelled", "by hand"), at_ms=2_000)


async def texts_of(session: Session) -> list[str]:
    return [message.text for message in await session.messages()]


def test_every_open_run_is_marked_before_the_runtime_is_ready(run: Run) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        for session_id in ("s", "other"):
            earlier.write(session_id, begin_turn)
            earlier.write(session_id, book_runs)
        async with Runtime.on(earlier.left) as runtime:
            archive = Archive(runtime.store)  # what is stored, without asking the session

            assert runtime.store.scan_index(Index.OPEN_RUN) == []
            for session_id in ("s", "other"):
                statuses = {record.id: record.status for record in archive.runs(session_id)}
                interrupted = dict.fromkeys(("run_turn", "run_queued", "run_running"), "interrupted")
                assert statuses == {**interrupted, "run_ended": "cancelled"}
                head = archive.head(session_id)
                assert head is not None
                assert (head.open_turn, head.open_runs, head.message_count) == (None, (), 1)
            record = archive.run("s", "run_turn")
            assert record.error == "the process ended before the run did"
            assert record.ended_at_ms is not None
            assert (record.input, record.attempts, record.turn) == ((HELLO,), 1, 7)

    run(body)


def test_half_a_turn_is_never_seen_and_the_next_one_has_a_greater_number(run: Run) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        earlier.write("s", begin_turn)
        async with Runtime.on(earlier.left) as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            reply = await Agent("Agent", model=model, session=session).chat("next")

            assert reply.turn == 8
            assert await texts_of(session) == ["before", "next", "echo: next"]
            assert [message.text for message in model.requests[0].messages] == ["before", "next"]
            assert [record.status for record in await session.runs()] == ["completed", "interrupted"]

    run(body)


def test_sessions_without_open_runs_are_not_touched(run: Run) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        earlier.write("quiet", lambda ledger: None)
        earlier.write("s", begin_turn)
        async with Runtime.on(earlier.left) as runtime:
            statistics = runtime.statistics()

            assert statistics.actors == 1
            assert runtime.store.statistics().commits == 1

    run(body)


def test_many_sessions_are_put_right(run: Run) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        for number in range(300):
            earlier.write(f"s{number}", begin_turn)
        async with Runtime.on(earlier.left) as runtime:
            assert runtime.store.scan_index(Index.OPEN_RUN) == []
            assert len((await SessionManager(runtime).list(limit=1_000)).sessions) == 300

    run(body)


@pytest.mark.parametrize("run_id", ["run_turn", "run_queued"])
@pytest.mark.parametrize("how", ["spoilt", "missing"])
def test_open_run_whose_record_is_lost_is_closed_all_the_same(run: Run, run_id: str, how: str) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        earlier.write("s", begin_turn)
        earlier.write("s", book_runs)
        earlier.overwrite("s", run=(run_id, b"\x01 no record" if how == "spoilt" else None))
        async with Runtime.on(earlier.left) as runtime:
            session = Session(runtime, "s")

            assert runtime.store.scan_index(Index.OPEN_RUN) == []
            assert (await session.run(run_id)).status == "interrupted"
            await Agent("Agent", model=ScriptedModel(), session=session).chat("next")
            assert await texts_of(session) == ["before", "next", "echo: next"]

    run(body)


def test_session_that_cannot_be_read_keeps_no_other_from_working(run: Run) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        for session_id in ("broken", "s"):
            earlier.write(session_id, begin_turn)
        earlier.overwrite("broken", head=b"\x01 no head")
        with anyio.fail_after(5.0):
            async with Runtime.on(earlier.left) as runtime:
                broken, whole = Session(runtime, "broken"), Session(runtime, "s")
                agent = Agent("Agent", model=ScriptedModel(), session=whole)
                assert (await agent.chat("hello")).text == "echo: hello"
                calls: list[Callable[[], Awaitable[object]]] = [broken.messages, broken.delete]
                calls += [lambda: broken.add_message("user", "x"), lambda: agent.chat("x", session=broken)]
                for call in calls:
                    with pytest.raises(Rejected) as caught:
                        await call()

                    assert isinstance(caught.value.__cause__, Corrupt)
                    assert "broken" in str(caught.value)
                assert [head.id for head in (await SessionManager(runtime).list()).sessions] == ["s"]
                assert [record.status for record in await whole.runs()] == ["completed", "interrupted"]

    run(body)


def test_messages_that_cannot_be_read_are_left_out_and_what_the_model_gets_is_valid(run: Run) -> None:
    def ask_and_answer(ledger: Ledger) -> None:
        call = ToolCall(id="c1", name="weather")
        ledger.append([HELLO, Message(role="assistant", tool_calls=(call,))], at_ms=1_000)

    def add_result(ledger: Ledger) -> None:
        result = Message(role="tool", content="rain", tool_call_id="c1")
        ledger.append([result, Message(role="assistant", content="It rains.")], at_ms=1_000)

    async def body() -> None:
        for spoiled, told in ((1, ["It rains."]), (3, ["hello", "", INTERRUPTED_RESULT])):
            earlier = EarlierProcess()
            earlier.write("s", ask_and_answer)
            earlier.write("s", add_result)
            earlier.spoil_messages("s", spoiled)
            async with Runtime.on(earlier.left) as runtime:
                session, model = Session(runtime, "s"), ScriptedModel()
                assert await session.message_count() == 4
                await Agent("Agent", model=model, session=session).chat("next")

                assert [message.text for message in model.requests[0].messages] == [*told, "next"]
                assert [message.seq for message in await session.messages()][-2:] == [5, 6]
                assert [message.seq for message in await session.messages(before_seq=3)] == [1, 2][: 2 * (spoiled - 1)]
                assert runtime.store.damage.list()[0].where == f"messages from {spoiled} on of session 's'"

    run(body)


@pytest.mark.parametrize("uncertain", [False, True])
def test_store_that_fails_once_while_it_is_put_right_is_asked_again(run: Run, uncertain: bool) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        earlier.write("s", begin_turn)
        store = earlier.left()
        store.fail_next_commit(StoreUnavailable("for now", uncertain=uncertain), after_write=uncertain)
        store.fail_next_commit(StoreUnavailable("for now"))
        async with Runtime.on(lambda: store) as runtime:
            assert runtime.store.scan_index(Index.OPEN_RUN) == []
            assert [record.status for record in await Session(runtime, "s").runs()] == ["interrupted"]

    run(body)


async def test_store_that_takes_nothing_keeps_the_runtime_from_opening_and_says_why(
    autojump_clock: trio.testing.MockClock,
) -> None:
    earlier = EarlierProcess()
    earlier.write("s", begin_turn)
    store = earlier.left()
    for _ in range(1_000):
        store.fail_next_commit(StoreUnavailable("the disk is gone"))
    with pytest.raises(StoreUnavailable, match="the disk is gone"):
        async with Runtime.on(lambda: store):
            pytest.fail("it must not open")

    assert len(store.reopened().scan_index(Index.OPEN_RUN)) == 1


def test_runs_that_were_waiting_are_open_no_more_and_can_be_told_from_those_of_now(run: Run) -> None:
    async def body() -> None:
        earlier = EarlierProcess()
        earlier.write("s", book_runs)
        async with Runtime.on(earlier.left) as runtime:
            session = Session(runtime, "s")
            fresh = await session.create_run()
            await fresh.start()

            assert {record.id: record.status for record in await session.runs()} == {
                "run_ended": "cancelled",
                "run_queued": "interrupted",
                "run_running": "interrupted",
                fresh.id: "running",
            }

    run(body)


WORKER = """
import sys, anyio
from callboard import Agent, Runtime, Session
from callboard.testing import ScriptedModel

async def main():
    async with Runtime(sys.argv[1]) as runtime:
        session = Session(runtime, "s")
        agent = Agent("Agent", model=ScriptedModel(delay_s=0.01), session=session)
        by_hand = await session.create_run()
        await by_hand.start()
        for number in range(1000):
            reply = await agent.chat(f"turn {number}")
            print(reply.turn, flush=True)

anyio.run(main)
"""


@pytest.mark.kill
def test_killed_process_loses_nothing_acknowledged_and_leaves_no_half_turn(
    run_in_real_time: Run, tmp_path: Path
) -> None:
    async def body() -> None:
        path = tmp_path / "db"
        async with await anyio.open_process([sys.executable, "-c", WORKER, str(path)]) as worker:
            assert worker.stdout is not None
            lines = BufferedByteReceiveStream(worker.stdout)
            acknowledged = [int(await lines.receive_until(b"\n", 20)) for _ in range(5)]
            worker.send_signal(signal.SIGKILL)
            assert await worker.wait() == -signal.SIGKILL
        async with Runtime(path) as runtime:
            session = Session(runtime, "s")
            messages = await session.messages()
            turns = len(messages) // 2

            assert turns >= len(acknowledged)
            expected = [text for n in range(turns) for text in (f"turn {n}", f"echo: turn {n}")]
            assert [message.text for message in messages] == expected
            by_hand, *records = await session.runs()
            assert by_hand.status == "interrupted"
            assert [record.status for record in records[:turns]] == ["completed"] * turns
            assert {record.status for record in records[turns:]} <= {"interrupted"}
            reply = await Agent("Agent", model=ScriptedModel(), session=session).chat("next")
            assert reply.turn > records[-1].turn

    run_in_real_time(body)
