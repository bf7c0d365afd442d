"""What runs may spend, and what they have spent: tokens, money, seconds, model calls. Without I/O; time is passed in.

    Budget      the bounds, a value
    Prices      what tokens of each model cost
    Spending    what one run, or several together, have spent of a budget, live

A budget is looked at before each model call, so between two units of the conversation and never within one. What is
under way is finished: tokens, cost and seconds may end above their bound, by one call of each run that spends;
`model_calls` never do.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ..runtime.options import check_number
from .message import Usage

__all__ = ["Budget", "BudgetLimit", "Exceeded", "Price", "Prices", "Purse", "Spending", "exceeded", "model_names"]

BudgetLimit: TypeAlias = Literal["model_calls", "tokens", "cost", "seconds"]
"""The bounds of a budget, in the order in which they are looked at."""

_MILLION = 1_000_000


class Price(Struct, frozen=True, kw_only=True):
    """What a million tokens cost, in whatever currency the budget is in.

    Attributes:
        input: of the prompt.
        output: of the answer, reasoning included.
        cached: of the part of the prompt that the provider had cached; None: as `input`.
    """

    input: float
    output: float
    cached: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value: float | None = getattr(self, name)
            if value is not None or name != "cached":
                _check_amount(name, value)

    def cost(self, usage: Usage) -> float:
        """What this usage costs. Tokens of a sum of which nobody said what they are count as output."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        unnamed = max(0, usage.total_tokens - usage.prompt_tokens - usage.completion_tokens)
        cached_price = self.input if self.cached is None else self.cached
        parts = (
            (usage.prompt_tokens - cached) * self.input,
            cached * cached_price,
            (usage.completion_tokens + unnamed) * self.output,
        )
        return math.fsum(parts) / _MILLION


class Prices:
    """Prices by model: `Prices({"gpt-4o": Price(input=2.5, output=10.0)}, default=Price(input=5.0, output=20.0))`.

    A model without an entry of its own has that of the longest name which it begins with, followed by a dash: servers
    answer as "gpt-4o-2024-08-06" where "gpt-4o" was asked. `default` is for all others.

    Raises:
        TypeError, ValueError: something is no price.
    """

    def __init__(self, prices: Mapping[str, Price], *, default: Price | None = None) -> None:
        if not isinstance(prices, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f'prices must be a dict, as in {{"gpt-4o": Price(input=2.5, output=10.0)}}, not {prices!r}')
        for name, price in (*prices.items(), *(() if default is None else (("default", default),))):
            if not isinstance(name, str) or not isinstance(price, Price):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
                raise TypeError(f"{name!r} must have a Price, as in Price(input=2.5, output=10.0), not {price!r}")
        self._prices = dict(prices)
        self._default = default

    def __repr__(self) -> str:
        return f"Prices({self._prices!r}, default={self._default!r})"

    def of(self, model: str) -> Price | None:
        """What tokens of this model cost, or None where nobody said so."""
        price = self._prices.get(model)
        if price is not None:
            return price
        longest = max((name for name in self._prices if model.startswith(f"{name}-")), key=len, default=None)
        return self._default if longest is None else self._prices[longest]


class Budget(Struct, frozen=True, kw_only=True):
    """How much may be spent: of a run in `RunPolicy(budget=...)`, of several together in a `Spending`.

    Attributes:
        tokens: of all model calls, prompts and answers.
        cost: in the currency of `prices`.
        seconds: since the run began its turn, or since the first run of a Spending did. Unlike RunPolicy.timeout_s it
            cuts nothing off.
        model_calls: those that failed included, as each may be billed.
        prices: what tokens cost. Without any bound it makes runs tell their cost.
        keep_partial: a run that is stopped leaves what it has done in history: its input, and each answer with the
            results of its tool calls. Otherwise history is as before the turn.
    """

    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None
    model_calls: int | None = None
    prices: Prices | None = None
    keep_partial: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens", "model_calls"):
            count: object = getattr(self, name)
            if count is not None and type(count) is not int:
                raise TypeError(f"{name} must be a whole number, not {count!r}")
            if isinstance(count, int) and count < 1:
                raise ValueError(f"{name} must be 1 or more, not {count}: leave it out for no bound")
        for name in ("cost", "seconds"):
            amount: float | None = getattr(self, name)
            if amount is not None and not _check_amount(name, amount) > 0:
                raise ValueError(f"{name} must be above 0, not {amount}: leave it out for no bound")
        if self.prices is not None and not isinstance(self.prices, Prices):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"prices must be a Prices, not {self.prices!r}")
        if self.cost is not None and self.prices is None:
            raise ValueError('a bound on cost needs prices=Prices({"gpt-4o": Price(input=2.5, output=10.0)})')

    def check_priced(self, models: Iterable[str]) -> None:
        """ValueError where cost is bounded and the tokens of one of these models have no price."""
        if self.cost is None:
            return
        assert self.prices is not None
        missing = [model for model in models if self.prices.of(model) is None]
        if missing:
            raise ValueError(
                f"the budget bounds cost, and its prices have none for {', '.join(map(repr, missing))}: add it, "
                "or a default="
            )


class Exceeded(Struct, frozen=True):
    """A bound is reached: `spent` of `allowed`. `unpriced` is a model whose tokens cost nobody knows what."""

    limit: BudgetLimit
    allowed: float
    spent: float
    unpriced: str | None = None

    def __str__(self) -> str:
        if self.unpriced is not None:
            return f"the budget of cost cannot be kept: there is no price for the model {self.unpriced!r}"
        unit = {"model_calls": "model calls", "tokens": "tokens", "cost": "in cost", "seconds": "seconds"}[self.limit]
        return f"the budget of {self.allowed:g} {unit} is spent ({self.spent:g})"


def exceeded(budget: Budget, usage: Usage, *, model_calls: int, seconds: float) -> Exceeded | None:
    """The first bound that is reached, so that no further call may begin; None where there is none."""
    spent: tuple[tuple[BudgetLimit, float | None, float], ...] = (
        ("model_calls", budget.model_calls, model_calls),
        ("tokens", budget.tokens, usage.total_tokens),
        ("cost", budget.cost, usage.cost),
        ("seconds", budget.seconds, seconds),
    )
    for limit, allowed, amount in spent:
        if allowed is not None and amount >= allowed:
            return Exceeded(limit, allowed, amount)
    return None


class Spending:
    """What runs spend together of one budget: `agent.chat("...", spending=spending)`, for any number of agents.

    It lives in this process, with one event loop, and is not stored: for a run that goes on in another process, give
    what is left. All that it shows is as of now. A run has a bound of its own beside it, RunPolicy.budget.

    Args:
        budget: what all of them together may spend.
        usage: what was spent before.

    Attributes:
        usage: what was spent: tokens, and cost where there are prices.
        model_calls: those that began.
        seconds: since the first of the runs began its turn, as of the last look at it.
    """

    def __init__(self, budget: Budget, *, usage: Usage | None = None) -> None:
        if not isinstance(budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a Spending is of a Budget, as in Spending(Budget(tokens=50_000)), not {budget!r}")
        self.budget: Budget = budget
        self.usage: Usage = Usage() if usage is None else usage
        self.model_calls: int = self.usage.requests
        self.seconds: float = 0.0
        self._began_at_s: float | None = None
        self._unpriced: str | None = None

    def __repr__(self) -> str:
        return f"<Spending {self.usage.total_tokens} tokens, {self.model_calls} model calls, {self.usage.cost:g}>"

    @property
    def exceeded(self) -> Exceeded | None:
        """The bound that is reached, or None. Seconds as of the last look."""
        if self._unpriced is not None and self.budget.cost is not None:
            return Exceeded("cost", self.budget.cost, self.usage.cost, self._unpriced)
        return exceeded(self.budget, self.usage, model_calls=self.model_calls, seconds=self.seconds)

    def look(self, now_s: float) -> Exceeded | None:
        """`exceeded`, at this moment of a clock that is the same for all its runs. The first look starts the time."""
        if self._began_at_s is None:
            self._began_at_s = now_s
        self.seconds = max(self.seconds, now_s - self._began_at_s)
        return self.exceeded

    def call_begins(self) -> None:
        """A model call begins. No await between this and the look that allowed it, or two would take the last one."""
        self.model_calls += 1

    def add(self, usage: Usage, *models: str) -> Usage:
        """A call has ended; the usage with its cost, by the first of these names of its model that has a price."""
        prices = self.budget.prices
        if prices is not None:
            price = next((price for price in map(prices.of, models) if price is not None), None)
            if price is not None:
                usage = replace(usage, cost=price.cost(usage))
            elif usage.total_tokens:
                self._unpriced = models[0]
        self.usage = self.usage + usage
        return usage


class Purse:
    """What one run pays from: its own budget, where it has one, and a Spending that it shares, where there is one.

    `earlier` is what the run had spent in turns before this one.
    """

    __slots__ = ("_spendings",)

    def __init__(self, own: Budget | None, shared: Spending | None, *, earlier: Usage) -> None:
        spendings = (None if own is None else Spending(own, usage=earlier), shared)
        self._spendings = tuple(spending for spending in spendings if spending is not None)

    def look(self, now_s: float) -> tuple[Exceeded, Budget] | None:
        """The first bound that is reached, and the budget whose it is. As `Spending.look`."""
        reached = [(spending.look(now_s), spending.budget) for spending in self._spendings]
        return next(((exceeded, budget) for exceeded, budget in reached if exceeded is not None), None)

    def call_begins(self) -> None:
        """As `Spending.call_begins`."""
        for spending in self._spendings:
            spending.call_begins()

    def add(self, usage: Usage, *models: str) -> Usage:
        """As `Spending.add`; the cost is by the first budget that has a price."""
        priced = usage
        for spending in reversed(self._spendings):
            added = spending.add(usage, *models)
            priced = priced if added is usage else added
        return priced


def model_names(name: str, setting: str | None) -> list[str]:
    """The models that may answer: those of a chain's name, "large|small", the first of which `setting` replaces."""
    first, *others = name.split("|")
    return [setting or first, *others]


def _check_amount(name: str, value: float | None) -> float:
    if value is None:
        raise TypeError(f"{name} must be a number, not None")
    check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number from 0, not {value}")
    return value
