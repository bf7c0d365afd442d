"""What is repeated, after how long, and how often: the table of errors, the policy's delays, the provider's budget."""

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from callboard.actors.errors import (
    BadRequest,
    BadResponse,
    ContextOverflow,
    ModelError,
    ModelUnavailable,
    RateLimited,
    Refused,
    Stalled,
    Truncated,
)
from callboard.actors.retry import BUDGET_MAX, NextTry, RetryBudget, RetryPolicy, Tries, verdict

CHANCES = st.floats(0.0, 1.0)


def tries_of(*, retries_max: int = 2, rate_limit_patience_s: float = 120.0) -> Tries:
    return Tries(RetryPolicy(retries_max=retries_max, rate_limit_patience_s=rate_limit_patience_s), RetryBudget())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModelUnavailable("x", status=408), "repeat"),
        (ModelUnavailable("x", status=409), "repeat"),
        (ModelUnavailable("x", status=500), "repeat"),
        (ModelUnavailable("no connection"), "repeat"),
        (Stalled("x"), "repeat"),
        (Truncated("x", status=200), "repeat"),
        (BadResponse("x", status=200), "give_up"),
        (BadRequest("x", status=400), "give_up"),
        (ContextOverflow("x", status=400), "give_up"),
        (Refused("x", status=401), "give_up"),
        (Refused("quota", status=429), "give_up"),
        (RateLimited("x", status=429), "slow_down"),
        (RateLimited("in a stream", status=200), "slow_down"),
        (ModelError("x"), "give_up"),
    ],
)
def test_an_error_has_its_verdict(error: ModelError, expected: str) -> None:
    assert verdict(error) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModelUnavailable("x", status=500, should_retry=False), "give_up"),
        (RateLimited("x", status=429, should_retry=False), "give_up"),
        (RateLimited("x", status=429, should_retry=True), "slow_down"),
        (BadRequest("x", status=400, should_retry=True), "repeat"),
        (Refused("x", status=401, should_retry=True), "repeat"),
        (Refused("quota", status=429, should_retry=True), "give_up"),
        (Refused("quota", status=402, should_retry=True), "give_up"),
    ],
)
def test_the_servers_own_word_goes_before_the_kind_of_error_but_a_spent_quota_stays_spent(
    error: ModelError, expected: str
) -> None:
    assert verdict(error) == expected


def test_delays_double_up_to_the_longest() -> None:
    delays = [RetryPolicy().delay_s(failures, retry_after_s=None, chance=0.0) for failures in range(1, 8)]

    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_chance_takes_up_to_a_quarter_off() -> None:
    assert RetryPolicy().delay_s(2, retry_after_s=None, chance=1.0) == 0.75


@given(st.integers(1, 5_000), CHANCES, st.none() | st.floats(0.0, 1e6))
def test_every_delay_is_within_its_bounds(failures: int, chance: float, wish_s: float | None) -> None:
    policy = RetryPolicy()

    delay_s = policy.delay_s(failures, retry_after_s=wish_s, chance=chance)

    if wish_s:
        assert delay_s == (wish_s if wish_s <= 120.0 else None)
    else:
        assert delay_s is not None
        assert 0.375 <= delay_s <= 8.0


@pytest.mark.parametrize(
    "options",
    [
        {"retries_max": -1},
        {"first_s": 0.0},
        {"max_s": 0.1},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"retry_after_s_max": -1.0},
        {"rate_limit_patience_s": -1.0},
        {"first_s": math.nan},
    ],
)
def test_a_policy_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"retry policy has|is a number|retries_max must be"):
        RetryPolicy(**options)


def test_a_policy_of_no_numbers_is_refused() -> None:
    given: Any = None

    with pytest.raises(TypeError, match="max_s is a number"):
        RetryPolicy(max_s=given)


def test_failures_are_repeated_until_the_retries_are_spent() -> None:
    tries = tries_of()

    following = [tries.failed(ModelUnavailable("x"), shown=False, now=0.0, chance=0.0) for _ in range(3)]

    assert following == [NextTry(0.5), NextTry(1.0), None]
    assert (tries.made, tries.retries) == (3, 2)


def test_nothing_is_repeated_once_a_piece_was_handed_out() -> None:
    for error in (ModelUnavailable("x"), RateLimited("x"), Stalled("x"), BadRequest("x", should_retry=True)):
        assert tries_of().failed(error, shown=True, now=0.0, chance=0.0) is None


def test_a_wish_of_the_server_goes_before_the_backoff_and_one_too_long_goes_up() -> None:
    tries = tries_of()

    obeyed = tries.failed(ModelUnavailable("x", status=503, retry_after_s=7.0), shown=False, now=0.0, chance=0.5)
    too_long = tries.failed(ModelUnavailable("x", status=503, retry_after_s=121.0), shown=False, now=0.0, chance=0.5)

    assert obeyed == NextTry(7.0)
    assert too_long is None


def test_rate_limits_spend_patience_and_no_retries() -> None:
    tries = tries_of(rate_limit_patience_s=60.0)

    waits = [tries.failed(RateLimited("x"), shown=False, now=float(now), chance=0.0) for now in range(100, 150, 10)]
    too_late = tries.failed(RateLimited("x"), shown=False, now=153.0, chance=0.0)

    assert waits == [NextTry(gives_up_at=160.0)] * 5
    assert too_late is None  # 8 s more would be 161
    assert (tries.retries, tries.rate_limited, tries.made) == (0, 6, 6)
    assert tries.budget.tokens == BUDGET_MAX


def test_a_rate_limit_that_lasts_longer_than_patience_goes_up_at_once() -> None:
    tries = tries_of(rate_limit_patience_s=30.0)

    assert tries.failed(RateLimited("x", retry_after_s=31.0), shown=False, now=0.0, chance=0.0) is None
    assert tries_of(rate_limit_patience_s=0.0).failed(RateLimited("x"), shown=False, now=0.0, chance=0.0) is None


def test_after_rate_limits_all_retries_are_left() -> None:
    tries = tries_of()
    tries.failed(RateLimited("x"), shown=False, now=0.0, chance=0.0)

    following = [tries.failed(ModelUnavailable("x"), shown=False, now=1.0, chance=0.0) for _ in range(3)]

    assert following == [NextTry(0.5), NextTry(1.0), None]


@pytest.mark.parametrize(
    ("error", "strikes", "patience_s", "pause_s"),
    [
        (RateLimited("x"), 1, 120.0, 0.5),
        (RateLimited("x"), 4, 120.0, 4.0),
        (RateLimited("x", retry_after_s=20.0), 4, 120.0, 20.0),
        (RateLimited("x", retry_after_s=121.0), 1, 120.0, 0.0),
        (RateLimited("x", retry_after_s=20.0), 1, 10.0, 10.0),
        (RateLimited("x"), 1, 0.0, 0.0),
    ],
)
def test_a_rate_limit_keeps_all_calls_away_for_a_while(
    error: RateLimited, strikes: int, patience_s: float, pause_s: float
) -> None:
    tries = tries_of(rate_limit_patience_s=patience_s)
    tries.failed(error, shown=False, now=0.0, chance=0.0)

    assert tries.pause_s(error, strikes=strikes, chance=0.0) == pause_s


def test_a_budget_is_emptied_by_retries_and_filled_by_calls_a_tenth_each() -> None:
    budget = RetryBudget()

    spent = [budget.spend() for _ in range(11)]
    for _ in range(11):  # ten tenths are a little less than one
        budget.earn()

    assert spent == [True] * 10 + [False]
    assert budget.spend()
    assert not budget.spend()


def test_without_budget_a_failure_goes_up_and_no_retry_is_counted() -> None:
    tries = Tries(RetryPolicy(), RetryBudget(tokens=0.9))

    assert tries.failed(ModelUnavailable("x"), shown=False, now=0.0, chance=0.0) is None
    assert (tries.made, tries.retries, tries.budget.tokens) == (1, 0, 0.9)


@given(st.lists(st.sampled_from(["earn", "spend"]), max_size=300))
def test_retries_are_never_more_than_the_bucket_and_a_tenth_of_the_calls(steps: list[str]) -> None:
    budget, calls, retries = RetryBudget(), 0, 0

    for step in steps:
        if step == "earn":
            budget.earn()
            calls += 1
        else:
            retries += budget.spend()

    assert retries <= BUDGET_MAX + calls / 10
    assert 0.0 <= budget.tokens <= BUDGET_MAX


KINDS: list[type[ModelError]] = [
    ModelUnavailable,
    RateLimited,
    Stalled,
    Truncated,
    BadResponse,
    BadRequest,
    Refused,
]


@st.composite
def errors(draw: st.DrawFn) -> ModelError:
    wish_s, word = draw(st.none() | st.floats(0.0, 300.0)), draw(st.none() | st.booleans())
    return draw(st.sampled_from(KINDS))("x", retry_after_s=wish_s, should_retry=word)


@given(st.lists(errors(), min_size=1, max_size=60), CHANCES, st.integers(0, 4), st.floats(0.0, 200.0))
def test_a_call_ends_within_its_retries_and_its_patience(
    failures: list[ModelError], chance: float, retries_max: int, patience_s: float
) -> None:
    tries, now = tries_of(retries_max=retries_max, rate_limit_patience_s=patience_s), 0.0
    limited_at: float | None = None

    for error in failures:
        if isinstance(error, RateLimited) and limited_at is None:
            limited_at = now
        following = tries.failed(error, shown=False, now=now, chance=chance)
        if following is None:
            break
        assert error.should_retry is not False
        if isinstance(error, RateLimited):
            assert limited_at is not None
            assert following.gives_up_at == limited_at + patience_s
            now += tries.pause_s(error, strikes=1, chance=chance)
            assert now <= limited_at + patience_s or math.isclose(now, limited_at + patience_s)
        now += following.delay_s

    assert tries.retries <= retries_max
    assert tries.made <= 1 + tries.retries + tries.rate_limited
