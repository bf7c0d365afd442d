"""Virtual time on both loops: hours take no time, one seed is one history, and what cannot end says so."""

import time
from functools import partial
from typing import Literal, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from callboard.testing import Stuck, run_in_virtual_time

Backend: TypeAlias = Literal["trio", "asyncio"]
BOTH: tuple[Backend, ...] = ("trio", "asyncio")

on_both = pytest.mark.parametrize("backend", BOTH)


async def finish_order() -> list[int]:
    """In which order ten tasks that sleep for the same time come back."""
    order: list[int] = []

    async def sleep(number: int) -> None:
        await anyio.sleep(1.0)
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(sleep, number)
    return order


@on_both
def test_a_day_of_sleeping_takes_no_time_and_shows_on_the_clock(backend: Backend) -> None:
    async def program() -> tuple[float, float]:
        began = anyio.current_time()
        await anyio.sleep(86_400)
        return began, anyio.current_time()

    began = time.monotonic()
    times = run_in_virtual_time(program, backend=backend)

    assert times == (0.0, 86_400.0)
    assert time.monotonic() - began < 5.0


@on_both
def test_deadlines_and_sleeps_end_in_order_of_time(backend: Backend) -> None:
    ended: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        with anyio.move_on_after(10.0):
            await anyio.sleep(seconds)
        ended.append((name, anyio.current_time()))

    async def program() -> None:
        async with anyio.create_task_group() as tasks:
            for name, seconds in (("cut", 11.0), ("third", 3.0), ("second", 2.5), ("never", float("inf"))):
                tasks.start_soon(sleep, name, seconds)

    run_in_virtual_time(program, backend=backend)

    assert ended[:2] == [("second", 2.5), ("third", 3.0)]
    assert sorted(ended[2:]) == [("cut", 10.0), ("never", 10.0)]


@on_both
def test_time_stands_still_while_a_task_can_go_on(backend: Backend) -> None:
    async def program() -> float:
        now = -1.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 60)
            for _ in range(1000):
                await anyio.lowlevel.checkpoint()
            now = anyio.current_time()
            tasks.cancel_scope.cancel()
        return now

    assert run_in_virtual_time(program, backend=backend) == 0.0


@on_both
def test_wait_all_tasks_blocked_works_in_virtual_time(backend: Backend) -> None:
    seen: list[str] = []

    async def step() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append("stepped")
        await anyio.sleep(1e4)

    async def program() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)
            await anyio.wait_all_tasks_blocked()
            seen.append("blocked")

    run_in_virtual_time(program, backend=backend)

    assert seen == ["stepped", "blocked"]


@on_both
def test_one_seed_is_one_order_and_many_seeds_are_many(backend: Backend) -> None:
    orders = [run_in_virtual_time(finish_order, backend=backend, seed=seed) for seed in (*range(20), *range(20))]

    assert orders[:20] == orders[20:]
    assert len({tuple(order) for order in orders}) > 10
    assert all(sorted(order) == list(range(10)) for order in orders)


def test_without_a_seed_asyncio_fires_timers_of_one_time_in_the_order_in_which_they_were_set() -> None:
    assert run_in_virtual_time(finish_order, backend="asyncio") == list(range(10))


def test_a_seed_leaves_chance_in_trio_as_it_was() -> None:
    run_in_virtual_time(finish_order, backend="trio", seed=1)
    after_one = [run_in_virtual_time(finish_order, backend="trio") for _ in range(5)]
    run_in_virtual_time(finish_order, backend="trio", seed=1)
    after_another = [run_in_virtual_time(finish_order, backend="trio") for _ in range(5)]

    assert after_one != after_another


@on_both
def test_a_program_that_waits_for_nothing_is_cancelled_and_an_error_says_so(backend: Backend) -> None:
    left: list[str] = []

    async def program() -> None:
        try:
            await anyio.Event().wait()
        finally:
            left.append("finally")

    with pytest.raises(Stuck, match=r"every task waits.*Tasks that are left: .*watched"):
        run_in_virtual_time(program, backend=backend)
    assert left == ["finally"]


@on_both
def test_sleeping_for_ever_is_waiting_for_nothing(backend: Backend) -> None:
    with pytest.raises(Stuck, match="every task waits"):
        run_in_virtual_time(anyio.sleep_forever, backend=backend)


@on_both
def test_a_shield_does_not_keep_a_stuck_program(backend: Backend) -> None:
    left: list[str] = []

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            try:
                await anyio.Event().wait()
            finally:
                left.append("finally")

    async def program() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shielded)

    with pytest.raises(Stuck, match="every task waits"):
        run_in_virtual_time(program, backend=backend)
    assert left == ["finally"]


@on_both
def test_a_program_that_heeds_no_cancellation_is_left_behind(backend: Backend) -> None:
    heeded = 0

    async def program() -> str:
        nonlocal heeded
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            heeded += 1
        return "as if nothing had been"

    with pytest.raises(Stuck, match="every task waits"):
        run_in_virtual_time(program, backend=backend)
    assert heeded == 1


@on_both
def test_a_program_that_outlives_its_limit_is_ended(backend: Backend) -> None:
    ticks = 0

    async def program() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(10)
            ticks += 1

    with pytest.raises(Stuck, match="within 100 virtual seconds"):
        run_in_virtual_time(program, backend=backend, limit_s=100)
    assert ticks in (10, 11)


@on_both
def test_a_program_that_spins_is_ended(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.virtual_time._TURNS_MAX", 500)
    turns = 0

    async def program() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    with pytest.raises(Stuck, match="turned 500 times and no time has passed"):
        run_in_virtual_time(program, backend=backend)
    assert 400 < turns < 600


@on_both
def test_an_error_of_the_program_leaves_as_it_is(backend: Backend) -> None:
    async def program() -> None:
        await anyio.sleep(5)
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there"):
        run_in_virtual_time(program, backend=backend)


@on_both
def test_a_program_that_is_done_at_its_limit_was_in_time(backend: Backend) -> None:
    run_in_virtual_time(partial(anyio.sleep, 100), backend=backend, limit_s=100)


@on_both
def test_a_cancelled_timer_is_never_jumped_to(backend: Backend) -> None:
    async def program() -> float:
        for _ in range(2000):  # more than asyncio leaves in its heap
            with anyio.move_on_after(1000):
                await anyio.sleep(0.001)
        return anyio.current_time()

    assert run_in_virtual_time(program, backend=backend) == pytest.approx(2.0)
