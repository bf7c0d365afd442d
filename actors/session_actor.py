"""The actor that is one session: its handlers are short, it never waits for a model.

What it holds runs ahead of the disk: `ledger` is staged, `visible` is what the last durable commit left. Reads answer
from `visible` and wait for nobody, neither for a running turn nor for the disk. Replies to writes leave with their
commit.

A restart within a process finds the running turn in the head and goes on with it; replies that were owed for queued
turns are asked again by the kernel, in their order. A head that an earlier process wrote has no live turn: it is
interrupted.
"""

from typing import Any

from msgspec.structs import replace

from ..runtime.actor import handles
from ..runtime.context import Context
from ..runtime.identity import ActorId
from .archive import Archive, read_head
from .errors import InvalidTransition, TooLarge, UnknownSession
from .history import History, history_of
from .ledger import Ledger, RunEnd
from .outcomes import OUTCOMES_KEPT_MS, Outcomes
from .run_record import RunRecord
from .session_edits import EditableSession
from .session_messages import (
    CreateRun,
    CreateSession,
    DeleteSession,
    Expired,
    ExpireSession,
    MoveRun,
    PatchMetadata,
    Settled,
    TurnRevoked,
)
from .session_overlays import CompactedSession
from .session_reads import journaled_usage, open_runs_of
from .session_records import SessionHead
from .session_spans import TracedSession
from .session_stops import StoppableSession
from .session_waits import agent_of
from .turns import Entry, TurnQueue

__all__ = ["SessionActor"]

INTERRUPTED = "the process ended before the run did"

_SESSION_BYTES = 4300
"""A session in memory beside its head and its messages: actor, ledger, turn queue (CPython 3.11, tracemalloc)."""


class SessionActor(EditableSession, StoppableSession, CompactedSession, TracedSession):
    """See the module's text. `outcomes_kept_ms` is how long the outcome of an idempotency key counts."""

    def __init__(self, id: ActorId, *, outcomes_kept_ms: int = OUTCOMES_KEPT_MS) -> None:
        super().__init__(id)
        self._outcomes_kept_ms = outcomes_kept_ms

    def may_passivate(self) -> bool:
        """False while a turn runs, anybody waits, or what is staged is not durable: only the store outlives this."""
        idle = self.turns.running is None and not self.turns and not self.quiet and not self.is_waited_for
        return idle and self.visible is self.ledger.head and not self.ledger.ended and not self.outbox

    def size_bytes(self) -> int:
        return _SESSION_BYTES + 2 * self.head_bytes + self.history.size_bytes  # decoded, metadata takes about twice

    def load(self, context: Context) -> None:
        self.archive = Archive(context.store)
        self.outcomes = Outcomes(context.store, self.id.key, self._outcomes_kept_ms)
        head = read_head(self.id.key, context.stored)
        self.history = history_of(self.archive, self.id.key, head)
        # What everybody sees: head and history as of the last durable commit.
        self.visible = head
        self.visible_history = self.history
        self.load_outbox(context)
        if head is None:
            self.ledger = Ledger(self.id.key, None, find_run=self.ended_run)
            return
        assert context.stored is not None
        self.head_bytes = len(context.stored.head)
        open_runs = open_runs_of(self.archive, head)
        turn = head.open_turn
        journal_turn = next((each.journal_turn for each in open_runs if turn is not None and each.id == turn.run_id), 0)
        steps = self.archive.step_count(self.id.key, journal_turn) if journal_turn else 0
        self.ledger = Ledger(
            self.id.key, head, open_runs=open_runs, journal_turn=journal_turn, steps=steps, find_run=self.ended_run
        )
        self.turns.restore(head.last_turn)
        if context.stored_by_earlier_owner:
            self._interrupt_all(context)
        elif head.open_turn is not None:
            self.turns.restore_running(head.open_turn.number, Entry(head.open_turn.run_id, None))

    # The session ----------------------------------------------------------------------------------------------------

    @handles(CreateSession)
    def create(self, message: CreateSession, context: Context) -> SessionHead:
        """Make the session where there is none."""
        self.ledger.ensure(message.defaults, at_ms=context.wall_ms())
        self.stage(context)
        assert self.ledger.head is not None
        return self.ledger.head

    @handles(DeleteSession)
    def delete(self, _message: DeleteSession, context: Context) -> bool:
        """Drop it all. Turns that wait fail; one that runs is refused from now on, and its agent is told to stop."""
        for entry in (*self.turns.clear(), *self.quiet.clear()):
            assert entry.payload is not None
            entry.payload.ticket.fail(
                UnknownSession(f"session {self.id.key!r} was deleted while this waited for its turn")
            )
        if self.ledger.head is None:  # nothing is stored; what was held back has never been here
            self.ledger.runs.clear()
            self.fail_waits()
            self.outcomes.clear()
            return False
        running = self.turns.running
        agent = agent_of(running.entry) if running is not None else None
        if running is not None and agent is not None:
            context.unwatch(agent, tag=running.entry.run_id)
            context.tell(agent, TurnRevoked(running.entry.run_id, self.id.key))
        for run_id in list(self.stopping):
            self.tell_stopped(run_id)
        self.fail_waits()
        self.outcomes.clear()
        last_number = self.turns.last_number
        self.turns = TurnQueue()
        self.turns.restore(last_number)
        self.ledger.erase()
        self.erase_state(context)
        self.history = History(self.archive, self.id.key, durable_count=0)
        self.stage(context)
        return True

    @handles(ExpireSession)
    def expire(self, message: ExpireSession, context: Context) -> Expired:
        """Drop it all, where nothing has happened here since somebody found that nothing does."""
        head = self.ledger.head
        if head is None:
            return "gone"
        if head.updated_at_ms >= message.changed_before_ms:
            return "changed"
        if not message.even_running and (self.turns.running is not None or self.turns or self.ledger.runs):
            return "running"
        self.delete(DeleteSession(), context)
        return "deleted"

    @handles(PatchMetadata)
    def patch_metadata(self, message: PatchMetadata, context: Context) -> dict[str, Any]:
        """Set and remove keys; does not wait for a running turn."""
        try:
            metadata = self.ledger.patch_metadata(message.patch, message.defaults, at_ms=context.wall_ms())
        except ValueError as error:
            raise TooLarge(str(error)) from error
        self.stage(context)
        return metadata

    # Runs by hand ---------------------------------------------------------------------------------------------------

    @handles(CreateRun)
    def create_run(self, message: CreateRun, context: Context) -> RunRecord:
        """Book a run that the user drives."""
        self.ledger.ensure(message.defaults, at_ms=context.wall_ms())
        record = replace(message.run, created_at_ms=context.wall_ms())
        self.ledger.create_run(record, at_ms=context.wall_ms())
        self.stage(context)
        return record

    @handles(MoveRun)
    def move_run(self, message: MoveRun, context: Context) -> RunRecord:
        """Move a run made by hand along the table of run_record.py."""
        record = self.ledger.runs.get(message.run_id)
        if record is None or not record.manual:
            ended = self.record_of(message.run_id)
            raise InvalidTransition(ended.id, status=ended.status, wanted=message.end.status)
        moved = self.ledger.move_run(record, message.end, at_ms=context.wall_ms())
        self.stage(context)
        return moved

    @handles(Settled)
    def settled(self, _message: Settled, _context: Context) -> None:
        """Nothing but the gate."""

    # Inside ---------------------------------------------------------------------------------------------------------

    def _interrupt_all(self, context: Context) -> None:
        """Mark what an earlier process left running. What waits for an approval goes on waiting."""
        at_ms = context.wall_ms()
        head = self.ledger.head
        assert head is not None
        for run_id in head.open_runs:
            self.ledger.move_run(self.ledger.runs[run_id], RunEnd("interrupted", INTERRUPTED), at_ms=at_ms)
        for run_id in head.queued_runs:
            self.ledger.end_queued(self.ledger.runs[run_id], RunEnd("interrupted", INTERRUPTED), at_ms=at_ms)
        for run_id in head.paused_runs:
            if not self.ledger.runs[run_id].pending:  # its record was lost
                self.end_paused(self.ledger.runs[run_id], RunEnd("interrupted", INTERRUPTED), context)
        if head.open_turn is not None:
            usage = journaled_usage(self.archive, self.id.key, self.ledger.journal_turn)
            self.history.extend(self.ledger.interrupt_turn(INTERRUPTED, at_ms=at_ms, usage=usage))
        self.stage(context)
