"""Circles of waiting are refused before they close, from whichever side. Extends test_call_chains.py."""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Actor,
    ActorId,
    ChildEnded,
    Context,
    CyclicAsk,
    Failed,
    MailboxFull,
    Rejected,
    Request,
    Runtime,
    handles,
)
from callboard.store import CallboardError, MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Echo(Request[str], frozen=True):
    value: str = "echo"


class Work(Request[str], frozen=True):
    seconds: float


class Step(Request[str], frozen=True):
    """Sleep, then do the next thing at `key`: ask it this message, or tell it."""

    seconds: float
    key: str
    message: Request[str]
    way: str = "ask"


class Clerk(Actor):
    @handles(Echo)
    def echo(self, message: Echo, _context: Context) -> str:
        return message.value

    @handles(Work)
    async def work(self, message: Work, _context: Context) -> str:
        await anyio.sleep(message.seconds)
        return "worked"

    @handles(Step)
    async def step(self, message: Step, context: Context) -> str:
        await anyio.sleep(message.seconds)
        other = context.actor("clerk", message.key)
        if message.way == "ask":
            return await other.ask(message.message, timeout_s=1000.0)
        if message.way == "ask_nowait":
            return await other.ask_nowait(message.message, timeout_s=1000.0).wait()
        await other.tell(message.message, timeout_s=1000.0)
        return "told"


def a_runtime(**options: Any) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    runtime.register("clerk", Clerk, durable=False, **options)
    return runtime


def waits(runtime: Runtime) -> set[str]:
    post = runtime._post  # pyright: ignore[reportPrivateUsage] - the graph is to be empty when all is quiet
    return {f"{waiter.key}{target.key}" for waiter, target in post.waits.edges()}


async def outcomes_of(runtime: Runtime, asks: dict[str, Request[str]]) -> dict[str, str]:
    """Ask these actors at once, in this order: what each answered, and when, in whole seconds."""
    outcomes: dict[str, str] = {}
    began = anyio.current_time()

    async def ask(key: str, message: Request[str]) -> None:
        try:
            answer = await runtime.actor("clerk", key).ask(message, timeout_s=2000.0)
        except Rejected as error:
            answer = type(error).__name__
        outcomes[key] = f"{answer} at {anyio.current_time() - began:.0f}"

    async with anyio.create_task_group() as tasks:
        for key, message in asks.items():
            tasks.start_soon(ask, key, message)
            await anyio.wait_all_tasks_blocked()
    return outcomes


@pytest.mark.parametrize("way", ["ask", "ask_nowait"])
@pytest.mark.parametrize(("a_s", "b_s"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_two_chains_that_would_wait_for_each_other_end_with_one_refusal(
    run: Run, way: str, a_s: float, b_s: float
) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            asks: dict[str, Request[str]] = {
                "a": Step(a_s, "b", Echo("from b"), way),
                "b": Step(b_s, "a", Echo("from a"), way),
            }

            outcomes = await outcomes_of(runtime, asks)

            latest = f"{max(a_s, b_s):.0f}"
            refused = f"CyclicAsk at {latest}"
            assert list(outcomes.values()).count(refused) == 1
            first = "b" if a_s < b_s else "a"
            if a_s != b_s:
                assert outcomes[first] == refused, "the one that would have closed the circle"
            assert waits(runtime) == set()

    run(body)


def test_a_circle_of_three_independent_chains_is_refused_to_the_last_with_all_of_it(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            pending = [
                runtime.actor("clerk", key).ask_nowait(Step(seconds, other, Echo(f"from {other}")), timeout_s=2000.0)
                for key, seconds, other in (("a", 1.0, "b"), ("b", 2.0, "c"), ("c", 3.0, "a"))
            ]
            await anyio.sleep(2.5)
            assert waits(runtime) == {"ab", "bc"}

            with pytest.raises(CyclicAsk, match=r"clerk:c -> clerk:a -> clerk:b -> clerk:c$"):
                await pending[2].wait()
            assert [await pending[1].wait(), await pending[0].wait()] == ["from c", "from b"]
            assert waits(runtime) == set()

    run(body)


def test_the_chain_of_the_call_is_named_whole(run: Run) -> None:
    nested = Step(0, "b", Step(0, "c", Step(0, "d", Step(0, "b", Echo()))))

    async def body() -> None:
        async with a_runtime() as runtime:
            with pytest.raises(CyclicAsk, match=r"clerk:a -> clerk:b -> clerk:c -> clerk:d -> clerk:b$"):
                await runtime.actor("clerk", "a").ask(nested)

            assert waits(runtime) == set()

    run(body)


def test_who_asks_the_same_actors_side_by_side_is_no_circle(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            outcomes = await outcomes_of(
                runtime,
                {
                    "a": Step(1, "c", Step(5, "d", Echo("1"))),
                    "b": Step(1, "c", Step(5, "d", Echo("2"))),
                    "e": Step(1, "d", Work(20)),
                },
            )

            assert outcomes["e"] == "worked at 21"
            assert {outcomes["a"][1:], outcomes["b"][1:]} == {" at 21", " at 26"}
            assert waits(runtime) == set()

    run(body)


def test_once_a_caller_has_gone_nobody_waits_in_its_name_any_more(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            busy = runtime.actor("clerk", "b").ask_nowait(Step(5, "a", Echo("from a")))
            killed = runtime.actor("clerk", "a").ask_nowait(Step(1, "b", Echo()))
            await anyio.sleep(1.5)
            assert waits(runtime) == {"ab"}
            runtime.actor("clerk", "a").kill()
            with pytest.raises(Failed):
                await killed.wait()
            await anyio.sleep(0.1)
            assert waits(runtime) == set()
            runtime.resume("clerk", "a")

            assert await busy.wait() == "from a", "there is no circle left"

    run(body)


def test_an_ask_whose_deadline_passed_leaves_no_edge(run: Run) -> None:
    class Hasty(Clerk):
        @handles(Echo)
        async def ask_in_haste(self, _message: Echo, context: Context) -> str:
            with pytest.raises(Rejected):
                await context.actor("clerk", "b").ask(Echo(), timeout_s=1.0)
            await anyio.sleep(10)
            return "gave up"

    async def body() -> None:
        async with a_runtime() as runtime:
            runtime.register("hasty", Hasty, durable=False)
            busy = runtime.actor("clerk", "b").ask_nowait(Work(5))
            pending = runtime.actor("hasty", "h").ask_nowait(Echo())
            await anyio.sleep(0.5)
            assert waits(runtime) == {"hb"}
            await anyio.sleep(1)
            assert waits(runtime) == set()

            assert [await busy.wait(), await pending.wait()] == ["worked", "gave up"]

    run(body)


def test_two_tasks_of_one_handler_that_ask_the_same_actor_wait_until_both_have_their_answer(run: Run) -> None:
    class Twice(Clerk):
        @handles(Echo)
        async def ask_twice(self, _message: Echo, context: Context) -> str:
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(context.actor("clerk", "b").ask, Work(5))
            return "both"

    async def body() -> None:
        async with a_runtime() as runtime:
            runtime.register("twice", Twice, durable=False)
            pending = runtime.actor("twice", "t").ask_nowait(Echo())
            for _ in range(3):
                assert waits(runtime) == ({"tb"} if _ else set())
                await anyio.sleep(4)
            assert await pending.wait() == "both"
            assert waits(runtime) == set()

    run(body)


def test_a_tell_to_a_full_mailbox_of_one_that_waits_for_the_teller_is_refused(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(mailbox_count_max=1) as runtime:
            first = runtime.actor("clerk", "b").ask_nowait(Step(1, "a", Step(5, "b", Echo(), "tell")), timeout_s=2000.0)
            await anyio.sleep(2)
            await runtime.actor("clerk", "b").tell(Echo("fills it"))

            with pytest.raises(MailboxFull):
                await first.wait()
            assert waits(runtime) == set()

    run(body)


def test_asking_one_that_waits_for_space_in_the_askers_mailbox_is_a_circle(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(mailbox_count_max=1) as runtime:
            asker = runtime.actor("clerk", "b").ask_nowait(Step(5, "a", Echo()), timeout_s=2000.0)
            await runtime.actor("clerk", "b").tell(Echo("fills it"))
            began = anyio.current_time()
            teller = runtime.actor("clerk", "a").ask_nowait(Step(1, "b", Echo(), "tell"), timeout_s=2000.0)
            await anyio.sleep(2)
            assert waits(runtime) == {"ab"}

            with pytest.raises(CyclicAsk):
                await asker.wait()
            assert await teller.wait() == "told"
            assert anyio.current_time() - began < 900, "it did not take a deadline to end it"

    run(body)


def test_work_that_an_actor_has_spawned_may_ask_its_own_actor(run: Run) -> None:
    class Spawner(Clerk):
        heard = ""

        @handles(Step)
        def spawn(self, message: Step, context: Context) -> str:
            me = context.actor("spawner", context.id.key)

            async def work() -> None:
                self.heard = await me.ask(Echo("from the child"))

            context.spawn(work, tag="child")
            return "spawned"

        @handles(ChildEnded)
        def child_ended(self, _signal: ChildEnded, _context: Context) -> None:
            pass

        @handles(Work)
        def say(self, _message: Work, _context: Context) -> str:
            return self.heard

    async def body() -> None:
        async with a_runtime() as runtime:
            runtime.register("spawner", Spawner, durable=False)
            await runtime.actor("spawner", "s").ask(Step(0, "", Echo()))
            await anyio.sleep(1)

            assert await runtime.actor("spawner", "s").ask(Work(0)) == "from the child"
            assert waits(runtime) == set()

    run(body)


def test_the_graph_is_empty_after_a_crowd_of_chains_whatever_became_of_them(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(mailbox_count_max=3) as runtime:
            keys = "abcdef"
            ended = 0
            outcomes: set[str] = set()

            async def chain(number: int) -> None:
                nonlocal ended
                first, second, third = (keys[number * step % 6] for step in (1, 2, 5))
                message = Step(number % 3, second, Step(number % 2, third, Echo()))
                with anyio.move_on_after(number % 7 or math.inf):
                    try:
                        await runtime.actor("clerk", first).ask(message, timeout_s=5.0 + number % 11)
                    except CallboardError as error:
                        outcomes.add(type(error).__name__)
                ended += 1

            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(chain, number)
            await anyio.sleep(2000)

            assert ended == 60
            assert outcomes <= {"CyclicAsk", "Expired", "Unknown", "Failed"}
            assert waits(runtime) == set()
            assert all(runtime.inspect("clerk", key).running is None for key in keys)

    run(body)


def test_a_cyclic_ask_was_not_queued(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            handled = runtime.statistics().handled
            with pytest.raises(CyclicAsk):
                await runtime.actor("clerk", "a").ask(Step(0, "a", Echo()))

            assert runtime.statistics().handled == handled + 1
            assert runtime.inspect("clerk", "a").queued == 0
            assert ActorId("clerk", "a") not in {letter.to for letter in runtime.dead_letters}

    run(body)
