"""Who watches an actor is told once that it has ended, and why. The same bodies on trio and asyncio."""

import logging
from collections.abc import Awaitable, Callable

import anyio
import pytest

from callboard.runtime import Actor, Backoff, Context, Failed, Ref, Request, RestartPolicy, Runtime, handles
from callboard.runtime.identity import ActorId
from callboard.runtime.ref import Ended
from callboard.runtime.signals import ActorEnded
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]

TARGET = ActorId("target", "t")
BRIEF = RestartPolicy(restarts_max=0)
QUICK = RestartPolicy(restarts_max=1, backoff=Backoff(first_s=0.001, max_s=0.001))


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Ping(Request[str], frozen=True):
    pass


class Crash(Request[None], frozen=True):
    pass


class Watch(Request[None], frozen=True):
    tag: str
    target: ActorId = TARGET


class Unwatch(Request[None], frozen=True):
    tag: str
    target: ActorId = TARGET


class Broken(Exception):
    """What a handler that has a fault raises."""


class Target(Actor):
    @handles(Ping)
    def ping(self, _message: Ping, _context: Context) -> str:
        return "pong"

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise Broken


class Watcher(Target):
    heard: list[ActorEnded]

    @handles(Watch)
    def watch(self, message: Watch, context: Context) -> None:
        context.watch(message.target, tag=message.tag)

    @handles(Unwatch)
    def unwatch(self, message: Unwatch, context: Context) -> None:
        context.unwatch(message.target, tag=message.tag)

    @handles(ActorEnded)
    def ended(self, signal: ActorEnded, _context: Context) -> None:
        self.heard.append(signal)


class Office:
    """A runtime with targets and watchers, and what the watchers have heard."""

    def __init__(self) -> None:
        heard = self.heard = list[ActorEnded]()

        class Own(Watcher):
            pass

        Own.heard = heard
        self.runtime = Runtime(MemoryStore, drain_timeout_s=1.0)
        self.runtime.register("target", Target, restart=BRIEF)
        self.runtime.register("watcher", Own, restart=QUICK)

    @property
    def target(self) -> Ref:
        return self.runtime.actor(*TARGET.parts)

    @property
    def watcher(self) -> Ref:
        return self.runtime.actor("watcher", "w")

    @property
    def told(self) -> list[tuple[str, str]]:
        """Tag and reason of each signal that came."""
        return [(signal.tag, signal.reason) for signal in self.heard]


async def ended_of(ref: Ref, into: list[Ended]) -> None:
    into.append(await ref.wait_ended())


async def fail(ref: Ref) -> None:
    with pytest.raises(Failed):
        await ref.ask(Crash())


def test_code_that_waits_for_the_end_is_told_why_and_with_what(run: Run) -> None:
    async def body() -> None:
        office = Office()
        ends: list[Ended] = []
        async with office.runtime, anyio.create_task_group() as tasks:
            await office.target.ask(Ping())
            other = office.runtime.actor("target", "never used")
            for ref in (office.target, office.target, other):
                tasks.start_soon(ended_of, ref, ends)
            await anyio.wait_all_tasks_blocked()
            assert ends == []

            await fail(office.target)
            await other.stop()
            await anyio.wait_all_tasks_blocked()

            ends.sort(key=lambda end: end.reason)
            assert [(end.id, end.reason) for end in ends[:2]] == [(TARGET, "failed")] * 2
            assert isinstance(ends[0].error, Broken)
            assert ends[2] == Ended(other.id, "stopped", None)

    run(body)


def test_the_end_is_told_also_after_the_fact_until_the_actor_is_resumed(run: Run) -> None:
    async def body() -> None:
        office = Office()
        async with office.runtime:
            await fail(office.target)

            first = await office.target.wait_ended()
            await office.watcher.ask(Watch("late"))
            assert (first.reason, office.told) == ("failed", [("late", "failed")])
            assert isinstance(office.heard[0].error, Broken)
            await office.target.stop()
            assert await office.target.wait_ended() == Ended(TARGET, "stopped", None)

            office.runtime.resume(*TARGET.parts)
            with anyio.move_on_after(1.0) as scope:
                await office.target.wait_ended()
            assert scope.cancelled_caught
            assert await office.target.ask(Ping()) == "pong"

    run(body)


@pytest.mark.parametrize("verb", ["fail", "stop", "kill", "drain"])
def test_an_actor_that_watches_is_told_once_and_by_its_tag(run: Run, verb: str) -> None:
    async def body() -> None:
        office = Office()
        async with office.runtime:
            await office.target.ask(Ping())
            for tag in ("a", "b", "b"):
                await office.watcher.ask(Watch(tag))
            if verb == "fail":
                await fail(office.target)
            elif verb == "kill":
                office.target.kill()
            else:
                await (office.target.stop() if verb == "stop" else office.target.drain(timeout_s=1.0))
            reason = "failed" if verb == "fail" else "stopped"

            assert office.told == [("a", reason), ("b", reason)]
            assert {signal.id for signal in office.heard} == {TARGET}
            office.runtime.resume(*TARGET.parts)
            await office.target.ask(Ping())
            await office.target.stop()
            assert len(office.heard) == 2

    run(body)


def test_an_actor_that_is_told_of_a_failure_hears_nothing_of_the_stop_after_it(run: Run) -> None:
    async def body() -> None:
        office = Office()
        async with office.runtime:
            await office.watcher.ask(Watch("a"))
            await fail(office.target)
            await office.target.stop()

            assert office.told == [("a", "failed")]

    run(body)


def test_who_has_stopped_watching_hears_nothing_and_the_other_tags_do(run: Run) -> None:
    async def body() -> None:
        office = Office()
        async with office.runtime:
            for tag in ("a", "b"):
                await office.watcher.ask(Watch(tag))
            await office.watcher.ask(Unwatch("a"))
            await office.watcher.ask(Unwatch("never watched"))
            await office.target.stop()

            assert office.told == [("b", "stopped")]

    run(body)


@pytest.mark.parametrize("how", ["crash", "passivation", "stop"])
def test_a_watch_ends_with_the_activation_that_began_it(run: Run, how: str) -> None:
    async def body() -> None:
        office = Office()
        async with office.runtime:
            await office.watcher.ask(Watch("a"))
            if how == "crash":
                await fail(office.watcher)
            elif how == "passivation":
                assert office.watcher.passivate()
            else:
                await office.watcher.stop()
                office.runtime.resume("watcher", "w")
            await office.watcher.ask(Ping())
            await office.target.stop()
            await office.watcher.ask(Ping())

            assert office.heard == []

    run(body)


def test_neither_passivation_nor_a_restart_is_an_end(run: Run) -> None:
    async def body() -> None:
        office = Office()
        office.runtime.register("forgiven", Target, restart=QUICK)
        async with office.runtime:
            forgiven = office.runtime.actor("forgiven", "f")
            await forgiven.ask(Ping())
            await office.watcher.ask(Watch("a", forgiven.id))
            with anyio.move_on_after(10.0) as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ended_of, forgiven, list[Ended]())
                    await anyio.wait_all_tasks_blocked()
                    assert forgiven.passivate()
                    await forgiven.ask(Ping())
                    await fail(forgiven)
                    await forgiven.ask(Ping())

            assert scope.cancelled_caught
            assert office.heard == []
            await fail(forgiven)
            assert office.told == [("a", "failed")], "the watch has outlived all of it"

    run(body)


def test_the_end_of_the_runtime_is_an_end_for_code_and_cuts_nothing(run: Run) -> None:
    async def body() -> None:
        office = Office()
        ends: list[Ended] = []
        refs: list[Ref] = []
        async with anyio.create_task_group() as tasks, office.runtime:
            for key in ("a", "w"):
                await office.runtime.actor("watcher", key).ask(Watch("a"))
            refs += [office.target, office.runtime.actor("target", "never used")]
            for ref in refs:
                tasks.start_soon(ended_of, ref, ends)
            await anyio.wait_all_tasks_blocked()

        assert {(end.id.key, end.reason) for end in ends} == {("t", "stopped"), ("never used", "stopped")}
        assert (await refs[1].wait_ended()).reason == "stopped"
        assert office.runtime.cut == [], "a signal of the kernel's own is no work that was cut"

    run(body)


def test_what_waits_for_an_end_and_goes_away_leaves_nothing_behind(run: Run) -> None:
    async def body() -> None:
        office = Office()
        async with office.runtime:
            for _ in range(3):
                with anyio.move_on_after(0.01):
                    await office.target.wait_ended()
            await office.watcher.ask(Watch("a"))
            await office.watcher.ask(Unwatch("a"))

            await office.target.ask(Ping())
            actors = office.runtime.statistics().actors
            assert office.target.passivate()
            assert office.runtime.statistics().actors == actors - 1, "nobody's watch keeps the id in memory"

    run(body)


def test_an_actor_may_watch_itself_and_is_not_woken_by_its_own_end(run: Run) -> None:
    async def body() -> None:
        office = Office()
        async with office.runtime:
            await office.watcher.ask(Watch("self", ActorId("watcher", "w")))
            await office.watcher.stop()

            assert (await office.watcher.wait_ended()).reason == "stopped"
            assert office.heard == []
            office.runtime.resume("watcher", "w")
            assert await office.watcher.ask(Ping()) == "pong"

    run(body)
