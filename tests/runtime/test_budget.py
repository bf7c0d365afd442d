import math

import pytest
from hypothesis import given, strategies as st

from callboard.runtime import Backoff, RestartPolicy
from callboard.runtime.budget import RestartBudget

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
