"""The scopes of state as one turn sees them, and how they are gathered when it begins."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .persistence import persist
from .state import ScopedState, StateDelta
from .state_messages import ReadScope, ReadTurnState
from .state_records import APP, STATE_KIND, user_key

if TYPE_CHECKING:
    from .session import Session

__all__ = ["NO_STATE", "TurnState", "open_turn_state"]

_NO_SESSION = "this run has no session, whose turn would commit it: give the chat one"
_NO_OWNER = "the session has no owner: make it with Session(..., owner=...)"


def _without_session(scope: Any) -> ScopedState:
    return ScopedState(scope, refusal=_NO_SESSION)


@dataclass(frozen=True, slots=True)
class TurnState:
    """What a turn sees of each scope, with its own changes."""

    session: ScopedState = field(default_factory=lambda: _without_session("session"))
    user: ScopedState = field(default_factory=lambda: _without_session("user"))
    app: ScopedState = field(default_factory=lambda: _without_session("app"))

    def values_copied(self) -> dict[str, dict[str, Any]]:
        """The values of each scope as they are now, by the scope's name in contexts."""
        scopes = {"session_state": self.session, "user_state": self.user, "app_state": self.app}
        return {name: scope.values_copied() for name, scope in scopes.items()}

    def deltas(self) -> tuple[StateDelta, ...]:
        """What the turn has changed so far. Raises as ScopedState.deltas."""
        return (*self.session.deltas(), *self.user.deltas(), *self.app.deltas())


NO_STATE = TurnState()
"""Of runs whose tools do not look, or that have no session. It refuses all changes, so that one is enough for all."""


async def open_turn_state(session: "Session", earlier: Iterable[StateDelta] = ()) -> TurnState:
    """The state of the running turn of this session; `earlier` is what it changed before it paused.

    Raises:
        CallboardError: it cannot be read.

    Cost: a message to the session, to app and to the user. Waits where deltas of the turn before are on their way.
    """
    runtime, given = session.runtime, tuple(earlier)
    view = await persist(lambda: runtime.session_actor(session.id).ask(ReadTurnState()))
    app = await persist(lambda: runtime.actor(STATE_KIND, APP).ask(ReadScope()))
    owner, user = view.owner, dict[str, Any]()
    if owner is not None:
        user = await persist(lambda: runtime.actor(STATE_KIND, user_key(owner)).ask(ReadScope()))
    return TurnState(
        session=ScopedState("session", view.values, deltas=_of("session", given)),
        user=ScopedState("user", user, deltas=_of("user", given), refusal=None if owner is not None else _NO_OWNER),
        app=ScopedState("app", app, deltas=_of("app", given)),
    )


def _of(scope: str, deltas: tuple[StateDelta, ...]) -> list[StateDelta]:
    return [delta for delta in deltas if delta.scope == scope]
