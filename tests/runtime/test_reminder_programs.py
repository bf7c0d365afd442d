"""Generated programs of reminders over several processes, judged by what was committed; and many reminders at once.

Every batch that touches a reminder says in a row of its own what it means. So the history of the store is a script, and
a model plays it: each firing must be of a reminder that the model has, at the time that the model says, with a count
that leaves no point of its grid out.
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any

import anyio
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from callboard.runtime import (
    Actor,
    Backoff,
    Context,
    Failed,
    Reminder,
    Request,
    RestartPolicy,
    Runtime,
    Unknown,
    handles,
    reminders,
)
from callboard.runtime.envelope import Delivery
from callboard.runtime.identity import ActorId
from callboard.runtime.reminder_records import ReminderRecord, due_value, new_reminder, reminder_rows
from callboard.store import Batch, Index, IndexRow, MemoryStore, Row, StoreUnavailable, Table

Run = Callable[[Callable[[], Awaitable[None]]], None]
QUICK = RestartPolicy(restarts_max=10**6, backoff=Backoff(first_s=0.1, max_s=0.2))
TAKEN_MAX = 3
SMALL = {
    "TAKEN_MAX": TAKEN_MAX,
    "RETRYING_MAX": 2,
    "PAGE": 2,
    "PUT_OFF_S": 5.0,
    "BACKOFF": Backoff(first_s=1.0, max_s=4.0),
}


class Said(msgspec.Struct):
    """What a batch means for one reminder: "set", "forget", "erase" or "fired"."""

    what: str
    name: str = ""
    due_ms: int = 0
    every_ms: int | None = None
    missed: int = 0
    wall_ms: int = 0


class Change(Request[None], frozen=True):
    what: str
    name: str
    after_s: float | None = 0.0
    every_s: float | None = None
    at_ms: int | None = None


class Diary(Actor):
    """Says in a row what it stages. `faults` is what its next firings meet with."""

    def __init__(self, faults: list[str], id: ActorId) -> None:
        super().__init__(id)
        self.faults = faults

    def say(self, said: Said, context: Context) -> None:
        row = Row(Table.MESSAGE, f"{context.version:012}{said.what}".encode(), msgspec.json.encode(said))
        context.stage(rows=(row,), erase=said.what == "erase")

    @handles(Change)
    def change(self, message: Change, context: Context) -> None:
        name, now_ms = message.name, context.wall_ms()
        if message.what == "set":
            at_ms, after_s, every_s = message.at_ms, message.after_s, message.every_s
            record = new_reminder(name, now_ms=now_ms, at_ms=at_ms, after_s=after_s, every_s=every_s)
            context.remind(name, at_ms=at_ms, after_s=after_s, every_s=every_s)
            self.say(Said("set", name, record.due_ms, record.every_ms), context)
        elif message.what == "forget":
            if context.forget_reminder(name):
                self.say(Said("forget", name), context)
        else:
            self.say(Said("erase"), context)

    @handles(Reminder)
    def reminded(self, reminder: Reminder, context: Context) -> None:
        self.say(Said("fired", reminder.name, reminder.due_ms, None, reminder.missed, context.wall_ms()), context)
        fault = self.faults.pop() if self.faults else ""
        if fault == "crash":
            raise ZeroDivisionError
        if fault == "refuse":
            raise Failed("not now")


class SlowDiary(Diary):
    @handles(Reminder)
    async def reminded_slowly(self, reminder: Reminder, context: Context) -> None:
        await anyio.sleep(2.5)
        Diary.reminded(self, reminder, context)


class WatchedRuntime(Runtime):
    """Sees that there are never two firings of one reminder at a time, nor too many at all."""

    pending: Counter[tuple[ActorId, str]]
    pending_max = 0

    def signal(
        self, to: ActorId, message: Request[None], *, on_settled: Callable[[Delivery], None] | None = None
    ) -> None:
        if not isinstance(message, Reminder):
            super().signal(to, message, on_settled=on_settled)
            return
        key = (to, message.name)
        self.pending[key] += 1
        self.pending_max = max(self.pending_max, self.pending.total())
        assert self.pending[key] == 1, f"two firings of {key} at a time"

        def settled(delivery: Delivery) -> None:
            self.pending[key] -= 1
            assert on_settled is not None
            on_settled(delivery)

        super().signal(to, message, on_settled=settled)


def open_on(store: MemoryStore, faults: list[str]) -> WatchedRuntime:
    runtime = WatchedRuntime(lambda: store)
    runtime.pending = Counter()
    runtime.register("diary", partial(Diary, faults), restart=QUICK)
    runtime.register("slow", partial(SlowDiary, faults), restart=QUICK)
    return runtime


# The model ------------------------------------------------------------------------------------------------------------


class Model:
    """What must be in the store after the history, by stream."""

    def __init__(self) -> None:
        self.streams: dict[str, dict[str, ReminderRecord]] = {}
        self.fired = 0

    def play(self, batch: Batch) -> None:
        here = self.streams.setdefault(batch.stream, {})
        for row in batch.rows:
            if row.table is Table.MESSAGE and row.value is not None:
                self._play(here, msgspec.json.decode(row.value, type=Said))

    def _play(self, here: dict[str, ReminderRecord], said: Said) -> None:
        if said.what == "set":
            here[said.name] = ReminderRecord(said.name, said.due_ms, said.every_ms)
        elif said.what == "forget":
            del here[said.name]
        elif said.what == "erase":
            here.clear()
        else:
            self.fired += 1
            record = here.pop(said.name)
            assert record.due_ms == said.due_ms <= said.wall_ms
            assert 0 <= said.missed <= record.missed(said.wall_ms)
            if record.every_ms is not None:
                next_ms = record.due_ms + (1 + said.missed) * record.every_ms
                here[said.name] = ReminderRecord(said.name, next_ms, record.every_ms)

    def entries(self) -> list[tuple[bytes, str]]:
        return sorted((due_value(one), stream) for stream, here in self.streams.items() for one in here.values())


# Programs -------------------------------------------------------------------------------------------------------------

delays = st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0, 20.0])
keys = st.sampled_from([("diary", "a"), ("diary", "b"), ("slow", "c")])
some_names = st.sampled_from(["x", "y", "z"])
changes = st.builds(Change, st.just("set"), some_names, delays, st.none() | st.sampled_from([0.7, 2.0, 7.0]))
takings_back = st.builds(Change, st.sampled_from(["forget", "erase"]), some_names)
operations = st.one_of(
    st.tuples(st.just("change"), keys, changes),
    st.tuples(st.just("change"), keys, takings_back),
    st.tuples(st.just("crowd"), changes, st.none()),
    st.tuples(st.just("wait"), delays, st.none()),
    st.tuples(st.just("fault"), st.sampled_from(["crash", "refuse"]), st.integers(1, 3)),
    st.tuples(st.just("lose"), st.booleans(), st.none()),
    st.tuples(st.just("blind"), st.integers(1, 3), st.none()),
    st.tuples(st.just("passivate"), keys, st.none()),
)
processes = st.tuples(st.lists(operations, max_size=12), st.sampled_from(["drain", "die"]))


async def operate(runtime: Runtime, store: MemoryStore, faults: list[str], operation: tuple[str, Any, Any]) -> None:
    match operation:
        case ("change", (kind, key), change):
            # Ordered faults of the store; the history says what became of it.
            with suppress(Failed, Unknown, StoreUnavailable):
                await runtime.actor(kind, key).ask(change, timeout_s=1000)
        case ("crowd", change, _):
            for kind, key, name in product(("diary", "slow"), "abc", "xyz"):
                to_all = msgspec.structs.replace(change, name=name)
                await operate(runtime, store, faults, ("change", (kind, key), to_all))
        case ("wait", seconds, _):
            await anyio.sleep(seconds)
        case ("fault", fault, count):
            faults.extend([fault] * count)
        case ("lose", after_write, _):
            store.fail_next_commit(StoreUnavailable("lost", uncertain=after_write), after_write=after_write)
        case ("blind", count, _):
            for _ in range(count):
                store.fail_next_read(StoreUnavailable("blind"))
        case ("passivate", (kind, key), _):
            runtime.actor(kind, key).passivate()
        case _:
            raise AssertionError(operation)


class Died(Exception):
    """The process is over."""


async def play(programs: list[tuple[list[tuple[str, Any, Any]], str]]) -> None:
    store, faults = MemoryStore(keep_history=True), list[str]()
    for program, end in programs:
        with suppress(Died):
            async with open_on(store, faults) as runtime:
                for operation in program:
                    await operate(runtime, store, faults, operation)
                if end == "die":
                    raise Died
        store = store.reopened()
    faults.clear()
    async with open_on(store, faults) as runtime:
        await anyio.sleep(120)
        model = Model()
        for batch in [batch for group in store.committed for batch in group]:
            model.play(batch)

        entries = model.entries()
        assert sorted((hit.value, hit.stream) for hit in store.scan_index(Index.REMINDER_DUE)) == entries
        horizon_ms = runtime.wall_ms() - 20_000  # three slow ones in a row, each once more for what it missed
        assert [value for value, _ in entries if int.from_bytes(value[:8], "big") < horizon_ms] == []
        assert runtime.pending_max <= TAKEN_MAX


@given(st.lists(processes, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_is_set_fires_once_in_the_history_at_its_time_and_nothing_else_does(
    programs: list[tuple[list[tuple[str, Any, Any]], str]],
) -> None:
    logging.getLogger("callboard").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(reminders, name, value)
        trio.run(play, programs, clock=trio.testing.MockClock(autojump_threshold=0))


# Many -----------------------------------------------------------------------------------------------------------------


def leave_many(store: MemoryStore, count: int, *, due_ms: int, step_ms: int) -> None:
    for number in range(count):
        record = ReminderRecord("tick", due_ms + number * step_ms)
        rows, index_rows = reminder_rows("tick", None, record)
        store.commit([Batch(f"diary:{number:05}", 1, 0, rows=rows, index_rows=index_rows)])


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def timers_of(runtime: Runtime) -> int:
    return len(runtime._timers)  # pyright: ignore[reportPrivateUsage] - what this is about


def test_ten_thousand_reminders_over_an_hour_cost_one_timer(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore(keep_history=True)
        async with open_on(store, []) as runtime:
            bare = timers_of(runtime)
        store = store.reopened()
        first_ms = int(time.time() * 1000) + 120_000  # the wall's time is real, and goes on while they are written
        leave_many(store, 10_000, due_ms=first_ms, step_ms=360)
        store = store.reopened()
        async with open_on(store, []) as runtime:
            assert timers_of(runtime) <= bare + 1
            timers_max = 0
            for _ in range(63):
                await anyio.sleep(60.1)
                timers_max = max(timers_max, timers_of(runtime))

            assert store.scan_index(Index.REMINDER_DUE) == []
            assert timers_max <= bare + 3  # and those of residency, which has actors to look after now
            assert runtime.pending_max == 1
        said = [msgspec.json.decode(batch.rows[0].value or b"", type=Said) for [batch] in store.committed[10_000:]]
        assert len(said) == 10_000
        assert max(one.wall_ms - one.due_ms for one in said) <= 2

    run(body)


def test_ten_thousand_that_are_overdue_are_taken_a_bounded_number_at_a_time(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        leave_many(store, 10_000, due_ms=1, step_ms=1)
        async with open_on(store, []) as runtime:
            timers_max = 0
            while store.scan_index(Index.REMINDER_DUE, limit=1):
                await anyio.lowlevel.checkpoint()
                timers_max = max(timers_max, timers_of(runtime))

            assert timers_max <= reminders.PAGE + 3
            assert runtime.pending_max <= reminders.TAKEN_MAX

    run(body)


@pytest.mark.parametrize("late", ["e", "efghij"])
def test_one_set_for_the_past_waits_for_its_turn_where_many_are_unfinished(
    run: Run, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setattr(reminders, "TAKEN_MAX", 4)

    async def body() -> None:
        store = MemoryStore()
        async with open_on(store, []) as runtime:
            for key in "abcd":
                await runtime.actor("slow", key).ask(Change("set", "x"))
            await anyio.sleep(0.1)
            for key in late:
                await runtime.actor("slow", key).ask(Change("set", "x", after_s=None, at_ms=0))
            await anyio.sleep(1)
            assert runtime.pending.total() == 4

            await anyio.sleep(10)

            assert runtime.pending_max == 4
            assert store.scan_index(Index.REMINDER_DUE) == []

    run(body)


@pytest.mark.usefixtures("quiet_log")
def test_many_that_fail_for_long_are_bounded_and_hold_up_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reminders, "TAKEN_MAX", 64)
    monkeypatch.setattr(reminders, "RETRYING_MAX", 48)
    monkeypatch.setattr(reminders, "PAGE", 16)

    async def body() -> None:
        store = MemoryStore()
        leave_many(store, 1_000, due_ms=1, step_ms=1)
        faults = ["refuse"] * 1_000
        async with open_on(store, faults) as runtime:
            await anyio.sleep(10)
            assert not faults or len(faults) < 200
            assert timers_of(runtime) <= 48 + 16 + 4
            await runtime.actor("diary", "other").ask(Change("set", "tea", 0.5))
            await anyio.sleep(1)
            assert [hit for hit in store.scan_index(Index.REMINDER_DUE) if hit.stream == "diary:other"] == []

            await anyio.sleep(1_000)

            assert store.scan_index(Index.REMINDER_DUE) == []

    run(body)


def test_an_entry_of_the_index_that_is_none_is_passed_over(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        entries = (IndexRow(Index.REMINDER_DUE, b""), IndexRow(Index.REMINDER_DUE, b"\x00" * 8 + b"\xff"))
        store.commit([Batch("diary:bad", 1, 0, index_rows=entries)])
        leave_many(store, 3, due_ms=7, step_ms=1)
        async with open_on(store, []):
            await anyio.sleep(1)

            assert [hit.stream for hit in store.scan_index(Index.REMINDER_DUE)] == ["diary:bad"] * 2

    run(body)


@pytest.mark.usefixtures("quiet_log")
def test_one_that_always_crashes_does_not_spend_the_default_restart_budget(run: Run) -> None:
    async def body() -> None:
        faults = ["crash"] * 1_000
        runtime = Runtime(MemoryStore)
        runtime.register("diary", partial(Diary, faults))
        async with runtime:
            diary = runtime.actor("diary", "a")
            await diary.ask(Change("set", "poison", 1.0))
            await anyio.sleep(86_400)

            assert runtime.statistics().failed == 0
            assert 86_400 / 300 <= 1_000 - len(faults) <= 86_400 / 150 + 10
            await diary.ask(Change("forget", "poison"), timeout_s=60)

    run(body)


def test_periodic_ones_that_are_always_overdue_do_not_keep_the_runtime_open(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore(keep_history=True)
        async with open_on(store, []) as runtime:
            for name in "xyz":
                await runtime.actor("slow", "a").ask(Change("set", name, None, 0.5))
            await anyio.sleep(20)
            began, commits = runtime.now(), len(store.committed)

        assert runtime.now() - began < 5
        assert len(store.committed) <= commits + 1

    run(body)
