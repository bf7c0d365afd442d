"""Spans of runs made by hand: each is stored when it begins, so that a crash shows what was cut off, and when it ends.

The session gives them their numbers, since several handles, in several tasks, may trace one run.
"""

from msgspec.structs import replace

from ..runtime.actor import handles
from ..runtime.context import Context
from ..runtime.identity import ActorId
from ..store.contract import Row, Table
from .errors import InvalidTransition
from .run_record import SpanRecord
from .session_messages import BeginSpan, EndSpan
from .session_records import SPAN_CODEC, span_key
from .session_turns import TurnSession

__all__ = ["TracedSession"]


class TracedSession(TurnSession):
    """See the module's text."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self._span_numbers: dict[str, int] = {}  # the last one given, by run

    @handles(BeginSpan)
    def begin_span(self, message: BeginSpan, context: Context) -> SpanRecord:
        """Give the span its number. InvalidTransition where the run does not run, or is not made by hand."""
        record = self.record_of(message.run_id)
        if not record.manual or record.status not in ("running", "waiting"):
            raise InvalidTransition(record.id, status=record.status, wanted="traced")
        span = SpanRecord(
            run_id=record.id,
            number=self._next_number(record.id),
            name=message.name,
            kind=message.kind,
            parent=message.parent,
            started_at_ms=context.wall_ms(),
        )
        self._store(span, context)
        return span

    @handles(EndSpan)
    def end_span(self, message: EndSpan, context: Context) -> SpanRecord:
        """Note how the span ended; its run may have ended before. UnknownRun where that is no more."""
        self.record_of(message.span.run_id)
        span = replace(message.span, ended_at_ms=max(context.wall_ms(), message.span.started_at_ms))
        self._store(span, context)
        return span

    def _next_number(self, run_id: str) -> int:
        last = self._span_numbers.get(run_id)
        if last is None:
            stored = self.archive.spans(self.id.key, run_id)
            last = stored[-1].number if stored else 0
            self._span_numbers = {id: number for id, number in self._span_numbers.items() if id in self.ledger.runs}
        self._span_numbers[run_id] = last + 1
        return last + 1

    def _store(self, span: SpanRecord, context: Context) -> None:
        row = Row(Table.SPAN, span_key(span.run_id, span.number), SPAN_CODEC.encode(span))
        self.ledger.put([row])
        self.stage(context)
