"""What a session writes next: each decision becomes a new head, rows and index entries. Pure; time is passed in.

The ledger runs ahead of the store: what it holds is staged, and becomes what everybody sees when its commit is durable.
A session actor calls one or more of its methods in a handler, then takes the change and stages it as one batch.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..store.contract import Index, IndexRow, Row, Table
from .approvals import ApprovalRequest
from .edit_record import EditRecord
from .event_rows import EVENT_CODEC, HistoryEditedRow, MetadataRow, RunRow, StoredEvent, event_key
from .limits import check_metadata, storable_reason
from .message import Message, Usage
from .overlay import OVERLAY_CODEC, Overlay
from .run_record import RunRecord, RunStatus, SpanRecord, advance
from .seq_ranges import add_range
from .session_records import (
    EDIT_CODEC,
    HEAD_CODEC,
    RUN_CODEC,
    SPAN_CODEC,
    STEP_CODEC,
    OpenTurn,
    SessionDefaults,
    SessionHead,
    Step,
    edit_key,
    index_changes,
    message_key,
    message_rows,
    span_key,
    status_value,
    step_key,
)

__all__ = ["Change", "Ledger", "RunEnd", "message_id"]

_NOTHING = Usage()

WINDOWS_MAX = 8
"""Windows of one session whose cuts are kept. Each is some 30 bytes of a head that is written with every commit."""


class Change(Struct, frozen=True, gc=False):
    """What `Context.stage` takes, and the ids of the runs that end with it."""

    head: bytes
    rows: tuple[Row, ...]
    index_rows: tuple[IndexRow, ...]
    erase: bool
    ended: tuple[str, ...]


class RunEnd(Struct, frozen=True):
    """How a run ended: with what it cost, why, and what its spans were; `partial` where it leaves a part in history."""

    status: RunStatus
    error: str | None = None
    usage: Usage = Usage()
    attempts: int = 1
    spans: tuple[SpanRecord, ...] = ()
    partial: bool = False
    finish_reason: str = ""


class Ledger:
    """The staged state of one session.

    Attributes:
        head: as staged; None where there is no session.
        runs: those that have not ended, by id.
        ended: those whose end is staged and not durable yet, which the store still shows as open.

    `steps` is how many entries the journal of the open turn has, `journal_turn` the number under which they are kept.
    `find_run` gives a run that has ended as it is now, or None.
    """

    def __init__(
        self,
        session_id: str,
        head: SessionHead | None,
        *,
        open_runs: Iterable[RunRecord] = (),
        journal_turn: int = 0,
        steps: int = 0,
        find_run: Callable[[str], RunRecord | None] = lambda _: None,
    ) -> None:
        self._session_id = session_id
        self._find_run = find_run
        self.head = head
        self.runs = {record.id: record for record in open_runs}
        self.ended: dict[str, RunRecord] = {}
        self._indexed = head
        self._rows: list[Row] = []
        self._index_rows: list[IndexRow] = []
        self._ended_now: list[str] = []
        self._erase = False
        self.journal_turn = journal_turn
        self._steps = steps
        self._touched = False
        self._event_count = head.event_count if head is not None else 0

    # The session ----------------------------------------------------------------------------------------------------

    def ensure(self, defaults: SessionDefaults, *, at_ms: int) -> SessionHead:
        """The head, made from the defaults where there is none; an existing one keeps what it has."""
        if self.head is None:
            self.head = SessionHead(
                id=self._session_id,
                created_at_ms=at_ms,
                updated_at_ms=at_ms,
                owner=defaults.owner,
                tags=defaults.tags,
                metadata=defaults.metadata,
            )
            self._change(at_ms)
        return self.head

    def patch_metadata(self, patch: dict[str, Any], defaults: SessionDefaults, *, at_ms: int) -> dict[str, Any]:
        """Set the keys of `patch`, remove those whose value is None; the new metadata. Makes the session if need be.

        Raises:
            ValueError: the whole would be too large. Nothing changed.
        """
        removed = {key for key, value in patch.items() if value is None}
        merged = {**(defaults if self.head is None else self.head).metadata, **patch}
        metadata = check_metadata({key: value for key, value in merged.items() if key not in removed})
        self.ensure(defaults, at_ms=at_ms)
        self.log(MetadataRow(tuple(patch)))
        self._change(at_ms, metadata=metadata)
        return metadata

    def erase(self) -> None:
        """Drop all of it. The stream keeps its epoch and version, so that a late writer is still refused."""
        self.head = None
        self.runs.clear()
        self.ended.clear()
        self._rows.clear()
        self._index_rows.clear()
        self._ended_now.clear()
        self._event_count = 0
        self._erase = self._touched = True

    # Turns ----------------------------------------------------------------------------------------------------------

    def open_turn(self, number: int, record: RunRecord, *, at_ms: int) -> RunRecord:
        """The turn of this number begins with this run, which was queued."""
        head = self._existing()
        record = advance(replace(record, turn=number), "running", at_ms=at_ms)
        self._begin_run(record)
        self.journal_turn, self._steps = number, 0
        turn = OpenTurn(number, record.id)
        if record.id in head.queued_runs:
            queued = _without(head.queued_runs, record.id)
            self._change(at_ms, last_turn=number, open_turn=turn, queued_runs=queued)
        else:
            self._change(at_ms, last_turn=number, open_turn=turn, run_count=head.run_count + 1)
        return record

    def hear(self, run_id: str, said: tuple[Message, ...]) -> None:
        """The run took this in, as its journal says; the record is for a later `retry`."""
        record = self.runs[run_id]
        self.runs[run_id] = record = replace(record, heard=(*record.heard, *said))
        self._rows.append(Row(Table.RUN, record.id.encode(), RUN_CODEC.encode(record)))

    def accept_run(self, record: RunRecord, *, at_ms: int) -> None:
        """A run is stored before it has a turn: it was submitted."""
        head = self._existing()
        self._begin_run(replace(record, submitted=True))
        self._change(at_ms, run_count=head.run_count + 1, queued_runs=(*head.queued_runs, record.id))

    def note_submitted(self, record: RunRecord) -> None:
        """A run that is stored goes on without its caller from now on."""
        noted = replace(record, submitted=True)
        if record.id in self.runs:
            self.runs[record.id] = noted
            self._put_run(noted)
        else:
            self._replace_ended(noted)
        self._touched = True

    def journal(self, step: Step) -> None:
        """Keep an entry of the running turn's journal; one that is kept already is left as it is."""
        if step.number > self._steps:
            assert step.number == self._steps + 1, "entries come one after the other"
            self._rows.append(Row(Table.STEP, step_key(self.journal_turn, step.number), STEP_CODEC.encode(step)))
            self._steps = step.number
            self._touched = True

    def pause_turn(self, end: RunEnd, pending: tuple[ApprovalRequest, ...], *, at_ms: int) -> list[Message]:
        """The running turn ends, its run does not: it waits for verdicts on these calls. Its journal stays.

        Returns: what is new in history: its input, where that is kept.
        """
        head = self._existing()
        turn = head.open_turn
        assert turn is not None, "no turn is open"
        record, kept = self._keep_input(self.runs[turn.run_id], at_ms=at_ms)
        paused = advance(record, "waiting", at_ms=at_ms, usage=end.usage, attempts=max(end.attempts, 1))
        self.runs[record.id] = paused = replace(paused, pending=pending)
        self._put_run(paused)
        self._add_spans(record.id, end)
        self._change(at_ms, open_turn=None, paused_runs=(*head.paused_runs, record.id))
        return kept

    def resume_turn(self, number: int, record: RunRecord, *, steps: int, at_ms: int) -> RunRecord:
        """The turn of this number begins with a run that goes on, whose journal has `steps` entries."""
        head = self._existing()
        moved = advance(replace(record, turn=number), "running", at_ms=at_ms, attempts=record.attempts + 1)
        moved = replace(moved, pending=(), journal=record.journal_turn)
        if not record.is_open:
            self._index_rows.append(IndexRow(Index.RUN_STATUS, status_value(record.status, record.id), present=False))
        self._begin_run(moved)
        self.journal_turn, self._steps = moved.journal_turn, steps  # its own, where it never began before
        turn = OpenTurn(number, record.id)
        self._change(at_ms, last_turn=number, open_turn=turn, paused_runs=_without(head.paused_runs, record.id))
        return moved

    def end_paused(self, record: RunRecord, end: RunEnd, *, steps: int, at_ms: int) -> None:
        """A run that paused ends without another turn; so does its journal, of `steps` entries."""
        head = self._existing()
        ended = advance(record, end.status, at_ms=at_ms, error=_reason(end))
        self._close_run(replace(ended, pending=()))
        self._drop_journal(record.journal_turn, steps)
        self._change(at_ms, paused_runs=_without(head.paused_runs, record.id))

    def close_turn(self, end: RunEnd, messages: Sequence[Message], *, at_ms: int) -> list[Message]:
        """The running turn ends: its run as `end` says, with `messages` new in history; returns them as stored.

        Without messages, and without an answer, the input is new in history where the run is to keep it. The journal
        of a run that was interrupted stays, for the run may be resumed.
        """
        head = self._existing()
        turn = head.open_turn
        assert turn is not None, "no turn is open"
        record = self.runs[turn.run_id]
        stored = self.append(messages, run_id=record.id, at_ms=at_ms)
        if stored:
            said = 0 if record.input_seq else len(record.input)  # so many of them are the input
            partial = end.partial and len(stored) > said
            record = replace(record, first_seq=stored[0].seq, last_seq=stored[-1].seq, partial=partial)
            if said and end.status != "completed" and not partial:
                record = self._input_stands(record, stored[0].seq)
            elif said and record.retry_of and not partial:
                self._input_stands(record, stored[0].seq)
        elif end.status != "completed":
            if end.status != "interrupted":  # one that goes on has it in its journal
                record = replace(record, input=(*record.input, *record.heard), heard=())
            record, stored = self._keep_input(record, at_ms=at_ms)
        self._end_run(record, end, at_ms=at_ms)
        self._change(at_ms, open_turn=None)
        if end.status != "interrupted":
            self._drop_journal(self.journal_turn, self._steps)
        self._steps = 0
        return stored

    def interrupt_turn(self, reason: str, *, at_ms: int, usage: Usage = _NOTHING) -> list[Message]:
        """The turn that an earlier process left open ends; its journaled steps stay in the store for a later resume.

        `usage` is what the run had spent, as far as its journal knows. Returns: as `pause_turn`.
        """
        head = self._existing()
        assert head.open_turn is not None, "no turn is open"
        record = self.runs[head.open_turn.run_id]
        if usage.requests > record.usage.requests:
            record = replace(record, usage=usage)
        record, kept = self._keep_input(record, at_ms=at_ms)
        self._end_run(record, RunEnd("interrupted", reason, attempts=record.attempts), at_ms=at_ms)
        self._change(at_ms, open_turn=None)
        return kept

    def append(
        self, messages: Sequence[Message], *, at_ms: int, run_id: str | None = None, turn: int | None = None
    ) -> list[Message]:
        """Put messages at the end of history, with their places, ids and times; returns them so.

        `turn` is the number of the turn that this is, where it is one of its own.
        """
        head = self._existing()
        stored = [
            replace(
                message,
                id=message_id(seq),  # never the caller's: a copied message would bring one that is taken
                seq=seq,
                run_id=run_id,
                created_at_ms=message.created_at_ms or at_ms,
            )
            for seq, message in enumerate(messages, head.last_seq + 1)
        ]
        self._rows += message_rows(stored)
        last_turn = turn if turn is not None else head.last_turn
        self._change(at_ms, last_seq=head.last_seq + len(stored), last_turn=last_turn)
        return stored

    def end_queued(self, record: RunRecord, end: RunEnd, *, at_ms: int, joined: str = "") -> None:
        """A run that waited for its turn never begins, and stays on record; its input may have `joined` another."""
        head = self._existing()
        self._close_run(replace(advance(record, end.status, at_ms=at_ms, error=_reason(end)), joined=joined))
        if record.id in head.queued_runs:
            self._change(at_ms, queued_runs=_without(head.queued_runs, record.id))
        else:
            self._change(at_ms, run_count=head.run_count + 1)

    def begin(self, head: SessionHead, rows: Iterable[Row], *, at_ms: int) -> SessionHead:
        """The session begins with this head, and rows that belong to it, where there is none; the head as stored."""
        assert self.head is None, "the session exists"
        self.head = replace(head, created_at_ms=at_ms, updated_at_ms=at_ms)
        self._rows += rows
        self._change(at_ms)
        return self.head

    def edit(self, record: EditRecord) -> None:
        """History loses what the record says, which is told the revision that this is."""
        head = self._existing()
        removed = add_range(head.removed, record.removed[0][0], record.removed[-1][1])  # between: removed before
        self.log(HistoryEditedRow(record.kind, record.removed))
        self._change(record.at_ms, removed=removed, last_turn=record.number)
        record = replace(record, revision=self._existing().revision)
        self._rows.append(Row(Table.EDIT, edit_key(record.number), EDIT_CODEC.encode(record)))

    # Runs by hand ---------------------------------------------------------------------------------------------------

    def create_run(self, record: RunRecord, *, at_ms: int) -> None:
        """A run that the user drives."""
        head = self._existing()
        self._begin_run(record)
        self._change(at_ms, run_count=head.run_count + 1, open_runs=(*head.open_runs, record.id))

    def move_run(self, record: RunRecord, end: RunEnd, *, at_ms: int) -> RunRecord:
        """A run made by hand goes to another status.

        Raises:
            InvalidTransition, ValueError: see run_record.advance. Nothing changed.
        """
        moved = advance(record, end.status, at_ms=at_ms, usage=end.usage, error=_reason(end))
        open_runs = self._existing().open_runs
        if moved.is_open:
            self.runs[moved.id] = moved
            self._put_run(moved)
        else:
            open_runs = _without(open_runs, moved.id)
            self._close_run(moved)
        self._change(at_ms, open_runs=open_runs)
        return moved

    def note_run(self, run_id: str, status: RunStatus, *, at_ms: int, attempts: int, error: str | None) -> None:
        """A running run waits for its next attempt, or goes on: shown at once, stored with the turn's end."""
        record = self.runs[run_id]
        if record.status != status:
            self.runs[run_id] = advance(record, status, at_ms=at_ms, error=error, attempts=attempts)

    def move_cut(self, window: str, cut: int) -> None:
        """The window of this name is cut before this place; 0: it is not cut. Stored with the next change.

        Those that were moved last are remembered, up to WINDOWS_MAX of them.
        """
        head = self._existing()
        if dict(head.window_cuts).get(window, 0) != cut:
            others = tuple(each for each in head.window_cuts if each[0] != window)
            cuts = (*others, (window, cut))[-WINDOWS_MAX:] if cut else others
            self.head = replace(head, window_cuts=cuts)

    def put_overlay(self, overlay: Overlay, *, at_ms: int) -> None:
        """A summary stands for the beginning of history from now on, instead of the one before."""
        head = self._existing()
        if head.overlay_seq:
            self._rows.append(Row(Table.OVERLAY, message_key(head.overlay_seq), None))
        self._rows.append(Row(Table.OVERLAY, message_key(overlay.last_seq), OVERLAY_CODEC.encode(overlay)))
        self._change(at_ms, overlay_seq=overlay.last_seq)

    def log(self, event: StoredEvent) -> None:
        """This happens behind all that is staged so far; a change of the head must follow, which tells the count."""
        self._event_count += 1
        number = self._existing().last_seq + self._event_count
        self._rows.append(Row(Table.EVENT, event_key(number, self._event_count), EVENT_CODEC.encode(event)))

    def put(self, rows: Iterable[Row], index_rows: Iterable[IndexRow] = ()) -> None:
        """Write these with the next change; or alone, and then the head stays as it is."""
        self._rows += rows
        self._index_rows += index_rows

    # Taking ---------------------------------------------------------------------------------------------------------

    def take(self) -> Change | None:
        """What has changed since the last call, or None."""
        if not self._touched and not self._rows:
            return None
        head, erase = self.head, self._erase
        if head is None:
            encoded = b""
        else:
            assert head.event_count == self._event_count, "an event was logged behind the last change of the head"
            encoded = HEAD_CODEC.encode(head)
            self._index_rows += index_changes(None if erase else self._indexed, head)
        change = Change(encoded, tuple(self._rows), tuple(self._index_rows), erase, tuple(self._ended_now))
        self._indexed = head
        self._rows, self._index_rows, self._ended_now = [], [], []
        self._erase = self._touched = False
        return change

    def _existing(self) -> SessionHead:
        assert self.head is not None, "the session does not exist: call ensure first"
        return self.head

    def _change(self, at_ms: int, **fields: Any) -> None:
        """Give the head these fields, and count the change."""
        head = self._existing()
        # At most one revision a change that is taken; a clock that was set back does not move a session back.
        revision = head.revision if self._touched else head.revision + 1
        updated_at_ms = at_ms if at_ms > head.updated_at_ms else head.updated_at_ms
        if self._event_count != head.event_count:
            fields["event_count"] = self._event_count
        self.head = replace(head, revision=revision, updated_at_ms=updated_at_ms, **fields)
        self._touched = True

    def _put_run(self, record: RunRecord) -> None:
        """The record of a run as it is now, and the event that it came into this status."""
        self._rows.append(Row(Table.RUN, record.id.encode(), RUN_CODEC.encode(record)))
        self.log(RunRow(record.id, record.status, record.agent, record.error))

    def _begin_run(self, record: RunRecord) -> None:
        self.runs[record.id] = record
        self._put_run(record)
        self._index_rows.append(IndexRow(Index.OPEN_RUN, record.id.encode()))

    def _keep_input(self, record: RunRecord, *, at_ms: int) -> tuple[RunRecord, list[Message]]:
        """The run's turn ends without an answer: its input goes into history, if it is to stand there and does not.

        Returns: the record that knows of it, and what is new in history.
        """
        if not record.keep_input or record.input_seq or not record.input:
            return record, []
        stored = self.append(record.input, run_id=record.id, at_ms=at_ms)
        return self._input_stands(record, stored[0].seq), stored

    def _input_stands(self, record: RunRecord, seq: int) -> RunRecord:
        """The run's input stands in history from this place on; so does that of the run that it retries."""
        origin = self._find_run(record.retry_of) if record.retry_of else None
        if origin is not None and origin.input_seq != seq:
            self._replace_ended(replace(origin, input_seq=seq))
        return replace(record, input_seq=seq)

    def _replace_ended(self, record: RunRecord) -> None:
        self.ended[record.id] = record
        self._ended_now.append(record.id)
        self._rows.append(Row(Table.RUN, record.id.encode(), RUN_CODEC.encode(record)))

    def _end_run(self, record: RunRecord, end: RunEnd, *, at_ms: int) -> None:
        ended = advance(
            record, end.status, at_ms=at_ms, usage=end.usage, error=_reason(end), attempts=max(end.attempts, 1)
        )
        self._add_spans(ended.id, end)
        self._close_run(replace(ended, finish_reason=end.finish_reason) if end.finish_reason else ended)

    def _add_spans(self, run_id: str, end: RunEnd) -> None:
        spans = (Row(Table.SPAN, span_key(run_id, span.number), SPAN_CODEC.encode(span)) for span in end.spans)
        self._rows.extend(spans)

    def _drop_journal(self, turn: int, steps: int) -> None:
        self._rows.extend(Row(Table.STEP, step_key(turn, number), None) for number in range(1, steps + 1))

    def _close_run(self, record: RunRecord) -> None:
        self.runs.pop(record.id, None)
        self.ended[record.id] = record
        self._ended_now.append(record.id)
        self._put_run(record)
        self._index_rows.append(IndexRow(Index.OPEN_RUN, record.id.encode(), present=False))
        if record.status != "completed":
            self._index_rows.append(IndexRow(Index.RUN_STATUS, status_value(record.status, record.id)))


@lru_cache(8192)
def message_id(seq: int) -> str:
    """Kept, because those of short sessions come again in each: 0.05 us against 0.2, and one string for all."""
    return f"msg_{seq:08d}"


def _without(run_ids: tuple[str, ...], run_id: str) -> tuple[str, ...]:
    return tuple(id for id in run_ids if id != run_id)


def _reason(end: RunEnd) -> str | None:
    return None if end.error is None else storable_reason(end.error)
