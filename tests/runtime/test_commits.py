"""The output gate and group commit: what was answered is stored, and what was not stored is not answered."""

import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from callboard.runtime import (
    Actor,
    Answered,
    Backoff,
    ChildEnded,
    Context,
    Failed,
    Request,
    RestartPolicy,
    Runtime,
    Unknown,
    handles,
)
from callboard.runtime.identity import ActorId
from callboard.store import Batch, LmdbStore, MemoryStore, Row, StoreFull, StoreUnavailable, Table
from callboard.store.contract import Refusal

Run = Callable[[Callable[[], Awaitable[None]]], None]
QUICK = RestartPolicy(backoff=Backoff(first_s=0.001, max_s=0.002))
FULL = StoreFull("no space left")
LOST = StoreUnavailable("the disk went away", uncertain=True)


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class HeldStore(MemoryStore):
    """A memory store that commits on the committer's thread, like a disk, and only while its door is open."""

    def __init__(self) -> None:
        super().__init__(keep_history=True)
        self.door = threading.Event()
        self.groups: list[int] = []

    @property
    def inline(self) -> bool:
        return False

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        assert self.door.wait(10), "the test never opened the door"
        self.groups.append(len(batches))
        return super().commit(batches)


class Add(Request[int], frozen=True):
    amount: int
    then_tell: tuple[int, ...] = ()


class Read(Request[int], frozen=True):
    pass


class Peek(Request[int], frozen=True):
    pass


class Sum(Request[int], frozen=True):
    pass


class Note(Request[None], frozen=True):
    number: int


class Order(Request[None], frozen=True):
    amount: int


class SpawnNow(Request[None], frozen=True):
    pass


class Counter(Actor):
    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        key = b"%08d" % context.version
        context.stage(head=b"%d" % self.total, rows=(Row(Table.MESSAGE, key, b"%d" % message.amount),))
        for number in message.then_tell:
            context.tell(ActorId("listener", "l"), Note(number))
        return self.total

    @handles(Read)
    def read(self, _message: Read, _context: Context) -> int:
        return self.total

    @handles(Peek, gated=False)
    def peek(self, _message: Peek, _context: Context) -> int:
        return self.total


class Listener(Actor):
    """Writes down what it hears; on 1 it makes the counter say 9 at once, which must not overtake what was said."""

    heard: list[object]

    @handles(Note)
    def note(self, message: Note, context: Context) -> None:
        self.heard.append(message.number)
        if message.number == 1:
            context.tell(ActorId("echoing", "e"), Note(9))

    @handles(Order)
    def order(self, message: Order, context: Context) -> None:
        context.request(ActorId("counter", "k"), Add(message.amount), tag="order")

    @handles(Answered)
    def answered(self, signal: Answered, context: Context) -> None:
        self.heard.append(signal.value if signal.error is None else type(signal.error).__name__)
        context.request(ActorId("counter", "k"), Read(), tag="again") if signal.tag == "order" else None

    @handles(SpawnNow)
    def spawn_now(self, _message: SpawnNow, context: Context) -> None:
        async def child() -> str:
            await anyio.lowlevel.checkpoint()
            return "child"

        context.spawn(child, tag="t")

    @handles(ChildEnded)
    def child_ended(self, signal: ChildEnded, _context: Context) -> None:
        self.heard.append(signal.value)


def a_runtime(store: MemoryStore | LmdbStore) -> tuple[Runtime, list[object]]:
    heard: list[object] = []

    class Own(Listener):
        pass

    Own.heard = heard
    runtime = Runtime(lambda: store, drain_timeout_s=2.0)
    runtime.register("counter", Counter, restart=QUICK)
    runtime.register("listener", Own, durable=False)
    return runtime, heard


async def settle() -> None:
    """Let the loop come to rest. The store's thread may still be at work."""
    await anyio.wait_all_tasks_blocked()


def test_replies_and_gated_reads_wait_for_the_disk_and_ungated_reads_do_not(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = HeldStore()
        runtime, heard = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            out: list[str] = []
            add, read = counter.ask_nowait(Add(1, then_tell=(7,))), counter.ask_nowait(Read())
            add.when_settled(lambda: out.append("add"))
            read.when_settled(lambda: out.append("read"))
            await settle()
            assert (out, heard, store.committed) == ([], [], [])
            assert await counter.ask(Peek()) == 1
            assert runtime.inspect("counter", "k").commits_in_flight == 1

            store.door.set()
            assert (await add.wait(), await read.wait()) == (1, 1)
            assert (out, heard) == (["add", "read"], [7])
            assert [len(group) for group in store.committed] == [1]

    run_in_real_time(body)


def test_a_caller_that_goes_does_not_stop_the_commit(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = HeldStore()
        runtime, _ = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            with pytest.raises(Unknown):
                await counter.ask(Add(1), timeout_s=0.01)
            store.door.set()

            assert await counter.ask(Read()) == 1
        assert [len(group) for group in store.committed] == [1]

    run_in_real_time(body)


def test_a_refused_commit_fails_its_reply_and_all_that_was_built_on_it(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = HeldStore()
        runtime, heard = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            store.fail_next_commit(FULL)
            first = counter.ask_nowait(Add(1, then_tell=(7,)))
            await settle()
            second, read = counter.ask_nowait(Add(10)), counter.ask_nowait(Read())
            store.door.set()

            for pending in (first, second, read):
                with pytest.raises(Failed):
                    await pending.wait()
            assert await counter.ask(Add(100)) == 100
            assert heard == []
            assert runtime.statistics().crashes == 0
            assert runtime.inspect("counter", "k").restarts == 1

    run_in_real_time(body)


def test_after_a_refused_commit_nothing_is_handled_on_what_was_never_stored(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, heard = a_runtime(store)
        async with runtime:
            store.fail_next_commit(FULL)
            await runtime.actor("listener", "l").tell(Order(5))
            await anyio.sleep(0.05)

            # The listener asks at once, from the signal that tells it of the failure: it must read what was stored.
            assert heard == ["Failed", 0]

    run(body)


def test_an_uncertain_commit_is_unknown_and_the_actor_goes_on_from_what_is_there(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, _ = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            store.fail_next_commit(LOST, after_write=True)
            with pytest.raises(Unknown):
                await counter.ask(Add(1))
            assert await counter.ask(Read()) == 1

            store.fail_next_commit(LOST)
            with pytest.raises(Unknown):
                await counter.ask(Add(10))
            assert await counter.ask(Add(100)) == 101

    run(body)


def test_a_store_that_stays_full_is_tried_again_and_spends_no_budget(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, _ = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            for _ in range(5):
                store.fail_next_commit(FULL)
                with pytest.raises(Failed):
                    await counter.ask(Add(1))

            assert await counter.ask(Add(1)) == 1
            assert runtime.statistics().crashes == 0

    run(body)


def test_a_crash_waits_for_the_commits_before_it_and_keeps_them(run_in_real_time: Run) -> None:
    class Fragile(Counter):
        @handles(Note)
        def note(self, _message: Note, _context: Context) -> None:
            raise ZeroDivisionError

    async def body() -> None:
        store = HeldStore()
        runtime, _ = a_runtime(store)
        runtime.register("fragile", Fragile, restart=QUICK)
        async with runtime:
            fragile = runtime.actor("fragile", "k")
            add = fragile.ask_nowait(Add(1))
            with pytest.raises(Failed):
                await fragile.ask(Note(1))
            await anyio.sleep(0.02)
            assert runtime.inspect("fragile", "k").state == "backing_off"
            store.door.set()

            assert await add.wait() == 1
            assert await fragile.ask(Add(1)) == 2

    run_in_real_time(body)


def test_a_resumed_actor_waits_for_the_commits_of_the_one_that_failed(run_in_real_time: Run) -> None:
    class Fragile(Counter):
        @handles(Note)
        def note(self, _message: Note, _context: Context) -> None:
            raise ZeroDivisionError

    async def body() -> None:
        store = HeldStore()
        runtime, _ = a_runtime(store)
        runtime.register("fragile", Fragile, restart=RestartPolicy(restarts_max=0))
        async with runtime:
            fragile = runtime.actor("fragile", "k")
            add = fragile.ask_nowait(Add(1))
            with pytest.raises(Failed):
                await fragile.ask(Note(1))
            runtime.resume("fragile", "k")
            read = fragile.ask_nowait(Peek())
            await settle()
            store.door.set()

            assert (await add.wait(), await read.wait()) == (1, 1)

    run_in_real_time(body)


def test_what_one_handler_tells_arrives_in_order_whatever_that_sets_off(run_in_real_time: Run) -> None:
    class Echoing(Actor):
        @handles(Note)
        def note(self, message: Note, context: Context) -> None:
            context.tell(ActorId("listener", "l"), message)

        @handles(Order)
        def order(self, _message: Order, context: Context) -> None:
            context.stage(head=b"x")
            for number in (1, 2, 3):
                context.tell(ActorId("listener", "l"), Note(number))

    async def body() -> None:
        store = HeldStore()
        store.door.set()
        runtime, heard = a_runtime(store)
        runtime.register("echoing", Echoing)
        async with runtime:
            await runtime.actor("echoing", "e").ask(Order(0))
            await settle()

        assert heard == [1, 2, 3, 9]

    run_in_real_time(body)


def test_what_a_commit_sets_off_may_start_tasks() -> None:
    """asyncio without anyio's runner: its callbacks run outside of any task, where anyio refuses to work."""
    import asyncio

    async def body() -> None:
        store = HeldStore()
        store.door.set()
        runtime, heard = a_runtime(store)

        class Spawning(Actor):
            @handles(Order)
            def order(self, _message: Order, context: Context) -> None:
                context.stage(head=b"x")
                context.tell(ActorId("listener", "l"), SpawnNow())

        runtime.register("spawning", Spawning)
        async with runtime:
            await runtime.actor("spawning", "s").ask(Order(0))

        assert heard == ["child"]

    asyncio.run(body())


def test_batches_that_gather_behind_a_commit_share_the_next_one(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = HeldStore()
        runtime, _ = a_runtime(store)
        async with runtime, anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(runtime.actor("counter", str(number)).ask, Add(1))
            await settle()
            store.door.set()

        assert sum(store.groups) == 20
        assert len(store.groups) <= 2

    run_in_real_time(body)


def test_on_lmdb_many_writers_share_their_commits_and_lose_nothing(run_in_real_time: Run, tmp_path: Path) -> None:
    async def write(runtime: Runtime, key: str) -> None:
        counter = runtime.actor("counter", key)
        for amount in range(1, 6):
            assert await counter.ask(Add(1)) == amount

    async def body() -> None:
        path = tmp_path / "store"
        runtime, _ = a_runtime(LmdbStore(path))
        async with runtime:
            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(write, runtime, str(number))
            assert runtime.statistics().commit_groups < 100

        again, _ = a_runtime(LmdbStore(path))
        async with again:
            assert [await again.actor("counter", str(number)).ask(Read()) for number in range(40)] == [5] * 40

    run_in_real_time(body)


def test_a_store_that_breaks_its_contract_leaves_nobody_waiting(run_in_real_time: Run) -> None:
    class Rude(HeldStore):
        def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
            raise ZeroDivisionError

    async def body() -> None:
        runtime, _ = a_runtime(Rude())
        async with runtime:
            with pytest.raises(Unknown):
                await runtime.actor("counter", "k").ask(Add(1))

    run_in_real_time(body)


def test_a_batch_that_no_store_would_take_does_not_hurt_the_others_of_its_group(run_in_real_time: Run) -> None:
    class Clumsy(Counter):
        @handles(Note)
        def note(self, _message: Note, context: Context) -> None:
            context.stage(rows=(Row(Table.RUN, b"k" * 1000, b""),))

    async def body() -> None:
        store = HeldStore()
        runtime, _ = a_runtime(store)
        runtime.register("clumsy", Clumsy, restart=QUICK)
        async with runtime:
            good = runtime.actor("counter", "k").ask_nowait(Add(1))
            bad = runtime.actor("clumsy", "k").ask_nowait(Note(1))
            store.door.set()

            assert await good.wait() == 1
            with pytest.raises(Failed) as caught:
                await bad.wait()
            assert isinstance(caught.value.__cause__, ValueError)

    run_in_real_time(body)
