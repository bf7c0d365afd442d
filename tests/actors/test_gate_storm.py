"""Cancelled calls at a gate, in virtual and in real time, on both backends: no slot is lost and nobody is left."""

import random
from contextlib import suppress
from math import inf

import anyio
import pytest
from scripted_attempts import BACKENDS, Backend, Step, Upstream, at_rest, call, call_at, in_virtual_time

from callboard.actors.errors import ModelError, ModelUnavailable, RateLimited
from callboard.actors.provider_gate import GateStatistics, ProviderGate
from callboard.actors.throttle import SUCCESSES_PER_STEP
from callboard.testing import run_in_virtual_time


@in_virtual_time
async def test_who_is_let_in_and_cancelled_at_the_same_moment_hands_the_slot_on() -> None:
    gate, upstream = ProviderGate(connections_max=1), Upstream()
    scope = anyio.CancelScope()

    async def first() -> None:
        await call(gate, upstream, "first")
        scope.cancel()  # its slot was given to "second" a moment ago

    async def second() -> None:
        with scope:
            await call(gate, upstream, "second")  # begins, and is cancelled where it waits first

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await anyio.sleep(0.1)
        tasks.start_soon(second)
        tasks.start_soon(call_at, 0.2, gate, upstream, "third")

    assert upstream.begun[-1] == ("third", 1.0)
    assert scope.cancelled_caught
    assert at_rest(gate.statistics())


async def _storm(seed: int) -> tuple[GateStatistics, int, list[float]]:
    """400 calls at a provider in a bad mood, most of them cancelled at some moment; then two rounds of good calls."""
    chance = random.Random(seed)
    slots = chance.choice([1, 2, 5])
    gate, upstream = ProviderGate(connections_max=slots), Upstream()
    over_limit: list[int] = []

    def step() -> Step:
        kinds: list[Step] = [
            chance.choice([0.0, 0.5, 1.0]),
            ModelUnavailable("x"),
            RateLimited("x"),
            RateLimited("x", retry_after_s=chance.choice([0.5, 1.0, 30.0])),
            (0.5, RateLimited("x", retry_after_s=1.0)),
            RuntimeError("a bug"),
        ]
        return chance.choice(kinds)

    async def one() -> None:
        await anyio.sleep(chance.randrange(100) / 2)  # on a grid, so that much happens at the same moment
        with anyio.move_on_after(chance.choice([0.0, 0.5, 1.0, 2.0, 30.0, inf])):
            with suppress(ModelError, RuntimeError):
                await call(gate, upstream)
        if gate.statistics().in_use > slots:
            over_limit.append(gate.statistics().in_use)

    upstream.steps = [step() for _ in range(2_000)]
    async with anyio.create_task_group() as tasks:
        for _ in range(400):
            tasks.start_soon(one)
    assert not over_limit
    assert upstream.in_use_max <= slots
    left = gate.statistics()
    await anyio.sleep(200.0)
    upstream.steps, upstream.takes_s = [], 0.0
    for _ in range(slots * SUCCESSES_PER_STEP):
        await call(gate, upstream)
    upstream.begun, upstream.takes_s = [], 1.0
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(slots):
            tasks.start_soon(call, gate, upstream)
    return left, slots, [at - began for at in upstream.times]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(20))
def test_a_storm_of_cancelled_calls_leaves_every_slot_free_and_nobody_waiting(seed: int, backend: Backend) -> None:
    async def program() -> tuple[GateStatistics, int, list[float]]:
        return await _storm(seed)

    left, slots, begun = run_in_virtual_time(program, backend=backend, seed=seed)

    assert at_rest(left)
    assert begun == [0.0] * slots


@pytest.mark.parametrize("backend", BACKENDS)
def test_ten_thousand_cancelled_calls_in_real_time_lose_no_slot(backend: Backend) -> None:
    async def program() -> tuple[GateStatistics, int]:
        gate, upstream, chance = ProviderGate(connections_max=3), Upstream(takes_s=0.0002), random.Random(5)

        async def one() -> None:
            with anyio.move_on_after(chance.random() * 0.002):
                await call(gate, upstream)

        for _ in range(100):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(one)
        return gate.statistics(), upstream.in_use_max

    left, at_once = anyio.run(program, backend=backend)

    assert at_rest(left)
    assert (left.limit, left.calls, at_once) == (3, 10_000, 3)
