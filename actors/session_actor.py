"""The actor that is one session: its handlers are short, it never waits for a model.

What it holds runs ahead of the disk: `ledger` is staged, `visible` is what the last durable commit left. Reads answer
from `visible` and wait for nobody, neither for a running turn nor for the disk. Replies to writes leave with their
commit.

A restart within a process finds the running turn in the head and goes on with it; replies that were owed for queued
turns are asked again by the kernel, in their order. A head that an earlier process wrote has no live turn: it is
interrupted.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from ..runtime.actor import handles
from ..runtime.context import Context, Ticket
from ..runtime.identity import ActorId
from ..runtime.signals import Abandoned
from .approvals import denied_result
from .archive import Archive, read_head
from .errors import Busy, InvalidTransition, StaleTurn, TooLarge, UnknownRun, UnknownSession
from .history import History
from .ledger import Ledger, RunEnd
from .message import Message
from .run_record import RunRecord
from .session_messages import (
    Append,
    BeginTurn,
    CancelRun,
    CancelTurn,
    CloseTurn,
    CreateRun,
    CreateSession,
    DeleteSession,
    Expired,
    ExpireSession,
    Grant,
    MoveRun,
    NoteRun,
    PatchMetadata,
    PauseTurn,
    RecordStep,
    Resumed,
    ResumeTurn,
    Settled,
    StopRun,
    TurnRevoked,
)
from .session_reads import ReadableSession, journaled_usage, open_runs_of
from .session_records import SessionHead, Step, copy_metadata
from .turns import Entry, Granted, Overlap, Queued, Turn, TurnQueue

__all__ = ["SessionActor"]

INTERRUPTED = "the process ended before the run did"

_SESSION_BYTES = 4300
"""A session in memory beside its head and its messages: actor, ledger, turn queue (CPython 3.11, tracemalloc)."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits for a turn, or has it: the reply that is owed, for what, and the agent that sent it.

    None in its place: the turn ran before the session was loaded anew.
    """

    ticket: Ticket
    message: BeginTurn | ResumeTurn | Append
    sender: ActorId | None
    resumed: Resumed | None = None


class SessionActor(ReadableSession):
    """See the module's text."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.turns: TurnQueue[Waiting | None] = TurnQueue()
        self.stopping: dict[str, list[Ticket]] = {}  # by run: who waits for its end
        self._head_bytes = 0

    def may_passivate(self) -> bool:
        """False while a turn runs or waits, or what is staged is not durable: only the store outlives this."""
        idle = self.turns.running is None and not self.turns
        return idle and self.visible is self.ledger.head and not self.ledger.ended

    def size_bytes(self) -> int:
        return _SESSION_BYTES + 2 * self._head_bytes + self.history.size_bytes  # decoded, metadata takes about twice

    def load(self, context: Context) -> None:
        self.archive = Archive(context.store)
        head = read_head(self.id.key, context.stored)
        self.history = History(self.archive, self.id.key, durable_count=head.message_count if head is not None else 0)
        # What everybody sees: head and history as of the last durable commit.
        self.visible = head
        self.visible_history = self.history
        if head is None:
            self.ledger = Ledger(self.id.key, None)
            return
        assert context.stored is not None
        self._head_bytes = len(context.stored.head)
        open_runs = open_runs_of(self.archive, head)
        turn = head.open_turn
        journal_turn = next((each.journal_turn for each in open_runs if turn is not None and each.id == turn.run_id), 0)
        steps = self.archive.step_count(self.id.key, journal_turn) if journal_turn else 0
        self.ledger = Ledger(self.id.key, head, open_runs=open_runs, journal_turn=journal_turn, steps=steps)
        self.turns.restore(head.last_turn)
        if context.stored_by_earlier_owner:
            self._interrupt_all(context)
        elif head.open_turn is not None:
            self.turns.restore_running(head.open_turn.number, Entry(head.open_turn.run_id, None))

    # Turns ----------------------------------------------------------------------------------------------------------

    @handles(BeginTurn, retryable=True, on_cancel="cancel")
    def begin_turn(self, message: BeginTurn, context: Context) -> Ticket:
        """Grant a turn, or let it queue, as the overlap policy says."""
        self.history.load()  # a store that cannot be read refuses here, while nothing has changed yet
        waiting = Waiting(context.defer(), message, context.sender)
        if not self._offer(message.run.id, waiting, message.overlap, context):
            self.ledger.runs[message.run.id] = message.run  # shown while it queues; stored when its turn begins
        return waiting.ticket

    @handles(ResumeTurn, retryable=True, on_cancel="cancel")
    def resume_turn(self, message: ResumeTurn, context: Context) -> Ticket:
        """Grant another turn to a run that paused or was interrupted, or let it queue."""
        self.history.load()
        resumed = self._resumed(message)
        waiting = Waiting(context.defer(), message, context.sender, resumed)
        self._offer(message.run_id, waiting, "queue", context)
        return waiting.ticket

    @handles(RecordStep)
    def record_step(self, message: RecordStep, context: Context) -> None:
        """Journal what came in the running turn."""
        self._check_turn(message.turn, message.run_id)
        self.ledger.journal(message.step)
        self._stage(context)

    @handles(PauseTurn)
    def pause_turn(self, message: PauseTurn, context: Context) -> None:
        """End the running turn, whose run waits for approvals, and begin the next."""
        try:
            self._check_turn(message.turn, message.run_id)
        except StaleTurn:
            paused = self.ledger.runs.get(message.run_id)
            if paused is None or paused.turn != message.turn or paused.pending != message.pending:
                raise
            return
        self.ledger.pause_turn(message.end, message.pending, at_ms=context.wall_ms())
        self._advance_turns(message.turn, context)

    @handles(NoteRun, gated=False)
    def note_run(self, message: NoteRun, context: Context) -> None:
        """Show that the run waits, or goes on."""
        self._check_turn(message.turn, message.run_id)
        self.ledger.note_run(
            message.run_id, message.status, at_ms=context.wall_ms(), attempts=message.attempts, error=message.error
        )

    @handles(CloseTurn)
    def close_turn(self, message: CloseTurn, context: Context) -> list[Message]:
        """End the running turn and begin the next."""
        try:
            self._check_turn(message.turn, message.run_id)
        except StaleTurn:
            return self._closed_before(message)
        stored = self.ledger.close_turn(message.end, message.messages, at_ms=context.wall_ms())
        self.history.extend(stored)
        self._advance_turns(message.turn, context)
        return stored

    @handles(CancelTurn)
    def cancel_turn(self, message: CancelTurn, context: Context) -> bool:
        """Give up a run's place in the queue, or its running turn."""
        running = self.turns.running
        if running is not None and running.entry.run_id == message.run_id:
            end = RunEnd(message.status, message.reason, attempts=self.ledger.runs[message.run_id].attempts)
            self.ledger.close_turn(end, (), at_ms=context.wall_ms())
            self._advance_turns(running.number, context)
            return True
        return self._withdraw(message.run_id, message.reason, context)

    @handles(CancelRun, retryable=True)
    def cancel_run(self, message: CancelRun, context: Context) -> bool | Ticket:
        """End a run that is queued, runs or waits; of one that runs, its agent closes the turn."""
        run_id, running = message.run_id, self.turns.running
        if running is not None and running.entry.run_id == run_id:
            if running.entry.payload is None or running.entry.payload.sender is None:
                return self.cancel_turn(CancelTurn(run_id, message.reason), context)
            context.tell(running.entry.payload.sender, StopRun(run_id, message.reason))
            ticket = context.defer()
            self.stopping.setdefault(run_id, []).append(ticket)
            return ticket
        withdrawn = self._withdraw(run_id, message.reason, context)
        record = self.ledger.runs.get(run_id)
        if record is None:
            if not withdrawn and run_id not in self.ledger.ended:
                self.archive.run(self.id.key, run_id)  # raises where there is none
            return withdrawn
        end = RunEnd("cancelled", message.reason)
        if record.manual:
            self.ledger.move_run(record, end, at_ms=context.wall_ms())
        else:
            self._end_paused(record, end, context)
        self._stage(context)
        return True

    @handles(Append, retryable=True, on_cancel="cancel")
    def append(self, message: Append, context: Context) -> Ticket | list[Message]:
        """Put messages at the end of history, now or when the turns before it have ended."""
        number = self.turns.pass_by()
        if number is not None:
            stored = self._append(message, number, context)
            self._stage(context)
            return stored
        waiting = Waiting(context.defer(), message, context.sender)
        self._offer(_entry_id(message), waiting, "queue", context)
        return waiting.ticket

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, context: Context) -> None:
        """Whoever asked for a turn or an append has gone."""
        message = signal.message
        if isinstance(message, BeginTurn):
            self.cancel_turn(CancelTurn(message.run.id, "the caller went away"), context)
        elif isinstance(message, ResumeTurn):
            self.cancel_turn(CancelTurn(message.run_id, "the caller went away", "interrupted"), context)
        elif isinstance(message, Append):
            self._withdraw(_entry_id(message), "the caller went away", context)

    # The session ----------------------------------------------------------------------------------------------------

    @handles(CreateSession)
    def create(self, message: CreateSession, context: Context) -> SessionHead:
        """Make the session where there is none."""
        self.ledger.ensure(message.defaults, at_ms=context.wall_ms())
        self._stage(context)
        assert self.ledger.head is not None
        return self.ledger.head

    @handles(DeleteSession)
    def delete(self, _message: DeleteSession, context: Context) -> bool:
        """Drop it all. Turns that wait fail; one that runs is refused from now on, and its agent is told to stop."""
        if self.ledger.head is None:
            return False
        for entry in self.turns.clear():
            assert entry.payload is not None
            entry.payload.ticket.fail(
                UnknownSession(f"session {self.id.key!r} was deleted while this waited for its turn")
            )
        running = self.turns.running
        if running is not None and running.entry.payload is not None and running.entry.payload.sender is not None:
            context.tell(running.entry.payload.sender, TurnRevoked(running.entry.run_id, self.id.key))
        for run_id in list(self.stopping):
            self._tell_stopped(run_id)
        last_number = self.turns.last_number
        self.turns = TurnQueue()
        self.turns.restore(last_number)
        self.ledger.erase()
        self.history = History(self.archive, self.id.key, durable_count=0)
        self._stage(context)
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
        self._stage(context)
        return metadata

    # Runs by hand ---------------------------------------------------------------------------------------------------

    @handles(CreateRun)
    def create_run(self, message: CreateRun, context: Context) -> RunRecord:
        """Book a run that the user drives."""
        self.ledger.ensure(message.defaults, at_ms=context.wall_ms())
        record = replace(message.run, created_at_ms=context.wall_ms())
        self.ledger.create_run(record, at_ms=context.wall_ms())
        self._stage(context)
        return record

    @handles(MoveRun)
    def move_run(self, message: MoveRun, context: Context) -> RunRecord:
        """Move a run made by hand along the table of run_record.py."""
        record = self.ledger.runs.get(message.run_id)
        if record is None or not record.manual:
            # Not open: what the archive says of it may be older than an end that is on its way to the disk.
            ended = record or self.ledger.ended.get(message.run_id) or self.archive.run(self.id.key, message.run_id)
            raise InvalidTransition(ended.id, status=ended.status, wanted=message.end.status)
        moved = self.ledger.move_run(record, message.end, at_ms=context.wall_ms())
        self._stage(context)
        return moved

    @handles(Settled)
    def settled(self, _message: Settled, _context: Context) -> None:
        """Nothing but the gate."""

    # Inside ---------------------------------------------------------------------------------------------------------

    def _offer(self, entry_id: str, waiting: Waiting, overlap: Overlap, context: Context) -> bool:
        """Ask for a turn: True where it was granted, False where it is waited for. Busy where neither may be."""
        append = isinstance(waiting.message, Append)
        entry: Entry[Waiting | None] = Entry(entry_id, waiting, append)
        outcome = self.turns.offer(entry, overlap)
        if isinstance(outcome, Granted):
            self._granted(Turn(outcome.number, entry), context)
            return True
        if not isinstance(outcome, Queued):
            raise Busy(self.id.key, run_id=outcome.run_id, queue_length=outcome.queue_length, full=outcome.full)
        return False

    def _resumed(self, message: ResumeTurn) -> Resumed:
        """What the run had come to. InvalidTransition where it cannot go on, or has gone on since it was looked at."""
        run_id = message.run_id
        record = self.ledger.runs.get(run_id) or self.ledger.ended.get(run_id) or self.archive.run(self.id.key, run_id)
        queued = any(entry.run_id == run_id for entry in self.turns.waiting)
        if queued or record.manual or record.turn != message.turn:
            raise InvalidTransition(run_id, status="queued" if queued else record.status, wanted="running")
        if not record.pending and record.status != "interrupted":
            raise InvalidTransition(run_id, status=record.status, wanted="running")
        steps = self.archive.steps(self.id.key, record.journal_turn)
        return Resumed(record, steps, len(self.archive.spans(self.id.key, run_id)))

    def _resume(self, number: int, waiting: Waiting, context: Context) -> Resumed:
        """The turn of this number is that of a run that goes on; what was decided of its calls is journaled with it."""
        assert isinstance(waiting.message, ResumeTurn)
        assert waiting.resumed is not None
        resumed, decisions = waiting.resumed, waiting.message.decisions
        self.ledger.resume_turn(number, resumed.record, steps=len(resumed.steps), at_ms=context.wall_ms())
        if not decisions:
            return resumed
        pending = {call.index: call.call_id for call in resumed.record.pending}
        denied = {
            index: denied_result(pending[index], verdict) for index, verdict in decisions.items() if verdict is not None
        }
        approved = tuple(index for index, verdict in decisions.items() if verdict is None)
        step = Step(len(resumed.steps) + 1, (), approved=approved, settled=denied)
        self.ledger.journal(step)
        return replace(resumed, steps=(*resumed.steps, step))

    def _end_paused(self, record: RunRecord, end: RunEnd, context: Context) -> None:
        steps = self.archive.step_count(self.id.key, record.journal_turn)
        self.ledger.end_paused(record, end, steps=steps, at_ms=context.wall_ms())

    def _tell_stopped(self, run_id: str) -> None:
        for ticket in self.stopping.pop(run_id, ()):
            ticket.reply(True)

    def _granted(self, turn: Turn[Waiting | None], context: Context) -> None:
        """Act on a turn that was just granted; an append is over at once, and the next in line gets its turn."""
        granted: Turn[Waiting | None] | None = turn
        while granted is not None:
            waiting = granted.entry.payload
            assert waiting is not None
            ticket, message = waiting.ticket, waiting.message
            if isinstance(message, Append):
                ticket.reply(self._append(message, granted.number, context))
                granted = self.turns.finish(granted.number)
                continue
            resumed = None
            if isinstance(message, ResumeTurn):
                resumed = self._resume(granted.number, waiting, context)
            else:
                at_ms = context.wall_ms()
                self.ledger.ensure(message.defaults, at_ms=at_ms)
                self.ledger.open_turn(granted.number, message.run, at_ms=at_ms)
            assert self.ledger.head is not None
            metadata = copy_metadata(self.ledger.head.metadata)
            ticket.reply(Grant(granted.number, self.history.whole(), metadata, resumed))
            break
        self._stage(context)

    def _append(self, message: Append, turn: int, context: Context) -> list[Message]:
        at_ms = context.wall_ms()
        self.ledger.ensure(message.defaults, at_ms=at_ms)
        stored = self.ledger.append(message.messages, at_ms=at_ms, turn=turn)
        self.history.extend(stored)
        return stored

    def _advance_turns(self, number: int, context: Context) -> None:
        if self.stopping:
            self._tell_stopped(self.turns.check(number).entry.run_id)
        following = self.turns.finish(number)
        if following is not None:
            self._granted(following, context)
        else:
            self._stage(context)

    def _check_turn(self, number: int, run_id: str) -> None:
        turn = self.turns.check(number)
        # After a delete, numbers may come again: the run is part of the fence.
        if turn.entry.run_id != run_id:
            raise StaleTurn(f"turn {number} belongs to run {turn.entry.run_id!r}: what run {run_id!r} sent is refused")

    def _closed_before(self, message: CloseTurn) -> list[Message]:
        """The answer to a CloseTurn that was carried out before; raises StaleTurn where it never was."""
        stale = StaleTurn(f"turn {message.turn} is over: what run {message.run_id!r} sent came too late")
        try:
            # The first answer may have been lost while the turn's end was, and is, on its way to the disk.
            record = self.ledger.ended.get(message.run_id) or self.archive.run(self.id.key, message.run_id)
        except UnknownRun:
            raise stale from None
        if record.turn != message.turn or record.status != message.end.status:
            raise stale
        stored = self.history.read(record.first_seq, record.last_seq) if record.first_seq else []
        if any(each.run_id != record.id for each in stored) or len(stored) != len(message.messages):
            raise stale  # deleted and begun anew
        return stored

    def _withdraw(self, entry_id: str, reason: str, context: Context) -> bool:
        entry = self.turns.withdraw(entry_id)
        if entry is None:
            return False
        assert entry.payload is not None
        resumed = isinstance(entry.payload.message, ResumeTurn)  # then it is as before it was to go on
        if entry_id in self.ledger.runs and not resumed:
            self.ledger.note_cancelled(self.ledger.runs[entry_id], reason, at_ms=context.wall_ms())
            self._stage(context)
        entry.payload.ticket.fail(StaleTurn(f"{entry_id!r} gave up its place in the queue: {reason}"))
        return True

    def _interrupt_all(self, context: Context) -> None:
        """Mark what an earlier process left running. What waits for an approval goes on waiting."""
        at_ms = context.wall_ms()
        head = self.ledger.head
        assert head is not None
        for run_id in head.open_runs:
            self.ledger.move_run(self.ledger.runs[run_id], RunEnd("interrupted", INTERRUPTED), at_ms=at_ms)
        for run_id in head.paused_runs:
            if not self.ledger.runs[run_id].pending:  # its record was lost
                self._end_paused(self.ledger.runs[run_id], RunEnd("interrupted", INTERRUPTED), context)
        if head.open_turn is not None:
            usage = journaled_usage(self.archive, self.id.key, self.ledger.journal_turn)
            self.ledger.interrupt_turn(INTERRUPTED, at_ms=at_ms, usage=usage)
        self._stage(context)

    def _stage(self, context: Context) -> None:
        change = self.ledger.take()
        if change is None:
            return
        context.stage(head=change.head, rows=change.rows, index_rows=change.index_rows, erase=change.erase)
        self._head_bytes = len(change.head)
        # Of now: a delete may put others in their places.
        context.after_commit(partial(_show, self, self.ledger.head, self.history, change.ended))


def _show(actor: SessionActor, head: SessionHead | None, history: History, ended: tuple[str, ...]) -> None:
    """This head, and so many messages of this history, are durable: everybody sees them from now on."""
    actor.visible, actor.visible_history = head, history
    history.durable(head.message_count if head is not None else 0)
    for run_id in ended:
        actor.ledger.ended.pop(run_id, None)


def _entry_id(message: Append) -> str:
    return f"append_{message.number:016x}"
