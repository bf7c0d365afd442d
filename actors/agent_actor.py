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
from msgspec.structs import replace

from ..runtime.actor import Actor, handles
from ..runtime.budget import Backoff
from ..runtime.context import Context, Ticket
from ..runtime.errors import ActorFailed, Failed, Stopping, Unknown, UnknownActor
from ..runtime.identity import ActorId
from ..runtime.signals import Abandoned, Answered, ChildEnded, Tick
from ..store.errors import CallboardError
from .agent_requests import Resume, StartRun, SubmitRun
from .agent_spec import AgentSpec
from .errors import ApprovalRequired, Busy, InvalidTransition, RunFailed, StaleTurn, UnknownSession
from .execution import Execution
from .model import Model
from .outcomes import ON_KEY
from .reply import Delivered
from .run_outcome import reply_of
from .run_record import RunRecord
from .run_wishes import CALLER_WENT_AWAY
from .session_messages import (
    AcceptRun,
    BeginTurn,
    CancelTurn,
    Delivery,
    Followers,
    Grant,
    Joined,
    ResumeTurn,
    RunOutcome,
    Steered,
    StopRun,
    TurnRevoked,
    Unfollow,
    WaitRun,
)
from .session_records import SESSION_KIND
from .window import Excerpt, ExcerptNeed

__all__ = ["AGENT_KIND", "AgentActor"]

AGENT_KIND = "agent"

_GAVE_UP = "the agent gave the run up"

_SESSION_DOWN = Backoff(first_s=0.25, max_s=5.0)
"""The pauses between two requests to end a turn, to a session that has failed or was stopped."""


class _Begin(Struct, frozen=True):
    """The tag of a BeginTurn or a ResumeTurn.

    The run was `accepted` where it was stored before it asked; it `resumes` where it had a turn before.
    """

    run_id: str
    session_id: str
    accepted: bool = False
    resumes: bool = False


class _Accept(Struct, frozen=True):
    """The tag of an AcceptRun."""

    run_id: str
    session_id: str


class _Work(Struct, frozen=True):
    """The tag of the child that is a run's execution."""

    run_id: str
    session_id: str | None

    def __str__(self) -> str:
        return self.run_id


class _Wait(Struct, frozen=True):
    """The tag of a WaitRun: who waits for which run."""

    run_id: str
    joined: str


class _End(Struct, frozen=True):
    """The tag of a CancelTurn."""

    session_id: str
    cancel: CancelTurn


@dataclass(slots=True)
class _Live:
    """A run that is under way: what was asked, the reply that is owed, and its execution once it has its turn.

    `ticket` is None where its caller does not wait for it: it has gone, or has only submitted the run. `followers` is
    how many others wait for it, `joined` the run whose answer it waits for instead of one of its own. It `waited` where
    the session has had it in its queue.
    """

    ticket: Ticket | None
    request: StartRun
    execution: Execution | None = None
    followers: int = 0
    joined: str = ""
    submitted: bool = False
    waited: bool = False
    revoked: UnknownSession | None = None

    @property
    def work(self) -> _Work:
        return _Work(self.request.run_id, self.request.session_id)


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
        self._present_spec()
        if message.run_id in self.live:
            raise InvalidTransition(message.run_id, status="queued or running", wanted="running")
        ticket = context.defer()
        self.live[message.run_id] = _Live(ticket, message)
        if message.session_id is None:
            self._begin(message.run_id, Grant(turn=0, excerpt=Excerpt(), metadata={}, input=message.input), context)
        elif message.resume is not None:
            self._ask_to_resume(message, message.resume, context)
        else:
            self._ask(message, context)
        return ticket

    @handles(SubmitRun)
    def submit_run(self, message: SubmitRun, context: Context) -> Ticket:
        """Have the run stored; it asks for its turn as soon as it is."""
        spec, start = self._present_spec(), message.start
        assert start.session_id is not None, "what is submitted is stored in a session"
        ticket = context.defer()
        self.live[start.run_id] = _Live(ticket, start)
        accept = AcceptRun(self._new_record(start, spec, context), start.key, start.defaults, start.overlap)
        tag = _Accept(start.run_id, start.session_id)
        context.request(ActorId(SESSION_KIND, start.session_id), accept, tag=tag)
        return ticket

    def _new_record(self, message: StartRun, spec: AgentSpec, context: Context) -> RunRecord:
        assert message.session_id is not None
        return RunRecord(
            id=message.run_id,
            session_id=message.session_id,
            created_at_ms=context.wall_ms(),
            agent=spec.name,
            input=message.input,
            model=spec.settings.model or spec.model.name,
            keep_input=message.keep_input,
            retry_of=message.retry_of,
        )

    def _ask(self, message: StartRun, context: Context, *, accepted: bool = False) -> None:
        """Ask for the turn of a run that begins."""
        assert message.session_id is not None
        begin = BeginTurn(
            self._new_record(message, self._present_spec(), context),
            message.overlap,
            message.defaults,
            message.quiet_s,
            None if accepted else message.key,
            accepted=accepted,
            need=_need(message),
        )
        tag = _Begin(message.run_id, message.session_id, accepted=accepted)
        context.request(ActorId(SESSION_KIND, message.session_id), begin, tag=tag)

    def _ask_to_resume(self, message: StartRun, resume: Resume, context: Context) -> None:
        assert message.session_id is not None
        ask = ResumeTurn(message.run_id, resume.turn, resume.decisions, _need(message))
        tag = _Begin(message.run_id, message.session_id, resumes=True)
        context.request(ActorId(SESSION_KIND, message.session_id), ask, tag=tag)

    @handles(Answered, retryable=True)
    def answered(self, signal: Answered, context: Context) -> None:
        """The session granted the turn, or did not; or it ended one. Where this crashes, an activation after it gets
        the grant, and gives it back."""
        tag: _Begin | _Accept | _Wait | _End = signal.tag
        if isinstance(tag, _Begin):
            self._turn_answered(tag, signal, context)
        elif isinstance(tag, _Accept):
            self._accept_answered(tag, signal, context)
        elif isinstance(tag, _Wait):
            self._outcome_came(tag, signal, context)
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

    @handles(ChildEnded, retryable=True)
    def run_ended(self, signal: ChildEnded, context: Context) -> None:
        """Answer the caller."""
        tag: _Work = signal.tag
        run_id, session_id = tag.run_id, tag.session_id
        live = self.live.pop(run_id, None)
        if live is None:
            if session_id is not None and signal.error is not None:  # an activation crashed that was to end its turn
                self._end_turn(session_id, CancelTurn(run_id, str(signal.error), None), context)
            return
        execution = live.execution
        assert execution is not None, "a child is spawned with its execution"
        self._model_used(execution.spec.model)
        if live.ticket is None:
            pass
        elif signal.error is None:
            live.ticket.reply(signal.value)
        else:
            live.ticket.fail(live.revoked or _failure(signal, execution))
        execution.spec.listeners.close(run_id)
        if session_id is not None and not execution.turn_over:
            self._end_turn(session_id, CancelTurn(run_id, str(signal.error), execution.end_status), context)

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, context: Context) -> None:
        """The caller has gone: stop the run, or give up its place in the queue."""
        message = signal.message
        if not isinstance(message, StartRun) or message.run_id not in self.live:
            return
        live = self.live[message.run_id]
        if live.followers:
            live.ticket = None  # others wait for it
        elif live.execution is not None:
            self._stop(live, CALLER_WENT_AWAY, context)
        elif live.joined:
            del self.live[message.run_id]
            self._unfollow(message, live.joined, context)
        else:
            del self.live[message.run_id]
            assert message.session_id is not None
            status: Literal["cancelled", "interrupted"] = "cancelled" if message.resume is None else "interrupted"
            self._end_turn(message.session_id, CancelTurn(message.run_id, CALLER_WENT_AWAY, status), context)

    @handles(TurnRevoked)
    def turn_revoked(self, message: TurnRevoked, context: Context) -> None:
        """The session was deleted: stop the run, whose model call would be for nothing."""
        live = self.live.get(message.run_id)
        if live is not None and live.execution is not None:
            live.revoked = UnknownSession(f"session {message.session_id!r} was deleted while its turn ran")
            self._stop(live, "the session was deleted", context)

    @handles(StopRun)
    def stop_run(self, message: StopRun, context: Context) -> None:
        """Somebody wants this run to end: cut it off, or let it know; it closes its turn."""
        live = self.live.get(message.run_id)
        if live is None or live.execution is None:
            # It comes behind the turn that it is about: that is over, or was lost in a crash of this actor.
            assert context.sender is not None
            cancel = CancelTurn(message.run_id, message.reason, "cancelled")
            self._end_turn(context.sender.key, cancel, context)
            return
        if live.execution.wishes.stop(message.reason, when=message.when, keep=message.keep):
            context.cancel_child(live.work)

    @handles(Steered)
    def steered(self, message: Steered, _context: Context) -> None:
        """Input waits that a run may take in."""
        live = self.live.get(message.run_id)
        if live is not None and live.execution is not None:
            live.execution.wishes.steered = True

    @handles(Followers)
    def followers(self, message: Followers, context: Context) -> None:
        """So many wait for a run beside its caller; where that has gone, and now nobody does, the run ends."""
        live = self.live.get(message.run_id)
        if live is None:
            return
        live.followers = message.count
        if message.count or live.ticket is not None or live.submitted:
            return
        if live.execution is not None:
            self._stop(live, CALLER_WENT_AWAY, context)
        elif live.request.session_id is not None:
            del self.live[message.run_id]
            self._end_turn(live.request.session_id, CancelTurn(message.run_id, CALLER_WENT_AWAY), context)

    @handles(Delivery)
    def delivery(self, message: Delivery, _context: Context) -> None:
        """Let whoever listens to a run know how its input waits."""
        run_id = message.delivered.run_id
        live = self.live.get(run_id)
        if live is not None:
            live.waited = True
        if self.spec is not None:
            self.spec.tell(run_id, live.request.session_id if live is not None else None, message.delivered)

    def _stop(self, live: _Live, reason: str, context: Context) -> None:
        assert live.execution is not None
        live.execution.wishes.stop(reason)
        context.cancel_child(live.work)

    def _present_spec(self) -> AgentSpec:
        if self.spec is None:
            raise UnknownActor(f"the agent {self.id.key!r} is gone: keep the Agent object as long as it works")
        return self.spec

    def _turn_answered(self, tag: _Begin, signal: Answered, context: Context) -> None:
        live = self.live.get(tag.run_id)
        if live is not None and live.request.wait is not None:
            live.request.wait.end()
        if isinstance(signal.value, Joined):
            self._join(tag, live, signal.value, context)
            return
        granted = isinstance(signal.value, Grant)
        if live is not None and granted:
            self._begin(tag.run_id, signal.value, context)
            return
        if live is not None and live.request.key is not None and isinstance(signal.error, InvalidTransition):
            self._wait_for(tag.run_id, tag, live, context)  # somebody else has it go on
            return
        if live is not None:
            assert signal.error is not None
            del self.live[tag.run_id]
            withdrawn = isinstance(signal.error, StaleTurn)  # somebody has cancelled the run while it queued
            if live.ticket is not None:
                live.ticket.fail(RunFailed(tag.run_id, str(signal.error)) if withdrawn else signal.error)
            self._present_spec().listeners.close(tag.run_id)
        end = _end_of(tag, signal, waited=live is None or live.waited)
        if end is not None:
            self._end_turn(tag.session_id, end, context)

    def _accept_answered(self, tag: _Accept, signal: Answered, context: Context) -> None:
        """A submitted run is stored, or another has its key, or it was refused."""
        live, error = self.live.pop(tag.run_id, None), signal.error
        joined: Joined | None = signal.value
        if live is None or error is not None:
            if live is not None and live.ticket is not None and error is not None:
                live.ticket.fail(error)
            if isinstance(error, Unknown) or (error is None and joined is None):
                # It may be stored, or is, and its caller was not told: an activation crashed that was to say so.
                self._end_turn(tag.session_id, CancelTurn(tag.run_id, _GAVE_UP, None), context)
            return
        assert live.ticket is not None
        live.ticket.reply(tag.run_id if joined is None else joined.run_id)
        live.ticket = None
        if joined is None:
            self.live[tag.run_id], live.submitted = live, True
            self._ask(live.request, context, accepted=True)
            return
        if ON_KEY[joined.status] == "resume" and joined.run_id not in self.live:
            self._resume_joined(live, joined, context)

    def _join(self, tag: _Begin, live: _Live | None, joined: Joined, context: Context) -> None:
        """Another run has, or will have, the answer."""
        if live is None:
            context.tell(ActorId(SESSION_KIND, tag.session_id), Unfollow(joined.run_id, tag.run_id))
            return
        feeds = self._present_spec().listeners
        listener = feeds.get(tag.run_id)
        if listener is not None:
            listener(Delivered(tag.run_id, joined.how, into=joined.run_id))
            feeds.follow(tag.run_id, joined.run_id)
        if ON_KEY[joined.status] == "resume" and joined.run_id not in self.live:
            del self.live[tag.run_id]
            self._resume_joined(live, joined, context)
            return
        self._wait_for(joined.run_id, tag, live, context)

    def _wait_for(self, joined: str, tag: _Begin, live: _Live, context: Context) -> None:
        live.joined = joined
        wait = WaitRun(joined, tag.run_id)
        context.request(ActorId(SESSION_KIND, tag.session_id), wait, tag=_Wait(tag.run_id, joined))

    def _resume_joined(self, live: _Live, joined: Joined, context: Context) -> None:
        """The run that has the key was cut off: it goes on, for this caller."""
        request = replace(live.request, run_id=joined.run_id, resume=Resume(joined.turn, {}))
        self.live[joined.run_id] = _Live(live.ticket, request, submitted=live.ticket is None)
        assert request.resume is not None
        self._ask_to_resume(request, request.resume, context)

    def _outcome_came(self, tag: _Wait, signal: Answered, context: Context) -> None:
        """The run that was joined has ended, or pauses."""
        live = self.live.get(tag.run_id)
        if live is None or live.ticket is None:
            self.live.pop(tag.run_id, None)
            return
        if isinstance(signal.value, RunOutcome) and signal.value.record.error == CALLER_WENT_AWAY:
            live.joined = ""  # it was on its way out when it was joined: ask again, and begin
            self._present_spec().listeners.follow(tag.joined, tag.run_id)
            self._ask(live.request, context)
            return
        del self.live[tag.run_id]
        if signal.error is not None:
            live.ticket.fail(signal.error)
            return
        spec = self._present_spec()
        try:
            live.ticket.reply(reply_of(signal.value, live.request.output or spec.output))
        except CallboardError as error:
            live.ticket.fail(error)

    def _unfollow(self, message: StartRun, joined: str, context: Context) -> None:
        assert message.session_id is not None
        context.tell(ActorId(SESSION_KIND, message.session_id), Unfollow(joined, message.run_id))

    def _end_turn(self, session_id: str, cancel: CancelTurn, context: Context) -> None:
        context.request(ActorId(SESSION_KIND, session_id), cancel, tag=_End(session_id, cancel))

    def _begin(self, run_id: str, grant: Grant, context: Context) -> None:
        live = self.live[run_id]
        live.followers = grant.followers
        session_id = live.request.session_id
        wall_ms: Callable[[], int] = context.wall_ms
        spec = self._present_spec()
        live.execution = Execution(
            spec=spec,
            run_id=run_id,
            session_id=session_id,
            session=context.actor(SESSION_KIND, session_id) if session_id is not None else None,
            grant=grant,
            input=grant.input,
            within=live.request.within,
            wall_ms=wall_ms,
            output=live.request.output or spec.output,
            shared_spending=live.request.spending,
            window=live.request.window,
            caller=live.request.caller,
        )
        context.spawn(live.execution.run, tag=live.work)


def _need(request: StartRun) -> ExcerptNeed | None:
    return None if request.window is None else request.window.need()


def _end_of(tag: _Begin, signal: Answered, *, waited: bool) -> CancelTurn | None:
    """What ends a turn that nobody takes, or a run that waited for one and gets none; None where nothing is left.

    `waited` is whether the run was in the session's queue: then others may have come to want it.
    """
    error = signal.error
    if tag.resumes:  # another may have it go on: only a grant is ours to give back
        lost = error is None or isinstance(error, Unknown)
        return CancelTurn(tag.run_id, _GAVE_UP, "interrupted") if lost else None
    if error is None or isinstance(error, Unknown):
        # Given up meanwhile, here or by an activation that crashed; or it may be granted without our hearing of it.
        return CancelTurn(tag.run_id, _GAVE_UP, None)
    if isinstance(error, Busy | StaleTurn):  # the session's own decision
        return CancelTurn(tag.run_id, str(error), "cancelled") if tag.accepted else None
    return CancelTurn(tag.run_id, str(error), None) if tag.accepted or waited else None


def _failure(signal: ChildEnded, execution: Execution) -> CallboardError:
    """What the caller of a run gets that did not end well."""
    if isinstance(signal.error, RunFailed | ApprovalRequired | Unknown):
        return signal.error
    # Cancelled, or a fault of ours and not the model's: the turn may still be open.
    stopped = isinstance(signal.error, CallboardError)
    failure = RunFailed(signal.tag.run_id, execution.wishes.reason if stopped else f"it crashed with {signal.error!r}")
    failure.__cause__ = signal.error
    return failure
