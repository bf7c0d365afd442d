from collections.abc import Awaitable, Callable
from threading import Thread

import anyio
import pytest

from callboard.runtime.waking import Backend, Waker, current_backend

Run = Callable[[Callable[[], Awaitable[None]]], None]


async def _wait_for(waker: Waker) -> None:
    await waker.wait()


def test_a_wake_that_comes_first_is_kept_once(run: Run) -> None:
    async def body() -> None:
        waker = current_backend().waker()
        waker.wake()
        waker.wake()
        await waker.wait()

        with anyio.move_on_after(0.01) as scope:
            await waker.wait()
        assert scope.cancelled_caught

    run(body)


def test_a_cancelled_wait_leaves_a_waker_that_works(run: Run) -> None:
    async def body() -> None:
        waker = current_backend().waker()
        with anyio.move_on_after(0.01):
            await waker.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_wait_for, waker)
            await anyio.wait_all_tasks_blocked()
            waker.wake()

    run(body)


def test_a_wake_and_a_cancellation_at_once_lose_neither(run: Run) -> None:
    async def body() -> None:
        waker = current_backend().waker()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_wait_for, waker)
            await anyio.wait_all_tasks_blocked()
            waker.wake()
            tasks.cancel_scope.cancel()

        waker.wake()
        await waker.wait()

    run(body)


def test_another_thread_can_run_something_on_the_loop(run_in_real_time: Run) -> None:
    async def body() -> None:
        backend = current_backend()
        waker = backend.waker()
        thread = Thread(target=lambda: backend.run_soon(waker.wake))
        thread.start()

        await waker.wait()
        thread.join()

    run_in_real_time(body)


def test_a_thread_that_outlives_the_loop_is_not_hurt(run: Run) -> None:
    kept: list[Backend] = []

    async def body() -> None:
        kept.append(current_backend())

    run(body)

    kept[0].run_soon(lambda: pytest.fail("the loop has ended"))


def test_outside_of_an_event_loop_there_is_no_backend() -> None:
    with pytest.raises(RuntimeError):
        current_backend()
