"""Reminders where something is wrong: the store does not answer, a record cannot be read, an actor is deaf."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest

from callboard.runtime import Actor, Backoff, Context, Failed, Reminder, Request, Runtime, handles, reminders
from callboard.runtime.identity import ActorId
from callboard.runtime.reminder_records import ReminderRecord, reminder_rows
from callboard.store import Batch, Corrupt, Index, MemoryStore, Row, Store, StoreUnavailable, Table

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_and_quick(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(reminders, "BACKOFF", Backoff(first_s=0.01, max_s=0.02))


class Remind(Request[None], frozen=True):
    name: str
    after_s: float
    every_s: float | None = None


class Office:
    """What the clerks of a test have heard."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._changed = anyio.Event()

    def note(self, name: str) -> None:
        self.heard.append(name)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_heard(self, count: int) -> None:
        while len(self.heard) < count:
            await self._changed.wait()


class Clerk(Actor):
    def __init__(self, office: Office, id: ActorId) -> None:
        super().__init__(id)
        self.office = office

    @handles(Remind)
    def remind(self, message: Remind, context: Context) -> None:
        context.remind(message.name, after_s=message.after_s, every_s=message.every_s)

    @handles(Reminder)
    def reminded(self, reminder: Reminder, _context: Context) -> None:
        self.office.note(reminder.name)


class Deaf(Actor):
    @handles(Remind)
    def remind(self, message: Remind, context: Context) -> None:
        context.remind(message.name, after_s=1)


class BlindStore(MemoryStore):
    """A memory store whose `blind_at`-th look at a reminder fails."""

    blind_at = 0

    def scan(
        self,
        stream: str,
        table: Table,
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        if table is Table.REMINDER:
            self.blind_at -= 1
            if self.blind_at == 0:
                raise StoreUnavailable("blind")
        return super().scan(stream, table, start=start, stop=stop, limit=limit, newest_first=newest_first)


def an_office(store: Store) -> tuple[Runtime, Office]:
    office = Office()
    runtime = Runtime(lambda: store)
    runtime.register("clerk", partial(Clerk, office))
    runtime.register("fleeting", partial(Clerk, office), durable=False)
    runtime.register("deaf", Deaf)
    return runtime, office


def waiting(store: Store) -> list[bytes]:
    return [hit.value for hit in store.scan_index(Index.REMINDER_DUE)]


@pytest.mark.parametrize(("kind", "advice"), [("deaf", "@handles"), ("fleeting", "durable")])
def test_an_actor_that_could_not_hear_it_cannot_set_one(run: Run, kind: str, advice: str) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, _ = an_office(store)
        async with runtime:
            with pytest.raises(Failed) as raised:
                await runtime.actor(kind, "a").ask(Remind("tea", after_s=1))

            assert isinstance(raised.value.__cause__, TypeError)
            assert advice in str(raised.value.__cause__)
            assert waiting(store) == []

    run(body)


def test_a_handler_of_reminders_is_gated_whatever_is_asked() -> None:
    class Hasty(Actor):
        @handles(Reminder, gated=False)
        def reminded(self, _reminder: Reminder, _context: Context) -> None: ...

    assert Hasty.handlers[Reminder].gated


def test_a_record_that_cannot_be_read_holds_up_no_other(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        for version, name in enumerate(["bad", "good"]):
            rows, index_rows = reminder_rows(name, None, ReminderRecord(name, 5 + version))
            store.commit([Batch("clerk:a", 1, version, rows=rows, index_rows=index_rows)])
        store.commit([Batch("clerk:a", 1, 2, rows=(Row(Table.REMINDER, b"bad", b"\x01zzz"),))])
        runtime, office = an_office(store)
        async with runtime:
            await office.wait_heard(1)
            await anyio.sleep(0.03)

            assert office.heard == ["good"]

    run(body)


def test_an_outage_while_the_index_is_read_only_delays(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.01))
            for _ in range(3):
                store.fail_next_read(StoreUnavailable("asleep"))

            await office.wait_heard(1)

            assert waiting(store) == []

    run(body)


@pytest.mark.parametrize("blind_at", [2, 3, 4, 5])
@pytest.mark.parametrize("every_s", [None, 3600.0])
def test_a_look_at_a_reminder_that_fails_only_delays_whichever_it_is(
    run: Run, every_s: float | None, blind_at: int
) -> None:
    async def body() -> None:
        store = BlindStore()
        runtime, office = an_office(store)
        async with runtime:
            store.blind_at = blind_at  # 1: as it is set; to fire it; before its handler; after it; once it is settled
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.01, every_s=every_s))
            await office.wait_heard(1)
            await anyio.sleep(0.2)

            assert store.blind_at <= 0
            assert len(waiting(store)) == (every_s is not None)
            assert len(office.heard) == 1 + (blind_at == 4)

    run(body)


def test_a_reminder_that_cannot_be_read_as_it_is_set_anew_is_left_as_it_is(run: Run) -> None:
    async def body() -> None:
        store = BlindStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.ask(Remind("tea", after_s=0.05))
            store.blind_at = 1
            with pytest.raises(StoreUnavailable):
                await clerk.ask(Remind("tea", after_s=3600))
            await office.wait_heard(1)

            assert waiting(store) == []

    run(body)


def test_a_runtime_whose_reminders_cannot_be_read_does_not_open(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, _ = an_office(store)
        store.fail_next_read(Corrupt("index", "it is all zeros"))

        with pytest.raises(Corrupt):
            async with runtime:
                pass

    run(body)


def test_a_kind_may_be_registered_when_the_runtime_is_open(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        for stream, name in (("late:a", "tea"), ("later:a", "milk")):
            rows, index_rows = reminder_rows(name, None, ReminderRecord(name, 5))
            store.commit([Batch(stream, 1, 0, rows=rows, index_rows=index_rows)])
        runtime, office = an_office(store)
        async with runtime:
            runtime.register("late", partial(Clerk, office))
            await office.wait_heard(1)
            await anyio.sleep(0.02)
            runtime.register("later", partial(Clerk, office))
            await office.wait_heard(2)

            assert office.heard == ["tea", "milk"]

    run(body)


def test_only_a_reminder_that_is_stored_is_handled(run: Run) -> None:
    async def body() -> None:
        runtime, office = an_office(MemoryStore())
        async with runtime:
            await runtime.actor("clerk", "a").ask(Reminder("tea", 5, 0))

            assert office.heard == []

    run(body)
