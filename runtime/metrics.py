"""What a runtime counts and measures, and the last messages it has handled: cheap enough to be always on."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .histogram import Histogram
from .identity import ActorId

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
        loads: how long activations took, from the first look at the store to the first message.
        queues: how long messages were queued that could not be handled at once.
        trace: the last messages, oldest first.
    """

    handled: int = 0
    crashes: int = 0
    restarts: int = 0
    activations: int = 0
    passivations: int = 0
    queues: Histogram = field(default_factory=Histogram)
    trace: deque[TraceEntry] = field(default_factory=lambda: deque[TraceEntry](maxlen=TRACE_MAX))
