"""Whoever ends an actor interrupts no commit of it: what was on its way to the disk is stored and answered."""

import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

from callboard.runtime import Actor, Context, Failed, Request, Runtime, Stopping, handles
from callboard.runtime.identity import ActorId
from callboard.runtime.ref import PendingReply, Ref
from callboard.store import Batch, CallboardError, MemoryStore, StoreUnavailable
from callboard.store.contract import Refusal

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class SlowDisk(MemoryStore):
    """A store whose commits wait, on the committer's thread, until its door is open."""

    def __init__(self) -> None:
        super().__init__(keep_history=True)
        self.door = threading.Event()

    @property
    def inline(self) -> bool:
        return False

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        assert self.door.wait(10.0), "nobody has opened the door"
        return super().commit(batches)


class Add(Request[int], frozen=True):
    amount: int


class Read(Request[int], frozen=True):
    pass


class Crash(Request[None], frozen=True):
    pass


class CrashSlowly(Request[None], frozen=True):
    seconds: float = 0.05


class Heard(Request[None], frozen=True):
    total: int


class Counter(Actor):
    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        context.tell(ActorId("ear", "e"), Heard(self.total))
        return self.total

    @handles(Read)
    def read(self, _message: Read, _context: Context) -> int:
        return self.total

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise ZeroDivisionError

    @handles(CrashSlowly)
    async def crash_slowly(self, message: CrashSlowly, _context: Context) -> None:
        await anyio.sleep(message.seconds)
        raise ZeroDivisionError


class Ear(Actor):
    heard: list[int]

    @handles(Heard)
    def hear(self, message: Heard, _context: Context) -> None:
        self.heard.append(message.total)


def a_runtime(store: SlowDisk) -> tuple[Runtime, list[int]]:
    heard: list[int] = []
    runtime = Runtime(lambda: store, drain_timeout_s=2.0)
    runtime.register("counter", Counter)
    runtime.register("ear", type("OwnEar", (Ear,), {"heard": heard}), durable=False)
    return runtime, heard


async def outcomes(pending: list[PendingReply[Any]]) -> list[str]:
    found: list[str] = []
    for one in pending:
        try:
            found.append(str(await one.wait()))
        except CallboardError as error:
            found.append(type(error).__name__)
    return found


async def end_by(verb: str, ref: Ref, store: SlowDisk) -> None:
    """End it while its commits are held; `stop` and `drain` return only once the door is open."""
    if verb == "kill":
        ref.kill()
        store.door.set()
        return
    async with anyio.create_task_group() as tasks:
        if verb == "stop":
            tasks.start_soon(ref.stop)
        else:
            tasks.start_soon(lambda: ref.drain(timeout_s=5.0))
        await anyio.wait_all_tasks_blocked()
        store.door.set()


@pytest.mark.parametrize("verb", ["stop", "drain", "kill"])
def test_commits_in_flight_are_stored_and_answered_and_the_next_incarnation_knows_them(
    run_in_real_time: Run, verb: str
) -> None:
    async def body() -> None:
        store = SlowDisk()
        runtime, heard = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            pending: list[PendingReply[Any]] = [counter.ask_nowait(Add(amount)) for amount in (1, 10)]
            pending.append(counter.ask_nowait(Read()))
            await anyio.wait_all_tasks_blocked()
            await end_by(verb, counter, store)

            assert await outcomes(pending) == ["1", "11", "11"]
            assert heard == [1, 11]
            runtime.resume("counter", "k")
            assert await counter.ask(Read()) == 11

    run_in_real_time(body)


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_an_actor_that_is_resumed_at_once_waits_for_the_commits_of_before(run_in_real_time: Run, verb: str) -> None:
    async def body() -> None:
        store = SlowDisk()
        runtime, _ = a_runtime(store)
        async with runtime, anyio.create_task_group() as tasks:
            counter = runtime.actor("counter", "k")
            pending: list[PendingReply[Any]] = [counter.ask_nowait(Add(5))]
            await anyio.wait_all_tasks_blocked()
            if verb == "stop":
                tasks.start_soon(counter.stop)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(Stopping):
                    await counter.ask(Read())
            counter.kill()
            runtime.resume("counter", "k")
            pending.append(counter.ask_nowait(Add(2)))
            await anyio.wait_all_tasks_blocked()
            assert runtime.inspect("counter", "k").commits_in_flight == 1

            store.door.set()
            assert await outcomes(pending) == ["5", "7"]

    run_in_real_time(body)


@pytest.mark.parametrize("verb", ["stop", "drain", "kill"])
def test_a_commit_that_is_refused_after_the_verb_fails_its_caller_and_stops_all_the_same(
    run_in_real_time: Run, verb: str
) -> None:
    async def body() -> None:
        store = SlowDisk()
        store.fail_next_commit(StoreUnavailable("the disk is away"))
        runtime, heard = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            pending: list[PendingReply[Any]] = [counter.ask_nowait(Add(1)), counter.ask_nowait(Read())]
            await anyio.wait_all_tasks_blocked()
            await end_by(verb, counter, store)

            assert await outcomes(pending) == ["Failed", "Failed"]
            assert heard == []
            assert runtime.inspect("counter", "k").state == "stopped"
            runtime.resume("counter", "k")
            assert await counter.ask(Add(3)) == 3

    run_in_real_time(body)


def test_a_restart_does_not_load_before_the_commits_of_before_came_back(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = SlowDisk()
        runtime, _ = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            add = counter.ask_nowait(Add(1))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(Failed):
                await counter.ask(Crash())
            read = counter.ask_nowait(Read())
            await anyio.sleep(0.5)
            assert runtime.inspect("counter", "k").state == "backing_off"

            store.door.set()
            assert (await add.wait(), await read.wait()) == (1, 1)

    run_in_real_time(body)


def test_a_crash_while_it_drains_waits_for_the_commits_before_it(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = SlowDisk()
        runtime, _ = a_runtime(store)
        async with runtime, anyio.create_task_group() as tasks:
            counter = runtime.actor("counter", "k")
            messages: list[Request[Any]] = [Add(1), CrashSlowly(), Add(1)]
            add, crash, behind = (counter.ask_nowait(message) for message in messages)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(lambda: counter.drain(timeout_s=5.0))
            assert await outcomes([crash, behind]) == ["Failed", "Stopping"]
            assert runtime.inspect("counter", "k").state == "stopping"

            store.door.set()
            assert await add.wait() == 1
            assert (await counter.wait_ended()).reason == "stopped"

    run_in_real_time(body)


def test_a_drain_handles_nothing_more_on_what_was_never_stored(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = SlowDisk()
        store.fail_next_commit(StoreUnavailable("the disk is away"))
        runtime, heard = a_runtime(store)
        async with runtime:
            counter = runtime.actor("counter", "k")
            messages: list[Request[Any]] = [Add(1), CrashSlowly(5.0), Add(10)]
            pending = [counter.ask_nowait(message) for message in messages]
            await anyio.wait_all_tasks_blocked()
            await end_by("drain", counter, store)

            assert await outcomes(pending) == ["Failed", "Failed", "Stopping"]
            assert (heard, store.load("counter:k")) == ([], None)
            assert runtime.statistics().crashes == 0, "the handler that ran was cancelled, at no cost"

    run_in_real_time(body)
