"""The actor that is one agent: it gets turns for its runs and supervises their execution.

    StartRun ──► BeginTurn to the session ──► Answered(Grant) ──► child: Execution ──► ChildEnded ──► the caller's reply
                                          └──► Answered(error) ─────────────────────────────────────► the caller's error

BeginTurn leaves in the handler of StartRun itself, so the order in which callers come is the order of their turns.

A turn that is not known to be over must be ended, or its session would wait for ever: CancelTurn is sent until the
session has it stored. A session that has failed, or was stopped, is asked now and then, since it may be resumed.

The actor comes and goes with its work: it holds the agent only while a run is under way, or a turn is to be ended. What
comes to it later (the answer to a request of an earlier activation) needs no agent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from ..runtime.actor import Actor, handles
from ..runtime.budget import Backoff
from ..runtime.context import Context, Ticket
from ..runtime.envelope import Request
from ..runtime.errors import ActorFailed, Failed, Stopping, Unknown, UnknownActor
from ..runtime.identity import ActorId
from ..runtime.signals import Abandoned, Answered, ChildEnded, Tick
from ..store.errors import CallboardError
from .agent_spec import AgentSpec
from .approvals import Decisions
from .budgets import Spending
from .errors import ApprovalRequired, InvalidTransition, RunFailed, StaleTurn, UnknownSession
from .execution import Execution
from .message import Message
from .model import Model
from .output import Output
from .reentry import HeldTurn, TurnWait
from .reply import Reply
from .run_record import RunRecord
from .session_messages import (
    BeginTurn,
    CancelTurn,
    Grant,
    ResumeTurn,
    StopRun,
    TurnRevoked,
    messages_size_bytes,
)
from .session_records import SESSION_KIND, SessionDefaults
from .turns import Overlap

__all__ = ["AGENT_KIND", "AgentActor", "Resume", "StartRun"]

AGENT_KIND = "agent"

_SESSION_DOWN = Backoff(first_s=0.25, max_s=5.0)
"""The pauses between two requests to end a turn, to a session that has failed or was stopped."""


class Resume(Struct, frozen=True):
    """That a run goes on: the turn that it had last, and the verdicts on what it waited for then."""

    turn: int
    decisions: Decisions


class StartRun(Request[Reply], frozen=True):
    """Run the agent on this input, in a turn of the session or without a session; or go on with a run of it."""

    run_id: str
    input: tuple[Message, ...]
    session_id: str | None
    overlap: Overlap
    defaults: SessionDefaults
    # Live, hence within this process only: the turns that wait for the run, its own wait for a turn, the form of its
    # answer, and what it spends together with others.
    within: tuple[HeldTurn, ...] = ()
    wait: TurnWait | None = None
    output: Output | None = None
    spending: Spending | None = None
    resume: Resume | None = None
    keep_input: bool = False
    retry_of: str = ""

    def size_bytes(self) -> int:
        return messages_size_bytes(self.input)


class _Begin(Struct, frozen=True):
    """The tag of a BeginTurn or a ResumeTurn."""

    run_id: str
    session_id: str
    status_if_given_up: Literal["cancelled", "interrupted"] = "cancelled"


class _End(Struct, frozen=True):
    """The tag of a CancelTurn."""

    session_id: str
    cancel: CancelTurn


@dataclass(slots=True)
class _Live:
    """A run that is under way: what was asked, the reply that is owed, and its execution once it has its turn."""

    ticket: Ticket
    request: StartRun
    execution: Execution | None = None
    revoked: UnknownSession | None = None


class AgentActor(Actor):
    """See the module's text. It keeps nothing in the store; the runs are the session's."""

    def __init__(self, id: ActorId, spec: AgentSpec | None, model_used: Callable[[Model], None]) -> None:
        super().__init__(id)
        self.spec = spec
        self._model_used = model_used
        self.live: dict[str, _Live] = {}
        self.unended: dict[_End, int] = {}  # how often the session has refused it

    def may_passivate(self) -> bool:
        """False while a run is under way, or a turn is to be ended."""
        return not self.live and not self.unended

    @handles(StartRun, on_cancel="cancel")
    def start_run(self, message: StartRun, context: Context) -> Ticket:
        """Ask the session for a turn; without a session begin at once."""
        spec = self._present_spec()
        if message.run_id in self.live:
            raise InvalidTransition(message.run_id, status="queued or running", wanted="running")
        ticket = context.defer()
        self.live[message.run_id] = _Live(ticket, message)
        if message.session_id is None:
            self._begin(message.run_id, Grant(turn=0, history=(), metadata={}), context)
            return ticket
        session = ActorId(SESSION_KIND, message.session_id)
        if message.resume is not None:
            tag = _Begin(message.run_id, message.session_id, "interrupted")
            resume = ResumeTurn(message.run_id, message.resume.turn, message.resume.decisions)
            context.request(session, resume, tag=tag)
            return ticket
        run = RunRecord(
            id=message.run_id,
            session_id=message.session_id,
            created_at_ms=context.wall_ms(),
            agent=spec.name,
            input=message.input,
            model=spec.settings.model or spec.model.name,
            keep_input=message.keep_input,
            retry_of=message.retry_of,
        )
        begin = BeginTurn(run, message.overlap, message.defaults)
        tag = _Begin(message.run_id, message.session_id)
        context.request(session, begin, tag=tag)
        return ticket

    @handles(Answered)
    def answered(self, signal: Answered, context: Context) -> None:
        """The session granted the turn, or did not; or it ended one."""
        tag: _Begin | _End = signal.tag
        if isinstance(tag, _Begin):
            self._turn_answered(tag, signal, context)
        elif isinstance(signal.error, Failed | Unknown):
            # Not stored, or nobody knows. No pause of our own: the session takes the next message when it has reloaded.
            self._end_turn(tag.session_id, tag.cancel, context)
        elif isinstance(signal.error, ActorFailed | Stopping):
            refusals = self.unended[tag] = self.unended.get(tag, 0) + 1
            context.after(_SESSION_DOWN.delay_s(refusals, 1.0), tag)
        else:
            self.unended.pop(tag, None)

    @handles(Tick)
    def ask_again(self, signal: Tick, context: Context) -> None:
        """A session that was down may have been resumed."""
        tag: _End = signal.tag
        self._end_turn(tag.session_id, tag.cancel, context)

    @handles(ChildEnded)
    def run_ended(self, signal: ChildEnded, context: Context) -> None:
        """Answer the caller."""
        live = self.live.pop(signal.tag, None)
        if live is None:
            return
        execution, session_id = live.execution, live.request.session_id
        assert execution is not None, "a child is spawned with its execution"
        self._model_used(execution.spec.model)
        if signal.error is None:
            live.ticket.reply(signal.value)
        elif live.revoked is not None:
            live.ticket.fail(live.revoked)
        elif isinstance(signal.error, RunFailed | ApprovalRequired | Unknown):
            live.ticket.fail(signal.error)
        else:
            # Cancelled, or a fault of ours and not the model's: the turn may still be open.
            stopped = isinstance(signal.error, CallboardError)
            reason = execution.stop_reason if stopped else f"it crashed with {signal.error!r}"
            failure = RunFailed(signal.tag, reason)
            failure.__cause__ = signal.error
            live.ticket.fail(failure)
        if session_id is not None and not execution.turn_over:
            self._end_turn(session_id, CancelTurn(signal.tag, str(signal.error), execution.end_status), context)

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
            status: Literal["cancelled", "interrupted"] = "cancelled" if message.resume is None else "interrupted"
            self._end_turn(message.session_id, CancelTurn(message.run_id, "the caller went away", status), context)

    @handles(TurnRevoked)
    def turn_revoked(self, message: TurnRevoked, context: Context) -> None:
        """The session was deleted: stop the run, whose model call would be for nothing."""
        live = self.live.get(message.run_id)
        if live is not None and live.execution is not None:
            live.revoked = UnknownSession(f"session {message.session_id!r} was deleted while its turn ran")
            live.execution.stop_status = "cancelled"
            live.execution.stop_reason = "the session was deleted"
            context.cancel_child(message.run_id)

    @handles(StopRun)
    def stop_run(self, message: StopRun, context: Context) -> None:
        """Somebody wants this run to end: cut it off; it closes its turn."""
        live = self.live.get(message.run_id)
        if live is not None and live.execution is not None:  # it comes behind the turn that it is about
            live.execution.stop_status = "cancelled"
            live.execution.stop_reason = message.reason
            context.cancel_child(message.run_id)

    def _present_spec(self) -> AgentSpec:
        if self.spec is None:
            raise UnknownActor(f"the agent {self.id.key!r} is gone: keep the Agent object as long as it works")
        return self.spec

    def _turn_answered(self, tag: _Begin, signal: Answered, context: Context) -> None:
        live = self.live.get(tag.run_id)
        if live is not None and live.request.wait is not None:
            live.request.wait.end()
        granted = isinstance(signal.value, Grant)
        if live is not None and granted:
            self._begin(tag.run_id, signal.value, context)
            return
        if live is not None:
            assert signal.error is not None
            del self.live[tag.run_id]
            withdrawn = isinstance(signal.error, StaleTurn)  # somebody has cancelled the run while it queued
            live.ticket.fail(RunFailed(tag.run_id, str(signal.error)) if withdrawn else signal.error)
        if granted or isinstance(signal.error, Unknown):
            # Given up meanwhile, here or by an activation that crashed; or granted without our hearing of it.
            given_up = CancelTurn(tag.run_id, "the agent gave the run up", tag.status_if_given_up)
            self._end_turn(tag.session_id, given_up, context)

    def _end_turn(self, session_id: str, cancel: CancelTurn, context: Context) -> None:
        context.request(ActorId(SESSION_KIND, session_id), cancel, tag=_End(session_id, cancel))

    def _begin(self, run_id: str, grant: Grant, context: Context) -> None:
        live = self.live[run_id]
        session_id = live.request.session_id
        wall_ms: Callable[[], int] = context.wall_ms
        spec = self._present_spec()
        live.execution = Execution(
            spec=spec,
            run_id=run_id,
            session_id=session_id,
            session=context.actor(SESSION_KIND, session_id) if session_id is not None else None,
            grant=grant,
            input=live.request.input if grant.resumed is None else grant.resumed.record.input,
            within=live.request.within,
            wall_ms=wall_ms,
            output=live.request.output or spec.output,
            shared_spending=live.request.spending,
        )
        context.spawn(live.execution.run, tag=run_id)
