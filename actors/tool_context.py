"""What a tool is told about the call that it carries out."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .limits import check_agent_name
from .spans import LiveSpan, SpanLog
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
        spans: where `span` puts its spans; None: nowhere.
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
    spans: SpanLog | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        if not self.idempotency_key:
            object.__setattr__(self, "idempotency_key", f"{self.run_id}:{self.call_id}")

    def span(self, name: str) -> AbstractContextManager[LiveSpan]:
        """A piece of the tool's own work, as a span of the run: `with context.span("fetch") as span: span.set(rows=3)`.

        It is part of the span that the code runs in: that of the tool call, or one that is open around it, also in
        tasks and threads that were started inside. An exception marks it as an error. It is stored with the turn's end;
        of more than 2 000 in one turn, the later ones are not.

        Raises:
            TypeError, ValueError: the name is no text of 1 to 200 bytes.
        """
        log = self.spans if self.spans is not None else SpanLog(self.run_id, lambda: 0)
        return log.span(check_agent_name(name, what="span name"), "custom")
