"""Volatile timers of actors: when they tick, how often at most, and when they end. On trio and asyncio."""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from callboard.runtime import Actor, ActorId, Backoff, Context, Failed, Request, RestartPolicy, Runtime, handles
from callboard.runtime.signals import Tick
from callboard.store import CallboardError, MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class After(Request[None], frozen=True):
    delay_s: float
    tag: object = "t"


class Every(Request[None], frozen=True):
    period_s: float
    tag: object = "t"


class Cancel(Request[bool], frozen=True):
    tag: object = "t"


class Block(Request[None], frozen=True):
    """Holds the actor up for some seconds; then a timer is cancelled or started anew, if so ordered."""

    seconds: float
    then: Literal["nothing", "cancel", "anew"] = "nothing"


class Hello(Request[str], frozen=True):
    pass


class Watchmaker(Actor):
    """Its log has (seconds since the test began, tag, count) of every tick it has handled."""

    def __init__(self, id: ActorId, book: "Book") -> None:
        super().__init__(id)
        self.book = book

    @handles(After)
    def after(self, message: After, context: Context) -> None:
        context.after(message.delay_s, message.tag)

    @handles(Every)
    def every(self, message: Every, context: Context) -> None:
        context.every(message.period_s, message.tag)

    @handles(Cancel)
    def cancel(self, message: Cancel, context: Context) -> bool:
        return context.cancel_timer(message.tag)

    @handles(Block)
    async def block(self, message: Block, context: Context) -> None:
        await anyio.sleep(message.seconds)
        if message.then == "cancel":
            context.cancel_timer("t")
        elif message.then == "anew":
            context.every(10.0, "t")

    @handles(Hello)
    def hello(self, _message: Hello, _context: Context) -> str:
        return "hello"

    @handles(Tick)
    def tick(self, signal: Tick, context: Context) -> None:
        self.book.note(signal)
        self.book.on_tick(signal, context)


class Slow(Watchmaker):
    @handles(Tick)
    async def slow_tick(self, signal: Tick, context: Context) -> None:
        self.book.note(signal)
        self.book.running += 1
        assert self.book.running == 1
        await anyio.sleep(self.book.slow_s)
        self.book.running -= 1
        self.book.on_tick(signal, context)


class Book:
    def __init__(self) -> None:
        self.log: list[tuple[float, object, int]] = []
        self.running = 0
        self.slow_s = 0.0
        self.began = anyio.current_time()
        self.on_tick: Callable[[Tick, Context], None] = lambda _signal, _context: None

    def note(self, signal: Tick) -> None:
        self.log.append((round(anyio.current_time() - self.began, 3), signal.tag, signal.count))

    @property
    def times(self) -> list[float]:
        return [time for time, _, _ in self.log]


def a_runtime(book: Book, kind: type[Watchmaker] = Watchmaker, **options: Any) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    quick = RestartPolicy(restarts_max=100, backoff=Backoff(first_s=0.001, max_s=0.001))
    runtime.register("actor", lambda id: kind(id, book), durable=False, restart=quick, **options)
    return runtime


def timers_of(runtime: Runtime) -> int:
    return len(runtime._timers)  # pyright: ignore[reportPrivateUsage] - a timer that is left behind shows nowhere else


def test_after_ticks_once_and_every_until_it_is_cancelled(run: Run) -> None:
    async def body() -> None:
        book = Book()
        async with a_runtime(book) as runtime:
            actor = runtime.actor("actor", "k")
            await actor.ask(After(1.5, "once"))
            await actor.ask(Every(1.0, "often"))
            await anyio.sleep(3.2)
            assert await actor.ask(Cancel("often")) is True
            assert await actor.ask(Cancel("often")) is False
            assert await actor.ask(Cancel("once")) is False, "it has ticked"
            await anyio.sleep(5)

            assert book.log == [(1.0, "often", 1), (1.5, "once", 1), (2.0, "often", 2), (3.0, "often", 3)]
            assert timers_of(runtime) == 0

    run(body)


def test_the_period_counts_from_the_end_of_the_ticks_handler_and_ticks_never_overlap(run: Run) -> None:
    async def body() -> None:
        book = Book()
        book.slow_s = 2.5
        async with a_runtime(book, Slow) as runtime:
            await runtime.actor("actor", "k").ask(Every(1.0))
            await anyio.sleep(12)
            runtime.actor("actor", "k").kill()

        assert book.times == [1.0, 4.5, 8.0, 11.5]

    run(body)


def test_never_two_ticks_of_one_timer_are_queued_however_long_the_actor_is_busy(run: Run) -> None:
    async def body() -> None:
        book = Book()
        async with a_runtime(book) as runtime:
            actor = runtime.actor("actor", "k")
            await actor.ask(Every(1.0, "a"))
            await actor.ask(Every(1.0, "b"))
            await actor.tell(Block(10.0))
            await anyio.sleep(9)
            assert runtime.inspect("actor", "k").queued == 2, "one of each"
            await anyio.sleep(2.5)

            assert book.times == [10.0, 10.0, 11.0, 11.0]
            assert timers_of(runtime) == 2
            actor.kill()

    run(body)


@pytest.mark.parametrize(("then", "times"), [("nothing", [5.0, 6.0]), ("cancel", []), ("anew", [15.0])])
def test_a_tick_that_is_queued_when_its_timer_ends_or_begins_anew_is_not_handled(
    run: Run, then: Literal["nothing", "cancel", "anew"], times: list[float]
) -> None:
    async def body() -> None:
        book = Book()
        async with a_runtime(book) as runtime:
            actor = runtime.actor("actor", "k")
            await actor.ask(Every(1.0))
            await actor.ask(Block(5.0, then), timeout_s=math.inf)
            await anyio.sleep(1.5 if then == "nothing" else 10.5)
            actor.kill()

            assert book.times == times
            assert timers_of(runtime) == 0

    run(body)


def test_a_timer_that_is_started_again_takes_the_place_of_the_old_one(run: Run) -> None:
    async def body() -> None:
        book = Book()
        async with a_runtime(book) as runtime:
            actor = runtime.actor("actor", "k")
            await actor.ask(Every(1.0))
            await anyio.sleep(2.5)
            await actor.ask(After(3.0))
            assert timers_of(runtime) == 1
            await anyio.sleep(10)

            assert book.log == [(1.0, "t", 1), (2.0, "t", 2), (5.5, "t", 1)]
            assert timers_of(runtime) == 0

    run(body)


def test_a_handler_may_cancel_or_restart_the_timer_of_its_own_tick(run: Run) -> None:
    async def body() -> None:
        book = Book()

        def on_tick(signal: Tick, context: Context) -> None:
            if signal.tag == "again" and len(book.log) < 6:
                context.after(0.5, "again")
            elif signal.tag == "ends":
                context.cancel_timer("ends")

        book.on_tick = on_tick
        async with a_runtime(book) as runtime:
            await runtime.actor("actor", "k").ask(Every(1.0, "ends"))
            await runtime.actor("actor", "k").ask(After(0.5, "again"))
            await anyio.sleep(20)

            assert [time for time, tag, _ in book.log if tag == "ends"] == [1.0]
            assert [time for time, tag, _ in book.log if tag == "again"] == [0.5, 1.0, 1.5, 2.0, 2.5]
            assert timers_of(runtime) == 0

    run(body)


@pytest.mark.parametrize("kind", [Watchmaker, Slow])
def test_a_crash_in_the_handler_ends_the_timers_with_the_activation(run: Run, kind: type[Watchmaker]) -> None:
    async def body() -> None:
        book = Book()

        def crash(_signal: Tick, _context: Context) -> None:
            raise RuntimeError("ordered")

        book.on_tick = crash
        async with a_runtime(book, kind) as runtime:
            await runtime.actor("actor", "k").ask(Every(1.0))
            await anyio.sleep(20)

            assert book.times == [1.0]
            assert runtime.inspect("actor", "k").restarts == 1
            assert timers_of(runtime) == 0
            assert await runtime.actor("actor", "k").ask(Hello()) == "hello"

    run(body)


def test_an_error_of_callboards_tree_in_the_handler_leaves_the_timer_as_it_is(run: Run) -> None:
    async def body() -> None:
        book = Book()

        def refuse(_signal: Tick, _context: Context) -> None:
            raise CallboardError("not now")

        book.on_tick = refuse
        async with a_runtime(book) as runtime:
            await runtime.actor("actor", "k").ask(Every(1.0))
            await anyio.sleep(3.5)
            runtime.actor("actor", "k").kill()

        assert book.times == [1.0, 2.0, 3.0]

    run(body)


@pytest.mark.parametrize("way", ["passivate", "kill", "stop"])
def test_timers_end_with_their_activation_and_the_next_one_has_none(run: Run, way: str) -> None:
    async def body() -> None:
        book = Book()
        async with a_runtime(book) as runtime:
            actor = runtime.actor("actor", "k")
            await actor.ask(Every(1.0, "a"))
            await actor.ask(After(2.0, "b"))
            await anyio.sleep(1.5)
            if way == "passivate":
                assert actor.passivate()
            elif way == "kill":
                actor.kill()
            else:
                await actor.stop()
            assert timers_of(runtime) == 0
            runtime.resume("actor", "k")
            assert await actor.ask(Hello()) == "hello"
            await anyio.sleep(5)

            assert book.log == [(1.0, "a", 1)]
            assert await actor.ask(Cancel("a")) is False

    run(body)


def test_an_actor_that_ticks_without_a_delay_lets_others_run(run: Run) -> None:
    async def body() -> None:
        book = Book()
        book.on_tick = lambda signal, context: context.after(0, signal.tag) if len(book.log) < 500 else None
        async with a_runtime(book) as runtime:
            await runtime.actor("actor", "k").ask(After(0))
            rounds = 0
            while len(book.log) < 500:
                rounds += 1
                await anyio.lowlevel.checkpoint()

            assert rounds >= 100
            assert await runtime.actor("actor", "k").ask(Hello()) == "hello"

    run(body)


@pytest.mark.parametrize("message", [After(-1), After(math.nan), After(math.inf), Every(0), Every(-1), Every(math.inf)])
def test_a_time_that_is_no_number_of_seconds_is_refused(run: Run, message: Request[None]) -> None:
    async def body() -> None:
        async with a_runtime(Book()) as runtime:
            with pytest.raises(Failed, match="finite number of seconds"):
                await runtime.actor("actor", "k").ask(message)
            await anyio.sleep(1)

            assert timers_of(runtime) == 0

    run(body)


def test_ticks_wait_until_the_actor_is_loaded_and_a_tick_goes_before_what_is_queued(run: Run) -> None:
    async def body() -> None:
        book = Book()

        class Loading(Watchmaker):
            async def load(self, context: Context) -> None:
                context.after(1.0, "from load")
                await anyio.sleep(3.0)

        async with a_runtime(book, Loading) as runtime:
            heard: list[str] = []
            book.on_tick = lambda _signal, _context: heard.append("tick")
            heard.append(await runtime.actor("actor", "k").ask(Hello()))

            assert heard == ["tick", "hello"]
            assert book.times == [3.0]

    run(body)
