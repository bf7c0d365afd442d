"""Who observes a runtime is told of what is rare, in order and once, and disturbs nobody."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import Actor, Backoff, Context, Failed, Request, RestartPolicy, Runtime, handles
from callboard.runtime.errors import ActorFailed
from callboard.runtime.identity import ActorId
from callboard.runtime.observing import (
    ActorActivated,
    ActorCrashed,
    ActorGaveUp,
    ActorPassivated,
    ActorRestarting,
    BreakerMoved,
    Committed,
    LetterDied,
    MessageQuarantined,
    RuntimeEvent,
)
from callboard.store import LmdbStore, MemoryStore, StoreUnavailable, Table

Run = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RestartPolicy(restarts_max=4, window_s=60.0, backoff=Backoff(first_s=0.001, max_s=0.002))


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Add(Request[int], frozen=True):
    amount: int = 1


class Crash(Request[None], frozen=True):
    pass


class CrashAgain(Request[None], frozen=True):
    pass


class Worker(Actor):
    """Does what it is told."""

    total = 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise KeyError("broken")

    @handles(CrashAgain, retryable=True)
    def crash_again(self, _message: CrashAgain, _context: Context) -> None:
        raise KeyError("poison")


class Volatile(Worker):
    """The same, and never stored."""

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        return self.total


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[RuntimeEvent] = []

    def note(self, event: RuntimeEvent, /) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def opened(store: MemoryStore | None = None) -> Runtime:
    runtime = Runtime(lambda: store or MemoryStore())
    runtime.register("worker", Worker, restart=QUICK)
    runtime.register("volatile", Volatile, durable=False, restart=QUICK)
    return runtime


def test_each_commit_on_a_disk_is_measured(run_in_real_time: Run, tmp_path: Any) -> None:
    async def body() -> None:
        runtime = Runtime(lambda: LmdbStore(tmp_path / str(anyio.get_current_task().id)))
        runtime.register("worker", Worker)
        notes = Notes()
        async with runtime:
            runtime.observe(notes)
            for _ in range(10):
                await runtime.actor("worker", "a").ask(Add())

            seen = runtime.statistics()

            assert (seen.commit_times.count, seen.commit_groups) == (10, 10)
            assert 0.0 < seen.commit_times.percentile_s(0.5) <= 2 * seen.commit_times.total_s < 20.0
            assert sum(event.batches for event in notes.of(Committed)) == 10
            assert all(event.duration_s > 0.0 and event.refused == 0 for event in notes.of(Committed))

    run_in_real_time(body)


def test_an_observer_is_told_of_every_rare_event_in_order(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with opened(store) as runtime:
            notes = Notes()
            runtime.observe(notes)
            runtime.observe(notes)  # once is enough
            worker = runtime.actor("worker", "a")
            await worker.ask(Add())
            assert worker.passivate()
            await worker.tell(Crash())
            await anyio.sleep(0.1)
            with pytest.raises(Failed):
                await worker.ask(CrashAgain())
            await worker.tell(Crash())
            await anyio.sleep(0.1)
            with pytest.raises(ActorFailed):
                await worker.ask(Add())

            a = ActorId("worker", "a")
            assert [type(event) for event in notes.events[:8]] == [
                ActorActivated,
                Committed,
                ActorPassivated,
                ActorActivated,
                ActorCrashed,
                LetterDied,
                ActorRestarting,
                ActorActivated,
            ]
            assert [type(crash.message) for crash in notes.of(ActorCrashed)] == [Crash, *[CrashAgain] * 3, Crash]
            assert [died.letter.cause for died in notes.of(LetterDied)] == ["crashed", "crashed"]
            assert [event.poison.to for event in notes.of(MessageQuarantined)] == [a]
            assert len(notes.of(ActorRestarting)) == 4
            assert [event.id for event in notes.of(ActorGaveUp)] == [a]

    run(body)


def test_an_observer_is_told_of_an_outage_of_the_store_once_each_way(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with opened(store) as runtime:
            notes = Notes()
            runtime.observe(notes)
            for _ in range(2):
                store.fail_next_read(StoreUnavailable("out"))
            await runtime.actor("worker", "a").tell(Add())
            await runtime.actor("worker", "b").tell(Add())
            assert runtime.statistics().breaker == "open"
            await anyio.sleep(30.0 if anyio.current_time() < 1e4 else 1.0)

            assert [(event.state, event.failures) for event in notes.of(BreakerMoved)] == [
                ("open", 1),
                ("half_open", 1),
                ("open", 2),
                ("half_open", 2),
                ("closed", 0),
            ]
            assert runtime.statistics().breaker == "closed"

    run(body)


def test_two_loads_that_find_the_store_out_of_order_are_one_outage(run: Run) -> None:
    class Slow(Actor):
        async def load(self, context: Context) -> None:
            await anyio.sleep(1.0)
            context.store.scan(str(self.id), Table.MESSAGE)

        @handles(Add)
        def add(self, _message: Add, _context: Context) -> int:
            return 1

    async def body() -> None:
        store = MemoryStore()
        async with opened(store) as runtime:
            runtime.register("slow", Slow)
            notes = Notes()
            runtime.observe(notes)
            await runtime.actor("slow", "a").tell(Add())
            await runtime.actor("slow", "b").tell(Add())
            await anyio.sleep(0.5)
            for _ in range(2):
                store.fail_next_read(StoreUnavailable("out"))
            await anyio.sleep(10.0)

            assert [event.state for event in notes.of(BreakerMoved)] == ["open", "half_open", "closed"]
            assert [round(event.duration_s) for event in notes.of(ActorActivated)] == [1, 1]

    run(body)


def test_an_observer_that_raises_is_logged_and_disturbs_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Angry:
        def note(self, event: RuntimeEvent, /) -> None:
            raise ValueError("no")

    async def body() -> None:
        caplog.set_level(logging.ERROR)
        caplog.clear()
        async with opened() as runtime:
            notes = Notes()
            runtime.observe(Angry())
            runtime.observe(notes)

            total = await runtime.actor("worker", "a").ask(Add())

            assert total == 1
            assert [type(event) for event in notes.events] == [ActorActivated, Committed]
            assert [record.getMessage() for record in caplog.records] == [
                "an observer raised at ActorActivated",
                "an observer raised at Committed",
            ]

    run(body)


def test_what_is_handled_in_place_tells_no_observer_and_none_is_told_after_it_left(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            notes = Notes()
            leave = runtime.observe(notes)
            await runtime.actor("volatile", "a").ask(Add())
            assert [type(event) for event in notes.events] == [ActorActivated]
            for _ in range(1000):
                await runtime.actor("volatile", "a").ask(Add())
            assert len(notes.events) == 1

            leave()
            leave()
            await runtime.actor("worker", "b").ask(Add())

            assert len(notes.events) == 1

    run(body)
