"""The time that an outer caller has left bounds what is asked for its sake, and nothing else. On trio and asyncio."""

import logging
import math
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from callboard.runtime import (
    Abandoned,
    Actor,
    ActorId,
    ChildEnded,
    Context,
    Expired,
    Failed,
    Request,
    Runtime,
    Ticket,
    Unknown,
    handles,
)
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Left(Request[float], frozen=True):
    """The seconds that the present message has left."""


class LeftLater(Request[float], frozen=True):
    """The same, from an async handler."""


class Busy(Request[None], frozen=True):
    seconds: float


class Relay(Request[float], frozen=True):
    """Ask the first of `keys` to go on, with this timeout; the last one says what it has left."""

    keys: tuple[str, ...]
    timeout_s: float = 1000.0
    last: Request[float] = Left()


class TellOn(Request[float], frozen=True):
    key: str


class SpawnAsk(Request[float], frozen=True):
    key: str


class Clerk(Actor):
    def __init__(self, id: ActorId, log: list[str]) -> None:
        super().__init__(id)
        self.log = log
        self.told: float | None = None

    @handles(Left)
    def left(self, _message: Left, context: Context) -> float:
        return context.deadline - context.now()

    @handles(LeftLater)
    async def left_later(self, _message: LeftLater, context: Context) -> float:
        await anyio.lowlevel.checkpoint()
        return context.deadline - context.now()

    @handles(Busy)
    async def busy(self, message: Busy, _context: Context) -> None:
        await anyio.sleep(message.seconds)

    @handles(Relay, on_cancel="cancel")
    async def relay(self, message: Relay, context: Context) -> float:
        key, rest = message.keys[0], message.keys[1:]
        onward = Relay(rest, message.timeout_s, message.last) if rest else message.last
        try:
            return await context.actor("clerk", key).ask(onward, timeout_s=message.timeout_s)
        except BaseException as error:
            self.log.append(f"{context.id.key}: {type(error).__name__} at {context.now():.0f}")
            raise

    @handles(TellOn)
    async def tell_on(self, message: TellOn, context: Context) -> float:
        await context.actor("noter", message.key).tell(Left())
        context.tell(ActorId("noter", message.key), Left())
        return context.deadline - context.now()

    @handles(SpawnAsk)
    def spawn_ask(self, message: SpawnAsk, context: Context) -> float:
        async def work() -> None:
            left = await context.actor("clerk", message.key).ask(Left(), timeout_s=math.inf)
            self.log.append(f"child: {left}")

        context.spawn(work, tag="child")
        return context.deadline - context.now()

    @handles(ChildEnded)
    def child_ended(self, _signal: ChildEnded, _context: Context) -> None:
        pass


class Noter(Clerk):
    @handles(Left)
    def note(self, _message: Left, context: Context) -> float:
        self.log.append(f"told: {context.deadline - context.now()}")
        return 0.0


def a_runtime(log: list[str]) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    runtime.register("clerk", lambda id: Clerk(id, log), durable=False)
    runtime.register("noter", lambda id: Noter(id, log), durable=False)
    return runtime


@pytest.mark.parametrize("message", [Left(), LeftLater()])
def test_a_handler_sees_what_its_caller_has_left(run: Run, message: Request[float]) -> None:
    async def body() -> None:
        async with a_runtime([]) as runtime:
            clerk = runtime.actor("clerk", "a")
            assert await clerk.ask(message, timeout_s=7.0) == pytest.approx(7.0, abs=0.01)
            assert await clerk.ask(message, timeout_s=math.inf) == math.inf
            assert await clerk.ask(message) == pytest.approx(30.0, abs=0.01)

            pending = clerk.ask_nowait(Busy(2.0))
            assert await clerk.ask(message, timeout_s=7.0) == pytest.approx(5.0, abs=0.01), "it was queued for 2 s"
            await pending.wait()

    run(body)


@pytest.mark.parametrize("keys", [("b",), ("b", "c"), ("b", "c", "d")])
@pytest.mark.parametrize("last", [Left(), LeftLater()])
def test_what_is_asked_for_a_callers_sake_has_at_most_what_the_caller_has_left(
    run: Run, keys: tuple[str, ...], last: Request[float]
) -> None:
    async def body() -> None:
        async with a_runtime([]) as runtime:
            clerk = runtime.actor("clerk", "a")
            assert await clerk.ask(Relay(keys, last=last), timeout_s=7.0) == pytest.approx(7.0, abs=0.01)
            assert await clerk.ask(Relay(keys, 5.0, last), timeout_s=7.0) == pytest.approx(5.0, abs=0.01)
            assert await clerk.ask(Relay(keys, math.inf, last), timeout_s=7.0) == pytest.approx(7.0, abs=0.01)

            assert await clerk.ask(Relay(keys, math.inf, last), timeout_s=math.inf) == math.inf

    run(body)


def test_the_innermost_of_three_ends_with_the_outermost_callers_time_and_does_not_run(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            began = anyio.current_time()
            pending = runtime.actor("clerk", "d").ask_nowait(Busy(100.0), timeout_s=math.inf)
            with pytest.raises(Unknown):
                await runtime.actor("clerk", "a").ask(Relay(("b", "c", "d")), timeout_s=7.0)
            assert anyio.current_time() - began == pytest.approx(7.0, abs=0.01)
            await anyio.sleep(1)

            assert runtime.inspect("clerk", "d").queued == 0, "nobody waits for it any more"
            for key in "abc":
                assert runtime.inspect("clerk", key).running is None
            assert len(log) == 3
            await pending.wait()

    run(body)


def test_an_inner_deadline_that_comes_first_is_the_handlers_to_deal_with(run: Run) -> None:
    class Patient(Clerk):
        @handles(Relay)
        async def twice(self, message: Relay, context: Context) -> float:
            other = context.actor("clerk", message.keys[0])
            with pytest.raises(Expired):
                await other.ask(Left(), timeout_s=message.timeout_s)
            return await other.ask(Left(), timeout_s=math.inf)

    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            runtime.register("patient", lambda id: Patient(id, log), durable=False)
            busy = runtime.actor("clerk", "b").ask_nowait(Busy(3.0))

            left = await runtime.actor("patient", "a").ask(Relay(("b",), 1.0), timeout_s=7.0)
            assert left == pytest.approx(4.0, abs=0.01)
            await busy.wait()

    run(body)


def test_the_time_is_over_as_soon_as_the_first_step_of_a_nested_ask_finds_it_so(run: Run) -> None:
    class Late(Clerk):
        @handles(Relay)
        async def late(self, message: Relay, context: Context) -> float:
            await anyio.sleep(10)
            try:
                return await context.actor("clerk", message.keys[0]).ask(Left(), timeout_s=100.0)
            except (Expired, Unknown) as error:
                self.log.append(type(error).__name__)
                raise

    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            runtime.register("late", lambda id: Late(id, log), durable=False)
            with pytest.raises(Unknown):
                await runtime.actor("late", "a").ask(Relay(("b",)), timeout_s=7.0)
            await anyio.sleep(5)

            assert log == ["Expired"], "it goes on when its caller has gone, but asks nobody in its name"

    run(body)


def test_tells_and_spawned_work_are_not_bounded_by_the_caller(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            clerk = runtime.actor("clerk", "a")
            assert await clerk.ask(TellOn("b"), timeout_s=7.0) == pytest.approx(7.0, abs=0.01)
            assert await clerk.ask(SpawnAsk("c"), timeout_s=7.0) == pytest.approx(7.0, abs=0.01)
            await anyio.sleep(1)

            assert sorted(log) == ["child: inf", "told: inf", "told: inf"]

    run(body)


def test_tasks_of_a_handler_share_its_callers_time(run: Run) -> None:
    class Many(Clerk):
        @handles(Relay)
        async def all_of_them(self, message: Relay, context: Context) -> float:
            left: list[float] = []

            async def ask(key: str) -> None:
                left.append(await context.actor("clerk", key).ask(Left(), timeout_s=math.inf))

            async with anyio.create_task_group() as tasks:
                for key in message.keys:
                    tasks.start_soon(ask, key)
            return max(left)

    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            runtime.register("many", lambda id: Many(id, log), durable=False)

            left = await runtime.actor("many", "a").ask(Relay(("b", "c", "d")), timeout_s=7.0)
            assert left == pytest.approx(7.0, abs=0.01)

    run(body)


def test_a_deadline_in_one_actor_does_not_leak_into_its_next_message_or_to_outside(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([]) as runtime:
            clerk = runtime.actor("clerk", "a")
            assert await clerk.ask(Relay(("b",)), timeout_s=7.0) == pytest.approx(7.0, abs=0.01)

            assert await clerk.ask(Relay(("b",), math.inf), timeout_s=math.inf) == math.inf
            assert await runtime.actor("clerk", "b").ask(Left(), timeout_s=math.inf) == math.inf

    run(body)


def test_a_wait_that_an_expiry_begins_in_place_ends_at_its_own_deadline(run: Run) -> None:
    """Both waits have the same timeout, and the second is begun by the handler that the end of the first one calls."""

    class Debtor(Clerk):
        @handles(Left, on_cancel="cancel")
        def owe(self, _message: Left, context: Context) -> Ticket:
            return context.defer()

        @handles(Abandoned)
        async def abandoned(self, _signal: Abandoned, context: Context) -> None:
            try:
                await context.actor("clerk", "b").ask(Left(), timeout_s=5.0)
            except Expired:
                self.log.append(f"expired at {context.now() - began:.0f}")

    began = 0.0

    async def body() -> None:
        nonlocal began
        log: list[str] = []
        async with a_runtime(log) as runtime:
            runtime.register("debtor", lambda id: Debtor(id, log), durable=False)
            await runtime.actor("debtor", "warm").tell(Abandoned(message=None))
            busy = runtime.actor("clerk", "b").ask_nowait(Busy(100.0), timeout_s=math.inf)
            await anyio.sleep(20)
            log.clear()
            began = anyio.current_time()
            for key in "abc":
                with pytest.raises(Unknown):
                    await runtime.actor("debtor", key).ask(Left(), timeout_s=5.0)
            await anyio.sleep(20)

            assert log == ["expired at 10", "expired at 15", "expired at 20"]
            runtime.actor("clerk", "b").kill()
            with pytest.raises(Failed):
                await busy.wait()

    run(body)
