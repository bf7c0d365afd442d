"""What a runtime counts and measures, and the last messages it has handled: cheap enough to be always on."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .histogram import Histogram
from .identity import ActorId
from .observing import Observable

__all__ = ["TRACE_MAX", "Metrics", "TraceEntry"]

TRACE_MAX = 1024

TraceEntry = tuple[int, float, ActorId, type[Any], ActorId | None]
"""number, when its handler began (loop clock), to, class of the message, sender. A tuple: one is made per message."""


@dataclass(slots=True)
class Metrics:
    """Counts since the runtime was opened.

    Attributes:
        handled: messages that reached a handler.
        crashes: handlers and loads that crashed; `restarts` of their actors, outages of the store included.
        activations, passivations: actors that came into memory, and that left it because nobody needed them.
        queues: how long messages were queued that could not be handled at once.
        waiting_handlers: how long async handlers took that waited for something, by samples.
        plain_handlers: how long the others took, by samples: two clock readings and a histogram cost a fifth of an ask.
        loads: how long activations took, from the first look at the store until the actor was READY; by samples where
            the load needs no task.
        commits: how long it took from when a batch was staged until its answer was back; by samples where the store
            is in memory.
        events: who is told of what is rare.
        trace: the last messages, oldest first.
    """

    handled: int = 0
    crashes: int = 0
    restarts: int = 0
    activations: int = 0
    passivations: int = 0
    queues: Histogram = field(default_factory=Histogram)
    waiting_handlers: Histogram = field(default_factory=Histogram)
    plain_handlers: Histogram = field(default_factory=Histogram)
    loads: Histogram = field(default_factory=Histogram)
    commits: Histogram = field(default_factory=Histogram)
    events: Observable = field(default_factory=Observable)
    trace: deque[TraceEntry] = field(default_factory=lambda: deque[TraceEntry](maxlen=TRACE_MAX))

    def sample(self, period: int, now: float) -> None:
        """Note how long the last message took until now, if it is one that such a sampling looks at.

        Another one may have been handled since, or nothing: then there is no sample.
        """
        if self.trace:
            number, began_at, *_ = self.trace[-1]
            if not number % period:
                self.plain_handlers.add(max(now - began_at, 0.0))
