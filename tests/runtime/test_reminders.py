"""Durable reminders as an actor sees them: at their time, at least once, never two at a time, gone when forgotten."""

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
import trio
import trio.testing

from callboard.runtime import (
    Actor,
    Backoff,
    Context,
    Failed,
    Reminder,
    Request,
    RestartPolicy,
    Runtime,
    handles,
    reminders,
)
from callboard.runtime.identity import ActorId
from callboard.runtime.reminder_records import ReminderRecord, due_value, reminder_rows
from callboard.store import Batch, Index, IndexHit, LmdbStore, MemoryStore, Row, Store, StoreUnavailable, Table

Run = Callable[[Callable[[], Awaitable[None]]], None]
QUICK = RestartPolicy(restarts_max=50, backoff=Backoff(first_s=0.001, max_s=0.002))


@pytest.fixture(autouse=True)
def quiet_and_quick(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(reminders, "BACKOFF", Backoff(first_s=0.01, max_s=0.02))


class Broken(Exception):
    """What a handler that has a fault raises."""


class Remind(Request[None], frozen=True):
    name: str
    at_ms: int | None = None
    after_s: float | None = None
    every_s: float | None = None


class Forget(Request[bool], frozen=True):
    name: str


class Hold(Request[None], frozen=True):
    """Keep the actor busy until the office is opened."""


class Office:
    """What all clerks of a test have in common, as the world outside would."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Reminder, int]] = []
        self.faults: list[str] = []
        self.door = anyio.Event()
        self.at_work = 0
        self.at_work_max = 0
        self.began = anyio.Event()
        self._changed = anyio.Event()

    @property
    def names(self) -> list[str]:
        return [reminder.name for _, reminder, _ in self.heard]

    def note(self, key: str, reminder: Reminder, wall_ms: int) -> None:
        self.heard.append((key, reminder, wall_ms))
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_heard(self, count: int) -> list[Reminder]:
        while len(self.heard) < count:
            await self._changed.wait()
        return [reminder for _, reminder, _ in self.heard]


class Clerk(Actor):
    """Writes down what it is reminded of, and stages a row of its own with it."""

    def __init__(self, office: Office, id: ActorId) -> None:
        super().__init__(id)
        self.office = office

    @handles(Remind)
    def remind(self, message: Remind, context: Context) -> None:
        context.remind(message.name, at_ms=message.at_ms, after_s=message.after_s, every_s=message.every_s)

    @handles(Forget)
    def forget(self, message: Forget, context: Context) -> bool:
        return context.forget_reminder(message.name)

    @handles(Hold)
    async def hold(self, _message: Hold, _context: Context) -> None:
        await self.office.door.wait()

    @handles(Reminder)
    def reminded(self, reminder: Reminder, context: Context) -> None:
        context.stage(rows=(Row(Table.MESSAGE, f"{reminder.name} {reminder.due_ms}".encode(), b""),))
        self.office.note(self.id.key, reminder, context.wall_ms())
        fault = self.office.faults.pop(0) if self.office.faults else ""
        if fault == "crash":
            raise Broken
        if fault == "refuse":
            raise Failed("not now")


class SlowClerk(Clerk):
    """Takes 12 ms for each reminder."""

    @handles(Reminder)
    async def reminded_slowly(self, reminder: Reminder, context: Context) -> None:
        self.office.began.set()
        self.office.at_work += 1
        self.office.at_work_max = max(self.office.at_work_max, self.office.at_work)
        await anyio.sleep(0.012)
        self.office.at_work -= 1
        Clerk.reminded(self, reminder, context)


def an_office(store: Store) -> tuple[Runtime, Office]:
    office = Office()
    runtime = Runtime(lambda: store)
    runtime.register("clerk", partial(Clerk, office), restart=QUICK)
    runtime.register("slow", partial(SlowClerk, office), restart=QUICK)
    return runtime, office


def leave_behind(store: Store, record: ReminderRecord) -> None:
    """As if an earlier process had set it."""
    rows, index_rows = reminder_rows(record.name, None, record)
    store.commit([Batch("clerk:a", 1, 0, rows=rows, index_rows=index_rows)])


def waiting(store: Store) -> list[bytes]:
    return [hit.value for hit in store.scan_index(Index.REMINDER_DUE)]


def written(store: Store, key: str = "a") -> list[bytes]:
    return [key for key, _ in store.scan(f"clerk:{key}", Table.MESSAGE)]


def now_ms() -> int:
    return int(time.time() * 1000)


# At their time.


def test_a_reminder_fires_at_its_time_once_and_its_row_is_gone(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            set_at = runtime.wall_ms()
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.03))
            [entry] = waiting(store)

            await office.wait_heard(1)
            await anyio.sleep(0.05)

            [(key, reminder, at)] = office.heard
            assert (key, reminder.name, reminder.missed) == ("a", "tea", 0)
            assert entry == due_value(ReminderRecord("tea", reminder.due_ms))
            assert set_at + 30 <= reminder.due_ms <= at
            assert waiting(store) == store.scan("clerk:a", Table.REMINDER) == []

    run(body)


def test_reminders_of_many_actors_come_in_the_order_of_their_times(run: Run) -> None:
    async def body() -> None:
        runtime, office = an_office(MemoryStore())
        async with runtime:
            for key, delay_s in (("b", 0.03), ("c", 0.05), ("a", 0.01), ("d", 0.0)):
                await runtime.actor("clerk", key).ask(Remind(key, after_s=delay_s))

            await office.wait_heard(4)

            assert office.names == ["d", "a", "b", "c"]

    run(body)


def test_a_periodic_one_keeps_to_its_grid_and_is_moved_on_in_its_handlers_batch(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore(keep_history=True)
        runtime, office = an_office(store)
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tick", after_s=0.01, every_s=0.02))
            heard = await office.wait_heard(3)
            assert await runtime.actor("clerk", "a").ask(Forget("tick"))
            assert waiting(store) == []

        first = heard[0].due_ms
        assert all((reminder.due_ms - first) % 20 == 0 for reminder in heard)
        assert [b.due_ms - a.due_ms for a, b in pairwise(heard)] == [
            20 * (1 + reminder.missed) for reminder in heard[:-1]
        ]
        batches = [batch for group in store.committed for batch in group]
        acknowledged = [batch for batch in batches if {row.table for row in batch.rows} >= {Table.MESSAGE}]
        assert len(acknowledged) >= 3
        for batch in acknowledged:
            assert [row.table for row in batch.rows] == [Table.MESSAGE, Table.REMINDER]
            assert [(row.index, row.present) for row in batch.index_rows] == [
                (Index.REMINDER_DUE, False),
                (Index.REMINDER_DUE, True),
            ]

    run(body)


def test_what_was_missed_comes_as_one_signal_with_a_count(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        due_ms = now_ms() - 35_500
        leave_behind(store, ReminderRecord("rent", due_ms, 10_000))
        runtime, office = an_office(store)
        async with runtime:
            [reminder] = await office.wait_heard(1)
            await anyio.sleep(0.03)

            assert (reminder.due_ms, reminder.missed, len(office.heard)) == (due_ms, 3, 1)
            assert waiting(store) == [due_value(ReminderRecord("rent", due_ms + 40_000, 10_000))]

    run(body)


def test_a_handler_slower_than_the_period_has_no_second_firing_pending_and_loses_no_count(run: Run) -> None:
    async def body() -> None:
        runtime, office = an_office(MemoryStore())
        async with runtime:
            await runtime.actor("slow", "a").ask(Remind("tick", after_s=0.005, every_s=0.005))
            heard = await office.wait_heard(6)
            await runtime.actor("slow", "a").ask(Forget("tick"))

        first, last = heard[0].due_ms, heard[-1].due_ms
        assert office.at_work_max == 1
        assert sum(1 + reminder.missed for reminder in heard[:-1]) == (last - first) // 5
        assert sum(reminder.missed for reminder in heard) > 0

    run(body)


def test_reminders_that_take_longer_than_their_periods_leave_time_for_messages(run: Run) -> None:
    async def body() -> None:
        runtime, office = an_office(MemoryStore())
        async with runtime:
            clerk = runtime.actor("slow", "a")
            for name in ("x", "y", "z"):
                await clerk.ask(Remind(name, every_s=0.005))
            await office.wait_heard(6)
            for name in ("x", "y", "z"):
                assert await clerk.ask(Forget(name), timeout_s=1)

            heard = len(office.heard)
            await anyio.sleep(0.1)

            assert {"x", "y", "z"} <= set(office.names)
            assert len(office.heard) == heard <= 11

    run(body)


def test_one_that_is_due_at_once_or_long_ago_fires_at_once(run: Run) -> None:
    async def body() -> None:
        runtime, office = an_office(MemoryStore())
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.ask(Remind("now", after_s=0))
            await office.wait_heard(1)
            await clerk.ask(Remind("1970", at_ms=0))
            await office.wait_heard(2)
            await clerk.ask(Remind("1971", at_ms=31_536_000_000))
            await office.wait_heard(3)

            assert office.names == ["now", "1970", "1971"]

    run(body)


class ReadStore(MemoryStore):
    """Counts how often its indexes are read."""

    reads = 0

    def scan_index(
        self,
        index: Index,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[IndexHit]:
        self.reads += 1
        return super().scan_index(index, prefix=prefix, after=after, limit=limit, newest_first=newest_first)


def test_one_that_is_years_away_comes_then_and_costs_nothing_meanwhile() -> None:
    decade_s = 10 * 365 * 86_400

    async def body() -> None:
        runtime, office = an_office(store := ReadStore())
        async with runtime:
            began, reads = runtime.now(), store.reads
            await runtime.actor("clerk", "a").ask(Remind("comet", after_s=decade_s))
            await office.wait_heard(1)

            assert 0 <= runtime.now() - began - decade_s < 0.01
            assert store.reads - reads <= 2

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))


# At least once.


def test_a_reminder_survives_its_process(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.03))
        assert office.heard == []

        store = store.reopened()
        runtime, office = an_office(store)
        async with runtime:
            assert runtime.statistics().active == 0
            [reminder] = await office.wait_heard(1)

        assert reminder.name == "tea"
        assert waiting(store.reopened()) == []

    run(body)


def test_a_reminder_survives_its_process_on_disk(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        runtime, office = an_office(LmdbStore(tmp_path / "store"))
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tick", after_s=0.6, every_s=3600))
            await runtime.actor("clerk", "b").ask(Remind("tea", after_s=0.6))
            await runtime.actor("clerk", "b").ask(Remind("rent", after_s=3600))
        assert office.heard == []

        store = LmdbStore(tmp_path / "store")
        runtime, office = an_office(store)
        async with runtime:
            assert {reminder.name for reminder in await office.wait_heard(2)} == {"tick", "tea"}
        with pytest.raises(StoreUnavailable):
            store.load("clerk:a")

        store = LmdbStore(tmp_path / "store")
        runtime, office = an_office(store)
        async with runtime:
            await anyio.sleep(0.05)
            assert office.heard == []
            assert [value[8:] for value in waiting(store)] == [b"rent", b"tick"]
            assert len(written(store, "a")) == len(written(store, "b")) == 1

    run_in_real_time(body)


@pytest.mark.parametrize("fault", ["crash", "refuse"])
@pytest.mark.parametrize("kind", ["clerk", "slow"])
def test_a_handler_that_raises_is_reminded_again_after_a_while(run: Run, kind: str, fault: str) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        office.faults = [fault] * 3
        async with runtime:
            began = runtime.now()
            await runtime.actor(kind, "a").ask(Remind("tea", after_s=0.01))
            heard = await office.wait_heard(3)
            assert len(waiting(store)) == 1
            assert store.scan(f"{kind}:a", Table.MESSAGE) == []

            heard = await office.wait_heard(4)
            await anyio.sleep(0.1)

            assert heard == [heard[0]] * 4
            assert runtime.now() - began >= 0.02
            assert len(office.heard) == 4
            assert waiting(store) == []
            assert len(store.scan(f"{kind}:a", Table.MESSAGE)) == 1

    run(body)


@pytest.mark.parametrize("every_s", [None, 3600.0])
def test_a_commit_that_stored_nothing_lets_it_come_again(run: Run, every_s: float | None) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.01, every_s=every_s))
            store.fail_next_commit(StoreUnavailable("asleep"))
            store.fail_next_commit(StoreUnavailable("asleep"))

            heard = await office.wait_heard(3)
            await anyio.sleep(0.1)

            assert heard == [heard[0]] * 3
            assert len(office.heard) == 3
            assert len(waiting(store)) == (every_s is not None)

    run(body)


@pytest.mark.parametrize("every_s", [None, 3600.0])
def test_a_commit_that_was_stored_all_the_same_is_not_repeated(run: Run, every_s: float | None) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.01, every_s=every_s))
            store.fail_next_commit(StoreUnavailable("who knows", uncertain=True), after_write=True)

            await office.wait_heard(1)
            await anyio.sleep(0.1)

            assert len(office.heard) == len(written(store)) == 1
            assert len(waiting(store)) == (every_s is not None)

    run(body)


def test_a_process_that_dies_in_the_handler_is_followed_by_one_that_hears_it(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        with pytest.raises(Broken):  # noqa: PT012 - the process dies in this block
            async with runtime:
                await runtime.actor("slow", "a").ask(Remind("tea", after_s=0))
                await office.began.wait()
                raise Broken
        assert office.heard == []

        runtime, office = an_office(store.reopened())
        async with runtime:
            assert [reminder.name for reminder in await office.wait_heard(1)] == ["tea"]

    run(body)


def test_what_comes_due_while_the_runtime_drains_is_left_to_the_next_process(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with anyio.create_task_group() as tasks, runtime:
            await runtime.actor("clerk", "busy").tell(Hold())
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.02))

            async def open_the_door() -> None:
                await anyio.sleep(0.06)
                office.door.set()

            tasks.start_soon(open_the_door)
        assert office.heard == runtime.cut == []

        runtime, office = an_office(store.reopened())
        async with runtime:
            await office.wait_heard(1)

    run(body)


def test_a_failed_actor_is_reminded_once_it_is_resumed(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.02))
            office.faults = ["crash"] * 51
            await office.wait_heard(51)
            await anyio.sleep(0.05)
            assert runtime.statistics().failed == 1
            assert len(office.heard) == 51
            assert len(waiting(store)) == 1

            runtime.resume("clerk", "a")
            await office.wait_heard(52)

            assert waiting(store) == []

    run(body)
