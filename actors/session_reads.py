"""What a session answers from what everybody may see: head, messages, runs and spans as of its last durable commit."""

import logging

from msgspec.structs import replace

from ..runtime.actor import Actor, handles
from ..runtime.context import Context
from ..runtime.identity import ActorId
from ..store.errors import Corrupt
from .archive import Archive
from .boards import Boards
from .errors import UnknownRun
from .event_log import EventPage, last_number, read_events
from .history import History
from .ledger import Ledger
from .message import Message, Usage
from .run_queries import RunFilter
from .run_record import RunRecord, SpanRecord
from .seq_ranges import first_of_latest, is_removed
from .session_messages import ReadEvents, ReadHead, ReadMessages, ReadRun, ReadRuns, ReadSpans
from .session_records import SessionHead

__all__ = ["ReadableSession", "journaled_usage", "open_runs_of"]

_log = logging.getLogger("callboard.session")

_RUNS_PAGE = 256


class ReadableSession(Actor):
    """The reading half of a session's actor; `load` of the whole one gives it what it reads."""

    boards = Boards()  # the runtime gives it its own

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.archive: Archive
        self.ledger: Ledger
        self.history: History
        self.visible: SessionHead | None = None
        self.visible_history: History

    @handles(ReadHead, gated=False)
    def read_head(self, _message: ReadHead, _context: Context) -> SessionHead | None:
        return self.visible

    @handles(ReadMessages, gated=False)
    def read_messages(self, message: ReadMessages, _context: Context) -> list[Message]:
        if self.visible is None:
            return []
        last, removed = self.visible.last_seq, self.visible.removed
        if message.before_seq is not None:
            last = max(0, min(message.before_seq - 1, last))
        if message.limit is None:
            return self.visible_history.read(1, last)
        first = first_of_latest(removed, last, message.limit) if removed else max(1, last - message.limit + 1)
        return self.visible_history.read(first, last)

    @handles(ReadEvents, gated=False)
    def read_events(self, message: ReadEvents, context: Context) -> EventPage:
        """The events that everybody may see."""
        head = self.visible
        if head is None:
            return EventPage([], 0, 0)
        return read_events(context.store, head, after=last_number(head) if message.after is None else message.after)

    @handles(ReadRuns, gated=False)
    def read_runs(self, message: ReadRuns, _context: Context) -> list[RunRecord]:
        live, limit, wanted = self.ledger.runs, message.limit, message.wanted
        ended = [record for record in self._stored_runs(wanted, limit) if record.id not in live]
        runs = [*ended, *(record for record in live.values() if wanted.takes(record))]
        runs.sort(key=lambda record: record.id)  # as the archive has them: by their making
        return runs if limit is None else runs[-limit:]

    @handles(ReadRun, gated=False)
    def read_run(self, message: ReadRun, _context: Context) -> RunRecord:
        live = self.ledger.runs.get(message.run_id)
        return live if live is not None else self.archive.run(self.id.key, message.run_id)

    @handles(ReadSpans, gated=False)
    def read_spans(self, message: ReadSpans, _context: Context) -> list[SpanRecord]:
        return self.archive.spans(self.id.key, message.run_id)

    def _stored_runs(self, wanted: RunFilter, limit: int | None) -> list[RunRecord]:
        """At least the latest `limit` stored runs that are wanted, those that are live apart."""
        if wanted.takes_all:
            return self.archive.runs(self.id.key, limit=limit)
        found: list[RunRecord] = []
        before = None
        while records := self.archive.runs(self.id.key, limit=_RUNS_PAGE, before=before):
            before = records[0].id
            found += [record for record in records if wanted.takes(record) and record.id not in self.ledger.runs]
            if wanted.is_past(records[0]) or (limit is not None and len(found) >= limit):
                break
        return found

    # For the other halves -------------------------------------------------------------------------------------------

    def ended_run(self, run_id: str) -> RunRecord | None:
        """A run that has ended, as it is now, durable or not; None where it is open, or cannot be found."""
        try:
            record = self.ledger.ended.get(run_id) or self.archive.run(self.id.key, run_id)
        except (UnknownRun, Corrupt):
            return None
        return None if record.is_open else record

    def input_place(self, record: RunRecord) -> int:
        """Where in history the input of this run stands, kept by itself or by the run that it retries; 0: nowhere."""
        origin = self.ended_run(record.retry_of or record.id)
        seq = record.input_seq or (0 if origin is None else origin.input_seq)
        head = self.ledger.head
        return 0 if head is None or is_removed(head.removed, seq) else seq  # an edit may have taken it out


def open_runs_of(archive: Archive, head: SessionHead) -> list[RunRecord]:
    """The runs that the head calls open; one that cannot be read is replaced, that it can be closed."""
    turn = head.open_turn
    records: list[RunRecord] = []
    for run_id in head.open_run_ids:
        try:
            records.append(archive.run(head.id, run_id))
        except (UnknownRun, Corrupt) as error:
            _log.error("an open run is lost, an empty record takes its place: %s", error)
            manual, at_ms = run_id in head.open_runs, head.updated_at_ms
            number = turn.number if turn is not None and turn.run_id == run_id else 0
            lost = RunRecord(id=run_id, session_id=head.id, created_at_ms=at_ms, manual=manual)
            records.append(replace(lost, status="running", turn=number))
    return records


def journaled_usage(archive: Archive, session_id: str, turn: int) -> Usage:
    """What the run that began in this turn had spent, as far as its journal can be read."""
    try:
        steps = archive.steps(session_id, turn)
    except Corrupt as error:
        _log.error("what a run had spent is not known: %s", error)
        return Usage()
    return next((step.usage for step in reversed(steps) if step.usage is not None), Usage())
