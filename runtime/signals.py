"""What the kernel itself tells an actor. Signals go by the control lane: before user messages, past every bound.

An actor that uses `context.request` handles Answered, one that uses `context.spawn` handles ChildEnded. A signal may
concern something that an earlier activation began: an actor ignores tags that it does not know.
"""

from typing import Any

from .envelope import Request

__all__ = ["Abandoned", "Answered", "ChildEnded"]


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
