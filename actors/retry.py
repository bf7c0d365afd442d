"""Whether a failed request is made again, and after how long. Pure: time and chance are passed in.

The first row that fits holds:

    the error                                                   what follows
    a piece of the answer was handed out                        give up: it cannot be taken back
    Refused with 402 or 429: the quota is spent                 give up: it does not come back in seconds
    x-should-retry: false                                       give up
    RateLimited                                                 slow down: wait in the provider's gate, spends patience
    x-should-retry: true                                        repeat: spends a retry
    ModelUnavailable (408, 409, 425, 5xx, connection, time)     repeat
    Stalled, Truncated                                          repeat
    all else (4xx, an answer that is none)                      give up

A wish of the server (Retry-After) of up to `retry_after_s_max` goes before the backoff; a longer one means to give up.
What is given up may still be tried again by the run, which knows how to take back what was shown.

Source: openai-python and anthropic-sdk-python, `_base_client` (statuses, headers, delays; FACTS.md, "Retry"); Finagle's
RetryBudget (a share of the requests).
"""

from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

from msgspec import Struct

from ..runtime.options import check_count, check_number
from .errors import ModelError, ModelUnavailable, RateLimited, Refused, Stalled, Truncated

__all__ = ["NextTry", "RetryBudget", "RetryPolicy", "Tries", "Verdict", "verdict"]

Verdict: TypeAlias = Literal["repeat", "slow_down", "give_up"]

_QUOTA_STATUSES = (402, 429)
_PASSING = (ModelUnavailable, Stalled, Truncated)

BUDGET_MAX = 10.0
"""Retries that a provider's budget holds at most, and to begin with: enough for a few calls after a silence."""
BUDGET_PER_CALL = 0.1
"""What a call adds: in the long run one retry for ten calls, so that thousands of callers do not storm a server that
is down."""


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How patient a client is with its provider, within one call.

    Attributes:
        retries_max: requests after the first one; 0 leaves all of that to the run.
        first_s: the wait before the first of them; it doubles with each.
        max_s: the longest such wait.
        jitter: the share of a wait, 0 to 1, that chance may take off.
        retry_after_s_max: the longest wish of a server that is obeyed; with a longer one the error goes up at once.
        rate_limit_patience_s: from a call's first 429 on, how long it waits for its turn instead of failing. Such tries
            are no retries. 0: a 429 goes up at once.

    Raises:
        ValueError, TypeError: a number that is out of range, or none.
    """

    retries_max: int = 2
    first_s: float = 0.5
    max_s: float = 8.0
    jitter: float = 0.25
    retry_after_s_max: float = 120.0
    rate_limit_patience_s: float = 120.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            check_number(name, getattr(self, name))
        check_count("retries_max", self.retries_max, least=0)
        if self.retry_after_s_max < 0 or self.rate_limit_patience_s < 0:
            raise ValueError(
                "a retry policy has retry_after_s_max and rate_limit_patience_s of 0 or more, not "
                f"{self.retry_after_s_max} and {self.rate_limit_patience_s}"
            )
        if not 0.0 < self.first_s <= self.max_s or not 0.0 <= self.jitter <= 1.0:
            raise ValueError(
                "a retry policy has first_s above 0, max_s of at least that and jitter from 0 to 1, not "
                f"{self.first_s}, {self.max_s} and {self.jitter}"
            )

    def delay_s(self, failures: int, *, retry_after_s: float | None, chance: float) -> float | None:
        """The wait after the `failures`-th failure (1, 2, ...) of a call; None where the server wants too long a one.

        Args:
            retry_after_s: the server's wish; None or 0 where it has none.
            chance: a random number in 0..1.
        """
        assert failures >= 1
        assert 0.0 <= chance <= 1.0
        if retry_after_s is not None and retry_after_s > 0:
            return retry_after_s if retry_after_s <= self.retry_after_s_max else None
        doublings = min(failures - 1, 63)  # 2**1024 is no float
        return min(self.max_s, self.first_s * 2.0**doublings) * (1.0 - self.jitter * chance)


def verdict(error: ModelError) -> Verdict:
    """What the table above says of an error before which nothing was handed out."""
    if isinstance(error, Refused) and error.status in _QUOTA_STATUSES:
        return "give_up"
    if error.should_retry is False:
        return "give_up"
    if isinstance(error, RateLimited):
        return "slow_down"
    return "repeat" if error.should_retry or isinstance(error, _PASSING) else "give_up"


@dataclass(slots=True)
class RetryBudget:
    """How many retries a provider may still be asked for: a bucket of tokens, which calls fill and retries empty."""

    tokens: float = BUDGET_MAX

    def earn(self) -> None:
        """A call was begun."""
        if self.tokens < BUDGET_MAX:
            self.tokens = min(BUDGET_MAX, self.tokens + BUDGET_PER_CALL)

    def spend(self) -> bool:
        """Take a token for a retry; False where there is none."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class NextTry(Struct, frozen=True):
    """Another request: a repeat after `delay_s` seconds, or one that is let in with the others, at the latest
    `gives_up_at` (a time)."""

    delay_s: float = 0.0
    gives_up_at: float = inf


@dataclass(slots=True)
class Tries:
    """The requests of one call.

    Attributes:
        made: how many were made.
        retries: how many of them repeated one that had failed, rate limits aside.
        rate_limited: how many of them ended in a RateLimited.
    """

    policy: RetryPolicy
    budget: RetryBudget
    made: int = 0
    retries: int = 0
    rate_limited: int = 0
    _patience_ends_at: float = inf

    def failed(self, error: ModelError, *, shown: bool, now: float, chance: float) -> NextTry | None:
        """Note how the last request ended. What follows: another one, or None where the error is to go up.

        Args:
            shown: whether a piece of its answer was handed out.
            now: seconds on any clock, the same for all of a call's requests.
            chance: a random number in 0..1.
        """
        self.made += 1
        if isinstance(error, RateLimited):
            self.rate_limited += 1
            self._patience_ends_at = min(self._patience_ends_at, now + self.policy.rate_limit_patience_s)
        what = "give_up" if shown else verdict(error)
        if what == "slow_down":
            return self._slow_down(error, now=now, chance=chance)
        return self._repeat(error, chance=chance) if what == "repeat" else None

    def pause_s(self, error: RateLimited, *, strikes: int, chance: float) -> float:
        """How long the last request's rate limit should keep all calls away; 0 where it should not.

        Args:
            strikes: rounds of requests that met one since the provider last answered.
            chance: a random number in 0..1.
        """
        failures = max(self.rate_limited, strikes)
        delay_s = self.policy.delay_s(failures, retry_after_s=error.retry_after_s, chance=chance)
        # Nobody is to wait longer for another's 429 than for its own.
        return 0.0 if delay_s is None else min(delay_s, self.policy.rate_limit_patience_s)

    def _slow_down(self, error: ModelError, *, now: float, chance: float) -> NextTry | None:
        delay_s = self.policy.delay_s(self.rate_limited, retry_after_s=error.retry_after_s, chance=chance)
        if delay_s is None or now + delay_s > self._patience_ends_at:
            return None
        return NextTry(gives_up_at=self._patience_ends_at)

    def _repeat(self, error: ModelError, *, chance: float) -> NextTry | None:
        if self.retries >= self.policy.retries_max:
            return None
        delay_s = self.policy.delay_s(self.retries + 1, retry_after_s=error.retry_after_s, chance=chance)
        if delay_s is None or not self.budget.spend():
            return None
        self.retries += 1
        return NextTry(delay_s)
