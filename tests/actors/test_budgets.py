"""What may be spent and what was: the pure half, over every bound."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from callboard import Budget, Price, Prices, Spending, Usage
from callboard.actors.budgets import Purse, exceeded, model_names

PRICES = Prices({"big": Price(input=10.0, output=30.0, cached=1.0), "big-mini": Price(input=1.0, output=2.0)})

counts = st.integers(0, 10_000)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    completion_tokens=counts,
    total_tokens=counts,
    cached_tokens=counts,
    requests=st.just(1),
)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(prompt_tokens=1_000_000), 10.0),
        (Usage(completion_tokens=1_000_000), 30.0),
        (Usage(prompt_tokens=1_000_000, cached_tokens=400_000), 6.4),
        (Usage(prompt_tokens=500_000, cached_tokens=900_000), 0.5),  # more was cached than asked: an odd server
        (Usage(total_tokens=1_000_000), 30.0),
        (Usage(prompt_tokens=500_000, completion_tokens=500_000, total_tokens=1_000_000), 20.0),
        (Usage(), 0.0),
    ],
)
def test_cost_is_by_kind_of_token_and_unnamed_ones_count_as_output(usage: Usage, cost: float) -> None:
    price = PRICES.of("big")

    assert price is not None
    assert price.cost(usage) == pytest.approx(cost)


def test_a_price_without_one_for_cached_tokens_has_that_of_the_prompt() -> None:
    usage = Usage(prompt_tokens=1_000_000, cached_tokens=1_000_000)

    assert Price(input=3.0, output=0.0).cost(usage) == 3.0


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("big", 10.0),
        ("big-2026-01-01", 10.0),
        ("big-mini", 1.0),
        ("big-mini-2026-01-01", 1.0),
        ("bigger", None),
        ("", None),
    ],
)
def test_a_model_has_the_price_of_the_longest_name_that_it_begins_with(model: str, found: float | None) -> None:
    price = PRICES.of(model)

    assert (None if price is None else price.input) == found


def test_all_other_models_have_the_default_price() -> None:
    assert Prices({}, default=Price(input=7.0, output=8.0)).of("anything") == Price(input=7.0, output=8.0)


@given(
    usage=usages,
    tokens=st.none() | st.integers(1, 10_000),
    calls=st.integers(0, 9),
    calls_max=st.none() | st.integers(1, 9),
    seconds=st.floats(0, 9),
    seconds_max=st.none() | st.floats(0.1, 9),
)
def test_no_call_may_begin_exactly_where_a_bound_is_reached(
    *, usage: Usage, tokens: int | None, calls: int, calls_max: int | None, seconds: float, seconds_max: float | None
) -> None:
    budget = Budget(tokens=tokens, model_calls=calls_max, seconds=seconds_max)
    reached = {
        "model_calls": calls_max is not None and calls >= calls_max,
        "tokens": tokens is not None and usage.total_tokens >= tokens,
        "seconds": seconds_max is not None and seconds >= seconds_max,
    }
    found = exceeded(budget, usage, model_calls=calls, seconds=seconds)

    assert (found is not None) == any(reached.values())
    if found is not None:
        assert reached[found.limit]
        assert found.spent >= found.allowed
        assert f"{found.allowed:g}" in str(found)


@given(spent=st.lists(usages, max_size=5))
def test_a_spending_is_the_sum_of_what_was_added_with_its_cost(spent: list[Usage]) -> None:
    spending = Spending(Budget(prices=PRICES))
    price = PRICES.of("big")
    assert price is not None
    priced = [spending.add(usage, "big") for usage in spent]

    assert [usage.cost for usage in priced] == [price.cost(usage) for usage in spent]
    assert spending.usage == sum(priced, Usage())
    assert spending.exceeded is None


def test_seconds_count_from_the_first_look_and_never_go_back() -> None:
    spending = Spending(Budget(seconds=10.0))

    assert spending.look(100.0) is None
    assert spending.look(109.9) is None
    assert (found := spending.look(110.0)) is not None
    assert (found.limit, found.allowed, found.spent) == ("seconds", 10.0, 10.0)
    assert spending.look(90.0) == found


def test_a_model_is_priced_by_the_name_that_it_answers_under_else_by_the_one_that_was_asked() -> None:
    spending = Spending(Budget(prices=PRICES))
    usage = Usage(prompt_tokens=1_000_000, total_tokens=1_000_000)

    assert spending.add(usage, "big-mini", "big").cost == 1.0
    assert spending.add(usage, "/models/big.gguf", "big").cost == 10.0


def test_a_bound_on_cost_that_cannot_be_kept_stops_and_says_for_which_model() -> None:
    bounded, free = Spending(Budget(cost=1.0, prices=PRICES)), Spending(Budget(prices=PRICES))
    for spending in (bounded, free):
        spending.add(Usage(total_tokens=1), "strange", "stranger")

    assert free.exceeded is None
    assert bounded.exceeded is not None
    assert bounded.exceeded.unpriced == "strange"
    assert "no price for the model 'strange'" in str(bounded.exceeded)


def test_a_purse_pays_from_both_and_the_first_that_is_spent_stops_it() -> None:
    own, shared = Budget(tokens=10, keep_partial=True), Spending(Budget(model_calls=3, prices=PRICES))
    purse = Purse(own, shared, earlier=Usage(total_tokens=4, requests=2))

    assert purse.look(0.0) is None
    purse.call_begins()
    assert purse.add(Usage(prompt_tokens=5, total_tokens=5), "big").cost == pytest.approx(5e-5)
    assert purse.look(0.0) is None
    purse.call_begins()
    purse.add(Usage(total_tokens=1), "big")
    reached = purse.look(0.0)
    assert reached is not None
    assert (reached[0].limit, reached[0].spent, reached[1]) == ("tokens", 10, own)
    assert (shared.model_calls, shared.usage.total_tokens) == (2, 6)


def test_a_purse_without_a_budget_stops_nothing_and_leaves_the_usage_as_it_is() -> None:
    purse, usage = Purse(None, None, earlier=Usage()), Usage(total_tokens=1)

    purse.call_begins()
    assert purse.look(0.0) is None
    assert purse.add(usage, "any") is usage


def test_the_models_of_a_chain_are_all_that_may_answer() -> None:
    assert model_names("large|small", None) == ["large", "small"]
    assert model_names("large|small", "huge") == ["huge", "small"]
    assert model_names("large", None) == ["large"]


WRONG: list[tuple[type[Exception], dict[str, Any]]] = [
    (TypeError, {"tokens": 1.5}),
    (TypeError, {"tokens": True}),
    (ValueError, {"tokens": 0}),
    (ValueError, {"model_calls": -1}),
    (TypeError, {"seconds": "9"}),
    (ValueError, {"seconds": 0.0}),
    (ValueError, {"seconds": float("inf")}),
    (ValueError, {"cost": float("nan")}),
    (ValueError, {"cost": 1.0}),
    (TypeError, {"prices": {"big": 1.0}}),
]


@pytest.mark.parametrize(("error", "fields"), WRONG, ids=str)
def test_a_budget_that_makes_no_sense_is_refused(error: type[Exception], fields: dict[str, Any]) -> None:
    with pytest.raises(error):
        Budget(**fields)


def test_what_is_no_price_is_refused() -> None:
    wrong: Any = 3.0
    missing: Any = None
    with pytest.raises(TypeError, match="must have a Price"):
        Prices({"big": wrong})
    with pytest.raises(TypeError, match="must have a Price"):
        Prices({}, default=wrong)
    with pytest.raises(TypeError, match="must be a dict"):
        Prices(wrong)
    with pytest.raises(ValueError, match="finite"):
        Price(input=-1.0, output=1.0)
    with pytest.raises(TypeError, match="number"):
        Price(input=missing, output=1.0)
    with pytest.raises(TypeError, match="of a Budget"):
        Spending(wrong)
