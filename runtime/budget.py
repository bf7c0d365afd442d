"""How often something may be tried again, and how long to wait before. Pure: time and chance are passed in.

A restart window slides: only the crashes of the last `window_s` seconds count. Delays double from `first_s` to `max_s`
with full jitter (a random share of the whole delay), so that many that failed together do not come back together. An
actor that went `healthy_s` seconds without a crash has a fresh budget, whatever its window still holds. The wait before
a restart is no health: it does not count, or a `healthy_s` shorter than the delays would never let a budget be spent.

Source: Erlang/OTP supervisor (intensity, period, strategies); AWS Architecture Blog, "Exponential Backoff And Jitter"
(full jitter).
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, get_args

from msgspec import Struct

from .options import check_number

__all__ = ["Backoff", "RestartBudget", "RestartPolicy", "RestartStrategy"]

RestartStrategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
"""Which children restart with one that crashed: none, all, or those that were supervised after it."""


class Backoff(Struct, frozen=True):
    """Delays in seconds: `first_s` doubling to `max_s`, each multiplied by a chance in 0..1.

    Raises:
        ValueError, TypeError: a number that is out of range, or none.
    """

    first_s: float = 0.2
    max_s: float = 30.0

    def __post_init__(self) -> None:
        check_number("first_s", self.first_s)
        check_number("max_s", self.max_s)
        if not 0.0 < self.first_s <= self.max_s < math.inf:
            raise ValueError(
                "a backoff has first_s above 0, and a finite max_s of at least that, not "
                f"{self.first_s} and {self.max_s}"
            )

    def delay_s(self, failures: int, chance: float) -> float:
        """The wait after the `failures`-th failure in a row (1, 2, ...); `chance` is a random number in 0..1."""
        assert failures >= 1
        assert 0.0 <= chance <= 1.0
        doublings = min(failures - 1, 63)  # 2**1024 is no float
        return min(self.max_s, self.first_s * 2.0**doublings) * chance


class RestartPolicy(Struct, frozen=True):
    """How an actor restarts, and which of its children with one of them.

    Attributes:
        restarts_max: so many restarts at most within any `window_s` seconds.
        window_s: see there.
        backoff: the delays before them.
        healthy_s: after so many seconds without a crash, delays not counted, the budget is fresh; inf for never.
        strategy: for this actor's children; see RestartStrategy.

    Raises:
        ValueError, TypeError: a number that is out of range, or none, or an unknown strategy.
    """

    restarts_max: int = 5
    window_s: float = 60.0
    backoff: Backoff = Backoff()
    healthy_s: float = math.inf
    strategy: RestartStrategy = "one_for_one"

    def __post_init__(self) -> None:
        for name in ("restarts_max", "window_s", "healthy_s"):
            check_number(name, getattr(self, name))
        if not isinstance(self.backoff, Backoff):  # pyright: ignore[reportUnnecessaryIsInstance] - without a checker
            raise TypeError(f"backoff is a callboard.runtime.Backoff, not {self.backoff!r}")
        if self.restarts_max < 0 or not self.window_s > 0.0 or not self.healthy_s > 0.0:
            raise ValueError(
                "a restart policy has restarts_max of 0 or more, window_s and healthy_s above 0, not "
                f"{self.restarts_max}, {self.window_s} and {self.healthy_s}"
            )
        if self.strategy not in get_args(RestartStrategy):
            raise ValueError(f"a restart strategy is one of {get_args(RestartStrategy)}, not {self.strategy!r}")


@dataclass(slots=True)
class RestartBudget:
    """The crashes of one actor within its window."""

    policy: RestartPolicy
    crashes: deque[float] = field(default_factory=lambda: deque[float]())
    _healthy_at: float = field(default=math.inf, init=False)

    def crashed(self, now: float, chance: float) -> float | None:
        """Count a crash at `now`; the delay in seconds before the restart, or None where the budget is spent."""
        self._forget_until(now)
        self.crashes.append(now)
        spent = len(self.crashes) > self.policy.restarts_max
        delay_s = 0.0 if spent else self.policy.backoff.delay_s(len(self.crashes), chance)
        self._healthy_at = now + delay_s + self.policy.healthy_s
        return None if spent else delay_s

    def remembers(self, now: float) -> bool:
        """False once every crash is too old to count."""
        self._forget_until(now)
        return bool(self.crashes)

    def reset(self) -> None:
        """Forget the crashes: somebody has said that the cause is gone."""
        self.crashes.clear()

    def _forget_until(self, now: float) -> None:
        if now >= self._healthy_at:
            self.reset()
        horizon = now - self.policy.window_s
        while self.crashes and self.crashes[0] <= horizon:
            self.crashes.popleft()
