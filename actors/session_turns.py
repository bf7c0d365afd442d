"""Turns of a session: who asks, who has one, and how each ends. The half of a session's actor that changes history.

All that extends or changes a conversation is a turn. One that a run holds begins with BeginTurn or ResumeTurn and ends
with CloseTurn, PauseTurn or CancelTurn. One of a single step, an append or an edit, is over as soon as it was granted:
see `in_turn`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from ..runtime.actor import handles
from ..runtime.context import Context, Ticket
from ..runtime.envelope import Request
from ..runtime.identity import ActorId
from ..runtime.signals import Abandoned
from .approvals import denied_result
from .errors import Busy, InvalidTransition, StaleTurn, UnknownRun
from .event_log import last_number
from .history import History
from .ledger import RunEnd
from .message import Message
from .run_record import RunRecord
from .session_messages import (
    Append,
    BeginTurn,
    CancelRun,
    CancelTurn,
    CloseTurn,
    Grant,
    NoteRun,
    OneStep,
    PauseTurn,
    RecordStep,
    Resumed,
    ResumeTurn,
    StopRun,
)
from .session_reads import ReadableSession
from .session_records import SessionHead, Step, copy_metadata
from .turns import Entry, Granted, Overlap, Queued, Turn, TurnQueue

__all__ = ["TurnSession", "Waiting"]

ReplyT = TypeVar("ReplyT")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits for a turn, or has it: the reply that is owed, for what, and the agent that sent it.

    `apply` is what a turn of one step does, given its number: it changes the ledger and returns the reply.
    None in the place of all this: the turn ran before the session was loaded anew.
    """

    ticket: Ticket
    message: Request[Any]
    sender: ActorId | None
    resumed: Resumed | None = None
    apply: Callable[[int, Context], Any] | None = None


class TurnSession(ReadableSession):
    """See the module's text. `turns` says who may extend the conversation now, and who waits."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.turns: TurnQueue[Waiting | None] = TurnQueue()
        self.stopping: dict[str, list[Ticket]] = {}  # by run: who waits for its end
        self.head_bytes = 0

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
        self.stage(context)

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
        self.history.extend(self.ledger.pause_turn(message.end, message.pending, at_ms=context.wall_ms()))
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
        self.keep_state(message, context)
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
            self.history.extend(self.ledger.close_turn(end, (), at_ms=context.wall_ms()))
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
            self.end_paused(record, end, context)
        self.stage(context)
        return True

    @handles(Append, retryable=True, on_cancel="cancel")
    def append(self, message: Append, context: Context) -> Ticket | list[Message]:
        """Put messages at the end of history, now or when the turns before it have ended."""
        return self.in_turn(message, context, partial(self._append, message))

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, context: Context) -> None:
        """Whoever asked for a turn or an append has gone."""
        message: Request[Any] = signal.message
        if isinstance(message, BeginTurn):
            self.cancel_turn(CancelTurn(message.run.id, "the caller went away"), context)
        elif isinstance(message, ResumeTurn):
            self.cancel_turn(CancelTurn(message.run_id, "the caller went away", "interrupted"), context)
        elif isinstance(message, OneStep):
            self._withdraw(_entry_id(message), "the caller went away", context)

    def keep_state(self, message: CloseTurn, context: Context) -> None:
        """Write what the turn that ends has changed in state; nothing here, see StatefulSession."""

    # For the other halves -------------------------------------------------------------------------------------------

    def stage(self, context: Context) -> None:
        """Write what the ledger has gathered; everybody sees it once it is durable."""
        change = self.ledger.take()
        if change is None:
            return
        context.stage(head=change.head, rows=change.rows, index_rows=change.index_rows, erase=change.erase)
        self.head_bytes = len(change.head)
        # Of now: a delete may put others in their places.
        context.after_commit(partial(_show, self, self.ledger.head, self.history, change.ended))

    def in_turn(
        self, message: OneStep[ReplyT], context: Context, apply: Callable[[int, Context], ReplyT]
    ) -> Ticket | ReplyT:
        """Do `apply` in a turn of its own: now, or when the turns before it have ended. For handlers of these messages,
        marked retryable and `on_cancel="cancel"`: one whose caller has gone is taken out of the queue.

        `apply` gets the turn's number, changes the ledger and returns the reply. It must not raise: what can be wrong
        with the message is found out before. What the turns before it change it sees only then.
        """
        number = self.turns.pass_by()
        if number is not None:
            reply = apply(number, context)
            self.stage(context)
            return reply
        waiting = Waiting(context.defer(), message, context.sender, apply=apply)
        self._offer(_entry_id(message), waiting, "queue", context)
        return waiting.ticket

    def _offer(self, entry_id: str, waiting: Waiting, overlap: Overlap, context: Context) -> bool:
        """Ask for a turn: True where it was granted, False where it is waited for. Busy where neither may be."""
        entry: Entry[Waiting | None] = Entry(entry_id, waiting)
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
        record = replace(resumed.record, input_seq=self.input_place(resumed.record))
        self.ledger.resume_turn(number, record, steps=len(resumed.steps), at_ms=context.wall_ms())
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

    def end_paused(self, record: RunRecord, end: RunEnd, context: Context) -> None:
        steps = self.archive.step_count(self.id.key, record.journal_turn)
        self.ledger.end_paused(record, end, steps=steps, at_ms=context.wall_ms())

    def tell_stopped(self, run_id: str) -> None:
        for ticket in self.stopping.pop(run_id, ()):
            ticket.reply(True)

    def _granted(self, turn: Turn[Waiting | None], context: Context) -> None:
        """Act on a turn that was just granted; one of a single step is over at once, and the next in line gets its."""
        granted: Turn[Waiting | None] | None = turn
        while granted is not None:
            waiting = granted.entry.payload
            assert waiting is not None
            ticket, message = waiting.ticket, waiting.message
            if waiting.apply is not None:
                ticket.reply(waiting.apply(granted.number, context))
                granted = self.turns.finish(granted.number)
                continue
            resumed = None
            if isinstance(message, ResumeTurn):
                resumed = self._resume(granted.number, waiting, context)
                input_seq = self.ledger.runs[message.run_id].input_seq
            else:
                assert isinstance(message, BeginTurn)
                at_ms, run = context.wall_ms(), message.run
                input_seq = self.input_place(run) if run.retry_of else 0
                self.ledger.ensure(message.defaults, at_ms=at_ms)
                run = replace(run, input_seq=input_seq) if input_seq else run
                self.ledger.open_turn(granted.number, run, at_ms=at_ms)
            assert self.ledger.head is not None
            metadata = copy_metadata(self.ledger.head.metadata)
            grant = Grant(granted.number, self.history.whole(), metadata, resumed, input_seq=input_seq)
            ticket.reply(grant)
            break
        self.stage(context)

    def _append(self, message: Append, turn: int, context: Context) -> list[Message]:
        at_ms = context.wall_ms()
        self.ledger.ensure(message.defaults, at_ms=at_ms)
        stored = self.ledger.append(message.messages, at_ms=at_ms, turn=turn)
        self.history.extend(stored)
        return stored

    def _advance_turns(self, number: int, context: Context) -> None:
        if self.stopping:
            self.tell_stopped(self.turns.check(number).entry.run_id)
        following = self.turns.finish(number)
        if following is not None:
            self._granted(following, context)
        else:
            self.stage(context)

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
        # With what edits have removed since: it is what was answered then.
        stored = self.history.read_removed_too(record.first_seq, record.last_seq) if record.first_seq else []
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
            self.stage(context)
        entry.payload.ticket.fail(StaleTurn(f"{entry_id!r} gave up its place in the queue: {reason}"))
        return True


def _show(actor: TurnSession, head: SessionHead | None, history: History, ended: tuple[str, ...]) -> None:
    """This head, and so many messages of this history, are durable: everybody sees them from now on."""
    actor.visible, actor.visible_history = head, history
    if head is not None:
        history.durable(head.last_seq, head.removed)
    else:
        history.durable(0)
    for run_id in ended:
        actor.ledger.ended.pop(run_id, None)
    if actor.boards:
        if head is None:
            actor.boards.deleted(actor.id.key)
        elif (board := actor.boards.find(actor.id.key)) is not None:
            board.show(last_number(head))


def _entry_id(message: OneStep[Any]) -> str:
    return f"step_{message.number:016x}"
