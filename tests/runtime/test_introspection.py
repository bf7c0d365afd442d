"""What a runtime shows of itself: that it is true, and that looking changes nothing."""

import logging
from collections.abc import Awaitable, Callable

import anyio
import msgspec
import pytest

from callboard.runtime import (
    Actor,
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
from callboard.runtime.dump import Dump
from callboard.runtime.errors import UnknownActor
from callboard.runtime.identity import ActorId
from callboard.runtime.introspect import ActorStatistics, RuntimeStatistics
from callboard.runtime.metrics import TRACE_MAX
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]

QUICK = RestartPolicy(restarts_max=4, window_s=60.0, backoff=Backoff(first_s=0.001, max_s=0.002))
GROWN_ACTORS = 500


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Add(Request[int], frozen=True):
    amount: int = 1


class Rest(Request[None], frozen=True):
    seconds: float


class Ask(Request[int], frozen=True):
    """Ask the others, one after the other, with a rest before the answer of the last."""

    path: tuple[str, ...]
    rest_s: float


class Owe(Request[int], frozen=True):
    pass


class Crash(Request[None], frozen=True):
    pass


class CrashAgain(Request[None], frozen=True):
    pass


class Supervise(Request[None], frozen=True):
    keys: tuple[str, ...]


class Spawn(Request[None], frozen=True):
    tag: str


class Worker(Actor):
    """Does what it is told."""

    total = 0
    weight_bytes = 500

    def size_bytes(self) -> int:
        return self.weight_bytes

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Rest)
    async def rest(self, message: Rest, _context: Context) -> None:
        await anyio.sleep(message.seconds)

    @handles(Ask)
    async def ask(self, message: Ask, context: Context) -> int:
        if not message.path:
            await anyio.sleep(message.rest_s)
            return 1
        return await context.actor("worker", message.path[0]).ask(Ask(message.path[1:], message.rest_s)) + 1

    @handles(Owe)
    def owe(self, _message: Owe, context: Context) -> Ticket:
        return context.defer()

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise KeyError("broken")

    @handles(CrashAgain, retryable=True)
    def crash_again(self, _message: CrashAgain, _context: Context) -> None:
        raise KeyError("poison")

    @handles(Supervise)
    def supervise(self, message: Supervise, context: Context) -> None:
        for key in message.keys:
            context.supervise(ActorId("worker", key))

    @handles(Spawn)
    def spawn(self, message: Spawn, context: Context) -> None:
        context.spawn(lambda: anyio.sleep(5.0), tag=message.tag)

    @handles(ChildEnded)
    def child_ended(self, _signal: ChildEnded, _context: Context) -> None:
        pass


class Volatile(Worker):
    """The same, and never stored."""

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        return self.total


def opened(store: MemoryStore | None = None) -> Runtime:
    runtime = Runtime(lambda: store or MemoryStore())
    runtime.register("worker", Worker, restart=QUICK)
    runtime.register("volatile", Volatile, durable=False, restart=QUICK)
    return runtime


# One actor ----------------------------------------------------------------------------------------------------------


def test_looking_at_an_unknown_id_says_absent_and_makes_no_cell(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            for number in range(100):
                seen = runtime.inspect("worker", f"never-{number}")
                assert (seen.id, seen.state, seen.epoch) == (f"worker:never-{number}", "absent", 0)

            assert runtime.statistics().actors == 0
            with pytest.raises(UnknownActor):
                runtime.inspect("nobody", "x")
            with pytest.raises(ValueError, match="bytes"):
                runtime.inspect("worker", "")

    run(body)


def test_an_actor_shows_what_runs_since_when_and_how_old_its_queue_is(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            worker = runtime.actor("worker", "a")
            await worker.ask(Add())
            await worker.tell(Rest(1.0))
            await worker.tell(Rest(10.0))
            await anyio.sleep(2.0)
            await worker.tell(Add())
            await anyio.sleep(2.0)
            await worker.tell(Add())

            seen = runtime.inspect("worker", "a")

            assert (seen.state, seen.running, seen.attempt, seen.queued, seen.size_bytes) == (
                "ready",
                "Rest",
                1,
                2,
                500,
            )
            assert seen.running_s == pytest.approx(3.0, abs=0.2)
            assert seen.oldest_queued_s == pytest.approx(2.0, abs=0.2)
            assert (seen.version, seen.queued_bytes) == (1, 128)
            await anyio.sleep(8.0)
            rested = runtime.inspect("worker", "a")
            assert (rested.running, rested.running_s, rested.attempt, rested.oldest_queued_s) == (None, 0.0, 0, 0.0)

    run(body)


def test_an_actor_shows_its_family_its_tasks_its_watchers_and_whom_it_waits_for(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime, anyio.create_task_group() as tasks:
            boss = runtime.actor("worker", "boss")
            await boss.ask(Supervise(("x", "y")))
            await boss.ask(Spawn("errand"))
            tasks.start_soon(boss.wait_ended)
            await anyio.sleep(0.1)
            await boss.tell(Ask(("z",), 1.0))
            await anyio.sleep(0.1)

            seen, child, asked = (runtime.inspect("worker", key) for key in ("boss", "x", "z"))

            assert (seen.children, seen.tasks, seen.watchers) == (("worker:x", "worker:y"), ("errand",), 1)
            assert (child.parent, child.state, seen.parent) == ("worker:boss", "absent", None)
            assert (seen.waits_for, asked.waits_for) == (("worker:z",), ())
            await anyio.sleep(1.5)
            assert runtime.inspect("worker", "boss").waits_for == ()
            tasks.cancel_scope.cancel()

    run(body)


def test_a_message_that_is_tried_again_shows_its_attempt_and_is_not_as_old_as_the_clock(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            await anyio.sleep(100.0 if anyio.current_time() < 1.0 else 0.0)
            await runtime.actor("worker", "a").tell(CrashAgain())

            seen = runtime.inspect("worker", "a")

            assert (seen.state, seen.queued) == ("backing_off", 1)
            assert seen.oldest_queued_s < 1.0
            assert runtime.statistics().queue_times.total_s < 1.0

    run(body)


# The whole ----------------------------------------------------------------------------------------------------------


def test_the_figures_count_what_came_and_went(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            for key in "abc":
                await runtime.actor("worker", key).ask(Add())
            assert runtime.actor("worker", "a").passivate()
            with pytest.raises(Failed):
                await runtime.actor("worker", "b").ask(Crash())
            await runtime.actor("worker", "c").tell(Crash())
            await anyio.sleep(0.1)

            seen = runtime.statistics()

            assert (seen.activations, seen.passivations, seen.crashes, seen.restarts) == (5, 1, 2, 2)
            assert (seen.actors, seen.active, seen.failed, seen.resident, seen.resident_bytes) == (2, 2, 0, 2, 1000)
            assert (seen.handled, seen.commit_groups, seen.commits_in_flight) == (5, 3, 0)
            assert seen.dead_letters == {"crashed": 1}
            assert (seen.breaker, seen.quarantined, seen.late_replies, seen.queued, seen.waits) == (
                "closed",
                0,
                0,
                0,
                0,
            )

    run(body)


def test_the_figures_show_workers_waits_queues_and_tasks_of_now(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            timers = runtime.statistics().timers
            await runtime.actor("worker", "a").tell(Ask(("b", "c"), 1.0))
            await anyio.sleep(0.1)
            await runtime.actor("worker", "c").tell(Add())
            await runtime.actor("worker", "d").ask(Spawn("errand"))
            await anyio.sleep(0.1)

            busy = runtime.statistics()
            await anyio.sleep(6.0)
            idle = runtime.statistics()

            assert (busy.workers_busy, busy.waits, busy.queued, busy.children) == (3, 2, 1, 1)
            assert busy.timers > timers  # the deadlines of the asks between them
            assert (idle.workers_busy, idle.waits, idle.queued, idle.children) == (0, 0, 0, 0)
            assert idle.workers_idle >= 1

    run(body)


def test_the_histograms_hold_what_took_its_time(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            worker = runtime.actor("worker", "a")
            for _ in range(8):
                await worker.tell(Rest(1.0))
            await anyio.sleep(10.0)
            for _ in range(2000):
                await worker.ask(Add())

            seen = runtime.statistics()

            assert seen.waiting_handler_times.count == 2  # of 8
            assert seen.waiting_handler_times.total_s == pytest.approx(2.0, abs=0.2)
            assert seen.queue_times.count == 7
            assert seen.queue_times.total_s == pytest.approx(28.0, abs=1.0)  # 1 + 2 + ... + 7
            assert 2000 / 64 - 2 <= seen.plain_handler_times.count <= 2000 / 64 + 2
            assert seen.load_times.count == 1
            assert 2000 / 16 - 2 <= seen.commit_times.count <= 2000 / 16 + 2

    run(body)


def test_messages_from_mailboxes_are_sampled_too_and_none_that_waits_for_a_task(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            worker = runtime.actor("volatile", "a")
            await worker.tell(Rest(1.0))
            for _ in range(100):
                await worker.tell(Add())
            await anyio.sleep(2.0)
            for _ in range(64):
                await worker.tell(Rest(0.5))
            await anyio.sleep(40.0)

            assert 5 <= runtime.statistics().plain_handler_times.count <= 7

    run(body)


def test_looking_is_possible_before_the_runtime_is_open_and_when_it_has_closed(run: Run) -> None:
    async def body() -> None:
        runtime = opened()
        before, picture = runtime.statistics(), str(runtime.dump())
        assert runtime.quiet
        async with runtime:
            await runtime.actor("worker", "a").ask(Add())

        after = runtime.statistics()

        assert (before.actors, before.handled, before.breaker) == (0, 0, "closed")
        assert picture.startswith("0 actors")
        assert (after.handled, after.commit_groups, after.active) == (1, 1, 0)
        assert runtime.inspect("worker", "a").state == "stopped"
        assert runtime.quiet

    run(body)


# The picture --------------------------------------------------------------------------------------------------------


def test_a_dump_shows_who_waits_for_whom_and_since_when(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime, anyio.create_task_group() as tasks:
            await anyio.sleep(5.0)
            boss = runtime.actor("worker", "boss")
            await boss.ask(Supervise(("child", "second child")))
            await runtime.actor("worker", "child").ask(Supervise(("grandchild",)))
            await runtime.actor("worker", "idle").ask(Add())
            tasks.start_soon(runtime.actor("worker", "debtor").ask, Owe())
            await anyio.sleep(1.0)
            await runtime.actor("worker", "a").tell(Ask(("b",), 9.0))
            await anyio.sleep(1.0)
            await runtime.actor("worker", "b").tell(Add())
            await anyio.sleep(1.0)

            seen = runtime.dump()

            assert [(each.depth, each.id) for each in seen.tree] == [
                (0, "worker:boss"),
                (1, "worker:child"),
                (2, "worker:grandchild"),
                (1, "worker:second child"),
            ]
            assert [each.id for each in seen.actors] == ["worker:debtor", "worker:a", "worker:b"]
            assert [(each.waiter, each.target) for each in seen.waits] == [("worker:a", "worker:b")]
            ages = [(each.message, each.to, each.where, round(each.age_s)) for each in seen.oldest]
            assert ages == [
                ("Owe", "worker:debtor", "owed", 3),
                ("Ask", "worker:a", "running", 2),
                ("Ask", "worker:b", "running", 2),
                ("Add", "worker:b", "queued", 1),
            ]
            assert seen.oldest[2].sender == "worker:a"
            text = str(seen)
            for line in (
                "    worker:child  ",
                "  worker:a -> worker:b",
                "worker:a  ready, runs Ask for",
                "Owe to worker:debtor from outside, owed",
            ):
                assert line in text
            assert "worker:idle" not in text
            tasks.cancel_scope.cancel()

    run(body)


def test_a_dump_is_bounded_and_says_what_it_left_out(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            for number in range(GROWN_ACTORS):
                await runtime.actor("worker", str(number)).tell(Ask((f"asked-{number}",), 1.0))
            await anyio.sleep(0.1)

            seen = runtime.dump(actors_max=10)

            assert (len(seen.actors), seen.actors_left_out) == (10, 2 * GROWN_ACTORS - 10)
            assert (len(seen.waits), seen.waits_left_out) == (400, GROWN_ACTORS - 400)
            assert len(seen.oldest) == 50
            assert [each.number for each in seen.oldest] == sorted(each.number for each in seen.oldest)
            assert f"... and {2 * GROWN_ACTORS - 10} more" in str(seen)
            assert len(str(seen).splitlines()) < 500

    run(body)


def test_all_that_is_shown_travels_as_json(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            await runtime.actor("worker", "a").ask(Supervise(("b",)))
            await runtime.actor("worker", "b").tell(Rest(1.0))
            with pytest.raises(Failed):
                await runtime.actor("worker", "c").ask(Crash())

            seen, one, trace = runtime.dump(), runtime.inspect("worker", "c"), runtime.trace()

            assert msgspec.json.decode(msgspec.json.encode(seen), type=Dump) == seen
            assert msgspec.json.decode(msgspec.json.encode(one), type=ActorStatistics) == one
            assert msgspec.json.decode(msgspec.json.encode(seen.statistics), type=RuntimeStatistics) == seen.statistics
            assert [(each.to, each.message, each.sender) for each in trace] == [
                ("worker:a", "Supervise", None),
                ("worker:b", "Rest", None),
                ("worker:c", "Crash", None),
            ]

    run(body)


def test_the_trace_keeps_the_last_messages_with_their_senders(run: Run) -> None:
    async def body() -> None:
        async with opened() as runtime:
            for _ in range(TRACE_MAX + 10):
                await runtime.actor("volatile", "a").ask(Add())
            await runtime.actor("worker", "a").ask(Ask(("b",), 0.0))

            whole, last = runtime.trace(), runtime.trace(2)

            assert len(whole) == TRACE_MAX
            assert whole[-2:] == last
            assert [(each.to, each.message, each.sender) for each in last] == [
                ("worker:a", "Ask", None),
                ("worker:b", "Ask", "worker:a"),
            ]
            assert last[0].number < last[1].number
            assert runtime.trace(0) == ()

    run(body)
