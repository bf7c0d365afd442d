"""Leaving the runtime: finish, cut, flush, close, and answer everybody. The same bodies on trio and asyncio."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
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
    Stopping,
    Ticket,
    Unknown,
    handles,
)
from callboard.runtime.identity import ActorId
from callboard.store import CallboardError, MemoryStore, StoreUnavailable

Run = Callable[[Callable[[], Awaitable[None]]], None]

GRACE_S = 0.3


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.runtime.runtime.CANCEL_GRACE_S", GRACE_S)


class Sleep(Request[str], frozen=True):
    seconds: float


class SleepDeaf(Request[str], frozen=True):
    """Sleeps behind a shield, for longer than the grace."""

    seconds: float


class Add(Request[int], frozen=True):
    amount: int


class Crash(Request[None], frozen=True):
    pass


class Owe(Request[int], frozen=True):
    pass


class OweAgain(Request[int], frozen=True):
    """Owes, and may be repeated."""


class Relay(Request[int], frozen=True):
    """Answers with what another actor answers to OweAgain."""

    key: str


class AnswerAtOnce(Request[int], frozen=True):
    pass


class Spawn(Request[None], frozen=True):
    seconds: float


class Chain(Request[None], frozen=True):
    steps: int


class Worker(Actor):
    log: list[str]

    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    @handles(Sleep)
    async def sleep(self, message: Sleep, _context: Context) -> str:
        try:
            await anyio.sleep(message.seconds)
        except anyio.get_cancelled_exc_class():
            self.log.append("cancelled")
            raise
        self.log.append("slept")
        return "slept"

    @handles(SleepDeaf)
    async def sleep_deaf(self, message: SleepDeaf, context: Context) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(message.seconds)
        context.stage(head=b"1000")
        self.log.append("deaf")
        return "too late"

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise ZeroDivisionError

    @handles(Owe)
    def owe(self, _message: Owe, context: Context) -> Ticket:
        return context.defer()

    @handles(OweAgain, retryable=True)
    def owe_again(self, _message: OweAgain, context: Context) -> Ticket:
        return context.defer()

    @handles(Relay)
    def relay(self, message: Relay, context: Context) -> Ticket:
        ticket = context.defer()
        context.request(ActorId("worker", message.key), OweAgain(), tag=ticket)
        return ticket

    @handles(Answered)
    def answered(self, signal: Answered, _context: Context) -> None:
        signal.tag.fail(signal.error)

    @handles(AnswerAtOnce)
    def answer_at_once(self, _message: AnswerAtOnce, context: Context) -> Ticket:
        ticket = context.defer()
        ticket.reply(1)
        return ticket

    @handles(Spawn)
    def spawn(self, message: Spawn, context: Context) -> None:
        async def child() -> str:
            await anyio.sleep(message.seconds)
            return "child slept"

        context.spawn(child, tag="child")

    @handles(ChildEnded)
    def child_ended(self, signal: ChildEnded, context: Context) -> None:
        self.log.append(f"child ended with {signal.value or type(signal.error).__name__}")
        context.stage(head=b"7")

    @handles(Chain)
    def chain(self, message: Chain, context: Context) -> None:
        if message.steps:
            context.tell(ActorId("worker", f"chain-{message.steps}"), Chain(message.steps - 1))
        else:
            self.log.append("end of the chain")


def a_runtime(store: MemoryStore | None = None, *, drain_timeout_s: float = 1.0) -> tuple[Runtime, list[str]]:
    log: list[str] = []

    class Own(Worker):
        pass

    Own.log = log
    runtime = Runtime(lambda: store or MemoryStore(), drain_timeout_s=drain_timeout_s)
    runtime.register("worker", Own, restart=RestartPolicy(backoff=Backoff(first_s=0.02, max_s=0.02)))
    return runtime, log


async def outcome(ask: Awaitable[Any], into: list[str]) -> None:
    try:
        into.append(str(await ask))
    except CallboardError as error:
        into.append(type(error).__name__)


def test_leaving_finishes_what_was_asked_and_queued(run: Run) -> None:
    async def body() -> None:
        runtime, log = a_runtime()
        outcomes: list[str] = []
        async with anyio.create_task_group() as tasks, runtime:
            worker = runtime.actor("worker", "k")
            messages: list[Request[Any]] = [Sleep(0.02), Add(1), Sleep(0.01)]
            for message in messages:
                tasks.start_soon(outcome, worker.ask(message), outcomes)
                await anyio.wait_all_tasks_blocked()

        assert log == ["slept", "slept"]
        assert sorted(outcomes) == ["1", "slept", "slept"]
        assert runtime.cut == []

    run(body)


def test_leaving_takes_no_longer_than_there_is_work(run: Run) -> None:
    async def body() -> None:
        runtime, log = a_runtime(drain_timeout_s=1000.0)
        started = anyio.current_time()
        async with runtime:
            worker = runtime.actor("worker", "k")
            assert await worker.ask(AnswerAtOnce()) == 1
            await worker.tell(Spawn(0.01))
            with anyio.move_on_after(0.001):
                await runtime.actor("worker", "other").ask(Sleep(0.01))
            crash = runtime.actor("worker", "crashing").ask_nowait(Crash())
            rest = runtime.actor("worker", "crashing").ask_nowait(Add(1))
            await runtime.actor("worker", "first").tell(Chain(1000))

        assert anyio.current_time() - started < 1.0
        assert sorted(log) == ["child ended with child slept", "end of the chain", "slept"]
        assert await rest.wait() == 1
        with pytest.raises(Failed):
            await crash.wait()

    run(body)


def test_new_work_from_outside_is_refused_while_the_runtime_drains(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        outcomes: list[str] = []
        async with anyio.create_task_group() as tasks:

            async def late() -> None:
                await anyio.sleep(0.02)
                await outcome(worker.ask(Add(1)), outcomes)

            async with runtime:
                worker = runtime.actor("worker", "k")
                worker.ask_nowait(Sleep(0.06))
                tasks.start_soon(late)

        assert outcomes == ["Stopping"]

    run(body)


def test_at_the_deadline_what_is_left_is_cut_answered_and_reported(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, log = a_runtime(store, drain_timeout_s=0.02)
        outcomes: list[str] = []
        started = anyio.current_time()
        async with anyio.create_task_group() as tasks, runtime:
            asks: list[tuple[str, Request[Any]]] = [("a", Sleep(1000)), ("a", Sleep(1000))]
            asks += [("b", Owe()), ("c", Spawn(1000))]
            for key, message in asks:
                tasks.start_soon(outcome, runtime.actor("worker", key).ask(message), outcomes)
                await anyio.wait_all_tasks_blocked()

        assert anyio.current_time() - started < GRACE_S, "what can be cancelled does not use up the grace"
        assert sorted(outcomes) == ["Failed", "None", "Stopping", "Unknown"], "what has not begun was refused"
        assert sorted(log) == ["cancelled", "child ended with Failed"]
        assert sorted(runtime.cut) == [
            "worker:a: Sleep",
            "worker:a: the handler of Sleep",
            "worker:b: Owe",
            "worker:c: child",
        ]
        again = store.reopened().load("worker:c")
        assert again is not None
        assert again.head == b"7", "what cancelled work has to say is still stored"

    run(body)


def test_a_handler_that_outlives_the_grace_is_answered_and_stores_nothing(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, log = a_runtime(store, drain_timeout_s=0.01)
        async with runtime:
            pending = runtime.actor("worker", "k").ask_nowait(SleepDeaf(GRACE_S + 0.2))
            await anyio.sleep(0.01)

        with pytest.raises(Failed):
            await pending.wait()
        assert log == ["deaf"]
        assert store.reopened().load("worker:k") is None

    run(body)


def test_leaving_by_an_exception_cuts_at_once_and_lets_it_out_as_it_is(run: Run) -> None:
    async def body() -> None:
        runtime, log = a_runtime(drain_timeout_s=1000.0)
        outcomes: list[str] = []
        async with anyio.create_task_group() as tasks:
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - about how the block is left
                async with runtime:
                    tasks.start_soon(outcome, runtime.actor("worker", "k").ask(Sleep(1000)), outcomes)
                    await anyio.wait_all_tasks_blocked()
                    raise ZeroDivisionError

        assert (outcomes, log) == (["Failed"], ["cancelled"])
        assert runtime.cut == ["worker:k: the handler of Sleep"]

    run(body)


@pytest.mark.parametrize("when", ["in the block", "while it drains"])
def test_a_cancelled_host_cuts_at_once_and_is_then_cancelled(run: Run, when: str) -> None:
    async def body() -> None:
        runtime, log = a_runtime(drain_timeout_s=1000.0)
        closed: list[str] = []

        async def closer() -> None:
            await anyio.sleep(0)  # noqa: ASYNC115 - any await: a cancelled host must not cut the closing short
            closed.append("closed")

        with anyio.move_on_after(0.02) as scope:
            async with runtime:
                runtime.on_close(closer)
                await runtime.actor("worker", "k").tell(Sleep(1000))
                if when == "in the block":
                    await anyio.sleep_forever()

        assert scope.cancelled_caught
        assert (log, closed) == (["cancelled"], ["closed"])
        with pytest.raises(StoreUnavailable):
            runtime.store.load("worker:k")

    run(body)


def test_an_exception_of_the_host_is_not_lost_to_a_cancellation_that_comes_as_well(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        with pytest.raises(ZeroDivisionError), anyio.CancelScope() as scope:  # noqa: PT012 - about how it is left
            async with runtime:
                await runtime.actor("worker", "k").tell(Sleep(1000))
                scope.cancel()
                raise ZeroDivisionError

    run(body)


def test_a_host_that_is_cancelled_before_it_opens_leaves_nothing_behind(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with runtime:
                await anyio.sleep(0)  # noqa: ASYNC115 - where the cancellation comes at the latest
                pytest.fail("it was cancelled before")

        assert scope.cancelled_caught
        with pytest.raises(StoreUnavailable):
            runtime.store.load("worker:k")

    run(body)


def test_a_native_cancellation_of_the_host_still_closes_in_order() -> None:
    """asyncio only, where shields do not hold against Task.cancel: the runtime's own task closes."""
    import asyncio

    async def body() -> None:
        store = MemoryStore()
        runtime, log = a_runtime(store, drain_timeout_s=1000.0)

        async def host() -> None:
            async with runtime:
                await runtime.actor("worker", "k").tell(Sleep(1000))
                await runtime.actor("worker", "k").tell(Add(3))

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(host())
            for _ in range(3):
                await asyncio.sleep(0.01)
                task.cancel()

        assert task.cancelled()
        assert log == ["cancelled"]
        head = store.reopened().load("worker:k")
        assert head is not None
        assert head.head == b"3"

    asyncio.run(body())


def test_recovery_that_fails_closes_the_store_and_says_why(run: Run) -> None:
    class Careful(Runtime):
        async def recover(self) -> None:
            await self.actor("worker", "k").ask(Add(1))
            raise ZeroDivisionError

    async def body() -> None:
        store = MemoryStore()
        runtime = Careful(lambda: store)
        runtime.register("worker", Worker)
        with pytest.raises(ZeroDivisionError):
            await runtime.__aenter__()

        with pytest.raises(StoreUnavailable):
            store.load("worker:k")

    run(body)


def test_a_closer_that_raises_keeps_neither_the_others_nor_the_store_open(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        runtime, _ = a_runtime(store)
        called: list[str] = []

        async def bad() -> None:
            called.append("bad")
            raise ZeroDivisionError

        async def good() -> None:
            called.append("good")

        async with runtime:
            for closer in (bad, good, good):
                runtime.on_close(closer)

        assert called == ["bad", "good"]
        with pytest.raises(StoreUnavailable):
            store.load("worker:k")

    run(body)


def test_drain_waits_for_an_actor_that_backs_off_with_work_in_its_mailbox(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        async with runtime:
            crash = runtime.actor("worker", "k").ask_nowait(Crash())
            add = runtime.actor("worker", "k").ask_nowait(Add(1))

        assert await add.wait() == 1
        with pytest.raises(Failed):
            await crash.wait()
        assert runtime.cut == []

    run(body)


def test_leaving_does_not_wait_for_a_reply_that_nobody_is_left_to_give(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime(drain_timeout_s=1000.0)
        started = anyio.current_time()
        async with runtime:
            owed = runtime.actor("worker", "k").ask_nowait(Owe())
            relayed = runtime.actor("worker", "relay").ask_nowait(Relay("k"))

        assert anyio.current_time() - started < 1.0
        with pytest.raises(Unknown):
            await owed.wait()
        with pytest.raises(Stopping, match="worker:k"):
            await relayed.wait()
        assert sorted(runtime.cut) == ["worker:k: Owe", "worker:k: OweAgain"]

    run(body)


def test_thousands_of_idle_actors_stop_in_a_loop() -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        async with runtime:
            for number in range(20_000):
                await runtime.actor("worker", str(number)).tell(Chain(0))
            started_s = time.perf_counter()

        assert time.perf_counter() - started_s < 2.0

    anyio.run(body, backend="trio")


def test_what_a_last_commit_sends_to_a_new_actor_is_answered_too(run: Run) -> None:
    async def body() -> None:
        runtime, _ = a_runtime()
        async with runtime:
            worker = runtime.actor("worker", "k")
        runtime.send(ActorId("worker", "never seen"), Add(1), sender=ActorId("worker", "k"), on_settled=settled.append)

        with pytest.raises(Stopping):
            settled[0].result()
        assert worker.id == ActorId("worker", "k")

    settled: list[Any] = []
    run(body)
    assert len(settled) == 1
