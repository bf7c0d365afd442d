import math

import pytest
from hypothesis import given, strategies as st

from callboard.runtime import Backoff, RestartPolicy
from callboard.runtime.budget import RestartBudget, RestartStrategy

chances = st.floats(0.0, 1.0)


@given(failures=st.integers(1, 5000), chance=chances)
def test_a_delay_lies_between_nothing_and_the_doubled_and_capped_bound(failures: int, chance: float) -> None:
    backoff = Backoff(first_s=0.2, max_s=30.0)

    delay_s = backoff.delay_s(failures, chance)

    assert math.isclose(delay_s, min(30.0, 0.2 * 2.0 ** min(failures - 1, 60)) * chance)


@given(gaps=st.lists(st.floats(0.0, 30.0), max_size=60), chance=chances)
def test_the_budget_is_spent_exactly_where_the_window_holds_more_crashes_than_allowed(
    gaps: list[float], chance: float
) -> None:
    budget = RestartBudget(RestartPolicy(restarts_max=3, window_s=20.0))
    now = 1000.0
    crashes: list[float] = []

    for gap in gaps:
        now += gap
        crashes.append(now)
        within = [at for at in crashes if at > now - 20.0]
        delay_s = budget.crashed(now, chance)

        assert (delay_s is None) == (len(within) > 3)
        if delay_s is not None:
            assert delay_s == Backoff().delay_s(len(within), chance)


def test_a_reset_budget_has_forgotten_every_crash() -> None:
    budget = RestartBudget(RestartPolicy(restarts_max=1))
    budget.crashed(0.0, 1.0)
    assert budget.crashed(0.0, 1.0) is None

    budget.reset()

    assert budget.crashed(0.0, 1.0) == pytest.approx(0.2)


@given(
    gaps=st.lists(st.floats(0.0, 30.0), max_size=60),
    restarts_max=st.integers(0, 4),
    healthy_s=st.floats(0.5, 40.0),
    chance=chances,
)
def test_a_healthy_spell_after_the_delay_gives_a_fresh_budget(
    gaps: list[float], restarts_max: int, healthy_s: float, chance: float
) -> None:
    policy = RestartPolicy(restarts_max=restarts_max, window_s=60.0, healthy_s=healthy_s)
    budget = RestartBudget(policy)
    now = healthy_at = 1000.0
    since_health: list[float] = []

    for gap in gaps:
        now += gap
        since_health = [at for at in since_health if now < healthy_at and at > now - 60.0] + [now]
        delay_s = budget.crashed(now, chance)
        healthy_at = now + (delay_s or 0.0) + healthy_s

        assert (delay_s is None) == (len(since_health) > restarts_max)
        if delay_s is not None:
            assert delay_s == Backoff().delay_s(len(since_health), chance)


def test_a_spell_just_short_of_healthy_leaves_the_budget_as_it_was() -> None:
    policy = RestartPolicy(restarts_max=1, healthy_s=10.0, backoff=Backoff(first_s=1.0, max_s=1.0))
    short, long = RestartBudget(policy), RestartBudget(policy)
    for budget in (short, long):
        budget.crashed(0.0, 1.0)  # runs again from 1.0 on

    assert short.crashed(10.9, 1.0) is None
    assert long.crashed(11.0, 1.0) == 1.0


def test_an_actor_that_crashes_at_once_after_every_delay_spends_its_budget_however_long_the_delays_are() -> None:
    policy = RestartPolicy(restarts_max=5, window_s=1e6, healthy_s=1.0, backoff=Backoff(first_s=1.0, max_s=30.0))
    budget = RestartBudget(policy)
    now = 0.0
    delays_s: list[float] = []

    while (delay_s := budget.crashed(now, 1.0)) is not None and len(delays_s) < 100:
        delays_s.append(delay_s)
        now += delay_s

    assert delays_s == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_without_healthy_s_only_the_window_forgets() -> None:
    budget = RestartBudget(RestartPolicy(restarts_max=1, window_s=1e9))
    budget.crashed(0.0, 1.0)

    assert budget.crashed(1e8, 1.0) is None


def test_a_crash_exactly_one_window_ago_counts_no_more() -> None:
    policy = RestartPolicy(restarts_max=1, window_s=20.0)
    inside, outside = RestartBudget(policy), RestartBudget(policy)
    for budget in (inside, outside):
        budget.crashed(0.0, 1.0)

    assert inside.crashed(19.9, 1.0) is None
    assert outside.crashed(20.0, 1.0) == pytest.approx(0.2)


def test_one_for_one_is_what_a_policy_does_unless_told() -> None:
    assert RestartPolicy().strategy == "one_for_one"


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_every_strategy_of_the_table_is_taken(strategy: RestartStrategy) -> None:
    assert RestartPolicy(strategy=strategy).strategy == strategy


def test_an_unknown_strategy_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"one_for_all.*not 'all_for_one'"):
        RestartPolicy(strategy="all_for_one")  # pyright: ignore[reportArgumentType] - just that


@pytest.mark.parametrize(
    ("restarts_max", "window_s", "healthy_s"), [(-1, 60.0, 1.0), (5, 0.0, 1.0), (5, 60.0, 0.0), (5, math.nan, 1.0)]
)
def test_a_policy_with_a_number_out_of_range_is_refused_at_the_door(
    restarts_max: int, window_s: float, healthy_s: float
) -> None:
    with pytest.raises(ValueError, match=r"restarts_max of 0 or more|window_s is a number, not nan"):
        RestartPolicy(restarts_max=restarts_max, window_s=window_s, healthy_s=healthy_s)


def test_a_budget_remembers_until_its_window_or_a_healthy_spell_is_over() -> None:
    backoff = Backoff(first_s=1.0, max_s=1.0)
    by_window = RestartBudget(RestartPolicy(window_s=20.0, backoff=backoff))
    by_health = RestartBudget(RestartPolicy(window_s=1e9, healthy_s=10.0, backoff=backoff))
    before = by_window.remembers(0.0)
    for budget in (by_window, by_health):
        budget.crashed(0.0, 1.0)

    assert not before
    assert [by_window.remembers(now) for now in (0.0, 19.9, 20.0)] == [True, True, False]
    assert [by_health.remembers(now) for now in (0.0, 10.9, 11.0)] == [True, True, False]
