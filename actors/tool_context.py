"""What a tool is told about the call that it carries out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .state import ScopedState

if TYPE_CHECKING:
    from .session import Session

__all__ = ["ToolContext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """Where a tool is called from.

    Attributes:
        agent: the agent's name.
        run_id: the run that calls.
        turn: the number of its turn; 0 without a session.
        session_id: the session's id, or None where there is no session.
        metadata: the session's metadata as it was when the turn began, a read-only mapping.
        call_id: the call, as the model named it.
        attempt: how often the run was started, this time included.
        idempotency_key: for a service that does a thing once a key: the same for this call whenever it is repeated,
            also after a crash and in another process, and for no other call.
        session: a handle on the session, or None. Reading is fine; what waits for a turn of it raises CyclicAsk.
        state: a JSON object of the turn, which its tools may change. It is stored with each call's result, so that a
            run which goes on later has it; it ends with the turn.
        session_state: what the session's turns keep for each other, as it was when the turn began; a dict of JSON
            values. What tools change in it commits with the turn, or not at all where that fails.
        user_state: likewise what all sessions of the same owner share; empty, and not to be changed, without an owner.
        app_state: likewise what all sessions share. `increment` adds to a number whatever other turns do meanwhile.
    """

    agent: str
    run_id: str
    turn: int = 0
    session_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    call_id: str = ""
    attempt: int = 1
    idempotency_key: str = ""
    session: "Session | None" = None
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    session_state: ScopedState = field(default_factory=lambda: ScopedState("session"))
    user_state: ScopedState = field(default_factory=lambda: ScopedState("user"))
    app_state: ScopedState = field(default_factory=lambda: ScopedState("app"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        if not self.idempotency_key:
            object.__setattr__(self, "idempotency_key", f"{self.run_id}:{self.call_id}")
