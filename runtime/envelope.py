"""What is sent: a message (a frozen value), its delivery (the one live object per message), its envelope (the facts).

A message and an envelope are frozen msgspec Structs, so that the same ones can cross a process border. A Delivery never
does: it is the local end, on which the sender waits. An envelope is made from it only where somebody wants the facts.
"""

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from msgspec import Struct

from .identity import ActorId
from .waking import Waker

__all__ = [
    "HELD",
    "MESSAGE_BYTES_DEFAULT",
    "QUEUED",
    "RUNNING",
    "SETTLED",
    "Delivery",
    "Envelope",
    "Phase",
    "Request",
    "check_message",
]

ReplyT = TypeVar("ReplyT")

MESSAGE_BYTES_DEFAULT = 64
"""What a message without a size of its own counts against a mailbox's bound in bytes."""


class Request(Struct, Generic[ReplyT], frozen=True):
    """The class that messages derive from: `class Add(Request[int], frozen=True)` is answered with an int."""

    def size_bytes(self) -> int:
        """Roughly what this holds in memory; large messages say so, that a mailbox can bound them."""
        return MESSAGE_BYTES_DEFAULT


def check_message(message: Any) -> None:
    """Raises: TypeError: nothing that can be sent."""
    if not isinstance(message, Request):
        what = f"the class {message.__name__}" if isinstance(message, type) else f"a {type(message).__name__}"
        raise TypeError(
            "a message is an instance of a class that derives from callboard.runtime.Request, "
            f"as in `class Add(Request[int], frozen=True)`; this is {what}"
        )


class Envelope(Struct, frozen=True, gc=False):
    """A message with the facts of its delivery.

    Attributes:
        to: the actor that it is for.
        message: the request itself.
        number: counts up within the runtime: the order in which requests came.
        sender: the actor that sent it, or None for code outside.
        chain: the actors that wait for this reply, outermost first.
        deadline: on the event loop's clock; inf for none.
        key: the idempotency key, or None.
        attempt: 1, or more where a restart delivered it again.
        trace: the caller's trace context (W3C traceparent), or None.
    """

    to: ActorId
    message: Request[Any]
    number: int
    sender: ActorId | None = None
    chain: tuple[ActorId, ...] = ()
    deadline: float = math.inf
    key: str | None = None
    attempt: int = 1
    trace: str | None = None


class Phase(Enum):
    """Where a delivery is. It only ever moves down this list, save that a restart may queue it again."""

    QUEUED = auto()
    RUNNING = auto()
    HELD = auto()  # handled; the reply waits for its commit, or for the actor to give it later
    SETTLED = auto()  # answered, or given up


# Python 3.11 takes 70 ns to find a member of an Enum, 15 ns to find a global: an ask looks at phases five times.
QUEUED, RUNNING, HELD, SETTLED = Phase


class Delivery(Struct, eq=False):
    """The sender's end of one message. It is settled exactly once; what comes later is counted and dropped.

    A Struct, not a dataclass, because one is made per message: 84 ns against 250.

    Attributes:
        to, message, number, sender, chain, deadline, key, attempt, trace: see Envelope.
        awaited: somebody waits for the reply; False for a tell.
        size_bytes: what it counts against the mailbox, known once it is queued.
        queued_at: when it came into the mailbox, on the loop's clock; 0 where it was handled in place.
        began_at: when its handler began, where that is async or owes the reply; else 0.
        phase: see Phase.
        admitted: the mailbox has taken it; False while it waits for space.
        value, error: the outcome, once settled.
        waker: wakes the task that waits.
        on_settled: called with this once settled, where nobody awaits it only with an error (plain, short, must not
            raise).
    """

    to: ActorId
    message: Request[Any]
    number: int
    sender: ActorId | None = None
    chain: tuple[ActorId, ...] = ()
    deadline: float = math.inf
    awaited: bool = True
    admitted: bool = False
    on_settled: "Callable[[Delivery], None] | None" = None
    size_bytes: int = MESSAGE_BYTES_DEFAULT
    attempt: int = 1
    queued_at: float = 0.0
    began_at: float = 0.0
    phase: Phase = QUEUED
    value: Any = None
    error: BaseException | None = None
    waker: Waker | None = None
    key: str | None = None
    trace: str | None = None

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """Give the one answer; False where it was settled before (a late reply)."""
        if self.phase is SETTLED:
            return False
        self.phase = SETTLED
        self.value = value
        self.error = error
        if self.waker is not None:
            self.waker.wake()
        if self.on_settled is not None and (self.awaited or error is not None):
            self.on_settled(self)
        return True

    def result(self) -> Any:
        """The reply, or raises the error. Only when settled."""
        if self.error is not None:
            raise self.error
        return self.value

    def envelope(self) -> Envelope:
        """The facts, as a value."""
        return Envelope(
            self.to,
            self.message,
            self.number,
            sender=self.sender,
            chain=self.chain,
            deadline=self.deadline,
            key=self.key,
            attempt=self.attempt,
            trace=self.trace,
        )
