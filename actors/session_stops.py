"""How runs of a session are stopped: by hand, for another that waits, because nobody waits for them any more, or since
their agent has failed."""

from typing import Any

from msgspec import Struct

from ..runtime.actor import handles
from ..runtime.context import Context, Ticket
from ..runtime.envelope import Request
from ..runtime.signals import Abandoned, ActorEnded
from .errors import StaleTurn
from .ledger import RunEnd
from .limits import storable_reason
from .persistence import CLOSE_TIMEOUT_S
from .run_record import RunStatus, advance
from .run_wishes import CALLER_WENT_AWAY
from .session_messages import (
    BeginTurn,
    CancelRun,
    CancelTurn,
    OneStep,
    ResumeTurn,
    StopRun,
    WaitRun,
)
from .session_turns import TurnSession, step_id
from .session_waits import agent_of

__all__ = ["StoppableSession"]

_ORPHAN_S = CLOSE_TIMEOUT_S + 1.0
"""After this a turn whose agent has failed is closed by nobody."""


class _Orphan(Struct, frozen=True):
    """The tag of a timer: the agent of this run, which had the turn, has failed for this reason."""

    run_id: str
    reason: str


class StoppableSession(TurnSession):
    """See the module's text."""

    @handles(CancelTurn, retryable=True)
    def cancel_turn(self, message: CancelTurn, context: Context) -> bool:
        """Give up a run's place in the queue, or its running turn."""
        running, record = self.turns.running, self.ledger.runs.get(message.run_id)
        status = message.status or ("interrupted" if record is not None and record.submitted else "cancelled")
        if running is not None and running.entry.run_id == message.run_id:
            assert record is not None
            end = RunEnd(status, message.reason, attempts=record.attempts)
            self.history.extend(self.ledger.close_turn(end, (), at_ms=context.wall_ms()))
            self.advance_turns(running.number, context)
            return True
        return self._give_up(message.run_id, message.reason, context, status=status)

    @handles(CancelRun, retryable=True)
    def cancel_run(self, message: CancelRun, context: Context) -> bool | Ticket:
        """End a run that is queued, runs or waits; of one that runs, its agent closes the turn."""
        run_id, running = message.run_id, self.turns.running
        if running is not None and running.entry.run_id == run_id:
            if not self._stop(StopRun(run_id, message.reason, message.when, message.keep), context):
                return True
            ticket = context.defer()
            self.stopping.setdefault(run_id, []).append(ticket)
            return ticket
        withdrawn = self._give_up(run_id, message.reason, context)
        record = self.ledger.runs.get(run_id)
        if record is None:
            if not withdrawn and run_id not in self.ledger.ended:
                self.archive.run(self.id.key, run_id)  # raises where there is none
            return withdrawn
        end = RunEnd("cancelled", message.reason)
        if record.manual:
            self.ledger.move_run(record, end, at_ms=context.wall_ms())
        else:
            self.end_paused(record, end, context)
        self.stage(context)
        return True

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, context: Context) -> None:
        """Whoever asked for a turn, or waits for a run, has gone."""
        message: Request[Any] = signal.message
        if isinstance(message, BeginTurn):
            self.cancel_turn(CancelTurn(message.run.id, CALLER_WENT_AWAY), context)
        elif isinstance(message, ResumeTurn):
            self.cancel_turn(CancelTurn(message.run_id, CALLER_WENT_AWAY, "interrupted"), context)
        elif isinstance(message, WaitRun):
            self.give_up_wait(message, context)
        elif isinstance(message, OneStep):
            self._give_up(step_id(message), CALLER_WENT_AWAY, context)

    @handles(ActorEnded)
    def agent_ended(self, signal: ActorEnded, context: Context) -> None:
        """The agent that drives the running turn has failed, or was stopped.

        The run's execution, where there is one, was cancelled and closes the turn; it knows best how that ended, so it
        is given the time that it may take.
        """
        reason = f"its agent has {signal.reason}" + (f": {signal.error!r}" if signal.error is not None else "")
        context.after(_ORPHAN_S, _Orphan(signal.tag, reason))

    def time_is_over(self, tag: Any, context: Context) -> None:
        """Nobody has closed a turn whose agent has failed."""
        running = self.turns.running
        if not isinstance(tag, _Orphan):
            super().time_is_over(tag, context)
        elif running is not None and running.entry.run_id == tag.run_id:
            self.cancel_turn(CancelTurn(tag.run_id, tag.reason, "interrupted"), context)

    def make_way(self, context: Context) -> None:
        running, keep = self.turns.running, self.turns.stop == "keep"
        assert running is not None
        self._stop(StopRun(running.entry.run_id, "a newer input stopped it", keep=keep), context)

    def _stop(self, stop: StopRun, context: Context) -> bool:
        """Have the running turn stopped: True where its end is still to come, False where it is over."""
        running = self.turns.running
        assert running is not None
        agent = agent_of(running.entry)
        if agent is not None:
            context.tell(agent, stop)
            return True
        if stop.when != "now":
            return True
        self.cancel_turn(CancelTurn(stop.run_id, stop.reason), context)
        return False

    def _give_up(self, entry_id: str, reason: str, context: Context, *, status: RunStatus = "cancelled") -> bool:
        """Take out one that waits for its turn; False where none of this id does."""
        entry = self.withdraw(entry_id)
        if entry is None:
            return self._give_up_accepted(entry_id, RunEnd(status, reason), context)
        assert entry.payload is not None
        message = entry.payload.message
        if isinstance(message, BeginTurn):  # a run that was to go on is as before
            if message.key is not None:
                self.outcomes.forget(message.key)
            record = self.ledger.runs.pop(entry_id)
            if self.ledger.head is not None:
                self.ledger.end_queued(record, RunEnd(status, reason), at_ms=context.wall_ms())
                self.stage(context)
            else:  # held back by a session that does not exist yet: nothing is stored of it
                self.settle_wait(advance(record, "cancelled", at_ms=context.wall_ms(), error=storable_reason(reason)))
        else:
            self.settle_waits(context)
        entry.payload.ticket.fail(StaleTurn(f"{entry_id!r} gave up its place in the queue: {reason}"))
        return True

    def _give_up_accepted(self, run_id: str, end: RunEnd, context: Context) -> bool:
        """End a run that was accepted and has not asked for its turn; False where there is no such run."""
        head = self.ledger.head
        if head is None or run_id not in head.queued_runs:
            return False
        self.ledger.end_queued(self.ledger.runs[run_id], end, at_ms=context.wall_ms())
        self.stage(context)
        return True
