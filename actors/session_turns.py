"""Turns of a session: who asks, who has one, and how each ends. The half of a session's actor that changes history.

All that extends or changes a conversation is a turn. One that a run holds begins with BeginTurn or ResumeTurn and ends
with CloseTurn, PauseTurn or CancelTurn. One of a single step, an append or an edit, is over as soon as it was granted:
see `in_turn`.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from msgspec.structs import replace

from ..runtime.actor import handles
from ..runtime.context import Context, Ticket
from ..runtime.identity import ActorId
from ..runtime.signals import Tick
from .approvals import denied_result
from .errors import Busy, InvalidTransition, StaleTurn, Superseded, UnknownRun
from .event_log import last_number
from .history import History
from .ledger import RunEnd
from .message import Message
from .outcomes import ON_KEY
from .reply import Delivered, DeliveredAs
from .run_record import RunRecord
from .session_messages import (
    AcceptRun,
    Append,
    BeginTurn,
    CloseTurn,
    Delivery,
    Grant,
    Joined,
    NoteRun,
    OneStep,
    PauseTurn,
    RecordStep,
    Resumed,
    ResumeTurn,
    Steered,
    TakeInput,
)
from .session_records import SessionHead, Step, copy_metadata
from .session_waits import WaitedSession, Waiting, agent_of, as_retry, begun
from .session_window import WindowedSession
from .turns import OVERLAP_RULES, WAITING_MAX, Entry, Granted, Overlap, Refused, Turn

__all__ = ["TurnSession", "step_id"]

ReplyT = TypeVar("ReplyT")


class TurnSession(WaitedSession, WindowedSession):
    """See the module's text. `turns` says who may extend the conversation now, and who waits."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.head_bytes = 0

    @handles(AcceptRun)
    def accept_run(self, message: AcceptRun, context: Context) -> Joined | None:
        """Store a run that will ask for a turn, unless it repeats another."""
        run, at_ms = message.run, context.wall_ms()
        if message.key is not None:
            found = self.keyed(message.key, run.id, at_ms=at_ms)
            if found is not None and ON_KEY[found.status] != "run":
                self.keep_going(message, found, context)
                self.stage(context)
                return self.joined(found)
            run = as_retry(run, found)
        self._check_room(message.overlap)
        self.ledger.ensure(message.defaults, at_ms=at_ms)
        self.ledger.accept_run(run, at_ms=at_ms)
        if message.key is not None:
            self.remember(message.key, run.id, at_ms=at_ms)
        self.stage(context)
        return None

    @handles(BeginTurn, retryable=True, on_cancel="cancel")
    def begin_turn(self, message: BeginTurn, context: Context) -> Ticket:
        """Grant a turn, or let it wait, as the overlap policy says; or name the run that this repeats."""
        self.load_for(message.need, context)  # a store that cannot be read refuses here, while nothing has changed yet
        run = message.run
        if message.accepted and run.id not in self.ledger.runs:
            raise StaleTurn(f"run {run.id!r} was cancelled before it asked for its turn")
        ticket = context.defer()
        found = self.keyed(message.key, run.id, at_ms=context.wall_ms()) if message.key is not None else None
        if found is not None and ON_KEY[found.status] != "run":
            self.join(message, ticket, found, how="joined", context=context)
            return ticket
        run = self.ledger.runs.get(run.id) or as_retry(run, found)
        waiting = Waiting(ticket, replace(message, run=run), context.sender)
        entry = Entry[Waiting | None](run.id, waiting, message.overlap, _group(waiting))
        if message.overlap == "debounce":
            self._hold(entry, message, context)
        else:
            self._offer(entry, context)
        return ticket

    @handles(Tick)
    def tick(self, signal: Tick, context: Context) -> None:
        """A time is over."""
        self.time_is_over(signal.tag, context)

    def time_is_over(self, tag: Any, context: Context) -> None:
        """Those of a group whose input was held get a turn, or wait for one, together. Halves with timers of their own
        know these by their tags."""
        entries = self.quiet.release(tag)
        if not entries:
            return
        turn = self.turns.offer_together(entries)
        if turn is not None:
            self._granted(turn, context)
            return
        position = len(self.turns) - len(entries)
        for entry in entries:
            position += 1
            self._tell_delivered(entry, "queued", context, position=position)

    @handles(ResumeTurn, retryable=True, on_cancel="cancel")
    def resume_turn(self, message: ResumeTurn, context: Context) -> Ticket:
        """Grant another turn to a run that paused or was interrupted, or let it queue."""
        self.load_for(message.need, context)
        resumed = self._resumed(message)
        waiting = Waiting(context.defer(), message, context.sender, resumed)
        self._offer(Entry(message.run_id, waiting), context)
        return waiting.ticket

    @handles(TakeInput)
    def take_input(self, message: TakeInput, context: Context) -> tuple[Message, ...]:
        """Take into the running turn what waits and steers it."""
        self._check_turn(message.turn, message.run_id)
        taken = self.turns.steering()
        if not taken:
            return ()
        said: list[Message] = []
        for entry in taken:
            self.turns.withdraw(entry.run_id)
            said += begun(entry).run.input
            self._join_to(message.run_id, entry, "steered", context)
        self.ledger.hear(message.run_id, tuple(said))
        answer = (message.answer,) if message.answer is not None else ()
        self.ledger.journal(Step(message.number, answer, input=tuple(said), usage=message.usage))
        self.stage(context)
        return tuple(said)

    @handles(RecordStep)
    def record_step(self, message: RecordStep, context: Context) -> None:
        """Journal what came in the running turn."""
        self._check_turn(message.turn, message.run_id)
        self.ledger.journal(message.step)
        self.stage(context)

    @handles(PauseTurn, retryable=True)
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
        self.advance_turns(message.turn, context)

    @handles(NoteRun, gated=False)
    def note_run(self, message: NoteRun, context: Context) -> None:
        """Show that the run waits, or goes on."""
        self._check_turn(message.turn, message.run_id)
        self.ledger.note_run(
            message.run_id, message.status, at_ms=context.wall_ms(), attempts=message.attempts, error=message.error
        )

    @handles(CloseTurn, retryable=True)
    def close_turn(self, message: CloseTurn, context: Context) -> list[Message]:
        """End the running turn and begin the next."""
        try:
            self._check_turn(message.turn, message.run_id)
        except StaleTurn:
            return self._closed_before(message)
        self.keep_state(message, context)
        if message.cut is not None:
            self.ledger.move_cut(*message.cut)
        stored = self.ledger.close_turn(message.end, message.messages, at_ms=context.wall_ms())
        self.history.extend(stored)
        self.advance_turns(message.turn, context)
        return stored

    @handles(Append, retryable=True, on_cancel="cancel")
    def append(self, message: Append, context: Context) -> Ticket | list[Message]:
        """Put messages at the end of history, now or when the turns before it have ended."""
        return self.in_turn(message, context, partial(self._append, message))

    # For the other halves -------------------------------------------------------------------------------------------

    def stage(self, context: Context) -> None:
        """Write what the ledger has gathered; everybody sees it once it is durable."""
        change = self.ledger.take()
        if change is None:
            return
        self.settle_waits(context)
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
        self._offer(Entry(step_id(message), waiting), context)
        return waiting.ticket

    def withdraw(self, run_id: str) -> Entry[Waiting | None] | None:
        """Take out one that waits, or is held until its group is quiet; None where nobody of this id does."""
        return self.turns.withdraw(run_id) or self.quiet.withdraw(run_id)

    def advance_turns(self, number: int, context: Context) -> None:
        """The running turn has ended: the next one begins."""
        ended = self.turns.check(number).entry
        agent = agent_of(ended)
        if agent is not None:
            context.unwatch(agent, tag=ended.run_id)
        if self.stopping:
            self.tell_stopped(ended.run_id)
        following = self.turns.finish(number)
        if following is not None:
            self._granted(following, context)
        else:
            self.stage(context)

    def keep_state(self, message: CloseTurn, context: Context) -> None:
        """Write what the turn that ends has changed in state; nothing here, see StatefulSession."""

    def make_way(self, context: Context) -> None:
        """Stop the running turn, for one that waits wants it stopped. `StoppableSession` knows how."""
        raise NotImplementedError

    # Inside: asking -------------------------------------------------------------------------------------------------

    def _offer(self, entry: Entry[Waiting | None], context: Context) -> None:
        """Ask for a turn, which is granted or waited for. Busy where neither may be; nothing has changed then."""
        outcome = self.turns.offer(entry)
        if isinstance(outcome, Granted):
            self._granted(Turn(outcome.number, entry), context)
            return
        if isinstance(outcome, Refused):
            raise Busy(self.id.key, run_id=outcome.run_id, queue_length=outcome.queue_length, full=outcome.full)
        self._show_waiting(entry, context)
        for other in outcome.superseded:
            self._supersede(other, entry.run_id, context)
        running = self.turns.running
        assert running is not None
        if self.turns.stop is not None:
            self._tell_delivered(entry, "stopping", context, position=outcome.position, into=running.entry.run_id)
            self.make_way(context)
            return
        self._tell_delivered(entry, "queued", context, position=outcome.position)
        agent = agent_of(running.entry)
        if entry.rule.steers and agent is not None:
            context.tell(agent, Steered(running.entry.run_id))

    def _check_room(self, overlap: Overlap) -> None:
        """Raises Busy where so many wait, held and accepted ones too, that this one would not get a turn."""
        head, running = self.ledger.head, self.turns.running
        accepted = len(head.queued_runs) if head is not None else 0
        waiting = max(len(self.turns) + len(self.quiet), accepted)
        full = waiting >= WAITING_MAX
        if full or (running is not None and not OVERLAP_RULES[overlap].waits):
            run_id = running.entry.run_id if running is not None else ""
            raise Busy(self.id.key, run_id=run_id, queue_length=waiting, full=full)

    def _hold(self, entry: Entry[Waiting | None], message: BeginTurn, context: Context) -> None:
        """Let it wait until its group is quiet. Busy where too many wait already."""
        self._check_room(message.overlap)
        delay_s = self.quiet.add(entry, now_s=context.now(), quiet_s=message.quiet_s)
        self._show_waiting(entry, context)
        self._tell_delivered(entry, "held", context)
        context.after(delay_s, entry.group)

    def _show_waiting(self, entry: Entry[Waiting | None], context: Context) -> None:
        """A run is shown while it waits; it is stored when its turn begins."""
        assert entry.payload is not None
        message = entry.payload.message
        if isinstance(message, BeginTurn):
            self.ledger.runs.setdefault(message.run.id, message.run)
            if message.key is not None:
                self.outcomes.note(message.key, message.run.id, at_ms=context.wall_ms())

    def _tell_delivered(
        self,
        entry: Entry[Waiting | None],
        how: DeliveredAs,
        context: Context,
        *,
        position: int = 0,
        into: str = "",
    ) -> None:
        """Let its agent, and those who read along, know how an input waits."""
        assert entry.payload is not None
        begin, sender = entry.payload.message, entry.payload.sender
        if isinstance(begin, BeginTurn):
            delivered = Delivered(entry.run_id, how, position, into)
            self.show_delivered(begin, delivered)
            if sender is not None:
                context.tell(sender, Delivery(delivered))

    def _supersede(self, entry: Entry[Waiting | None], by: str, context: Context) -> None:
        assert entry.payload is not None
        end = RunEnd("cancelled", f"the newer run {by} took its place")
        self.ledger.end_queued(self.ledger.runs[entry.run_id], end, at_ms=context.wall_ms())
        self.stage(context)
        self.show_delivered(begun(entry), Delivered(entry.run_id, "superseded", into=by))
        entry.payload.ticket.fail(Superseded(entry.run_id, by=by))

    def _join_to(self, run_id: str, entry: Entry[Waiting | None], how: DeliveredAs, context: Context) -> None:
        """The input of an entry became part of another run, which answers it."""
        assert entry.payload is not None
        begin, at_ms = begun(entry), context.wall_ms()
        end = RunEnd("cancelled", f"its input was {how} into run {run_id}")
        record = self.ledger.runs.get(entry.run_id, begin.run)
        if record.submitted:
            self.ledger.note_submitted(self.ledger.runs[run_id])
        self.ledger.end_queued(record, end, at_ms=at_ms, joined=run_id)
        if begin.key is not None:
            self.remember(begin.key, run_id, at_ms=at_ms)
        self.join(begin, entry.payload.ticket, self.ledger.runs[run_id], how=how, context=context)

    # Inside: granting -----------------------------------------------------------------------------------------------

    def _resumed(self, message: ResumeTurn) -> Resumed:
        """What the run had come to. InvalidTransition where it cannot go on, or has gone on since it was looked at."""
        run_id = message.run_id
        record = self.record_of(run_id)
        queued = self.turns.holds(run_id) and record.status != "running"
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
        record = replace(self.record_of(resumed.record.id), input_seq=self.input_place(resumed.record))
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

    def _granted(self, turn: Turn[Waiting | None], context: Context) -> None:
        """Act on a turn that was just granted; one of a single step is over at once, and the next in line gets its."""
        granted: Turn[Waiting | None] | None = turn
        while granted is not None:
            waiting = granted.entry.payload
            assert waiting is not None
            if waiting.apply is None:
                self._begin(granted, waiting, context)
                break
            waiting.ticket.reply(waiting.apply(granted.number, context))
            granted = self.turns.finish(granted.number)
        self.stage(context)
        if self.turns.stop is not None:
            self.make_way(context)

    def _begin(self, turn: Turn[Waiting | None], waiting: Waiting, context: Context) -> None:
        """A run has its turn."""
        resumed, run_id = None, turn.entry.run_id
        assert isinstance(waiting.message, BeginTurn | ResumeTurn)
        if isinstance(waiting.message, ResumeTurn):
            resumed = self._resume(turn.number, waiting, context)
            run = self.ledger.runs[run_id]
        else:
            run = self._open(turn, context)
        assert self.ledger.head is not None
        grant = Grant(
            turn.number,
            self.granted_excerpt(waiting.message.need, context),
            copy_metadata(self.ledger.head.metadata),
            resumed,
            run.input,
            self.follower_count(run_id),
            run.input_seq,
        )
        waiting.ticket.reply(grant)
        if waiting.sender is None:
            return
        context.watch(waiting.sender, tag=run_id)  # see StoppableSession.agent_ended
        if self.turns.steering():
            context.tell(waiting.sender, Steered(run_id))

    def _open(self, turn: Turn[Waiting | None], context: Context) -> RunRecord:
        """The turn of a run that begins, with those that were merged into it."""
        begin, at_ms = begun(turn.entry), context.wall_ms()
        self.ledger.ensure(begin.defaults, at_ms=at_ms)
        run = self.ledger.runs.get(begin.run.id, begin.run)  # a submission may have joined it meanwhile
        if turn.merged:
            said = chain(run.input, *(begun(entry).run.input for entry in turn.merged))
            kept = run.keep_input or any(begun(entry).run.keep_input for entry in turn.merged)
            run = replace(run, input=tuple(said), keep_input=kept)
        elif run.retry_of:
            run = replace(run, input_seq=self.input_place(run))
        self.ledger.open_turn(turn.number, run, at_ms=at_ms)
        if begin.key is not None:
            self.remember(begin.key, run.id, at_ms=at_ms)
        for entry in turn.merged:
            self._join_to(run.id, entry, "merged", context)
        return run

    def _append(self, message: Append, turn: int, context: Context) -> list[Message]:
        at_ms = context.wall_ms()
        self.ledger.ensure(message.defaults, at_ms=at_ms)
        stored = self.ledger.append(message.messages, at_ms=at_ms, turn=turn)
        self.history.extend(stored)
        return stored

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


def _show(actor: TurnSession, head: SessionHead | None, history: History, ended: tuple[str, ...]) -> None:
    """This head, and so many messages of this history, are durable: everybody sees them from now on."""
    actor.visible, actor.visible_history = head, history
    if head is not None:
        history.durable(head.last_seq, head.removed)
    else:
        history.durable(0)
    for run_id in ended:
        actor.ledger.ended.pop(run_id, None)
    actor.outcomes.settled(ended)
    if actor.boards:
        if head is None:
            actor.boards.deleted(actor.id.key)
        elif (board := actor.boards.find(actor.id.key)) is not None:
            board.show(last_number(head))


def step_id(message: OneStep[Any]) -> str:
    """Under which a turn of one step stands in the queue."""
    return f"step_{message.number:016x}"


def _group(waiting: Waiting) -> str:
    """Inputs to one agent can be merged, and take one another's place. What is tried again merges with no other: its
    input may stand in history, and its answer is to follow that alone."""
    message, group = waiting.message, str(waiting.sender)
    if isinstance(message, BeginTurn) and message.run.retry_of and OVERLAP_RULES[message.overlap].merges:
        return f"{group} {message.run.id}"
    return group
