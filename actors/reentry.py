"""Refuses a wait that could never end: a turn whose own tool asks for the next turn of the same session.

The kernel sees cycles of asks between actors; a turn is held by a run, which is no actor, so it is guarded here.
"""

import contextvars

from ..runtime.errors import CyclicAsk

__all__ = ["check_not_held", "hold"]

_held: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("callboard_held_turns", default=frozenset())


def hold(session_id: str) -> None:
    """What this task does from now on happens within a turn of this session; tasks that it starts inherit that."""
    _held.set(_held.get() | {session_id})


def check_not_held(session_id: str, action: str) -> None:
    """Raises CyclicAsk where `action`, which waits for a turn of the session, is tried from within one."""
    if session_id in _held.get():
        raise CyclicAsk(
            f"{action} waits for the next turn of session {session_id!r}, from within a turn of it that waits for "
            "this: return the text from the tool instead, or use another session"
        )
