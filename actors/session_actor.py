"""The actor that is one session: its handlers are short, it never waits for a model.

What it holds runs ahead of the disk: `ledger` is staged, `visible` is what the last durable commit left. Reads answer
from `visible` and wait for nobody, neither for a running turn nor for the disk. Replies to writes leave with their
commit.

A restart within a process finds the running turn in the head and goes on with it; replies that were owed for queued
turns are asked again by the kernel, in their order. A head that an earlier process wrote has no live turn: it is
interrupted.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from ..runtime.actor import Actor, handles
from ..runtime.context import Context, Ticket
from ..runtime.identity import ActorId
from ..runtime.signals import Abandoned
from ..store.errors import Corrupt
from .archive import Archive, read_head
from .errors import Busy, InvalidTransition, StaleTurn, TooLarge, UnknownRun, UnknownSession
from .history import History
from .ledger import Ledger, RunEnd
from .message import Message
from .run_record import RunRecord, SpanRecord
from .session_messages import (
    Append,
    BeginTurn,
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
    ReadHead,
    ReadMessages,
    ReadRun,
    ReadRuns,
    ReadSpans,
    RecordStep,
    Settled,
    TurnRevoked,
)
from .session_records import SessionHead, copy_metadata
from .turns import Entry, Granted, Queued, Turn, TurnQueue

__all__ = ["SessionActor"]

_log = logging.getLogger("callboard.session")

INTERRUPTED = "the process ended before the run did"

_SESSION_BYTES = 4300
"""A session in memory beside its head and its messages: actor, ledger, turn queue (CPython 3.11, tracemalloc)."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits for a turn, or has it: the reply that is owed, for what, and the agent that sent it.

    None in its place: the turn ran before the session was loaded anew.
    """

    ticket: Ticket
    message: BeginTurn | Append
    sender: ActorId | None


class SessionActor(Actor):
    """See the module's text."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.turns: TurnQueue[Waiting | None] = TurnQueue()
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
        self.visible: SessionHead | None = head
        self.visible_history = self.history
        if head is None:
            self.ledger = Ledger(self.id.key, None)
            return
        assert context.stored is not None
        self._head_bytes = len(context.stored.head)
        steps = self.archive.step_count(self.id.key, head.open_turn.number) if head.open_turn is not None else 0
        self.ledger = Ledger(self.id.key, head, open_runs=self._open_runs(head), steps=steps)
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
        ticket = context.defer()
        entry: Entry[Waiting | None] = Entry(message.run.id, Waiting(ticket, message, context.sender))
        outcome = self.turns.offer(entry, message.overlap)
        if isinstance(outcome, Granted):
            self._granted(Turn(outcome.number, entry), context)
        elif isinstance(outcome, Queued):
            self.ledger.runs[message.run.id] = message.run  # shown while it queues; stored when its turn begins
        else:
            raise Busy(self.id.key, run_id=outcome.run_id, queue_length=outcome.queue_length, full=outcome.full)
        return ticket

    @handles(RecordStep)
    def record_step(self, message: RecordStep, context: Context) -> None:
        """Journal a step of the running turn."""
        self._check_turn(message.turn, message.run_id)
        self.ledger.journal(message.turn, message.step)
        self._stage(context)

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

    @handles(Append, retryable=True, on_cancel="cancel")
    def append(self, message: Append, context: Context) -> Ticket | list[Message]:
        """Put messages at the end of history, now or when the turns before it have ended."""
        number = self.turns.pass_by()
        if number is not None:
            stored = self._append(message, number, context)
            self._stage(context)
            return stored
        ticket = context.defer()
        entry: Entry[Waiting | None] = Entry(_entry_id(message), Waiting(ticket, message, context.sender), append=True)
        outcome = self.turns.offer(entry)
        assert not isinstance(outcome, Granted), "a turn runs"
        if not isinstance(outcome, Queued):
            raise Busy(self.id.key, run_id=outcome.run_id, queue_length=outcome.queue_length, full=outcome.full)
        return ticket

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, context: Context) -> None:
        """Whoever asked for a turn or an append has gone."""
        message = signal.message
        if isinstance(message, BeginTurn):
            self.cancel_turn(CancelTurn(message.run.id, "the caller went away"), context)
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

    # Reading --------------------------------------------------------------------------------------------------------

    @handles(ReadHead, gated=False)
    def read_head(self, _message: ReadHead, _context: Context) -> SessionHead | None:
        return self.visible

    @handles(ReadMessages, gated=False)
    def read_messages(self, message: ReadMessages, _context: Context) -> list[Message]:
        count = self.visible.message_count if self.visible is not None else 0
        last = count if message.before_seq is None else max(0, min(message.before_seq - 1, count))
        first = 1 if message.limit is None else max(1, last - message.limit + 1)
        return self.visible_history.read(first, last)

    @handles(ReadRuns, gated=False)
    def read_runs(self, message: ReadRuns, _context: Context) -> list[RunRecord]:
        stored = self.archive.runs(self.id.key, limit=message.limit)
        records = {record.id: self.ledger.runs.get(record.id, record) for record in stored}
        records.update(self.ledger.runs)
        runs = sorted(records.values(), key=lambda record: record.id)  # as the archive has them: by their making
        return runs if message.limit is None else runs[-message.limit :]

    @handles(ReadRun, gated=False)
    def read_run(self, message: ReadRun, _context: Context) -> RunRecord:
        live = self.ledger.runs.get(message.run_id)
        return live if live is not None else self.archive.run(self.id.key, message.run_id)

    @handles(ReadSpans, gated=False)
    def read_spans(self, message: ReadSpans, _context: Context) -> list[SpanRecord]:
        return self.archive.spans(self.id.key, message.run_id)

    @handles(Settled)
    def settled(self, _message: Settled, _context: Context) -> None:
        """Nothing but the gate."""

    # Inside ---------------------------------------------------------------------------------------------------------

    def _granted(self, turn: Turn[Waiting | None], context: Context) -> None:
        """Act on a turn that was just granted; an append is over at once, and the next in line gets its turn."""
        granted: Turn[Waiting | None] | None = turn
        while granted is not None:
            assert granted.entry.payload is not None
            ticket, message = granted.entry.payload.ticket, granted.entry.payload.message
            if isinstance(message, Append):
                ticket.reply(self._append(message, granted.number, context))
                granted = self.turns.finish(granted.number)
                continue
            at_ms = context.wall_ms()
            self.ledger.ensure(message.defaults, at_ms=at_ms)
            self.ledger.open_turn(granted.number, message.run, at_ms=at_ms)
            assert self.ledger.head is not None
            ticket.reply(Grant(granted.number, self.history.whole(), copy_metadata(self.ledger.head.metadata)))
            break
        self._stage(context)

    def _append(self, message: Append, turn: int, context: Context) -> list[Message]:
        at_ms = context.wall_ms()
        self.ledger.ensure(message.defaults, at_ms=at_ms)
        stored = self.ledger.append(message.messages, at_ms=at_ms, turn=turn)
        self.history.extend(stored)
        return stored

    def _advance_turns(self, number: int, context: Context) -> None:
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
        if entry_id in self.ledger.runs:
            self.ledger.note_cancelled(self.ledger.runs[entry_id], reason, at_ms=context.wall_ms())
            self._stage(context)
        assert entry.payload is not None
        entry.payload.ticket.fail(StaleTurn(f"{entry_id!r} gave up its place in the queue: {reason}"))
        return True

    def _open_runs(self, head: SessionHead) -> list[RunRecord]:
        """The runs that the head calls open; one that cannot be read is replaced, that it can be closed."""
        turn = head.open_turn
        open_ids = head.open_runs if turn is None else (*head.open_runs, turn.run_id)
        records: list[RunRecord] = []
        for run_id in open_ids:
            try:
                records.append(self.archive.run(self.id.key, run_id))
            except (UnknownRun, Corrupt) as error:
                _log.error("an open run is lost, an empty record takes its place: %s", error)
                manual, at_ms = run_id in head.open_runs, head.updated_at_ms
                lost = RunRecord(id=run_id, session_id=self.id.key, created_at_ms=at_ms, manual=manual)
                records.append(replace(lost, status="running", turn=turn.number if turn and not manual else 0))
        return records

    def _interrupt_all(self, context: Context) -> None:
        """Mark what an earlier process left running."""
        at_ms = context.wall_ms()
        head = self.ledger.head
        assert head is not None
        for run_id in head.open_runs:
            self.ledger.move_run(self.ledger.runs[run_id], RunEnd("interrupted", INTERRUPTED), at_ms=at_ms)
        if head.open_turn is not None:
            self.ledger.interrupt_turn(INTERRUPTED, at_ms=at_ms)
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
