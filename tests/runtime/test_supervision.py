"""What a crash costs: its own message, and nothing else. The same bodies on trio and asyncio."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Actor,
    ActorFailed,
    Backoff,
    ChildEnded,
    Context,
    Failed,
    Request,
    RestartPolicy,
    Runtime,
    Ticket,
    Unknown,
    UnknownActor,
    handles,
)
from callboard.runtime.identity import ActorId
from callboard.store import Corrupt, MemoryStore, Row, StoreUnavailable, Table

Run = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RestartPolicy(restarts_max=2, window_s=60.0, backoff=Backoff(first_s=0.001, max_s=0.002))


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Broken(Exception):
    """What a handler that has a fault raises."""


class Add(Request[int], frozen=True):
    amount: int


class Crash(Request[None], frozen=True):
    after: str = "at once"


class Hang(Request[str], frozen=True):
    pass


class OweForGood(Request[int], frozen=True):
    pass


class OweAgain(Request[int], frozen=True):
    name: str


class PayAll(Request[None], frozen=True):
    pass


class Spawn(Request[None], frozen=True):
    tag: str


class TellNobody(Request[None], frozen=True):
    pass


class Journal:
    """What activations have in common, as the world outside would."""

    def __init__(self) -> None:
        self.activations = 0
        self.entries: list[str] = []
        self.started = anyio.Event()


class Counter(Actor):
    """Keeps a total in the store, and in memory what was never stored."""

    journal: Journal

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.journal.activations += 1
        self.owed: dict[str, Ticket] = {}

    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Crash)
    def crash(self, message: Crash, context: Context) -> None:
        self.total = 1000
        context.stage(head=b"1000")
        context.after_commit(lambda: self.journal.entries.append("went out"))
        if message.after == "bad batch":
            context.stage(rows=(Row(Table.RUN, b"k" * 1000, b""),))
            return
        raise Broken

    @handles(Hang)
    async def hang(self, _message: Hang, context: Context) -> str:
        context.stage(head=b"2000")
        self.journal.entries.append("begin")
        self.journal.started.set()
        await anyio.sleep(0.005)
        raise Broken

    @handles(OweForGood)
    def owe_for_good(self, _message: OweForGood, context: Context) -> Ticket:
        return context.defer()

    @handles(OweAgain, retryable=True)
    def owe_again(self, message: OweAgain, context: Context) -> Ticket:
        self.journal.entries.append(message.name)
        self.owed[message.name] = context.defer()
        return self.owed[message.name]

    @handles(PayAll)
    def pay_all(self, _message: PayAll, _context: Context) -> None:
        for ticket in self.owed.values():
            ticket.reply(self.journal.activations)

    @handles(Spawn)
    def spawn(self, message: Spawn, context: Context) -> None:
        async def child() -> None:
            self.journal.entries.append(f"child of {self.journal.activations}")
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)

        context.spawn(child, tag=message.tag)

    @handles(ChildEnded)
    def child_ended(self, signal: ChildEnded, _context: Context) -> None:
        self.journal.entries.append(f"ended {signal.tag} in {self.journal.activations}")

    @handles(TellNobody)
    def tell_nobody(self, _message: TellNobody, context: Context) -> None:
        context.tell(ActorId("nobody", "k"), Add(1))


def a_runtime(store: MemoryStore | None = None, policy: RestartPolicy = QUICK) -> tuple[Runtime, Journal]:
    journal = Journal()

    class Own(Counter):
        pass

    Own.journal = journal
    runtime = Runtime(lambda: store or MemoryStore(), drain_timeout_s=1.0)
    runtime.register("counter", Own, restart=policy)
    return runtime, journal


async def until(condition: Callable[[], bool]) -> None:
    """Let time pass until the condition holds, at most two seconds."""
    with anyio.fail_after(2.0):
        while not condition():  # noqa: ASYNC110 - about what no event tells
            await anyio.sleep(0.0005)


@pytest.mark.parametrize("message", [Crash(), Crash("bad batch"), Hang()], ids=["plain", "bad batch", "async"])
def test_a_crash_fails_its_message_and_restarts_from_what_was_committed(run: Run, message: Request[Any]) -> None:
    async def body() -> None:
        runtime, journal = a_runtime()
        async with runtime:
            counter = runtime.actor("counter", "k")
            assert await counter.ask(Add(1)) == 1

            with pytest.raises(Failed) as caught:
                await counter.ask(message)
            assert isinstance(caught.value.__cause__, Broken | ValueError)

            assert await counter.ask(Add(1)) == 2
            assert journal.activations == 2
            assert "went out" not in journal.entries
            assert runtime.inspect("counter", "k").restarts == runtime.statistics().crashes == 1

    run(body)


def test_what_was_queued_behind_a_crash_is_handled_by_the_next_activation_in_order(run: Run) -> None:
    async def body() -> None:
        runtime, journal = a_runtime()
        async with runtime:
            counter = runtime.actor("counter", "k")
            crash = counter.ask_nowait(Hang())
            adds = [counter.ask_nowait(Add(amount)) for amount in (1, 10, 100)]

            with pytest.raises(Failed):
                await crash.wait()
            assert [await add.wait() for add in adds] == [1, 11, 111]
            assert journal.activations == 2

    run(body)


def test_a_crash_reaches_no_other_actor(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        async with runtime:
            hanging = runtime.actor("counter", "other").ask_nowait(Hang())
            with pytest.raises(Failed):
                await runtime.actor("counter", "k").ask(Crash())

            assert runtime.inspect("counter", "other").running == "Hang"
            hanging.give_up()

    run(body)


def test_a_spent_budget_fails_the_actor_until_it_is_resumed(run: Run) -> None:
    async def body() -> None:
        runtime, journal = a_runtime()
        async with runtime:
            counter = runtime.actor("counter", "k")
            await counter.ask(Add(5))
            for _ in range(2):
                with pytest.raises(Failed):
                    await counter.ask(Crash())
            last = counter.ask_nowait(Crash())
            queued = counter.ask_nowait(Add(1))

            with pytest.raises(Failed):
                await last.wait()
            with pytest.raises(ActorFailed, match=r"runtime.resume\('counter', 'k'\)") as caught:
                await queued.wait()
            assert isinstance(caught.value.__cause__, Broken)
            with pytest.raises(ActorFailed):
                await counter.ask(Add(1))
            with pytest.raises(ActorFailed):
                await counter.tell(Add(1))
            assert (runtime.statistics().failed, journal.activations) == (1, 3)

            runtime.resume("counter", "k")
            assert await counter.ask(Add(1)) == 6

    run(body)


def test_an_owed_reply_is_lost_with_its_activation_unless_it_may_be_asked_again(run: Run) -> None:
    async def body() -> None:
        runtime, journal = a_runtime()
        async with runtime:
            counter = runtime.actor("counter", "k")
            owed = counter.ask_nowait(OweForGood())
            again = [counter.ask_nowait(OweAgain(name)) for name in "abc"]
            with pytest.raises(Failed):
                await counter.ask(Crash())

            with pytest.raises(Unknown, match="restarted before it answered"):
                await owed.wait()
            await counter.ask(PayAll())
            assert [await pending.wait() for pending in again] == [2, 2, 2]
            assert journal.entries == ["a", "b", "c", "a", "b", "c"]

    run(body)


def test_an_outage_while_loading_is_tried_again_and_spends_no_budget(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, _ = a_runtime(store)
        async with runtime:
            for _ in range(4):
                store.fail_next_read(StoreUnavailable("the disk sleeps"))

            assert await runtime.actor("counter", "k").ask(Add(1)) == 1
            assert runtime.statistics().crashes == 0
            assert runtime.inspect("counter", "k").restarts == 4

    run(body)


def test_a_record_that_cannot_be_read_fails_its_actor_at_once_with_the_reason(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, _ = a_runtime(store)
        async with runtime:
            store.fail_next_read(Corrupt("counter:k", "it is all zeros"))

            with pytest.raises(ActorFailed, match="all zeros"):
                await runtime.actor("counter", "k").ask(Add(1))
            assert runtime.inspect("counter", "k").restarts == 0
            runtime.resume("counter", "k")
            assert await runtime.actor("counter", "k").ask(Add(1)) == 1

    run(body)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_a_load_that_crashes_is_restarted_within_the_budget(run: Run, asynchronous: bool) -> None:
    attempts: list[int] = []

    class Fragile(Actor):
        def load(self, context: Context) -> Awaitable[None] | None:
            return self._load() if asynchronous else self._now()

        def _now(self) -> None:
            attempts.append(1)
            if len(attempts) % 3:
                raise Broken

        async def _load(self) -> None:
            await anyio.sleep(0.001)
            self._now()

        @handles(Add)
        def add(self, message: Add, _context: Context) -> int:
            return message.amount

    async def body() -> None:
        attempts.clear()
        async with Runtime(MemoryStore) as runtime:
            runtime.register("fragile", Fragile, restart=QUICK)
            assert await runtime.actor("fragile", "k").ask(Add(7)) == 7

        assert len(attempts) == 3

    run(body)


def test_a_load_is_not_overtaken_by_messages_and_may_write(run: Run) -> None:
    class Repairing(Actor):
        async def load(self, context: Context) -> None:
            await anyio.sleep(0.001)
            self.loaded = True
            context.stage(head=b"repaired")

        @handles(Add)
        def add(self, _message: Add, context: Context) -> int:
            assert self.loaded
            return context.version

    async def body() -> None:
        store = MemoryStore()
        async with Runtime(lambda: store) as runtime:
            runtime.register("repairing", Repairing)
            refs = [runtime.actor("repairing", key) for key in "ab"]
            pending = [ref.ask_nowait(Add(1)) for ref in refs]

            assert [await one.wait() for one in pending] == [1, 1]
            head = store.load("repairing:a")
            assert head is not None
            assert head.head == b"repaired"

    run(body)


def test_children_of_a_crashed_activation_are_cancelled_and_their_tags_are_free(run: Run) -> None:
    async def body() -> None:
        runtime, journal = a_runtime()
        async with runtime:
            counter = runtime.actor("counter", "k")
            await counter.ask(Spawn("run-1"))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(Failed):
                await counter.ask(Crash())
            await counter.ask(Spawn("run-1"))
            await until(lambda: runtime.statistics().children == 1)

            assert journal.entries == ["child of 1", "child of 2"]
        assert journal.entries == ["child of 1", "child of 2", "ended run-1 in 2"]

    run(body)


def test_sending_to_an_unknown_kind_is_refused_in_the_handler_that_does_it(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        async with runtime:
            with pytest.raises(UnknownActor, match="nobody"):
                await runtime.actor("counter", "k").ask(TellNobody())

    run(body)


def test_awaiting_something_that_was_cancelled_by_itself_is_a_crash_like_any_other() -> None:
    """asyncio only: trio has no such thing."""
    import asyncio

    class Careless(Actor):
        @handles(Hang)
        async def hang(self, _message: Hang, _context: Context) -> str:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
            return "unreached"

        @handles(Add)
        def add(self, message: Add, _context: Context) -> int:
            return message.amount

    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("careless", Careless, restart=QUICK, durable=False)
            with pytest.raises(Failed, match="was cancelled"):
                await runtime.actor("careless", "k").ask(Hang())

            assert await runtime.actor("careless", "k").ask(Add(1)) == 1

    anyio.run(body)
