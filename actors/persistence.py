"""Sending to a session until its store has it: what a run must not lose for one failed commit."""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..runtime.budget import Backoff
from ..runtime.errors import Failed, Rejected, Unknown
from ..store.errors import StoreError

__all__ = ["CLOSE_TIMEOUT_S", "persist"]

ReplyT = TypeVar("ReplyT")

CLOSE_TIMEOUT_S = 30.0
"""How long the end of a turn may be offered to a session whose store does not take it."""


async def persist(send: Callable[[], Awaitable[ReplyT]]) -> ReplyT:
    """Send until the store has it. The messages sent so are safe to repeat: a session knows what it has had.

    Raises:
        Unknown: it may be stored: a try before the last one ended so, and no later one could tell.
        CallboardError: the answer of the last try that ran. Nothing is stored.
    """
    backoff = Backoff(first_s=0.05, max_s=2.0)
    give_up_at = anyio.current_time() + CLOSE_TIMEOUT_S
    failures: list[Failed | Unknown | StoreError] = []
    while True:
        try:
            return await send()
        except (Failed, Unknown, StoreError) as error:  # a StoreError: what is stored could not be read for the answer
            failures.append(error)
            delay_s = backoff.delay_s(len(failures), random.random())
            outage = not isinstance(error, Failed) or isinstance(error.__cause__, StoreError)
            if not outage or anyio.current_time() + delay_s > give_up_at:
                raise _worst(failures) from error.__cause__
        except Rejected as error:  # it did not run this time: what became of it is what the tries before say
            if not failures:
                raise
            raise _worst(failures) from failures[-1].__cause__ or error
        await anyio.sleep(delay_s)


def _worst(failures: list[Failed | Unknown | StoreError]) -> Failed | Unknown | StoreError:
    """What holds of a request that failed so often: once unknown, it stays unknown."""
    return next((error for error in failures if isinstance(error, Unknown)), failures[-1])
