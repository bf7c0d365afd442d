"""How often a run is tried and how long it waits between: what spends its budget of attempts. Pure but for the dice."""

import random
from dataclasses import dataclass

from ..store.errors import CallboardError
from .agent_spec import RunPolicy
from .errors import ModelError, RateLimited
from .limits import reason_of

__all__ = ["RETRY_AFTER_S_MAX", "Attempts", "failure_reason"]

RETRY_AFTER_S_MAX = 120.0
"""A server that asks for a longer pause is not waited for; OpenAI's and Anthropic's clients draw a line likewise."""


@dataclass(slots=True)
class Attempts:
    """The attempts of one run; `number` is that of the present one, from 1, and 0 before the first."""

    policy: RunPolicy
    number: int = 0

    def begin(self) -> None:
        """The next attempt begins."""
        self.number += 1

    def delay_s(self, error: Exception) -> float | None:
        """The wait before the attempt after this failure; None where there is to be none.

        A model's error says itself whether another try may help. A session or a store that refuses would refuse the
        next one too. A crash, of a tool or a model, is tried again.
        """
        permanent = isinstance(error, CallboardError) and not (isinstance(error, ModelError) and error.transient)
        if permanent or self.number >= self.policy.attempts_max:
            return None
        if isinstance(error, RateLimited) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= RETRY_AFTER_S_MAX else None
        return self.policy.backoff.delay_s(self.number, random.random())


def failure_reason(error: Exception) -> str:
    """Why an attempt failed, for the run's record."""
    return str(error) if isinstance(error, CallboardError) else reason_of(error)
