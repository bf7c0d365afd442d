"""What is sent: a message (a frozen value), its envelope (the facts of delivery), and the sender's end of it.

Messages and envelopes are msgspec Structs so that the same ones can cross a process border. A Delivery never does: it
is the local end, on which the sender waits.
"""

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from msgspec import Struct

from .identity import ActorId
from .waking import Waker

__all__ = ["MESSAGE_BYTES_DEFAULT", "Delivery", "Envelope", "Phase", "Request"]

ReplyT = TypeVar("ReplyT")

MESSAGE_BYTES_DEFAULT = 64
"""What a message without a size of its own counts against a mailbox's bound in bytes."""


class Request(Struct, Generic[ReplyT], frozen=True):
    """The class that messages derive from: `class Add(Request[int], frozen=True)` is answered with an int."""

    def size_bytes(self) -> int:
        """Roughly what this holds in memory; large messages say so, that a mailbox can bound them."""
        return MESSAGE_BYTES_DEFAULT


class Envelope(Struct, frozen=True, gc=False):
    """A message with the facts of its delivery.

    Attributes:
        message: the request itself.
        number: counts up within the runtime: the order in which requests came.
        sender: the actor that sent it, or None for code outside.
        chain: the actors that wait for this reply, outermost first.
        deadline: on the event loop's clock; inf for none.
        key: the idempotency key, or None.
        attempt: 1, or more where a restart delivered it again.
        size_bytes: what it counts against the mailbox.
        trace: the caller's trace context (W3C traceparent), or None.
    """

    message: Request[Any]
    number: int
    sender: ActorId | None = None
    chain: tuple[ActorId, ...] = ()
    deadline: float = math.inf
    key: str | None = None
    attempt: int = 1
    size_bytes: int = MESSAGE_BYTES_DEFAULT
    trace: str | None = None


class Phase(Enum):
    """Where a delivery is. It only ever moves down this list, save that a restart may queue it again."""

    QUEUED = auto()
    RUNNING = auto()
    HELD = auto()  # handled; the reply waits for its commit, or for the actor to give it later
    SETTLED = auto()  # answered, or given up


class Delivery:
    """The sender's end of one envelope. It is settled exactly once; what comes later is counted and dropped."""

    __slots__ = ("admitted", "envelope", "error", "on_settled", "phase", "value", "waker")

    def __init__(self, envelope: Envelope, on_settled: "Callable[[Delivery], None] | None" = None) -> None:
        self.envelope = envelope
        self.phase = Phase.QUEUED
        self.admitted = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.waker: Waker | None = None
        self.on_settled = on_settled

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """Give the one answer; False where it was settled before (a late reply)."""
        if self.phase is Phase.SETTLED:
            return False
        self.phase = Phase.SETTLED
        self.value = value
        self.error = error
        if self.waker is not None:
            self.waker.wake()
        if self.on_settled is not None:
            self.on_settled(self)
        return True

    def admit(self) -> None:
        """Mark that the mailbox has taken it, and wake a sender that may wait for just that."""
        self.admitted = True
        if self.waker is not None:
            self.waker.wake()

    def result(self) -> Any:
        """The reply, or raises the error. Only when settled."""
        if self.error is not None:
            raise self.error
        return self.value
