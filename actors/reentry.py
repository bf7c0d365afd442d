"""Refuses a wait that could never end: a turn that waits, directly or not, for the next turn of its own session.

The kernel sees cycles of asks between actors; a turn is held by a run, which is no actor, so it is guarded here. What a
run does, and the runs that its tools start, know the turns that wait for them. Two turns that wait for each other's
sessions without one having started the other are not seen: they end with the timeout of their runs.
"""

import contextvars
from dataclasses import dataclass

from ..runtime.errors import CyclicAsk

__all__ = ["HeldTurn", "check_not_held", "current_held_turns", "hold"]


@dataclass(slots=True, eq=False)
class HeldTurn:
    """A turn of a session (None: of no session) as long as its run goes on."""

    session_id: str | None
    over: bool = False


_held: contextvars.ContextVar[tuple[HeldTurn, ...]] = contextvars.ContextVar("callboard_held_turns", default=())


def current_held_turns() -> tuple[HeldTurn, ...]:
    """The turns that wait for what goes on in this task."""
    return tuple(turn for turn in _held.get() if not turn.over)


def hold(session_id: str | None, *, within: tuple[HeldTurn, ...]) -> HeldTurn:
    """What this task does from now on happens in a turn of this session, and the turns `within` wait for it.

    Tasks that it starts inherit that, until the turn is marked as over.
    """
    turn = HeldTurn(session_id)
    _held.set((*within, turn))
    return turn


def check_not_held(session_id: str, action: str) -> None:
    """Raises CyclicAsk where `action`, which waits for a turn of the session, is tried from within one."""
    if any(turn.session_id == session_id for turn in current_held_turns()):
        raise CyclicAsk(
            f"{action} waits for the next turn of session {session_id!r}, from within a turn of it that waits for "
            "this: return the text from the tool instead, or use another session"
        )
