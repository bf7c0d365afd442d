"""The tasks that async handlers borrow: reused, bounded, and of no effect on each other. On trio and asyncio."""

import asyncio
import contextlib
import contextvars
import logging
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from callboard.runtime import Actor, ActorId, Backoff, Context, Failed, Request, RestartPolicy, Runtime, handles
from callboard.runtime.workers import IDLE_WORKERS_MAX
from callboard.store import CallboardError, MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]
When = Literal["first step", "later"]
WHENS: tuple[When, ...] = ("first step", "later")

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Do(Request[Any], frozen=True):
    """Await this, in the handler; if the caller goes, the work is cancelled."""

    work: Callable[[], Awaitable[Any]]


class DoStubbornly(Do, frozen=True):
    """The same; the work goes on when its caller has gone."""


class DoPlainly(Request[Any], frozen=True):
    work: Callable[[], Any]


class Hand(Actor):
    @handles(Do, on_cancel="cancel")
    async def do(self, message: Do, _context: Context) -> Any:
        return await message.work()

    @handles(DoStubbornly, on_cancel="detach")
    async def do_stubbornly(self, message: DoStubbornly, _context: Context) -> Any:
        return await message.work()

    @handles(DoPlainly)
    def do_plainly(self, message: DoPlainly, _context: Context) -> Any:
        return message.work()


def a_runtime() -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    quick = RestartPolicy(restarts_max=1000, backoff=Backoff(first_s=0.001, max_s=0.001))
    runtime.register("hand", Hand, durable=False, restart=quick)
    return runtime


def workers_of(runtime: Runtime) -> int:
    return len(runtime._supervisor.workers)  # pyright: ignore[reportPrivateUsage] - tasks show nowhere else


def worked(value: object, seconds: float = 1.0) -> Callable[[], Awaitable[object]]:
    async def work() -> object:
        await anyio.sleep(seconds)
        return value

    return work


def failing(error: BaseException, when: When) -> Callable[[], Coroutine[Any, Any, object]]:
    async def work() -> object:
        if when == "later":
            await anyio.sleep(1.0)
        raise error

    return work


async def warm(runtime: Runtime, count: int = 1) -> None:
    """Let so many workers stand ready."""
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(runtime.actor("hand", f"warm{number}").ask, Do(worked("warm")))
    await anyio.wait_all_tasks_blocked()


def test_a_worker_is_used_again_also_after_errors_and_cancellations(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            for number in range(30):
                hand = runtime.actor("hand", str(number % 4))
                assert await hand.ask(Do(worked(number))) == number
                with pytest.raises(Failed):
                    await hand.ask(Do(failing(RuntimeError("ordered"), WHENS[number % 2])))
                with anyio.move_on_after(0.5):
                    await runtime.actor("hand", "other").ask(Do(worked("never")))
                await anyio.wait_all_tasks_blocked()

            assert workers_of(runtime) == 1

    run(body)


def test_as_many_run_at_once_as_are_asked_and_a_bounded_number_stays(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            began = anyio.current_time()
            await warm(runtime, IDLE_WORKERS_MAX + 50)
            assert anyio.current_time() - began == pytest.approx(1.0, abs=0.1), "side by side"
            assert workers_of(runtime) == IDLE_WORKERS_MAX

            await warm(runtime, IDLE_WORKERS_MAX + 50)
            assert workers_of(runtime) == IDLE_WORKERS_MAX

    run(body)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_context_variables_leak_neither_from_callers_nor_between_actors(run: Run, seconds: float) -> None:
    async def paint() -> str:
        seen = color.get()
        color.set("painted by a handler")
        await anyio.sleep(seconds)
        assert color.get() == "painted by a handler", "its own, over all of its steps"
        return seen

    async def body() -> None:
        async with a_runtime() as runtime:
            await warm(runtime)
            color.set("the caller's")
            for key in ("a", "b", "a", "b"):
                assert await runtime.actor("hand", key).ask(Do(paint)) == "none"
                assert await runtime.actor("hand", key).ask(DoPlainly(color.get)) == "none"

            await runtime.actor("hand", "c").ask(DoPlainly(lambda: color.set("c's own")))
            assert await runtime.actor("hand", "c").ask(Do(paint)) == "c's own"
            assert await runtime.actor("hand", "d").ask(Do(paint)) == "none"
            assert color.get() == "the caller's"

    run(body)


@pytest.mark.parametrize("warmed", [True, False])
def test_a_handler_runs_outside_of_its_callers_scopes_from_its_first_step_on(run: Run, warmed: bool) -> None:
    seen: list[object] = []

    async def look() -> str:
        seen.append(anyio.current_effective_deadline())
        seen.append(anyio.get_current_task().id)
        with anyio.move_on_after(1.0) as scope:
            await anyio.sleep(3.0)
        seen.append(scope.cancelled_caught)
        await anyio.sleep(3.0)
        seen.append("end")
        return "end"

    async def body() -> None:
        async with a_runtime() as runtime:
            if warmed:
                await warm(runtime)
            with anyio.move_on_after(2.0):
                await runtime.actor("hand", "a").ask(DoStubbornly(look))
            assert seen[0] == float("inf")
            assert seen[1] != anyio.get_current_task().id
            assert seen[2:] == [True]
            await anyio.sleep(3.0)

            assert seen[2:] == [True, "end"], "it was not its caller's scope"

    run(body)


def test_the_cancellation_of_one_job_does_not_hit_the_next_one_in_its_worker(run: Run) -> None:
    async def deaf() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(2.0)
        return "not cut off"

    async def body() -> None:
        async with a_runtime() as runtime:
            await warm(runtime)
            for first in (deaf, worked("x", 2.0)):
                for _ in range(3):
                    with anyio.move_on_after(1.0):
                        await runtime.actor("hand", "a").ask(Do(first))
                    answers: list[object] = []

                    async def ask(number: int) -> None:
                        answers.append(await runtime.actor("hand", str(number)).ask(Do(worked(number))))  # noqa: B023

                    async with anyio.create_task_group() as tasks:
                        for number in range(3):
                            tasks.start_soon(ask, number)
                    assert sorted(answers, key=str) == [0, 1, 2]
                    assert await runtime.actor("hand", "a").ask(Do(worked("next"))) == "next"

    run(body)


@pytest.mark.parametrize("way", ["deadline", "gives up"])
def test_a_caller_that_goes_at_the_very_moment_of_the_answer_disturbs_nobody(run: Run, way: str) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await warm(runtime)
            for number in range(20):
                pending = runtime.actor("hand", "a").ask_nowait(Do(worked("x")), timeout_s=1.0)
                if way == "deadline":
                    with contextlib.suppress(CallboardError):
                        assert await pending.wait() == "x"
                else:
                    await anyio.sleep(1.0)
                    pending.give_up()
                assert await runtime.actor("hand", "a").ask(Do(worked(number))) == number

    run(body)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("warmed", [True, False])
def test_a_group_of_errors_from_a_handlers_tasks_is_its_crash(run: Run, when: When, warmed: bool) -> None:
    async def group() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(failing(ValueError("one"), when))
            tasks.start_soon(anyio.sleep_forever)

    async def body() -> None:
        async with a_runtime() as runtime:
            if warmed:
                await warm(runtime)
            with pytest.raises(Failed) as raised:
                await runtime.actor("hand", "a").ask(Do(group))
            assert "ExceptionGroup" in repr(raised.value.__cause__)
            assert "ValueError('one')" in repr(raised.value.__cause__)

            assert await runtime.actor("hand", "a").ask(Do(worked("next"))) == "next"
            assert runtime.inspect("hand", "a").restarts == 1

    run(body)


def test_a_handler_that_fails_while_it_is_cancelled_crashes_only_its_own_actor(run: Run) -> None:
    async def untidy() -> None:
        async def task() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("in the middle of tidying up")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task)
            tasks.start_soon(anyio.sleep_forever)

    async def body() -> None:
        async with a_runtime() as runtime:
            await warm(runtime)
            with anyio.move_on_after(1.0):
                await runtime.actor("hand", "a").ask(Do(untidy))
            await anyio.sleep(1)

            assert runtime.inspect("hand", "a").restarts == 1
            assert await runtime.actor("hand", "a").ask(Do(worked("next"))) == "next"
            assert await runtime.actor("hand", "b").ask(Do(worked("next"))) == "next"
            assert workers_of(runtime) == 1

    run(body)


@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration()])
@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("warmed", [True, False])
def test_errors_that_python_itself_uses_are_a_handlers_crash_like_others(
    run: Run, error: BaseException, when: When, warmed: bool
) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            if warmed:
                await warm(runtime)
            with pytest.raises(Failed):
                await runtime.actor("hand", "a").ask(Do(failing(error, when)))

            assert await runtime.actor("hand", "a").ask(Do(worked("next"))) == "next"

    run(body)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("warmed", [True, False])
def test_a_handler_that_awaits_what_no_event_loop_knows_crashes(run: Run, when: When, warmed: bool) -> None:
    @types.coroutine
    def strange() -> Generator[Any, Any, None]:
        yield "not of this loop"

    async def work() -> None:
        if when == "later":
            await anyio.sleep(1.0)
        await strange()

    async def body() -> None:
        async with a_runtime() as runtime:
            if warmed:
                await warm(runtime)
            with pytest.raises(Failed):
                await runtime.actor("hand", "a").ask(Do(work))

            assert await runtime.actor("hand", "a").ask(Do(worked("next"))) == "next"
            assert await runtime.actor("hand", "b").ask(Do(worked("next"))) == "next"

    run(body)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("warmed", [True, False])
def test_a_keyboard_interrupt_in_an_async_handler_reaches_whoever_runs_the_loop(
    run: Run, when: When, warmed: bool
) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            if warmed:
                await warm(runtime)
            with contextlib.suppress(CallboardError):
                await runtime.actor("hand", "a").ask(Do(failing(KeyboardInterrupt(), when)))
            await anyio.sleep(10)

    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as raised:
        run(body)

    assert isinstance(raised.value, KeyboardInterrupt) or raised.group_contains(KeyboardInterrupt)


def test_a_keyboard_interrupt_in_a_first_step_that_its_caller_gets_leaves_the_actor_alive(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await warm(runtime)
            hand = runtime.actor("hand", "a")
            with pytest.raises(KeyboardInterrupt):
                await hand.ask(Do(failing(KeyboardInterrupt(), "first step")))

            assert await hand.ask(Do(worked("next"))) == "next"
            assert workers_of(runtime) == 1

    run(body)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("warmed", [True, False])
def test_a_handler_that_is_cancelled_natively_by_asyncio_fails_and_strands_nobody(when: When, warmed: bool) -> None:
    async def cancels_itself() -> None:
        if when == "later":
            await asyncio.sleep(0.01)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async def awaits_what_is_cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if when == "later":
            await asyncio.sleep(0.01)
        future.cancel()
        await future

    async def with_a_timeout() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(1)
        except TimeoutError:
            return "timed out"
        return "slept"

    async def main() -> None:
        async with a_runtime() as runtime, asyncio.timeout(5):
            if warmed:
                await runtime.actor("hand", "warm").ask(Do(worked("warm", 0.01)))
                await asyncio.sleep(0.01)
            for work in (cancels_itself, awaits_what_is_cancelled):
                with pytest.raises(Failed):
                    await runtime.actor("hand", "a").ask(Do(work))
                assert await runtime.actor("hand", "a").ask(Do(worked("next", 0.01))) == "next"
            assert await runtime.actor("hand", "a").ask(Do(with_a_timeout)) == "timed out"

    asyncio.run(main())


def test_a_handler_may_ask_ask_back_and_wait_in_its_first_step(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await warm(runtime, 3)

            async def nested() -> object:
                first = await runtime.actor("hand", "b").ask(Do(anyio.lowlevel.checkpoint))
                second = await runtime.actor("hand", "b").ask(Do(worked("slowly")))
                third = await runtime.actor("hand", "c").ask(DoPlainly(lambda: "plainly"))
                return (first, second, third)

            for _ in range(3):
                assert await runtime.actor("hand", "a").ask(Do(nested)) == (None, "slowly", "plainly")

    run(body)


def test_work_that_is_under_way_when_the_runtime_is_left_by_an_error_is_cancelled(run: Run) -> None:
    log: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    async def body() -> None:
        runtime = a_runtime()

        async def leave() -> None:
            async with runtime:
                for key in ("a", "b"):
                    runtime.actor("hand", key).ask_nowait(DoStubbornly(work))
                await anyio.wait_all_tasks_blocked()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await leave()

        assert log == ["cancelled", "cancelled"]
        assert runtime._supervisor.workers.busy == 0  # pyright: ignore[reportPrivateUsage] - see workers_of

    run(body)


def test_a_load_borrows_a_worker_like_a_handler(run: Run) -> None:
    class Loading(Hand):
        def __init__(self, id: ActorId) -> None:
            super().__init__(id)
            self.seen = ""

        async def load(self, context: Context) -> None:
            self.seen = color.get()
            await anyio.sleep(1.0)

        @handles(DoPlainly)
        def say(self, _message: DoPlainly, _context: Context) -> str:
            return self.seen

    async def body() -> None:
        async with a_runtime() as runtime:
            runtime.register("loading", Loading, durable=False)
            color.set("the caller's")
            for key in ("a", "b", "c"):
                assert await runtime.actor("loading", key).ask(DoPlainly(str)) == "none"

            assert workers_of(runtime) == 1

    run(body)


def test_a_handler_that_ends_its_own_actor_in_its_first_step_spoils_no_worker(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await warm(runtime)
            for number in range(5):
                hand = runtime.actor("hand", str(number))

                async def end_it(kill: Callable[[], None] = hand.kill) -> str:
                    kill()
                    return "late"

                with pytest.raises(Failed):
                    await hand.ask(Do(end_it))
                assert await runtime.actor("hand", "other").ask(Do(worked(number))) == number
                assert runtime.inspect("hand", str(number)).state == "stopped"

    run(body)
