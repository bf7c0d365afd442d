"""The gate in virtual time on both backends: slots in order, repeats, 429s that slow all down."""

import anyio
import anyio.lowlevel
import pytest
from scripted_attempts import Upstream, at_rest, call, call_at, in_virtual_time

from callboard.actors.errors import BadRequest, ModelUnavailable, RateLimited
from callboard.actors.model import ModelAnswer
from callboard.actors.provider_gate import GateStatistics, ProviderGate
from callboard.actors.retry import BUDGET_MAX, RetryPolicy
from callboard.actors.throttle import SUCCESSES_PER_STEP
from callboard.testing import model_answer, run_in_virtual_time

STEADY = RetryPolicy(jitter=0.0)


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

    for _ in range(200):
        with pytest.raises(ModelUnavailable):
            await call(gate, down)

    retries = len(down.begun) - 200
    assert BUDGET_MAX + 200 / 10 - 2 <= retries <= BUDGET_MAX + 200 / 10
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
async def test_a_closed_gate_is_closed_also_where_nobody_waits_before_it() -> None:
    gate, upstream = ProviderGate(), Upstream([RateLimited("slow down", retry_after_s=10.0)])

    with anyio.move_on_after(1.0):
        await call(gate, upstream)
    await call(gate, upstream)

    assert upstream.times == [0.0, 10.0]


@in_virtual_time
async def test_who_comes_as_the_gate_opens_does_not_overtake_those_that_waited_for_it() -> None:
    for _ in range(10):  # which of the two tasks runs first is a matter of chance
        gate, upstream = ProviderGate(), Upstream([RateLimited("slow down", retry_after_s=10.0)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_at, anyio.current_time() + 10.0, gate, upstream, "newcomer")
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(call, gate, upstream, "limited")

        assert [name for name, _ in upstream.begun] == ["limited", "limited", "newcomer"]


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
