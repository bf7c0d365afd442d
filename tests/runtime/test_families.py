"""Who restarts with whom, and what a failure means for the parent. The same bodies on trio and asyncio."""

import logging
from collections.abc import Awaitable, Callable

import anyio
import pytest

from callboard.runtime import (
    Actor,
    ActorFailed,
    Backoff,
    Context,
    Failed,
    Ref,
    Request,
    RestartPolicy,
    Runtime,
    UnknownActor,
    handles,
)
from callboard.runtime.budget import RestartStrategy
from callboard.runtime.identity import ActorId
from callboard.store import MemoryStore, StoreUnavailable

Run = Callable[[Callable[[], Awaitable[None]]], None]

SOON = Backoff(first_s=0.01, max_s=0.01)
CHILDREN = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Ping(Request[int], frozen=True):
    """Answered with the number of the activation."""


class Crash(Request[None], frozen=True):
    pass


class Sleep(Request[None], frozen=True):
    seconds: float = 1000.0
    deaf: bool = False


class Supervise(Request[None], frozen=True):
    kind: str
    key: str


class Broken(Exception):
    """What a handler that has a fault raises."""


class Member(Actor):
    """Notes its activations; supervises what its plan says, from its load on."""

    log: list[str]
    plan: dict[str, list[ActorId]]

    def load(self, context: Context) -> None:
        name = self.id.key
        self.log.append(name)
        self.number = self.log.count(name)
        for child in self.plan.get(name, []):
            context.supervise(child)

    @handles(Ping)
    def ping(self, _message: Ping, _context: Context) -> int:
        return self.number

    @handles(Crash)
    def crash(self, _message: Crash, context: Context) -> None:
        context.stage(head=b"never stored")
        raise Broken

    @handles(Sleep)
    async def sleep(self, message: Sleep, context: Context) -> None:
        context.stage(head=b"never stored")
        with anyio.CancelScope(shield=message.deaf):
            await anyio.sleep(message.seconds)
        self.log.append("woke")

    @handles(Supervise)
    def supervise(self, message: Supervise, context: Context) -> None:
        context.supervise(ActorId(message.kind, message.key))


class Family:
    """A grandparent of a parent, with four children a to d, each kind with its own policy."""

    def __init__(
        self,
        strategy: RestartStrategy = "one_for_one",
        *,
        child_restarts_max: int = 1,
        parent_restarts_max: int = 1,
        grandparent_restarts_max: int = 1,
    ) -> None:
        log = self.log = list[str]()

        class Own(Member):
            pass

        Own.log = log
        Own.plan = {
            "grandparent": [ActorId("parent", "parent")],
            "parent": [ActorId("child", key) for key in CHILDREN],
        }
        self.store = MemoryStore()
        self.runtime = Runtime(lambda: self.store, drain_timeout_s=1.0)
        for kind, restarts_max in (
            ("child", child_restarts_max),
            ("parent", parent_restarts_max),
            ("grandparent", grandparent_restarts_max),
        ):
            self.runtime.register(kind, Own, restart=RestartPolicy(restarts_max, backoff=SOON, strategy=strategy))

    def member(self, name: str) -> Ref:
        return self.runtime.actor(name if name.endswith("parent") else "child", name)

    def state(self, name: str) -> str:
        return self.runtime.inspect(*self.member(name).id.parts).state

    async def gather(self) -> None:
        """Activate all of them, from the top."""
        for name in ("grandparent", "parent", *CHILDREN):
            assert await self.member(name).ask(Ping()) == 1
        self.log.clear()

    async def crash(self, name: str) -> None:
        with pytest.raises(Failed):
            await self.member(name).ask(Crash())

    async def settle(self) -> list[str]:
        """Who was activated since, in order."""
        await anyio.sleep(1.0)
        log = list(self.log)
        self.log.clear()
        return log


@pytest.mark.parametrize(
    ("strategy", "restarted"),
    [("one_for_one", ["b"]), ("one_for_all", ["a", "b", "c", "d"]), ("rest_for_one", ["b", "c", "d"])],
)
def test_the_parents_strategy_says_which_siblings_restart_with_a_child(
    run: Run, strategy: RestartStrategy, restarted: list[str]
) -> None:
    async def body() -> None:
        family = Family(strategy)
        async with family.runtime:
            await family.gather()
            await family.crash("b")

            assert sorted(await family.settle()) == restarted
            assert family.state("parent") == "ready"
            assert family.runtime.statistics().crashes == 1
            for name in CHILDREN:  # the siblings' own budgets of one restart are still whole
                if name != "b":
                    await family.crash(name)
                    assert name in await family.settle()
            assert [family.state(name) for name in CHILDREN] == ["ready"] * 4

    run(body)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_what_a_sibling_was_doing_fails_with_the_reason_and_its_queue_is_kept(
    run: Run, strategy: RestartStrategy
) -> None:
    async def body() -> None:
        family = Family(strategy)
        async with family.runtime:
            await family.gather()
            running = family.member("c").ask_nowait(Sleep())
            queued = family.member("c").ask_nowait(Ping())
            await anyio.wait_all_tasks_blocked()
            await family.crash("b")

            with pytest.raises(Failed, match=r"child:c was restarted .* child:b, which crashed with Broken"):
                await running.wait()
            await queued.wait()
            assert family.store.load("child:c") is None

    run(body)


def test_a_sibling_restarts_when_its_handler_has_ended_also_one_that_cannot_be_cancelled(run: Run) -> None:
    async def body() -> None:
        family = Family("one_for_all")
        async with family.runtime:
            await family.gather()
            running = family.member("c").ask_nowait(Sleep(20.0, deaf=True))
            await anyio.wait_all_tasks_blocked()
            await family.crash("b")
            queued = family.member("c").ask_nowait(Ping())

            with pytest.raises(Failed):
                await running.wait()
            assert sorted(await family.settle()) == ["a", "b", "d"]
            await queued.wait()
            assert family.log == ["woke", "c"]
            assert family.store.load("child:c") is None

    run(body)


def test_rest_for_one_goes_by_the_order_in_which_they_were_supervised(run: Run) -> None:
    async def body() -> None:
        family = Family("rest_for_one")
        async with family.runtime:
            await family.gather()
            for key in ("a", "e", "b"):  # those that are children already keep their place
                await family.member("parent").ask(Supervise("child", key))
            await family.member("e").ask(Ping())
            family.log.clear()
            await family.crash("e")
            assert await family.settle() == ["e"]

            await family.crash("d")
            assert sorted(await family.settle()) == ["d", "e"]

    run(body)


def test_a_child_whose_budget_is_spent_crashes_its_parent_which_restarts_all_of_its_children(run: Run) -> None:
    async def body() -> None:
        family = Family(child_restarts_max=0)
        async with family.runtime:
            await family.gather()
            running = family.member("parent").ask_nowait(Sleep())
            await family.crash("b")

            with pytest.raises(Failed, match="child:b, which it supervises, has failed"):
                await running.wait()
            assert sorted(await family.settle()) == ["a", "c", "d", "parent"]
            assert family.state("b") == "absent", "resumed, and activated by its next message"
            assert await family.member("b").ask(Ping()) == 1
            assert family.state("grandparent") == "ready"

            await family.crash("c")
            assert family.runtime.inspect("grandparent", "grandparent").restarts == 1, "the parent's budget was spent"

    run(body)


def test_failures_climb_two_levels_and_the_top_restarts_what_is_below_it(run: Run) -> None:
    async def body() -> None:
        family = Family(child_restarts_max=0, parent_restarts_max=0)
        async with family.runtime:
            await family.gather()
            await family.crash("b")

            assert await family.settle() == ["grandparent"]
            assert [family.state(name) for name in ("parent", *CHILDREN)] == ["absent"] * 5, "failed, and resumed"
            assert [await family.member(name).ask(Ping()) for name in ("parent", *CHILDREN)] == [1] * 5
            assert family.runtime.statistics().crashes == 3

    run(body)


def test_where_the_top_fails_as_well_nobody_of_the_family_is_left(run: Run) -> None:
    async def body() -> None:
        family = Family(child_restarts_max=0, parent_restarts_max=0, grandparent_restarts_max=0)
        async with family.runtime:
            await family.gather()
            running = family.member("d").ask_nowait(Sleep())
            queued = family.member("d").ask_nowait(Ping())
            await family.crash("b")

            names = ["grandparent", "parent", *CHILDREN]
            assert [family.state(name) for name in names] == ["failed"] * 6
            with pytest.raises(Failed):
                await running.wait()
            with pytest.raises(ActorFailed):
                await queued.wait()
            assert await family.settle() == []
            with pytest.raises(ActorFailed, match="parent:parent has failed"):
                await family.member("a").ask(Ping())
            family.runtime.resume("grandparent", "grandparent")
            assert [await family.member(name).ask(Ping()) for name in names] == [1] * 6

    run(body)


def test_a_parent_that_crashes_restarts_its_children_whatever_its_strategy(run: Run) -> None:
    async def body() -> None:
        family = Family("one_for_one")
        async with family.runtime:
            await family.gather()
            await family.crash("parent")

            assert sorted(await family.settle()) == ["a", "b", "c", "d", "parent"]
            assert family.state("grandparent") == "ready"

    run(body)


def test_a_parent_whose_commit_is_refused_restarts_its_children_too_and_spends_nothing(run: Run) -> None:
    async def body() -> None:
        family = Family(parent_restarts_max=0)
        async with family.runtime:
            await family.gather()
            family.runtime.register("writer", _writer_of(family))
            family.store.fail_next_commit(StoreUnavailable("the disk is away"))
            with pytest.raises(Failed):
                await family.runtime.actor("writer", "w").ask(Ping())

            assert (await family.settle()).count("child of w") == 2
            assert family.runtime.statistics().crashes == 0

    run(body)


def _writer_of(family: Family) -> type[Actor]:
    class Writer(Actor):
        @handles(Ping)
        async def ping(self, _message: Ping, context: Context) -> int:
            child = ActorId("child", "child of w")
            context.supervise(child)
            await context.actor(*child.parts).ask(Ping())
            context.stage(head=b"x")
            return len(family.log)

    return Writer


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_a_child_that_stops_leaves_the_family_in_peace(run: Run, verb: str) -> None:
    async def body() -> None:
        family = Family("one_for_all")
        async with family.runtime:
            await family.gather()
            if verb == "stop":
                await family.member("b").stop()
            else:
                family.member("b").kill()
            assert await family.settle() == []

            family.runtime.resume("child", "b")
            await family.member("b").ask(Ping())
            family.log.clear()
            await family.crash("a")
            assert sorted(await family.settle()) == ["a", "c", "d"]
            for _ in range(2):
                await family.crash("b")
            assert (family.state("b"), family.state("parent")) == ("failed", "ready"), "it is nobody's child any more"

    run(body)


def test_children_of_a_parent_that_stops_go_on_by_themselves(run: Run) -> None:
    async def body() -> None:
        family = Family("one_for_all")
        async with family.runtime:
            await family.gather()
            await family.member("parent").stop()
            assert [family.state(name) for name in CHILDREN] == ["ready"] * 4

            await family.crash("b")
            assert await family.settle() == ["b"]

    run(body)


def test_one_that_is_stopping_or_was_stopped_is_not_restarted_with_its_siblings(run: Run) -> None:
    async def body() -> None:
        family = Family("one_for_all")
        async with family.runtime, anyio.create_task_group() as tasks:
            await family.gather()
            running = family.member("a").ask_nowait(Sleep())
            tasks.start_soon(family.member("a").stop)
            await anyio.wait_all_tasks_blocked()
            await family.crash("b")

            assert sorted(await family.settle()) == ["b", "c", "d"]
            assert family.state("a") == "stopping"
            family.member("a").kill()
            with pytest.raises(Failed):
                await running.wait()

    run(body)


@pytest.mark.parametrize(
    ("parent", "child", "reason"),
    [
        ("grandparent", ("grandparent", "grandparent"), "or is the same"),
        ("parent", ("grandparent", "grandparent"), "stands above parent:parent"),
        ("parent", ("child", "of another"), "is supervised by parent:other already"),
    ],
)
def test_a_family_is_a_tree_and_what_would_not_be_one_is_refused_at_the_door(
    run: Run, parent: str, child: tuple[str, str], reason: str
) -> None:
    async def body() -> None:
        family = Family()
        async with family.runtime:
            await family.gather()
            await family.runtime.actor("parent", "other").ask(Supervise("child", "of another"))

            with pytest.raises(Failed, match=reason) as caught:
                await family.member(parent).ask(Supervise(*child))
            assert isinstance(caught.value.__cause__, ValueError)

    run(body)


def test_an_actor_of_no_kind_cannot_be_supervised(run: Run) -> None:
    async def body() -> None:
        family = Family()
        async with family.runtime:
            with pytest.raises(UnknownActor, match="nobody"):
                await family.member("parent").ask(Supervise("nobody", "k"))
            assert await family.member("parent").ask(Ping()) == 1

    run(body)


def test_a_parent_stays_in_memory_and_a_child_may_leave_it_and_stays_a_child(run: Run) -> None:
    async def body() -> None:
        family = Family("one_for_all", child_restarts_max=0)
        async with family.runtime:
            await family.gather()

            assert not family.member("parent").passivate()
            assert family.member("b").passivate()
            await anyio.sleep(1000.0)
            assert [family.state(name) for name in ("parent", *CHILDREN)] == ["ready", *["absent"] * 4]
            await family.crash("b")
            assert "parent" in await family.settle(), "the one that came back was still its child"

    run(body)


def test_a_child_that_is_restarting_already_is_not_restarted_once_more_by_its_parent(run: Run) -> None:
    async def body() -> None:
        family = Family("one_for_all")
        async with family.runtime:
            await family.gather()
            await family.crash("a")
            await family.crash("parent")

            assert sorted(await family.settle()) == [*CHILDREN, "parent"]
            assert [family.runtime.inspect("child", name).restarts for name in CHILDREN] == [1] * 4

    run(body)


def test_a_child_that_fails_while_its_parent_still_loads_crashes_it_too(run: Run) -> None:
    async def body() -> None:
        family = Family(child_restarts_max=0)
        loads: list[str] = []

        class Slow(Actor):
            async def load(self, context: Context) -> None:
                context.supervise(ActorId("child", "of the slow one"))
                loads.append("begun")
                await anyio.sleep(5.0)
                loads.append("done")

            @handles(Ping)
            def ping(self, _message: Ping, _context: Context) -> int:
                return len(loads)

        async with family.runtime:
            family.runtime.register("slow", Slow)
            pending = family.runtime.actor("slow", "s").ask_nowait(Ping())
            await anyio.sleep(1.0)
            await family.crash("of the slow one")

            assert await pending.wait() == 3
            assert loads == ["begun", "begun", "done"]

    run(body)
