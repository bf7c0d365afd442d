"""One actor whose queue is never empty, and its worker: job after job, but never to the loss of everybody else."""

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from callboard.runtime import Actor, Context, Request, Runtime, handles
from callboard.runtime.workers import STREAK_MAX
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


class Again(Request[None], frozen=True):
    """Tell the same actor once more, for ever."""

    waits: bool


class Echo(Request[int], frozen=True):
    number: int
    waits: bool = True


class Busy(Actor):
    rounds = 0

    @handles(Again)
    async def again(self, message: Again, context: Context) -> None:
        self.rounds += 1
        if message.waits:
            await anyio.lowlevel.checkpoint()
        context.tell(self.id, message)

    @handles(Echo, on_cancel="cancel")
    async def echo(self, message: Echo, _context: Context) -> int:
        if message.waits:
            await anyio.sleep(1)
        return message.number


def a_runtime() -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=0.5)
    runtime.register("busy", Busy, durable=False)
    return runtime


@pytest.mark.parametrize("waits", [True, False])
def test_an_actor_that_tells_itself_for_ever_leaves_time_for_others(run: Run, waits: bool) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            await runtime.actor("busy", "warm").ask(Echo(0))
            await runtime.actor("busy", "eternal").tell(Again(waits))
            with anyio.fail_after(1e5):
                for number in range(3 * STREAK_MAX):
                    await anyio.lowlevel.checkpoint()
                    assert await runtime.actor("busy", "other").ask(Echo(number, waits=False)) == number
            runtime.actor("busy", "eternal").kill()

    run(body)


def test_a_queue_behind_a_handler_that_waits_is_handled_in_order_by_one_worker(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            busy = runtime.actor("busy", "b")
            answers: list[int] = []

            async def ask(number: int) -> None:
                answers.append(await busy.ask(Echo(number), timeout_s=1e6))

            async with anyio.create_task_group() as tasks:
                for number in range(2 * STREAK_MAX - 28):
                    tasks.start_soon(ask, number)
                    await anyio.wait_all_tasks_blocked()

            assert answers == list(range(2 * STREAK_MAX - 28))
            assert runtime.statistics().workers_idle <= 2

    run(body)


def test_a_cancel_of_one_job_in_a_streak_hits_no_other(run: Run) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            busy = runtime.actor("busy", "b")
            answers: list[int] = []

            async def ask(number: int, patience_s: float) -> None:
                with anyio.move_on_after(patience_s):
                    answers.append(await busy.ask(Echo(number), timeout_s=1e6))

            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(ask, number, number + 0.5 if number % 3 == 0 else 1e6)
                    await anyio.wait_all_tasks_blocked()

            assert [number for number in range(60) if number % 3] == [number for number in answers if number % 3]

    run(body)
