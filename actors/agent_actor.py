"""The actor that is one agent: it gets turns for its runs and supervises their execution.

    StartRun ──► BeginTurn to the session ──► Answered(Grant) ──► child: Execution ──► ChildEnded ──► the caller's reply
                                          └──► Answered(error) ─────────────────────────────────────► the caller's error

BeginTurn leaves in the handler of StartRun itself, so the order in which callers come is the order of their turns.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..runtime.actor import Actor, handles
from ..runtime.context import Context, Ticket
from ..runtime.envelope import MESSAGE_BYTES_DEFAULT, Request
from ..runtime.identity import ActorId
from ..runtime.signals import Abandoned, Answered, ChildEnded
from ..store.errors import CallboardError
from .errors import RunFailed
from .execution import AgentSpec, Execution
from .message import Message
from .reply import Reply
from .run_record import RunRecord
from .session_messages import BeginTurn, CancelTurn, Grant
from .session_records import SESSION_KIND, SessionDefaults
from .turns import Overlap

__all__ = ["AGENT_KIND", "AgentActor", "StartRun"]

AGENT_KIND = "agent"


class StartRun(Request[Reply], frozen=True):
    """Run the agent on this input, in a turn of the session, or without a session."""

    run_id: str
    input: tuple[Message, ...]
    session_id: str | None
    overlap: Overlap
    defaults: SessionDefaults

    def size_bytes(self) -> int:
        return sum(MESSAGE_BYTES_DEFAULT + len(message.text) for message in self.input)


@dataclass(slots=True)
class _Live:
    """A run that is under way: what was asked, the reply that is owed, and its execution once it has its turn."""

    ticket: Ticket
    request: StartRun
    execution: Execution | None = None


class AgentActor(Actor):
    """See the module's text. It keeps nothing in the store; the runs are the session's."""

    def __init__(self, id: ActorId, spec: AgentSpec) -> None:
        super().__init__(id)
        self.spec = spec
        self.live: dict[str, _Live] = {}

    @handles(StartRun, on_cancel="cancel")
    def start_run(self, message: StartRun, context: Context) -> Ticket:
        """Ask the session for a turn; without a session begin at once."""
        ticket = context.defer()
        self.live[message.run_id] = _Live(ticket, message)
        if message.session_id is None:
            self._begin(message.run_id, Grant(turn=0, history=(), metadata={}), context)
            return ticket
        run = RunRecord(
            id=message.run_id,
            session_id=message.session_id,
            created_at_ms=context.wall_ms(),
            agent=self.spec.name,
            input=message.input,
            model=self.spec.settings.model or self.spec.model.name,
        )
        begin = BeginTurn(run, message.overlap, message.defaults)
        begin_tag = (message.run_id, message.session_id)
        context.request(ActorId(SESSION_KIND, message.session_id), begin, tag=begin_tag)
        return ticket

    @handles(Answered)
    def turn_answered(self, signal: Answered, context: Context) -> None:
        """The session granted the turn, or did not."""
        run_id, session_id = signal.tag
        live = self.live.get(run_id)
        if live is None:
            if isinstance(signal.value, Grant):  # given up meanwhile, here or by an activation that crashed
                context.tell(ActorId(SESSION_KIND, session_id), CancelTurn(run_id, "the agent gave the run up"))
        elif signal.error is not None:
            del self.live[run_id]
            live.ticket.fail(signal.error)
        else:
            self._begin(run_id, signal.value, context)

    @handles(ChildEnded)
    def run_ended(self, signal: ChildEnded, context: Context) -> None:
        """Answer the caller."""
        live = self.live.pop(signal.tag, None)
        if live is None:
            return
        if signal.error is None:
            live.ticket.reply(signal.value)
        elif isinstance(signal.error, CallboardError):
            live.ticket.fail(signal.error)
        else:
            # A fault of ours, not the model's: the turn may still be open.
            failure = RunFailed(signal.tag, f"the run crashed with {signal.error!r}")
            failure.__cause__ = signal.error
            live.ticket.fail(failure)
            if live.request.session_id is not None:
                context.tell(ActorId(SESSION_KIND, live.request.session_id), CancelTurn(signal.tag, failure.reason))

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, context: Context) -> None:
        """The caller has gone: stop the run, or give up its place in the queue."""
        message = signal.message
        if not isinstance(message, StartRun) or message.run_id not in self.live:
            return
        live = self.live[message.run_id]
        if live.execution is not None:
            live.execution.stop_status = "cancelled"
            live.execution.stop_reason = "the caller went away"
            context.cancel_child(message.run_id)
        else:
            del self.live[message.run_id]
            assert message.session_id is not None
            context.tell(ActorId(SESSION_KIND, message.session_id), CancelTurn(message.run_id, "the caller went away"))

    def _begin(self, run_id: str, grant: Grant, context: Context) -> None:
        live = self.live[run_id]
        session_id = live.request.session_id
        wall_ms: Callable[[], int] = context.wall_ms
        live.execution = Execution(
            spec=self.spec,
            run_id=run_id,
            session_id=session_id,
            session=context.actor(SESSION_KIND, session_id) if session_id is not None else None,
            grant=grant,
            input=live.request.input,
            wall_ms=wall_ms,
        )
        context.spawn(live.execution.run, tag=run_id)
