"""What the kernel itself tells an actor. Signals go by the control lane: before user messages, past every bound.

An actor that uses `context.request` handles Answered, one that uses `context.spawn` ChildEnded, one that uses
`context.watch` ActorEnded, one that uses `context.after` or `context.every` Tick. A signal may concern something that
an earlier activation began: an actor ignores tags that it does not know.
"""

from typing import Any, Literal, TypeAlias

from .envelope import Request
from .identity import ActorId

__all__ = ["Abandoned", "ActorEnded", "Answered", "ChildEnded", "EndReason", "Reminder", "Tick"]

EndReason: TypeAlias = Literal["failed", "stopped"]
"""failed: its restart budget is spent. stopped: somebody stopped it, or the runtime has closed."""


class Answered(Request[None], frozen=True):
    """A request that was sent with `context.request` under this tag is settled."""

    tag: Any
    value: Any
    error: BaseException | None


class ChildEnded(Request[None], frozen=True):
    """A task that was spawned under this tag has ended. `error` is a cancellation where it was cancelled."""

    tag: Any
    value: Any
    error: BaseException | None


class Abandoned(Request[None], frozen=True):
    """The caller of an owed reply has gone, and the handler's `on_cancel` is "cancel": the work may stop."""

    message: Any


class ActorEnded(Request[None], frozen=True):
    """The actor that was watched under this tag has ended; `error` is what it failed with at last."""

    tag: Any
    id: ActorId
    reason: EndReason
    error: BaseException | None


class Reminder(Request[None], frozen=True):
    """A reminder of `context.remind` is due. It is handled only while the store has it so: see there.

    Attributes:
        name: which one.
        due_ms: the time that it was set for, in milliseconds since 1970, UTC.
        missed: further times of a periodic one that have passed as well, and for which no signal of their own comes.
    """

    name: str
    due_ms: int
    missed: int


class Tick(Request[None], frozen=True):
    """A timer of `context.after` or `context.every` has come up, for the `count`-th time.

    `source` says which start of the timer it is of. For the kernel.
    """

    tag: Any
    count: int
    source: object
