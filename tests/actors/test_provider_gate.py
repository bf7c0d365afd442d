"""The gate in virtual time on both backends: slots in order, repeats, 429s that slow all down, and no slot is lost."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Literal, TypeAlias

import anyio
import pytest

from callboard.actors.errors import BadRequest, ModelError, ModelUnavailable, RateLimited
from callboard.actors.model import ModelAnswer
from callboard.actors.provider_gate import GateStatistics, ProviderGate
from callboard.actors.retry import BUDGET_MAX, RetryPolicy
from callboard.actors.throttle import SUCCESSES_PER_STEP
from callboard.testing import model_answer, run_in_virtual_time

Backend: TypeAlias = Literal["trio", "asyncio"]
BACKENDS: tuple[Backend, ...] = ("trio", "asyncio")
Step: TypeAlias = float | BaseException | tuple[float, BaseException]

STEADY = RetryPolicy(jitter=0.0)


def in_virtual_time(body: Callable[[], Awaitable[None]]) -> Callable[[Backend], None]:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: Backend) -> None:
        run_in_virtual_time(body, backend=backend, limit_s=100_000)

    return test


@dataclass(slots=True)
class Upstream:
    """What attempts meet, `steps` in order: an answer after so many seconds, an error, or an error after so many. Notes
    who began, and when."""

    steps: list[Step] = field(default_factory=lambda: list[Step]())
    takes_s: float = 1.0
    begun: list[tuple[str, float]] = field(default_factory=lambda: list[tuple[str, float]]())
    in_use: int = 0
    in_use_max: int = 0

    async def attempt(self, name: str = "call") -> ModelAnswer:
        self.begun.append((name, anyio.current_time()))
        self.in_use += 1
        self.in_use_max = max(self.in_use_max, self.in_use)
        try:
            step = self.steps.pop(0) if self.steps else self.takes_s
            takes_s, error = (
                step if isinstance(step, tuple) else (0.0, step) if isinstance(step, BaseException) else (step, None)
            )
            if takes_s:
                await anyio.sleep(takes_s)
            if error is not None:
                raise error
            return model_answer(name)
        finally:
            self.in_use -= 1

    @property
    def times(self) -> list[float]:
        return [at for _, at in self.begun]


async def call(gate: ProviderGate, upstream: Upstream, name: str = "call", *, shown: bool = False) -> ModelAnswer:
    return await gate.call(lambda: upstream.attempt(name), shown=lambda: shown)


async def call_at(at: float, gate: ProviderGate, upstream: Upstream, name: str) -> None:
    await anyio.sleep_until(at)
    await call(gate, upstream, name)


def at_rest(statistics: GateStatistics) -> bool:
    return (statistics.in_use, statistics.waiting) == (0, 0)


# Slots ----------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_so_many_are_let_in_at_once_and_the_others_in_order() -> None:
    gate, upstream = ProviderGate(connections_max=2), Upstream()

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(call_at, number / 100, gate, upstream, str(number))
        await anyio.sleep(0.5)
        meanwhile = gate.statistics()

        assert (meanwhile.in_use, meanwhile.waiting, meanwhile.limit) == (2, 4, 2)
    assert [name for name, _ in upstream.begun] == ["0", "1", "2", "3", "4", "5"]
    assert upstream.in_use_max == 2
    assert at_rest(gate.statistics())


@in_virtual_time
async def test_a_newcomer_does_not_overtake_those_that_wait() -> None:
    gate, upstream = ProviderGate(connections_max=1), Upstream()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_at, 0.0, gate, upstream, "first")
        tasks.start_soon(call_at, 0.1, gate, upstream, "waits")
        tasks.start_soon(call_at, 1.0, gate, upstream, "comes as the slot is given back")

    assert upstream.begun[1] == ("waits", 1.0)


@in_virtual_time
async def test_what_is_no_error_of_the_model_goes_up_at_once_and_the_slot_is_free() -> None:
    gate, upstream = ProviderGate(connections_max=1), Upstream([RuntimeError("a bug")])

    with pytest.raises(RuntimeError, match="a bug"):
        await call(gate, upstream)

    assert len(upstream.begun) == 1
    assert at_rest(gate.statistics())
    assert (await call(gate, upstream)).message.text == "call"


def test_one_gate_serves_several_event_loops_and_each_has_its_own_slots() -> None:
    gate = ProviderGate(connections_max=1)

    async def use() -> GateStatistics:
        await call(gate, Upstream([ModelUnavailable("once"), RateLimited("once", retry_after_s=5.0)]))
        return gate.statistics()

    seen = [run_in_virtual_time(use, backend=backend) for backend in ("trio", "asyncio", "trio")]

    assert [each.calls for each in seen] == [1, 1, 1]
    assert [each.rate_limited for each in seen] == [1, 1, 1]


def test_a_gate_for_no_connection_is_refused() -> None:
    with pytest.raises(ValueError, match="connections_max must be at least 1"):
        ProviderGate(connections_max=0)


# Repeats --------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_failure_is_repeated_after_the_backoff() -> None:
    gate, upstream = ProviderGate(policy=STEADY), Upstream([ModelUnavailable("a"), ModelUnavailable("b")])

    await call(gate, upstream)

    assert upstream.times == [0.0, 0.5, 1.5]
    statistics = gate.statistics()
    assert (statistics.calls, statistics.retries) == (1, 2)
    assert statistics.retry_budget == BUDGET_MAX - 2


@in_virtual_time
async def test_the_last_error_goes_up_and_says_how_many_requests_were_made() -> None:
    gate, upstream = ProviderGate(policy=STEADY), Upstream([ModelUnavailable(name) for name in "abcd"])

    with pytest.raises(ModelUnavailable, match="c") as raised:
        await call(gate, upstream)

    assert raised.value.tries == 3
    assert at_rest(gate.statistics())


@in_virtual_time
async def test_what_another_try_does_not_help_is_not_tried_again() -> None:
    gate, upstream = ProviderGate(), Upstream([BadRequest("no")])

    with pytest.raises(BadRequest) as raised:
        await call(gate, upstream)

    assert (raised.value.tries, len(upstream.begun)) == (1, 1)


@in_virtual_time
async def test_nothing_is_repeated_after_a_piece_was_shown() -> None:
    for error in (ModelUnavailable("broke off"), RateLimited("in the stream")):
        gate, upstream = ProviderGate(), Upstream([error])

        with pytest.raises(type(error)):
            await call(gate, upstream, shown=True)

        assert len(upstream.begun) == 1
        assert at_rest(gate.statistics())


@in_virtual_time
async def test_who_waits_to_repeat_holds_no_slot_and_goes_ahead_of_newcomers_afterwards() -> None:
    gate, upstream = ProviderGate(connections_max=1, policy=STEADY), Upstream([ModelUnavailable("once")])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_at, 0.0, gate, upstream, "repeats")
        for number in range(3):
            tasks.start_soon(call_at, 0.1 + number / 100, gate, upstream, str(number))

    assert upstream.begun == [("repeats", 0.0), ("0", 0.1), ("repeats", 1.1), ("1", 2.1), ("2", 3.1)]


@in_virtual_time
async def test_a_provider_that_is_down_is_not_stormed() -> None:
    gate, down = ProviderGate(), Upstream([ModelUnavailable("down") for _ in range(1_000)])

    async def fail() -> None:
        with pytest.raises(ModelUnavailable):
            await call(gate, down)

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(fail)

    retries = len(down.begun) - 200
    assert BUDGET_MAX <= retries <= BUDGET_MAX + 200 / 10
    assert gate.statistics().retries == retries


# 429s -----------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_429_keeps_all_calls_away_for_as_long_as_the_server_wishes() -> None:
    gate, upstream = ProviderGate(), Upstream([RateLimited("slow down", retry_after_s=10.0)])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_at, 0.0, gate, upstream, "limited")
        tasks.start_soon(call_at, 1.0, gate, upstream, "newcomer")
        await anyio.sleep(2.0)
        closed = gate.statistics()

        assert (closed.waiting, closed.closed_s, closed.rate_limited) == (2, 8.0, 1)
    assert upstream.begun == [("limited", 0.0), ("limited", 10.0), ("newcomer", 11.0)]
    assert gate.statistics().retry_budget == BUDGET_MAX
    assert gate.statistics().retries == 0


@in_virtual_time
async def test_without_a_wish_429s_back_off_as_long_as_they_last() -> None:
    gate, upstream = ProviderGate(policy=STEADY), Upstream([RateLimited("x") for _ in range(6)])

    await call(gate, upstream)

    assert upstream.times == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 23.5]


@in_virtual_time
async def test_fewer_are_let_in_at_once_after_429s_and_more_again_after_successes() -> None:
    gate, upstream = ProviderGate(connections_max=16), Upstream()
    upstream.steps = [(0.1, RateLimited("x", retry_after_s=1.0)) for _ in range(16)]

    async with anyio.create_task_group() as tasks:
        for _ in range(16):
            tasks.start_soon(call, gate, upstream)
        await anyio.sleep(1.5)

        assert (upstream.in_use, gate.statistics().limit) == (8, 8)
    assert gate.statistics().limit == 8 + 16 // SUCCESSES_PER_STEP
    for _ in range(8 * SUCCESSES_PER_STEP):
        await call(gate, upstream)
    assert gate.statistics().limit == 16


@in_virtual_time
async def test_a_rate_limit_goes_up_when_patience_is_spent() -> None:
    gate, upstream = ProviderGate(), Upstream([RateLimited("x", retry_after_s=25.0) for _ in range(9)])

    with pytest.raises(RateLimited) as raised:
        await call(gate, upstream)

    assert upstream.times == [0.0, 25.0, 50.0, 75.0, 100.0]  # the next would be at 125
    assert raised.value.tries == 5


@in_virtual_time
async def test_patience_ends_in_the_queue_too() -> None:
    gate = ProviderGate(connections_max=2, policy=RetryPolicy(rate_limit_patience_s=5.0))
    upstream = Upstream([1_000.0, RateLimited("x", retry_after_s=1.0)])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, gate, upstream, "holds the only slot that is left")
        await anyio.sleep(0.25)
        with pytest.raises(RateLimited) as raised:
            await call(gate, upstream)

        assert raised.value.tries == 1
        assert (anyio.current_time(), gate.statistics().waiting) == (5.25, 0)


@in_virtual_time
async def test_who_has_no_patience_until_the_gate_opens_does_not_wait_for_it() -> None:
    gate = ProviderGate(policy=RetryPolicy(rate_limit_patience_s=30.0))
    upstream = Upstream(
        [
            *(0.5, 0.5, 0.5),  # or only one would be let in after the 429
            RateLimited("first", retry_after_s=1.0),
            (10.0, RateLimited("second", retry_after_s=1.0)),
            (8.0, RateLimited("another's", retry_after_s=29.0)),
        ]
    )

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call, gate, upstream)
        tasks.start_soon(call_at, 2.0, gate, upstream, "another")
        await anyio.sleep(0.25)
        with pytest.raises(RateLimited, match="second"):
            await call(gate, upstream)

        assert anyio.current_time() == 11.25
    assert upstream.times == [0.0, 0.0, 0.0, 0.25, 1.25, 2.0, 39.0]


@in_virtual_time
async def test_a_wish_beyond_all_patience_goes_up_and_keeps_nobody_else_away() -> None:
    gate, upstream = ProviderGate(), Upstream([RateLimited("tomorrow", retry_after_s=86_400.0)])

    with pytest.raises(RateLimited, match="tomorrow"):
        await call(gate, upstream)
    await call(gate, upstream)

    assert upstream.times == [0.0, 0.0]


@in_virtual_time
async def test_without_patience_a_429_goes_up_at_once_and_the_gate_stays_open() -> None:
    gate = ProviderGate(policy=RetryPolicy(retries_max=0, rate_limit_patience_s=0.0))
    upstream = Upstream([RateLimited("x", retry_after_s=10.0), ModelUnavailable("y")])

    with pytest.raises(RateLimited):
        await call(gate, upstream)
    with pytest.raises(ModelUnavailable):
        await call(gate, upstream)

    assert upstream.times == [0.0, 0.0]


@in_virtual_time
async def test_when_who_was_to_open_the_gate_goes_away_another_one_opens_it() -> None:
    gate, upstream = ProviderGate(), Upstream([RateLimited("x", retry_after_s=10.0)])

    async def give_up(after_s: float, name: str) -> None:
        with anyio.move_on_after(after_s):
            await call(gate, upstream, name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_up, 3.0, "limited")
        await anyio.sleep(1.0)
        tasks.start_soon(give_up, 4.0, "keeps the time next")
        tasks.start_soon(call_at, 2.0, gate, upstream, "stays")

    assert upstream.begun == [("limited", 0.0), ("stays", 10.0)]


@in_virtual_time
async def test_a_gate_that_closes_again_before_who_opened_it_got_in_opens_again() -> None:
    """The first in the queue opens it at 1 and finds no slot; at 5 the call that has the slot closes it anew."""
    gate = ProviderGate(connections_max=2)
    upstream = Upstream([(5.0, RateLimited("again", retry_after_s=10.0)), RateLimited("x", retry_after_s=1.0)])

    async with anyio.create_task_group() as tasks:
        for name in ("long", "short", "newcomer"):
            tasks.start_soon(call, gate, upstream, name)
            await anyio.sleep(0.01)

    assert sorted(name for name, _ in upstream.begun) == ["long", "long", "newcomer", "short", "short"]
    assert min(upstream.times[2:]) == 15.0


@in_virtual_time
async def test_all_calls_of_a_burst_are_answered_by_a_provider_that_takes_ten_in_a_second() -> None:
    gate, taken, refused = ProviderGate(connections_max=100), [0], [0]
    window = [0.0]

    async def attempt() -> ModelAnswer:
        now = anyio.current_time()
        if now >= window[0] + 1.0:
            window[0], taken[0] = now, 0
        taken[0] += 1
        if taken[0] > 10:
            refused[0] += 1
            raise RateLimited("10 a second", retry_after_s=window[0] + 1.0 - now)
        await anyio.sleep(0.2)
        return model_answer("fine")

    async with anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(gate.call, attempt)

    assert anyio.current_time() < 60.0  # thirty windows are needed at least
    assert refused[0] < 300
    assert at_rest(gate.statistics())


# Cancellation ---------------------------------------------------------------------------------------------------------


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
