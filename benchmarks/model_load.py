"""How the clients of bench_model_path.py are loaded: the same for every one, so that only the clients differ.

All hold the same conversations: in each next call of a caller the history has grown by a turn, until it begins anew.
Each compares the text that it was given with what the server sent.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import msgspec
from closed_loop import Caller, Round, percentile_ms
from model_upstream import ANSWER, ANSWER_TOKENS
from system_process import Figures

__all__ = ["INSTRUCTIONS", "QUESTION", "TALKS", "Load", "Measure", "Opener", "Wanted", "Way", "figures_of", "streamed"]

INSTRUCTIONS = "You are a support agent. Be brief, and ask when something is not clear."
QUESTION = "My invoice of last month lists the same position twice, and the second one is in another currency."
EXCHANGE = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
TALKS = [[{"role": "system", "content": INSTRUCTIONS}, *EXCHANGE * turn, EXCHANGE[0]] for turn in range(5)]
"""What the model is sent in turn 1, 2, ... of a conversation."""


class Load(msgspec.Struct, frozen=True):
    """How much work one round of one measurement is.

    Attributes:
        url: of the model server's API.
        folder: where the files lie.
        seconds: about how long each of its figures is taken.
        gap_ms: between two tokens of a paced stream.
        at_once: how many callers there are in the rows `many` and `streams`, one figure for each.
        connections: how many are "5 000 connections".
        idle: how many are "1 000 idle connections".
        cancelled: how many are "10 000 cancelled turns".
    """

    url: str
    folder: str
    seconds: float
    gap_ms: int
    at_once: tuple[int, ...]
    connections: int
    idle: int
    cancelled: int


Measure: TypeAlias = Callable[[Load], Awaitable[Figures]]
"""One round of one system in one row."""

Way: TypeAlias = Callable[[int, str], Caller]
"""Makes the caller of this number, whose calls ask for this model (see model_upstream.py)."""


class Wanted(msgspec.Struct, frozen=True):
    """What a client is opened for.

    Attributes:
        url, folder: see Load.
        connections: that it may have at once; None: what it does by default.
    """

    url: str
    folder: str
    connections: int | None = None


Opener: TypeAlias = Callable[[Wanted], AbstractAsyncContextManager[Way]]


def figures_of(done: Round) -> Figures:
    """How dear and how fast the calls of a round were."""
    calls = len(done.latencies_s)
    p50_ms, p99_ms = (percentile_ms(done.latencies_s, percent) for percent in (50, 99))
    return {
        "cpu_us": done.cpu_s / calls * 1e6,
        "calls_per_s": done.per_s,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "p99_over_p50": p99_ms / p50_ms,
    }


def streamed(figures: Figures) -> Figures:
    """The same of streams, whose tokens count."""
    token_us = figures["cpu_us"] / ANSWER_TOKENS
    return {**figures, "token_us": token_us, "tokens_per_cpu_s": 1e6 / token_us}
