"""How many requests a provider is asked at once, and since when none: fewer after each 429, more after each success.
Pure: time is passed in.

    429 with success in between      limit = half of what was in use, the gate closed for a while
    every 4 successes                limit + 1, up to the most that was allowed

Requests that were under way together are one round: the first of them that meets a 429 halves the limit, and those that
were let in before that mean the same 429. Without that rule a burst of 100 would end at one at a time.

Source: Chiu and Jain 1989 (additive increase, multiplicative decrease); RFC 5681, 3.1 (once per window); Netflix's
concurrency-limits (from what is in use, not from the limit).
"""

from dataclasses import dataclass, field

__all__ = ["SUCCESSES_PER_STEP", "Throttle"]

SUCCESSES_PER_STEP = 4
"""Successes for one more request at once: from 1 to 100 it takes 400 answers."""


@dataclass(slots=True)
class Throttle:
    """The limit on requests at once.

    Attributes:
        limit_max: the most it ever is.
        limit: what it is now, 1 to `limit_max`.
        opens_at: when the next request may begin, on the caller's clock; None: now.
        strikes: rounds that met a 429 since the last success.
    """

    limit_max: int
    limit: int = field(init=False)
    opens_at: float | None = None
    strikes: int = 0
    _let_in: int = 0
    _round_from: int = 0
    _successes: int = 0

    def __post_init__(self) -> None:
        assert self.limit_max >= 1
        self.limit = self.limit_max

    def let_in(self) -> int:
        """A request begins; its number, in order."""
        self._let_in += 1
        return self._let_in

    def is_closed(self, now: float) -> bool:
        """Whether nothing may begin at `now`."""
        if self.opens_at is not None and now >= self.opens_at:
            self.opens_at = None
        return self.opens_at is not None

    def succeeded(self) -> None:
        """A request was answered."""
        self.strikes = 0
        if self.limit < self.limit_max:
            self._successes += 1
            if self._successes >= SUCCESSES_PER_STEP:
                self._successes = 0
                self.limit += 1

    def struck(self, number: int, *, in_use: int) -> None:
        """The request `number` met a 429 while `in_use` were under way, itself included."""
        if number <= self._round_from:
            return
        self._round_from = self._let_in
        self._successes = 0
        self.strikes += 1
        self.limit = max(1, min(self.limit, in_use) // 2)

    def close(self, until: float) -> None:
        """Let nothing begin before `until`; a later time that was told before stands."""
        if self.opens_at is None or until > self.opens_at:
            self.opens_at = until
