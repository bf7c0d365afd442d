"""stop, drain and kill, in whatever state they find an actor: what each caller gets. Trio and asyncio."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Actor,
    Backoff,
    ChildEnded,
    Context,
    Request,
    RestartPolicy,
    Runtime,
    Stopping,
    Ticket,
    handles,
)
from callboard.runtime.ref import PendingReply, Ref
from callboard.store import CallboardError, MemoryStore, StoreUnavailable

Run = Callable[[Callable[[], Awaitable[None]]], None]

BACKOFF_S = 5.0


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Add(Request[int], frozen=True):
    amount: int


class Sleep(Request[str], frozen=True):
    seconds: float
    deaf: bool = False


class Crash(Request[None], frozen=True):
    pass


class Owe(Request[int], frozen=True):
    """Its answer comes after so many seconds, by a task of the actor."""

    seconds: float


class OweAgain(Request[int], frozen=True):
    """Owes for good, and may be repeated."""


class Worker(Actor):
    log: list[str]
    load_s = 0.0

    def load(self, context: Context) -> Awaitable[None] | None:
        self.total = int(context.stored.head) if context.stored is not None else 0
        self.owed: dict[int, Ticket] = {}
        if self.load_s:
            return self.load_slowly()
        self.log.append("loaded")
        return None

    async def load_slowly(self) -> None:
        try:
            await anyio.sleep(self.load_s)
        except anyio.get_cancelled_exc_class():
            self.log.append("load cancelled")
            raise
        self.log.append("loaded")

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Sleep)
    async def sleep(self, message: Sleep, context: Context) -> str:
        context.stage(head=b"1000")
        try:
            with anyio.CancelScope(shield=message.deaf):
                await anyio.sleep(message.seconds)
        except anyio.get_cancelled_exc_class():
            self.log.append("cancelled")
            raise
        self.log.append("slept")
        return "slept"

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise ZeroDivisionError

    @handles(Owe)
    def owe(self, message: Owe, context: Context) -> Ticket:
        ticket = context.defer()
        self.owed[len(self.owed)] = ticket
        context.spawn(lambda: anyio.sleep(message.seconds), tag=len(self.owed) - 1)
        return ticket

    @handles(OweAgain, retryable=True)
    def owe_again(self, _message: OweAgain, context: Context) -> Ticket:
        return context.defer()

    @handles(ChildEnded)
    def pay(self, signal: ChildEnded, _context: Context) -> None:
        ticket = self.owed.pop(signal.tag, None)
        if ticket is not None:
            ticket.reply(self.total)


class Shop:
    """A runtime with one worker, and what its activations have noted."""

    def __init__(self, *, load_s: float = 0.0, policy: RestartPolicy | None = None) -> None:
        log = self.log = list[str]()

        class Own(Worker):
            pass

        Own.log = log
        Own.load_s = load_s
        self.store = MemoryStore()
        self.runtime = Runtime(lambda: self.store, drain_timeout_s=1.0)
        backoff = Backoff(first_s=BACKOFF_S, max_s=BACKOFF_S)
        self.runtime.register("worker", Own, restart=policy or RestartPolicy(backoff=backoff))
        self.runtime.register("other", Own)

    @property
    def worker(self) -> Ref:
        return self.runtime.actor("worker", "k")

    @property
    def state(self) -> str:
        return self.runtime.inspect("worker", "k").state

    def resume(self) -> None:
        self.runtime.resume("worker", "k")


async def outcome(pending: PendingReply[Any]) -> str:
    try:
        return str(await pending.wait())
    except CallboardError as error:
        return type(error).__name__


async def outcomes(pending: list[PendingReply[Any]]) -> list[str]:
    return [await outcome(one) for one in pending]


async def end_by(verb: str, ref: Ref, *, timeout_s: float = 100.0) -> None:
    if verb == "stop":
        await ref.stop()
    elif verb == "drain":
        await ref.drain(timeout_s=timeout_s)
    else:
        ref.kill()


VERBS = ["stop", "drain", "kill"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("used", [False, True], ids=["never used", "idle"])
def test_an_actor_with_nothing_to_do_stops_at_once_and_refuses_until_it_is_resumed(
    run: Run, verb: str, used: bool
) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            if used:
                assert await shop.worker.ask(Add(1)) == 1
            started = anyio.current_time()
            await end_by(verb, shop.worker)

            assert (shop.state, anyio.current_time() - started < 1.0) == ("stopped", True)
            with pytest.raises(Stopping, match=r"runtime.resume\('worker', 'k'\)"):
                await shop.worker.ask(Add(1))
            with pytest.raises(Stopping):
                await shop.worker.tell(Add(1))
            shop.resume()
            assert await shop.worker.ask(Add(1)) == 1 + used

    run(body)


@pytest.mark.parametrize(
    ("verb", "expected", "lasts_s"),
    [
        ("stop", ["slept", "Stopping", "Stopping"], 10.0),
        ("drain", ["slept", "1001", "1002"], 10.0),
        ("kill", ["Failed", "Stopping", "Stopping"], 0.0),
    ],
)
def test_a_running_handler_and_the_queue_behind_it_end_as_the_table_says(
    run: Run, verb: str, expected: list[str], lasts_s: float
) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            await shop.worker.ask(Add(1000))
            pending: list[PendingReply[Any]] = [shop.worker.ask_nowait(Sleep(10.0))]
            pending += [shop.worker.ask_nowait(Add(1)) for _ in range(2)]
            await anyio.wait_all_tasks_blocked()
            started = anyio.current_time()
            await end_by(verb, shop.worker)
            await anyio.wait_all_tasks_blocked()

            assert anyio.current_time() - started == pytest.approx(lasts_s, abs=0.1)
            assert (shop.state, shop.log) == ("stopped", ["loaded", "cancelled" if verb == "kill" else "slept"])
            assert await outcomes(pending) == expected
            stored = shop.store.load("worker:k")
            assert stored is not None
            assert stored.head == (b"1002" if verb == "drain" else b"1000")

    run(body)


def test_messages_that_come_while_an_actor_is_stopping_are_refused(run: Run) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime, anyio.create_task_group() as tasks:
            running = shop.worker.ask_nowait(Sleep(10.0))
            tasks.start_soon(shop.worker.stop)
            await anyio.wait_all_tasks_blocked()

            assert shop.state == "stopping"
            with pytest.raises(Stopping):
                await shop.worker.ask(Add(1))
            assert await outcome(running) == "slept"

    run(body)


@pytest.mark.parametrize("verb", VERBS)
def test_owed_replies_are_waited_for_by_a_drain_and_given_up_by_the_others(run: Run, verb: str) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            await shop.worker.ask(Add(5))
            owed: list[PendingReply[Any]] = [shop.worker.ask_nowait(Owe(3.0)), shop.worker.ask_nowait(OweAgain())]
            await end_by(verb, shop.worker, timeout_s=10.0)

            assert shop.state == "stopped"
            assert await outcomes(owed) == ["5" if verb == "drain" else "Unknown", "Stopping"]

    run(body)


def test_a_stop_does_not_wait_for_the_owed_replies_that_a_drain_waits_for(run: Run) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime, anyio.create_task_group() as tasks:
            owed = shop.worker.ask_nowait(Owe(50.0))
            tasks.start_soon(end_by, "drain", shop.worker)
            await anyio.wait_all_tasks_blocked()
            started = anyio.current_time()
            await shop.worker.stop()

            assert anyio.current_time() - started < 1.0
            assert await outcome(owed) == "Unknown"

    run(body)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_drain_ends_at_its_deadline_whatever_still_runs(run: Run, deaf: bool) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            pending: list[PendingReply[Any]] = [shop.worker.ask_nowait(Sleep(20.0, deaf=deaf))]
            pending.append(shop.worker.ask_nowait(Add(1)))
            started = anyio.current_time()
            await shop.worker.drain(timeout_s=3.0)

            assert anyio.current_time() - started == pytest.approx(3.0, abs=0.1)
            assert await outcomes(pending) == ["Failed", "Stopping"]
            await anyio.sleep(30.0)
            assert shop.log == ["loaded", "slept" if deaf else "cancelled"]
            assert shop.store.load("worker:k") is None, "what was cut stores nothing, also when it goes on"

    run(body)


@pytest.mark.parametrize("first", ["stop", "drain"])
def test_the_earliest_deadline_holds_also_for_one_that_is_stopping_already(run: Run, first: str) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime, anyio.create_task_group() as tasks:
            running = shop.worker.ask_nowait(Sleep(50.0))
            tasks.start_soon(end_by, first, shop.worker)
            await anyio.wait_all_tasks_blocked()
            started = anyio.current_time()
            await shop.worker.drain(timeout_s=2.0)

            assert anyio.current_time() - started == pytest.approx(2.0, abs=0.1)
            assert await outcome(running) == "Failed"

    run(body)


def test_the_deadline_of_a_drain_that_is_over_does_not_end_the_next_incarnation(run: Run) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            await shop.worker.ask(Add(1))
            await shop.worker.drain(timeout_s=5.0)
            shop.resume()
            running = shop.worker.ask_nowait(Sleep(10.0))

            assert await outcome(running) == "slept"
            assert shop.state == "ready"

    run(body)


@pytest.mark.parametrize("verb", VERBS)
def test_an_actor_that_backs_off_is_drained_after_its_restart_and_else_stops_at_once(run: Run, verb: str) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            await shop.worker.ask(Add(1))
            pending: list[PendingReply[Any]] = [shop.worker.ask_nowait(Crash()), shop.worker.ask_nowait(Add(1))]
            assert shop.state == "backing_off"
            started = anyio.current_time()
            await end_by(verb, shop.worker)

            assert (shop.state, anyio.current_time() - started <= BACKOFF_S) == ("stopped", True)
            assert await outcomes(pending) == ["Failed", "2" if verb == "drain" else "Stopping"]
            assert len(shop.log) == (2 if verb == "drain" else 1)
            shop.resume()
            assert await shop.worker.ask(Add(1)) == (3 if verb == "drain" else 2)

    run(body)


@pytest.mark.parametrize("verb", VERBS)
def test_an_actor_that_loads_is_drained_once_it_is_there_and_else_its_load_is_cancelled(run: Run, verb: str) -> None:
    async def body() -> None:
        shop = Shop(load_s=3.0)
        async with shop.runtime:
            pending = shop.worker.ask_nowait(Add(1))
            await anyio.wait_all_tasks_blocked()
            assert shop.state == "loading"
            started = anyio.current_time()
            await end_by(verb, shop.worker)
            await anyio.wait_all_tasks_blocked()

            assert anyio.current_time() - started == pytest.approx(3.0 if verb == "drain" else 0.0, abs=0.1)
            assert (shop.state, shop.log) == ("stopped", ["loaded" if verb == "drain" else "load cancelled"])
            assert await outcome(pending) == ("1" if verb == "drain" else "Stopping")

    run(body)


@pytest.mark.parametrize("outage", [False, True], ids=["slow load", "outage"])
def test_an_actor_that_does_not_come_into_memory_is_cut_at_the_deadline_of_its_drain(run: Run, outage: bool) -> None:
    async def body() -> None:
        shop = Shop(load_s=0.0 if outage else 30.0)
        async with shop.runtime:
            for _ in range(100 if outage else 0):
                shop.store.fail_next_read(StoreUnavailable("the disk sleeps"))
            pending = shop.worker.ask_nowait(Add(1))
            await anyio.wait_all_tasks_blocked()
            started = anyio.current_time()
            await shop.worker.drain(timeout_s=2.0)

            assert anyio.current_time() - started == pytest.approx(2.0, abs=0.1)
            assert await outcome(pending) == "Stopping"

    run(body)


def test_a_load_that_is_killed_before_its_first_step_leaves_nothing_behind(run: Run) -> None:
    async def body() -> None:
        shop = Shop(load_s=3.0)
        async with shop.runtime:
            pending = shop.worker.ask_nowait(Add(1))
            shop.worker.kill()

            assert await outcome(pending) == "Stopping"
            shop.resume()
            assert await shop.worker.ask(Add(1)) == 1
        assert shop.log == ["loaded"]

    run(body)


def test_what_is_resumed_while_a_handler_of_before_goes_on_waits_for_its_end(run: Run) -> None:
    async def body() -> None:
        shop = Shop(load_s=0.5)
        async with shop.runtime:
            running = shop.worker.ask_nowait(Sleep(10.0, deaf=True))
            await anyio.sleep(1.0)
            shop.worker.kill()
            shop.resume()

            assert await shop.worker.ask(Add(1)) == 1
            assert shop.log == ["loaded", "slept", "loaded"]
            assert await outcome(running) == "Failed"

    run(body)


@pytest.mark.parametrize("verb", VERBS)
def test_an_actor_that_has_failed_can_be_stopped_and_resumed(run: Run, verb: str) -> None:
    async def body() -> None:
        shop = Shop(policy=RestartPolicy(restarts_max=0))
        async with shop.runtime:
            assert await outcome(shop.worker.ask_nowait(Crash())) == "Failed"
            assert shop.state == "failed"
            await end_by(verb, shop.worker)

            assert shop.state == "stopped"
            shop.resume()
            assert await shop.worker.ask(Add(1)) == 1

    run(body)


@pytest.mark.parametrize("verb", VERBS)
def test_a_crash_while_it_stops_ends_the_actor_without_a_restart(run: Run, verb: str) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            pending: list[PendingReply[Any]] = [shop.worker.ask_nowait(Sleep(2.0))]
            pending += [shop.worker.ask_nowait(Crash()), shop.worker.ask_nowait(Add(1))]
            await end_by(verb, shop.worker)

            assert (shop.state, shop.log.count("loaded")) == ("stopped", 1)
            expected = {"stop": ["slept", "Stopping", "Stopping"], "drain": ["slept", "Failed", "Stopping"]}
            assert await outcomes(pending) == expected.get(verb, ["Failed", "Stopping", "Stopping"])

    run(body)


@pytest.mark.parametrize("verb", VERBS)
def test_stopping_twice_or_resuming_what_was_never_stopped_does_nothing(run: Run, verb: str) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            shop.resume()
            assert await shop.worker.ask(Add(1)) == 1
            for _ in range(2):
                await end_by(verb, shop.worker)
            for _ in range(2):
                shop.resume()

            assert await shop.worker.ask(Add(1)) == 2

    run(body)


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan")])
def test_a_drain_without_a_number_of_seconds_is_refused_and_stops_nothing(run: Run, timeout_s: float) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            with pytest.raises(ValueError, match="timeout_s"):
                await shop.worker.drain(timeout_s=timeout_s)

            assert await shop.worker.ask(Add(1)) == 1

    run(body)


def test_a_stop_that_nobody_waits_for_any_more_still_stops(run: Run) -> None:
    async def body() -> None:
        shop = Shop()
        async with shop.runtime:
            running = shop.worker.ask_nowait(Sleep(2.0))
            with anyio.move_on_after(0.5):
                await shop.worker.stop()

            assert await outcome(running) == "slept"
            await anyio.wait_all_tasks_blocked()
            assert shop.state == "stopped"

    run(body)
