"""How often a run is tried and how long it waits between: what spends its budget of attempts. Pure but for the dice."""

import random
from dataclasses import dataclass

from ..store.errors import CallboardError
from .agent_spec import RunPolicy
from .errors import ModelError
from .limits import reason_of

__all__ = ["RETRY_AFTER_S_MAX", "Attempts", "failure_reason"]

RETRY_AFTER_S_MAX = 120.0
"""A server that asks for a longer pause is not waited for; OpenAI's and Anthropic's clients draw a line likewise."""


@dataclass(slots=True)
class Attempts:
    """The attempts of one run.

    Attributes:
        number: that of the present one, from 1; 0 before the first.
        spent: how much of the budget is gone. A client that tried three times within one attempt has spent three, or
            its patience and the run's would multiply.
    """

    policy: RunPolicy
    number: int = 0
    spent: int = 0

    def begin(self) -> None:
        """The next attempt begins."""
        self.number += 1

    def failed(self, error: Exception) -> float | None:
        """Note how the present attempt ended. The wait in seconds before the next one; None where there is to be none.

        A model's error says itself whether another try may help, and its server may say that none does. A session or a
        store that refuses would refuse the next one too. A crash, of a tool or a model, is tried again.
        """
        self.spent += error.tries if isinstance(error, ModelError) else 1
        if self.spent >= self.policy.attempts_max:
            return None
        if isinstance(error, ModelError):
            return self._delay_s(error.retry_after_s) if error.transient and error.should_retry is not False else None
        return None if isinstance(error, CallboardError) else self._delay_s(None)

    def _delay_s(self, retry_after_s: float | None) -> float | None:
        if retry_after_s is not None and retry_after_s > 0:
            return retry_after_s if retry_after_s <= RETRY_AFTER_S_MAX else None
        return self.policy.backoff.delay_s(self.number, random.random())


def failure_reason(error: Exception) -> str:
    """Why an attempt failed, for the run's record."""
    return str(error) if isinstance(error, CallboardError) else reason_of(error)
