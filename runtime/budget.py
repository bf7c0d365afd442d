"""How often something may be tried again, and how long to wait before. Pure: time and chance are passed in.

A restart window slides: only the crashes of the last `window_s` seconds count. Delays double from `first_s` to `max_s`
with full jitter (a random share of the whole delay), so that many that failed together do not come back together.

Source: Erlang/OTP supervisor (intensity, period); AWS Architecture Blog, "Exponential Backoff And Jitter" (full
jitter).
"""

from collections import deque
from dataclasses import dataclass, field

from msgspec import Struct

__all__ = ["Backoff", "RestartBudget", "RestartPolicy"]


class Backoff(Struct, frozen=True):
    """Delays in seconds: `first_s` doubling to `max_s`, each multiplied by a chance in 0..1."""

    first_s: float = 0.2
    max_s: float = 30.0

    def delay_s(self, failures: int, chance: float) -> float:
        """The wait after the `failures`-th failure in a row (1, 2, ...); `chance` is a random number in 0..1."""
        assert failures >= 1
        assert 0.0 <= chance <= 1.0
        doublings = min(failures - 1, 63)  # 2**1024 is no float
        return min(self.max_s, self.first_s * 2.0**doublings) * chance


class RestartPolicy(Struct, frozen=True):
    """At most `restarts_max` restarts within any `window_s` seconds."""

    restarts_max: int = 5
    window_s: float = 60.0
    backoff: Backoff = Backoff()


@dataclass(slots=True)
class RestartBudget:
    """The crashes of one actor within its window."""

    policy: RestartPolicy
    crashes: deque[float] = field(default_factory=lambda: deque[float]())

    def crashed(self, now: float, chance: float) -> float | None:
        """Count a crash at `now`; the delay in seconds before the restart, or None where the budget is spent."""
        horizon = now - self.policy.window_s
        while self.crashes and self.crashes[0] <= horizon:
            self.crashes.popleft()
        self.crashes.append(now)
        if len(self.crashes) > self.policy.restarts_max:
            return None
        return self.policy.backoff.delay_s(len(self.crashes), chance)

    def reset(self) -> None:
        """Forget the crashes: somebody has said that the cause is gone."""
        self.crashes.clear()
