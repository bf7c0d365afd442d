"""A store that does not answer: few attempts, no budget spent, and everybody comes back. Trio and asyncio."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Actor,
    ActorEnded,
    ActorFailed,
    Backoff,
    ChildEnded,
    Context,
    Expired,
    Failed,
    Request,
    RestartPolicy,
    Runtime,
    Stopping,
    Tick,
    handles,
)
from callboard.runtime.activation import LOADS_MAX, PROBE_PATIENCE_S
from callboard.runtime.breaker import Breaker
from callboard.runtime.identity import ActorId
from callboard.runtime.ref import PendingReply
from callboard.store import Corrupt, MemoryStore, StoreUnavailable
from callboard.store.contract import Head

Run = Callable[[Callable[[], Awaitable[None]]], None]

ACTORS = 200


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Weather(MemoryStore):
    """A store with storms: while `down` is true no load is answered. `loads` counts the attempts."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.loads = 0
        self.answers_left: int | None = None

    def load(self, stream: str) -> Head | None:
        self.loads += 1
        if self.answers_left is not None:
            self.answers_left -= 1
            self.down = self.answers_left < 0
        if self.down:
            raise StoreUnavailable("the disk sleeps")
        return super().load(stream)


class Add(Request[int], frozen=True):
    amount: int


class Crash(Request[None], frozen=True):
    pass


class Counter(Actor):
    weather: Weather

    def load(self, context: Context) -> Awaitable[None] | None:
        self.total = int(context.stored.head) if context.stored is not None else 0
        return None

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise ZeroDivisionError


class SlowCounter(Counter):
    """Loads for a second, and finds out only then whether the store is there. Notes how many load at once."""

    loading: list[int]

    async def load(self, context: Context) -> None:
        super().load(context)
        self.loading.append(self.loading[-1] + 1)
        try:
            await anyio.sleep(1.0)
        finally:
            self.loading.append(self.loading[-1] - 1)
        if self.weather.down:
            raise StoreUnavailable("the disk went to sleep meanwhile")


class LastingOutage(SlowCounter):
    """Its load hangs for good."""

    async def load(self, context: Context) -> None:
        await anyio.sleep_forever()


class Dependent(Counter):
    """Its load asks another actor, which has to come into memory as well."""

    async def load(self, context: Context) -> None:
        super().load(context)
        self.total += await context.actor("counter", "needed").ask(Add(1))


class Volatile(Counter):
    """Keeps nothing in the store, but reads it when it loads."""

    def load(self, context: Context) -> None:
        self.total = 0
        context.store.load("counter:0")


class Adopting(Actor):
    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        context.supervise(ActorId("counter", "of eager"))
        return message.amount


KINDS: list[type[Counter]] = [Counter, SlowCounter, LastingOutage, Dependent]


def a_runtime(*, drain_timeout_s: float = 1.0) -> tuple[Runtime, Weather, list[int]]:
    weather, loading = Weather(), [0]

    def own(kind: type[Counter]) -> type[Counter]:
        return type("Own", (kind,), {"weather": weather, "loading": loading})

    runtime = Runtime(lambda: weather, drain_timeout_s=drain_timeout_s)
    brief = RestartPolicy(restarts_max=0)
    for kind in KINDS:
        runtime.register(kind.__name__.lower(), own(kind), restart=brief)
    runtime.register("volatile", own(Volatile), restart=brief, durable=False)
    return runtime, weather, loading


def asked(runtime: Runtime, kind: str, count: int = ACTORS, *, timeout_s: float = 1e6) -> list[PendingReply[int]]:
    return [runtime.actor(kind, str(number)).ask_nowait(Add(1), timeout_s=timeout_s) for number in range(count)]


async def replies(pending: list[PendingReply[Any]]) -> list[Any]:
    return [await one.wait() for one in pending]


def probes_max(seconds: float) -> int:
    """How many attempts an outage may cost at most: some at first, with the short delays, then one a delay."""
    return 60 + round(seconds)


@pytest.mark.parametrize("kind", ["counter", "slowcounter"])
def test_an_outage_costs_few_attempts_and_no_budget_and_all_come_back_after_it(run: Run, kind: str) -> None:
    async def body() -> None:
        runtime, weather, loading = a_runtime()
        async with runtime:
            weather.down = True
            pending = asked(runtime, kind)
            await anyio.sleep(100.0)
            at_once = LOADS_MAX if kind == "slowcounter" else 0

            assert 1 < weather.loads <= at_once + probes_max(100.0)
            assert runtime.statistics().crashes == runtime.statistics().failed == 0
            weather.down = False
            assert await replies(pending) == [1] * ACTORS
            assert weather.loads <= ACTORS + at_once + probes_max(110.0)
            assert max(loading) <= LOADS_MAX

    run(body)


def test_actors_that_are_in_memory_go_on_during_an_outage(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            assert await runtime.actor("counter", "here").ask(Add(1)) == 1
            weather.down = True
            waiting = runtime.actor("counter", "away").ask_nowait(Add(1))

            assert await runtime.actor("counter", "here").ask(Add(1)) == 2
            weather.down = False
            assert await waiting.wait() == 1

    run(body)


def test_a_store_that_answers_once_and_sleeps_again_is_not_run_over(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            weather.down = True
            pending = asked(runtime, "counter")
            await anyio.sleep(10.0)
            loads = weather.loads
            weather.answers_left = 3
            await anyio.sleep(10.0)

            assert weather.loads - loads <= 3 + probes_max(10.0)
            weather.answers_left, weather.down = None, False
            assert await replies(pending) == [1] * ACTORS
            assert runtime.statistics().crashes == 0

    run(body)


def test_at_most_so_many_async_loads_run_at_once_also_when_all_come_back_together(run: Run) -> None:
    async def body() -> None:
        runtime, weather, loading = a_runtime()
        async with runtime:
            started = anyio.current_time()
            assert await replies(asked(runtime, "slowcounter")) == [1] * ACTORS

            assert max(loading) == LOADS_MAX
            assert anyio.current_time() - started == pytest.approx(ACTORS / LOADS_MAX, abs=0.5)
            assert weather.loads == ACTORS

    run(body)


def test_loads_that_were_in_line_when_the_outage_came_do_not_try_one_after_the_other(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            pending = asked(runtime, "slowcounter")
            await anyio.sleep(0.5)
            weather.down = True
            await anyio.sleep(20.0)

            assert weather.loads <= LOADS_MAX + probes_max(20.0) < ACTORS
            weather.down = False
            assert await replies(pending) == [1] * ACTORS

    run(body)


@pytest.mark.parametrize("verb", ["kill", "stop", "drain"])
@pytest.mark.parametrize("when", ["waiting", "probing"])
def test_a_probe_that_is_ended_by_hand_leaves_the_next_one_to_try(run: Run, verb: str, when: str) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            weather.down = True
            first = runtime.actor("slowcounter", "first")
            await first.tell(Add(1))
            second = runtime.actor("counter", "second").ask_nowait(Add(1))
            weather.down = when == "waiting"
            await anyio.sleep(1.5)  # after a second the load has failed; with an answering store its probe is under way
            if verb == "kill":
                first.kill()
            else:
                await (first.stop() if verb == "stop" else first.drain(timeout_s=0.01))
            weather.down = False

            assert await second.wait() == 1
            runtime.resume("slowcounter", "first")
            assert await first.ask(Add(1)) in (1, 2)

    run(body)


def test_a_probe_that_hangs_holds_up_the_others_for_its_patience_only(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            weather.down = True
            await runtime.actor("lastingoutage", "first").tell(Add(1))
            pending = asked(runtime, "counter", 3)
            weather.down = False
            started = anyio.current_time()

            assert await replies(pending) == [1] * 3
            assert anyio.current_time() - started <= PROBE_PATIENCE_S + 1.0

    run(body)


def test_a_probe_may_wait_for_an_actor_that_waits_for_the_probe(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            weather.down = True
            pending = [runtime.actor("dependent", "d").ask_nowait(Add(1), timeout_s=1e6)]
            await anyio.sleep(1.0)
            weather.down = False

            assert await replies(pending) == [2]

    run(body)


def test_a_volatile_actor_whose_load_met_the_outage_ends_it_for_the_others_too(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            weather.down = True
            volatile = runtime.actor("volatile", "v").ask_nowait(Add(1))
            await anyio.sleep(10.0)
            weather.down = False
            assert await volatile.wait() == 1
            ended = anyio.current_time()

            assert await replies(asked(runtime, "counter", 3)) == [1] * 3
            assert anyio.current_time() == ended

    run(body)


def test_deadlines_hold_during_an_outage_and_nothing_of_the_message_is_left(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            weather.down = True
            started = anyio.current_time()
            with pytest.raises(Expired):
                await runtime.actor("counter", "k").ask(Add(1), timeout_s=3.0)

            assert anyio.current_time() - started == pytest.approx(3.0, abs=0.1)
            weather.down = False
            await anyio.sleep(10.0)
            assert await runtime.actor("counter", "k").ask(Add(1)) == 1

    run(body)


def test_a_runtime_that_closes_during_an_outage_ends_within_its_deadline_and_grace(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.runtime.CANCEL_GRACE_S", 0.5)

    async def body() -> None:
        runtime, weather, _ = a_runtime(drain_timeout_s=2.0)
        pending: list[PendingReply[int]] = []
        started = anyio.current_time()
        async with runtime:
            weather.down = True
            pending += asked(runtime, "counter", 5)

        assert anyio.current_time() - started == pytest.approx(2.5, abs=0.2)
        for one in pending:
            with pytest.raises(Stopping):
                await one.wait()
        assert sorted(runtime.cut) == [f"counter:{number}: Add" for number in range(5)]

    run(body)


def test_a_record_that_cannot_be_read_is_no_outage_and_holds_up_nobody(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        async with runtime:
            weather.fail_next_read(Corrupt("counter:bad", "it is all zeros"))
            with pytest.raises(ActorFailed):
                await runtime.actor("counter", "bad").ask(Add(1))
            started = anyio.current_time()

            assert await replies(asked(runtime, "counter", 3)) == [1] * 3
            assert anyio.current_time() == started

    run(body)


def test_an_outage_that_meets_a_restart_spends_nothing_beside_the_crash(run: Run) -> None:
    async def body() -> None:
        runtime, weather, _ = a_runtime()
        once = RestartPolicy(restarts_max=1, backoff=Backoff(first_s=0.01, max_s=0.01))
        runtime.register("once", type("Once", (Counter,), {"weather": weather}), restart=once)
        async with runtime:
            actor = runtime.actor("once", "k")
            await actor.ask(Add(1))
            weather.down = True
            with pytest.raises(Failed):
                await actor.ask(Crash())
            pending = actor.ask_nowait(Add(1), timeout_s=1e6)
            await anyio.sleep(60.0)
            weather.down = False

            assert await pending.wait() == 2
            assert runtime.statistics().crashes == 1

    run(body)


def test_what_a_load_had_begun_before_it_met_the_outage_is_not_begun_twice(run: Run) -> None:
    class Eager(Counter):
        def load(self, context: Context) -> None:
            super().load(context)
            context.spawn(anyio.sleep_forever, tag="child")
            if self.weather.loads < 4:
                context.supervise(ActorId("counter", "of eager"))
            context.watch(ActorId("counter", "of eager"), tag="watched")
            context.every(1.0, "tick")
            if self.weather.loads < 4:
                raise StoreUnavailable("its second page is not there")

        @handles(ActorEnded)
        @handles(ChildEnded)
        @handles(Tick)
        def hear(self, _signal: ActorEnded | ChildEnded | Tick, _context: Context) -> None:
            pass

    async def body() -> None:
        runtime, weather, _ = a_runtime(drain_timeout_s=0.0)
        runtime.register("eager", type("OwnEager", (Eager,), {"weather": weather}))
        async with runtime:
            assert await runtime.actor("eager", "k").ask(Add(1)) == 1
            await anyio.sleep(1.0)

            assert runtime.statistics().children == 1
            assert runtime.statistics().crashes == 0
            runtime.register("adopting", Adopting)
            assert await runtime.actor("adopting", "a").ask(Add(1)) == 1, "the child of the load that failed is free"

    run(body)


def test_delays_between_probes_grow_to_a_bound_and_begin_anew_after_the_outage() -> None:
    breaker = Breaker()
    delays = [breaker.failed(1.0) for _ in range(20) if breaker.probe()]

    breaker.succeeded()
    assert (delays[0], max(delays), breaker.failed(1.0)) == (0.05, PROBE_PATIENCE_S, 0.05)
