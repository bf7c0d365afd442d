"""Who leaves memory for being idle, who stays, and what the next message finds, on both backends in virtual time."""

import gc
import logging
import math
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from callboard.runtime import (
    Actor,
    ActorFailed,
    ActorId,
    Backoff,
    ChildEnded,
    Context,
    Failed,
    Request,
    RestartPolicy,
    Runtime,
    Ticket,
    handles,
)
from callboard.runtime.signals import ActorEnded, Tick
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]

IDLE_S = 80.0
SWEEP_S = IDLE_S / 8
SURELY_GONE_S = IDLE_S + 2 * SWEEP_S + 1


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Add(Request[int], frozen=True):
    amount: int


class Read(Request[int], frozen=True):
    pass


class Crash(Request[None], frozen=True):
    pass


class Work(Request[None], frozen=True):
    seconds: float


class Owe(Request[str], frozen=True):
    pass


class Pay(Request[None], frozen=True):
    pass


class Spawn(Request[None], frozen=True):
    seconds: float


class Supervise(Request[None], frozen=True):
    key: str


class Watch(Request[None], frozen=True):
    key: str


class TickEvery(Request[None], frozen=True):
    period_s: float


class Counter(Actor):
    """Stores a total; `visits` is only in memory, so it says how long this activation has been there."""

    ticket: Ticket
    ticks = 0

    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0
        self.visits = 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Read)
    def read(self, _message: Read, _context: Context) -> int:
        self.visits += 1
        return self.visits

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise RuntimeError("ordered")

    @handles(Work)
    async def work(self, message: Work, _context: Context) -> None:
        await anyio.sleep(message.seconds)

    @handles(Owe)
    def owe(self, _message: Owe, context: Context) -> Ticket:
        self.ticket = context.defer()
        return self.ticket

    @handles(Pay)
    def pay(self, _message: Pay, _context: Context) -> None:
        self.ticket.reply("paid")

    @handles(Spawn)
    def spawn(self, message: Spawn, context: Context) -> None:
        context.spawn(lambda: anyio.sleep(message.seconds), tag="child")

    @handles(ChildEnded)
    def child_ended(self, _signal: ChildEnded, _context: Context) -> None:
        pass

    @handles(Supervise)
    def supervise(self, message: Supervise, context: Context) -> None:
        context.supervise(ActorId("counter", message.key))

    @handles(Watch)
    def watch(self, message: Watch, context: Context) -> None:
        context.watch(ActorId("counter", message.key), tag="watched")

    @handles(ActorEnded)
    def actor_ended(self, _signal: ActorEnded, _context: Context) -> None:
        pass

    @handles(TickEvery)
    def tick_every(self, message: TickEvery, context: Context) -> None:
        context.every(message.period_s, "tick")

    @handles(Tick)
    def tick(self, _signal: Tick, _context: Context) -> None:
        self.ticks += 1


def a_runtime(**options: Any) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    options.setdefault("idle_s", IDLE_S)
    runtime.register("counter", Counter, **options)
    return runtime


def active(runtime: Runtime) -> int:
    return runtime.statistics().active


def test_an_actor_without_messages_leaves_memory_after_its_idle_time_and_not_before(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await runtime.actor("counter", "k").ask(Read())
            await anyio.sleep(IDLE_S - 1)
            assert active(runtime) == 1

            await anyio.sleep(2 * SWEEP_S + 2)
            assert runtime.statistics().actors == 0

    run(body)


def test_every_message_from_outside_begins_the_idle_time_anew_and_looking_at_it_does_not(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            counter = runtime.actor("counter", "k")
            for visit in range(1, 6):
                assert await counter.ask(Read()) == visit
                await anyio.sleep(IDLE_S - 1)
            await counter.tell(Read())
            await anyio.sleep(IDLE_S - 1)
            assert await counter.ask(Read()) == 7

            for _ in range(20):
                await anyio.sleep(SURELY_GONE_S / 20)
                runtime.inspect("counter", "k")
            assert active(runtime) == 0

    run(body)


def test_the_next_message_finds_what_was_stored_by_refs_made_before_and_after(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            before = runtime.actor("counter", "k")
            unused = runtime.actor("counter", "k")
            await before.ask(Add(3))
            await before.ask(Read())
            await anyio.sleep(SURELY_GONE_S)
            assert runtime.statistics().actors == 0
            after = runtime.actor("counter", "k")

            assert await before.ask(Add(1)) == 4
            assert await after.ask(Add(1)) == 5
            assert await unused.ask(Read()) == 1, "what was only in memory is gone"
            assert runtime.statistics().actors == 1

    run(body)


def test_a_ref_takes_its_actor_out_of_memory_at_once(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            assert not runtime.actor("counter", "never used").passivate()
            counter = runtime.actor("counter", "k")
            await counter.ask(Add(3))
            epoch = runtime.inspect("counter", "k").epoch

            assert counter.passivate()
            assert runtime.statistics().actors == 0
            assert not counter.passivate(), "it is not there any more"
            assert await counter.ask(Add(1)) == 4
            assert runtime.inspect("counter", "k").epoch > epoch

    run(body)


def test_ticks_do_not_keep_an_actor_in_memory_and_end_with_it(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await runtime.actor("counter", "k").ask(TickEvery(1.0))
            await anyio.sleep(SURELY_GONE_S)
            assert runtime.statistics().actors == 0
            handled = runtime.statistics().handled

            await anyio.sleep(10 * IDLE_S)
            assert runtime.statistics().handled == handled

    run(body)


@pytest.mark.parametrize("message", [Work(10 * IDLE_S), Owe(), Spawn(10 * IDLE_S), Supervise("child")])
def test_an_actor_with_something_under_way_stays(run: Run, message: Request[Any]) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            counter = runtime.actor("counter", "k")
            pending = counter.ask_nowait(message)
            await anyio.sleep(5 * IDLE_S)
            assert runtime.inspect("counter", "k").state == "ready"
            assert not counter.passivate()

            if isinstance(message, Owe):
                await counter.ask(Pay())
            if not isinstance(message, Supervise):
                await anyio.sleep(5 * IDLE_S + SURELY_GONE_S)
                assert runtime.statistics().actors == 0
            pending.give_up()

    run(body)


def test_a_supervised_actor_may_leave_memory_and_is_still_its_parents_child(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(restart=RestartPolicy(restarts_max=0)) as runtime:
            parent, child = runtime.actor("counter", "parent"), runtime.actor("counter", "child")
            await child.ask(Add(1))
            await parent.ask(Supervise("child"))
            await anyio.sleep(SURELY_GONE_S)
            assert runtime.inspect("counter", "child").state == "absent"

            with pytest.raises(Failed):
                await child.ask(Crash())
            assert runtime.inspect("counter", "parent").state == "failed", "it is told of the child's end"

    run(body)


def test_an_actor_that_is_watched_may_leave_memory_and_its_end_is_still_told(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime, anyio.create_task_group() as tasks:
            watched = runtime.actor("counter", "watched")
            await watched.ask(Read())
            ended: list[str] = []

            async def wait() -> None:
                ended.append((await watched.wait_ended()).reason)

            tasks.start_soon(wait)
            await anyio.sleep(SURELY_GONE_S)
            assert active(runtime) == 0
            assert ended == [], "passivation is no end"

            await runtime.actor("counter", "watched").stop()
            await anyio.wait_all_tasks_blocked()
            assert ended == ["stopped"]

    run(body)


def test_a_watch_ends_with_the_watchers_activation_and_keeps_nobody_in_memory(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await runtime.actor("counter", "watcher").ask(Watch("watched"))
            assert runtime.statistics().actors == 2
            await anyio.sleep(SURELY_GONE_S + SWEEP_S)

            assert runtime.statistics().actors == 0

    run(body)


@pytest.mark.parametrize("answer", [False, RuntimeError("cannot say")])
def test_an_actor_that_does_not_let_itself_be_passivated_stays(run: Run, answer: object) -> None:
    class Own(Counter):
        def may_passivate(self) -> bool:
            if isinstance(answer, Exception):
                raise answer
            return False

    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("own", Own, idle_s=IDLE_S)
            own = runtime.actor("own", "k")
            await own.ask(Read())
            await anyio.sleep(5 * IDLE_S)

            assert not own.passivate()
            assert await own.ask(Read()) == 2
            assert runtime.statistics().crashes == 0

    run(body)


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({"idle_s": math.inf}, True),
        ({"durable": False, "idle_s": None}, True),
        ({"durable": False, "idle_s": IDLE_S}, False),
        ({"idle_s": None}, False),
    ],
)
def test_a_kind_says_whether_its_actors_leave_memory(run: Run, options: dict[str, Any], stays: bool) -> None:
    async def body() -> None:
        async with a_runtime(**options) as runtime:
            await runtime.actor("counter", "k").ask(Read())
            await anyio.sleep(10_000)

            assert (active(runtime) == 1) is stays

    run(body)


def test_kinds_have_their_own_idle_times_also_one_that_is_registered_later(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(idle_s=400.0) as runtime:
            await runtime.actor("counter", "k").ask(Read())
            runtime.register("hasty", Counter, idle_s=8.0)
            await runtime.actor("hasty", "k").ask(Read())
            await anyio.sleep(8.0 + 2 + 1)
            assert [runtime.inspect(kind, "k").state for kind in ("counter", "hasty")] == ["ready", "absent"]

            await anyio.sleep(389.0 - 2)
            assert runtime.inspect("counter", "k").state == "ready"
            await anyio.sleep(4 + 2 * 50)
            assert active(runtime) == 0

    run(body)


def test_crashes_within_the_window_are_not_forgotten_by_passivation(run: Run) -> None:
    policy = RestartPolicy(restarts_max=2, window_s=1000.0, backoff=Backoff(first_s=0.001, max_s=0.002))

    async def body() -> None:
        async with a_runtime(restart=policy) as runtime:
            counter = runtime.actor("counter", "k")
            for _ in range(2):
                with pytest.raises(Failed):
                    await counter.ask(Crash())
                assert await counter.ask(Read()) == 1
                assert counter.passivate()
            assert runtime.inspect("counter", "k").restarts == 2

            with pytest.raises(Failed):
                await counter.ask(Crash())
            with pytest.raises(ActorFailed):
                await counter.ask(Read())

    run(body)


def test_crashes_are_forgotten_once_they_are_older_than_the_window(run: Run) -> None:
    policy = RestartPolicy(restarts_max=1, window_s=1000.0, backoff=Backoff(first_s=0.001, max_s=0.002))

    async def body() -> None:
        async with a_runtime(restart=policy) as runtime:
            counter = runtime.actor("counter", "k")
            for _ in range(3):
                with pytest.raises(Failed):
                    await counter.ask(Crash())
                assert await counter.ask(Read()) == 1
                await anyio.sleep(900)
                assert runtime.statistics().actors == 1, "it is remembered"
                await anyio.sleep(100 + SWEEP_S)
                assert runtime.statistics().actors == 0

    run(body)


def test_messages_around_a_passivation_are_handled_once_and_in_order(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            counter = runtime.actor("counter", "k")
            totals: list[int] = []
            for number in range(1, 30):
                await counter.tell(Add(number))
                pending = counter.ask_nowait(Add(100))
                if number % 3 == 0:
                    counter.passivate()
                totals.append(await pending.wait())
                if number % 5 == 0:
                    await anyio.sleep(SURELY_GONE_S)

            assert totals == [sum(range(1, number + 1)) + 100 * number for number in range(1, 30)]

    run(body)


def test_the_sweep_ends_when_nobody_is_left_and_begins_again_with_the_next_actor(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            runtime.register("lasting", Counter, idle_s=math.inf)
            await runtime.actor("lasting", "k").ask(Read())
            timers = runtime._timers  # pyright: ignore[reportPrivateUsage] - a timer too many shows nowhere else
            assert len(timers) == 0

            for _ in range(3):
                await runtime.actor("counter", "k").ask(Read())
                assert len(timers) == 1
                await anyio.sleep(SURELY_GONE_S + SWEEP_S)
                assert runtime.statistics().actors == 1
                assert len(timers) == 0

    run(body)


def test_many_idle_actors_leave_without_holding_up_the_loop(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            for number in range(3000):
                await runtime.actor("counter", str(number)).ask(Read())
            seen: set[int] = set()
            while runtime.statistics().actors:
                await anyio.sleep(SWEEP_S)
                for _ in range(20):  # the sweep is due at this very moment
                    seen.add(runtime.statistics().actors)
                    await anyio.lowlevel.checkpoint()

            assert len(seen) > 2, "others ran between its steps"

    run(body)


def test_a_passivated_actor_costs_nothing_and_a_warm_one_little() -> None:
    warm: list[int] = []
    gone: list[int] = []

    async def body() -> None:
        async with a_runtime() as runtime:
            before = tracemalloc.get_traced_memory()[0]
            for wave in ("a", "b", "c"):
                for number in range(3000):
                    await runtime.actor("counter", f"{wave}{number}").ask(Read())
                gc.collect()
                warm.append(tracemalloc.get_traced_memory()[0] - before)
                for number in range(3000):
                    assert runtime.actor("counter", f"{wave}{number}").passivate()
                gc.collect()
                gone.append(tracemalloc.get_traced_memory()[0] - before)

    tracemalloc.start()
    try:
        anyio.run(body, backend="trio")
    finally:
        tracemalloc.stop()

    assert max(warm) - gone[0] < 3000 * 2000
    assert max(gone[1:]) - gone[0] < 3000 * 8, "the first wave has made the registry as large as it needs to be"
