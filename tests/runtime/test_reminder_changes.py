"""Reminders that are replaced, forgotten or erased, also while a firing is queued or a commit is on its way."""

import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
import pytest

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
from callboard.store import Batch, Index, MemoryStore, Store, StoreUnavailable
from callboard.store.contract import Refusal

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
    after_s: float
    every_s: float | None = None
    then_crash: bool = False


class Forget(Request[bool], frozen=True):
    name: str


class Waver(Request[bool], frozen=True):
    """Set one three times, for ever later, and then forget it or not."""

    name: str
    forget: bool


class Erase(Request[None], frozen=True):
    pass


class Hold(Request[None], frozen=True):
    """Keep the actor busy until the office is opened, then do this."""

    then: Forget | Erase | Remind


class Office:
    """What the clerks of a test have in common: what they heard, and what they are to do with it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.orders: list[str] = []
        self.door = anyio.Event()
        self.context: Context | None = None
        self._changed = anyio.Event()

    def note(self, name: str) -> str:
        self.heard.append(name)
        self._changed.set()
        self._changed = anyio.Event()
        return self.orders.pop(0) if self.orders else ""

    async def wait_heard(self, count: int) -> None:
        while len(self.heard) < count:
            await self._changed.wait()


class Clerk(Actor):
    def __init__(self, office: Office, id: ActorId) -> None:
        super().__init__(id)
        self.office = office

    @handles(Remind)
    def remind(self, message: Remind, context: Context) -> None:
        self.office.context = context
        context.remind(message.name, after_s=message.after_s, every_s=message.every_s)
        if message.then_crash:
            raise Broken

    @handles(Forget)
    def forget(self, message: Forget, context: Context) -> bool:
        return context.forget_reminder(message.name)

    @handles(Waver)
    def waver(self, message: Waver, context: Context) -> bool:
        for after_s in (0.01, 0.02, 0.03):
            context.remind(message.name, after_s=after_s)
        return message.forget and context.forget_reminder(message.name)

    @handles(Erase)
    def erase(self, _message: Erase, context: Context) -> None:
        context.stage(erase=True)

    @handles(Hold)
    async def hold(self, message: Hold, context: Context) -> None:
        await self.office.door.wait()
        match message.then:
            case Forget():
                self.forget(message.then, context)
            case Remind():
                self.remind(message.then, context)
            case Erase():
                self.erase(message.then, context)

    @handles(Reminder)
    def reminded(self, reminder: Reminder, context: Context) -> None:
        match self.office.note(reminder.name):
            case "refuse":
                raise Failed("not now")
            case "erase":
                context.stage(erase=True)
            case "forget":
                context.forget_reminder(reminder.name)
            case "again":
                context.remind(reminder.name, after_s=0.02)
            case _:
                pass


def an_office(store: Store) -> tuple[Runtime, Office]:
    office = Office()
    runtime = Runtime(lambda: store)
    runtime.register("clerk", partial(Clerk, office), restart=QUICK)
    return runtime, office


def waiting(store: Store) -> list[bytes]:
    return [hit.value for hit in store.scan_index(Index.REMINDER_DUE)]


class HeldStore(MemoryStore):
    """A memory store that commits on the committer's thread, like a disk, and only while its door is open."""

    def __init__(self) -> None:
        super().__init__()
        self.door = threading.Event()
        self.door.set()

    @property
    def inline(self) -> bool:
        return False

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        assert self.door.wait(10), "the test never opened the door"
        return super().commit(batches)


# Replaced, forgotten, erased.


def test_a_reminder_of_the_same_name_takes_the_place_of_the_old_one(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.ask(Remind("tea", after_s=0.01, every_s=0.01))
            await clerk.ask(Remind("tea", after_s=0.05))
            await runtime.actor("clerk", "b").ask(Remind("coffee", after_s=0.02))
            assert len(waiting(store)) == 2

            await office.wait_heard(2)
            await anyio.sleep(0.05)

            assert office.heard == ["coffee", "tea"]
            assert waiting(store) == []

    run(body)


def test_one_that_failed_once_may_be_set_anew_by_its_next_attempt(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        office.orders = ["refuse", "again", "refuse"]
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.01))
            await office.wait_heard(4)
            await anyio.sleep(0.1)

            assert office.heard == ["tea"] * 4
            assert waiting(store) == []

    run(body)


def test_a_forgotten_reminder_never_fires(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.ask(Remind("tea", after_s=0.02))
            await clerk.ask(Remind("tick", after_s=0.02, every_s=0.01))

            assert await clerk.ask(Forget("tea"))
            assert await clerk.ask(Forget("tick"))
            assert not await clerk.ask(Forget("tea"))
            assert not await clerk.ask(Forget("never set"))
            await anyio.sleep(0.05)

            assert office.heard == waiting(store) == []

    run(body)


@pytest.mark.parametrize("then", [Forget("tick"), Erase(), Remind("tick", after_s=3600)])
def test_a_signal_that_is_queued_when_its_reminder_goes_is_not_handled(run: Run, then: Forget | Erase | Remind) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.ask(Remind("tick", after_s=0.01, every_s=0.01))
            await clerk.tell(Hold(then))
            await anyio.sleep(0.03)
            office.door.set()
            await clerk.ask(Forget("another"))
            await anyio.sleep(0.03)

            assert office.heard == []
            assert len(waiting(store)) == isinstance(then, Remind)

    run(body)


def test_an_erased_actor_drops_its_reminders_and_keeps_those_that_it_sets_afterwards(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.ask(Remind("tick", after_s=0.02, every_s=0.01))
            await clerk.ask(Erase())
            assert waiting(store) == []
            await clerk.ask(Remind("tea", after_s=0.03))
            await office.wait_heard(1)

            assert office.heard == ["tea"]

    run(body)


@pytest.mark.parametrize(("order", "left"), [("erase", 0), ("forget", 0), ("again", 1)])
def test_a_handler_that_changes_its_own_reminder_has_its_way(run: Run, order: str, left: int) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        office.orders = [order]
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tick", after_s=0.01, every_s=0.01))
            await office.wait_heard(1)
            assert len(waiting(store)) == left
            await anyio.sleep(0.1)

            assert len(office.heard) == 1 + left
            assert waiting(store) == []

    run(body)


def test_the_last_word_of_a_handler_on_a_reminder_counts(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            assert not await clerk.ask(Waver("tea", forget=False))
            assert await clerk.ask(Waver("milk", forget=True))
            assert [value[8:] for value in waiting(store)] == [b"tea"]
            await anyio.sleep(0.1)

            assert office.heard == ["tea"]
            assert waiting(store) == []

    run(body)


def test_a_handler_that_raises_has_set_nothing(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, office = an_office(store)
        async with runtime:
            with pytest.raises(Failed):
                await runtime.actor("clerk", "a").ask(Remind("tea", after_s=0.01, then_crash=True))
            assert not await runtime.actor("clerk", "a").ask(Forget("tea"))
            await anyio.sleep(0.03)

            assert office.heard == waiting(store) == []

    run(body)


def test_one_that_waits_for_another_attempt_and_is_set_anew_comes_at_its_new_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reminders, "BACKOFF", Backoff(first_s=1000.0, max_s=1000.0))

    async def body() -> None:
        runtime, office = an_office(MemoryStore())
        office.orders = ["refuse"]
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.ask(Remind("tea", after_s=0))
            await office.wait_heard(1)
            began = runtime.now()
            await clerk.ask(Remind("tea", after_s=0.02))
            await office.wait_heard(2)

            assert runtime.now() - began < 10

    run(body)


# While a commit is on its way.


@pytest.mark.parametrize("then", [Forget("tick"), Erase(), Remind("tick", after_s=3600)])
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_commit_on_its_way_takes_back_is_handled_only_if_that_commit_fails(
    run_in_real_time: Run, then: Forget | Erase | Remind, fails: bool
) -> None:
    async def body() -> None:
        store = HeldStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            await clerk.tell(Remind("tick", after_s=0.01, every_s=3600))
            await clerk.tell(Hold(then))  # before the reminder is stored, so before its signal
            await anyio.sleep(0.05)
            store.door.clear()
            if fails:
                store.fail_next_commit(StoreUnavailable("asleep"))
            office.door.set()
            await anyio.sleep(0.05)  # the signal is handled, too early to be believed
            assert office.heard == []
            store.door.set()
            if fails:
                await office.wait_heard(1)
            assert not await clerk.ask(Forget("never set"))
            await anyio.sleep(0.03)

            assert office.heard == ["tick"] * fails
            assert len(waiting(store)) == (fails or isinstance(then, Remind))

    run_in_real_time(body)


def test_one_that_is_set_again_and_again_while_the_disk_is_slow_leaves_one_entry(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = HeldStore()
        runtime, office = an_office(store)
        async with runtime:
            clerk = runtime.actor("clerk", "a")
            store.door.clear()
            for number in range(50):
                await clerk.tell(Remind("tea", after_s=3600 + number))
            await clerk.tell(Forget("tea"))
            await clerk.tell(Remind("tea", after_s=0.01))
            await clerk.tell(Remind("milk", after_s=3600))
            store.door.set()
            await office.wait_heard(1)
            await clerk.ask(Forget("never set"))

            assert [value[8:] for value in waiting(store)] == [b"milk"]
            assert office.heard == ["tea"]

    run_in_real_time(body)


def test_what_is_durable_is_kept_in_memory_no_longer(run: Run) -> None:
    async def body() -> None:
        runtime, office = an_office(MemoryStore())
        async with runtime:
            await runtime.actor("clerk", "a").ask(Remind("tea", after_s=1))
            await runtime.actor("clerk", "a").ask(Erase())
            assert office.context is not None
            in_flight = office.context.reminding._in_flight  # pyright: ignore[reportPrivateUsage] - memory has no face

            assert len(in_flight) == 0
            assert not in_flight.knows("tea")

    run(body)
