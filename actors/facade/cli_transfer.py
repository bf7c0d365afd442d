"""`callboard export` and `import`: a session as JSON lines.

    {"type":"session", ...}      the head, always the first line
    {"type":"message", ...}      every message, in order, those that edits took out of history included
    {"type":"edit", ...}         every edit of history, in order
    {"type":"run", ...}          every run, in order
    {"type":"span", ...}         the spans of those runs
    {"type":"state", ...}        every value of the session's own state: its key and value

The fields are those of SessionHead, Message, EditRecord, RunRecord and SpanRecord. The log of events and the summary
are left out, and begin anew. An import is one transaction of the store: it is there whole or not at all, whatever
happens meanwhile.
"""

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.actors.archive import Archive
from callboard.actors.conversation import as_message
from callboard.actors.edit_record import EditRecord
from callboard.actors.errors import SessionExists
from callboard.actors.ids import new_id as make_id
from callboard.actors.limits import (
    REASON_CHARACTERS_MAX,
    check_agent_name,
    check_metadata,
    check_owner,
    check_session_id,
    check_state_key,
    check_tags,
    json_copy,
)
from callboard.actors.message import Message
from callboard.actors.run_record import OPEN, RunRecord, SpanRecord, advance, check_usage
from callboard.actors.seq_ranges import Ranges
from callboard.actors.session_records import (
    EDIT_CODEC,
    HEAD_CODEC,
    RUN_CODEC,
    SPAN_CODEC,
    SessionHead,
    edit_key,
    index_changes,
    message_rows,
    span_key,
    stream_of,
)
from callboard.actors.state_records import STATE_VALUE_CODEC, StateValue
from callboard.runtime.context import ACTIVATION_BITS
from callboard.store.contract import Batch, Row, Table
from callboard.store.errors import CallboardError
from callboard.store.opening import open_store

__all__ = ["BadExport", "Export", "SessionExists", "export_session", "import_session", "parse_export"]


class StateLine(Struct, frozen=True, tag="state"):
    """One value of the session's state."""

    key: str
    value: Any


Record: TypeAlias = SessionHead | Message | EditRecord | RunRecord | SpanRecord | StateLine

_TRIES_MAX = 5
"""How often a session is read again that a writer changes meanwhile."""
_RUN_ID_BYTES_MAX = 60
"""A row key has 64 bytes at most, and a span's key is its run's id and four more."""
_TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999: no calendar shows a later time."""
_NUMBER_MAX = 2**63 - 1
"""Keys on disk hold numbers in eight bytes."""
_CUT = "it had not ended when its session was exported"

_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class BadExport(CallboardError):
    """A line is not what `export` writes; `line` counts from 1. Nothing was stored."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}; nothing was imported")
        self.line = line
        self.reason = reason


class Export(Struct, frozen=True):
    """A session with all its content."""

    head: SessionHead
    messages: tuple[Message, ...]
    edits: tuple[EditRecord, ...]
    runs: tuple[RunRecord, ...]
    spans: tuple[SpanRecord, ...]
    state: tuple[StateLine, ...]

    def lines(self) -> bytes:
        """As JSON lines."""
        records: tuple[Record, ...] = (
            self.head, *self.messages, *self.edits, *self.runs, *self.spans, *self.state
        )  # fmt: skip
        return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


def export_session(archive: Archive, session_id: str) -> Export | None:
    """The session as it was at one moment; None where there is none.

    Raises:
        CallboardError: a record cannot be read, or the session changed faster than it could be read.
    """
    for _ in range(_TRIES_MAX):
        head = archive.head(session_id)
        if head is None:
            return None
        runs, audit = archive.runs(session_id), archive.audit(session_id)
        export = Export(
            head=replace(head, event_count=0, overlay_seq=0),
            messages=tuple(audit.messages),
            edits=tuple(audit.edits),
            runs=tuple(runs),
            spans=tuple(span for run in runs for span in archive.spans(session_id, run.id)),
            state=tuple(StateLine(key, value) for key, value in archive.state(session_id).items()),
        )
        # Each read is a transaction of its own; the revision tells whether a turn was committed between them.
        if archive.head(session_id) == head:
            return export
    raise CallboardError(f"session {session_id!r} changes faster than it can be read: try again")


def parse_export(text: bytes) -> Export:
    """The session that these lines hold, every line checked.

    Raises:
        BadExport: names the first line that is wrong, and why.
    """
    records = [
        (number, _decode(number, line)) for number, line in enumerate(text.split(b"\n"), start=1) if line.strip()
    ]
    if not records or not isinstance(records[0][1], SessionHead):
        raise BadExport(records[0][0] if records else 1, 'a session ("type":"session") has to come first')
    head = records[0][1]
    messages: list[Message] = []
    edits: list[EditRecord] = []
    runs: dict[str, RunRecord] = {}
    spans: list[SpanRecord] = []
    state: dict[str, StateLine] = {}
    for number, record in records:
        with _at_line(number):
            match record:
                case SessionHead():
                    _check_head(record, head)
                case Message():
                    _check_message(record, len(messages) + 1)
                    messages.append(record)
                case EditRecord():
                    _check_edit(record, head, edits)
                    edits.append(record)
                case StateLine():
                    _check_state(record, state)
                    state[record.key] = record
                case RunRecord():
                    _check_run(record, head, runs)
                    runs[record.id] = record
                case SpanRecord():
                    _check_span(record, runs)
                    spans.append(record)
    if len(messages) != head.last_seq or len(runs) != head.run_count:
        found = f"{len(messages)} messages and {len(runs)} runs"
        wanted = f"{head.last_seq} and {head.run_count}"
        raise BadExport(records[-1][0], f"the file ends after {found}, and its first line says {wanted}")
    return Export(head, tuple(messages), tuple(edits), tuple(runs.values()), tuple(spans), tuple(state.values()))


def _decode(number: int, line: bytes) -> Record:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadExport(number, str(error)) from error


@contextlib.contextmanager
def _at_line(number: int) -> Generator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise BadExport(number, str(error)) from error


def _check_head(head: SessionHead, first: SessionHead) -> None:
    if head is not first:
        raise ValueError("a second session begins here: import one at a time")
    check_session_id(head.id)
    check_owner(head.owner)
    check_tags(head.tags)
    check_metadata(head.metadata)
    _check_times(head.created_at_ms, head.updated_at_ms)
    _check_counts(head.revision, head.last_turn, head.last_seq, head.run_count)
    _check_ranges(head.removed, head)
    if head.forked_from is not None:
        check_session_id(head.forked_from.session_id)
        _check_counts(head.forked_from.seq)


def _check_ranges(ranges: Ranges, head: SessionHead) -> None:
    sound = all(1 <= first <= last <= head.last_seq for first, last in ranges)
    if not sound or any(end + 1 >= start for (_, end), (start, _) in pairwise(ranges)):
        raise ValueError(f"these are no places of {head.last_seq} messages, in order and apart: {str(ranges)[:100]}")


def _check_edit(edit: EditRecord, head: SessionHead, edits: list[EditRecord]) -> None:
    if not (edits[-1].number if edits else 0) < edit.number <= head.last_turn:
        raise ValueError(f"edit {edit.number} does not belong behind the one before it, within {head.last_turn} turns")
    _check_ranges(edit.removed, head)
    for first, last in edit.removed:
        if not any(start <= first and last <= end for start, end in head.removed):
            raise ValueError(f"edit {edit.number} removed messages {first} to {last}, which the head does not say")
    _check_times(edit.at_ms)
    _check_counts(edit.revision)
    _check_text("who made the edit", edit.by or "")
    _check_text("the edit's reason", edit.reason)
    _check_text("the edit's run", edit.run_id or "")


def _check_message(message: Message, seq: int) -> None:
    if message.seq != seq:
        raise ValueError(f"this is message {message.seq}, but message {seq} comes next")
    _check_times(message.created_at_ms)
    as_message(message, where="the message")


def _check_run(run: RunRecord, head: SessionHead, runs: Mapping[str, RunRecord]) -> None:
    if run.session_id != head.id:
        raise ValueError(f"run {run.id!r} belongs to session {run.session_id!r}, not to {head.id!r}")
    if not 0 < len(run.id.encode()) <= _RUN_ID_BYTES_MAX or run.id in runs:
        raise ValueError(f"a run's id has 1 to {_RUN_ID_BYTES_MAX} bytes and comes once: {run.id!r}")
    if run.agent:
        check_agent_name(run.agent)
    _check_text("the run's model", run.model)
    if run.status not in OPEN:  # the reason of one that is open is not kept
        _check_text("the run's error", run.error or "")
    _check_times(run.created_at_ms, run.started_at_ms or 0, run.ended_at_ms or 0)
    _check_counts(run.turn, run.attempts)
    wrote_none = run.first_seq == run.last_seq == 0
    if not (wrote_none or 1 <= run.first_seq <= run.last_seq <= head.last_seq):
        raise ValueError(f"the run wrote messages {run.first_seq} to {run.last_seq} of {head.last_seq}")
    check_usage(run.usage)
    for index, message in enumerate(run.input):
        _check_times(message.created_at_ms)
        as_message(message, where=f"input[{index}]")


def _check_state(line: StateLine, state: Mapping[str, StateLine]) -> None:
    if check_state_key(line.key) in state:
        raise ValueError(f"a key of state comes once: {line.key!r}")
    check_metadata({**{each.key: each.value for each in state.values()}, line.key: line.value}, what="state")


def _check_span(span: SpanRecord, runs: Mapping[str, RunRecord]) -> None:
    if span.run_id not in runs:
        raise ValueError(f"this span belongs to run {span.run_id!r}, which does not come before it")
    if not 0 <= span.parent < span.number < 2**32:
        raise ValueError(f"a span's number is from 1, not {span.number}, and its parent before it, not {span.parent}")
    _check_text("the span's name", span.name)
    _check_times(span.started_at_ms, span.ended_at_ms or 0)
    check_metadata(span.attributes, what="attributes")
    check_usage(span.usage)


def _check_text(where: str, text: str) -> None:
    if len(text) > REASON_CHARACTERS_MAX:
        raise ValueError(f"{where} has {len(text)} characters, more than the {REASON_CHARACTERS_MAX} that fit")
    json_copy(text, where)


def _check_times(*times_ms: int) -> None:
    for time_ms in times_ms:
        if not 0 <= time_ms <= _TIME_MS_MAX:
            raise ValueError(f"a time is from 0 to {_TIME_MS_MAX} milliseconds, the year 9999, not {time_ms}")


def _check_counts(*counts: int) -> None:
    for count in counts:
        if not 0 <= count <= _NUMBER_MAX:
            raise ValueError(f"a count is from 0 to 2**63 - 1, not {count}")


def import_session(
    store: Path, export: Export, *, new_id: str | None = None, master_key: str | None = None
) -> SessionHead:
    """Store the session, as itself or under `new_id`; its head as stored.

    Under another id its runs get new ids too, since a run's id is unique in a store. A run that was open when it was
    exported is stored as interrupted: nobody will go on with it.

    Raises:
        SessionExists: nothing was stored, the session that is there is untouched.
        ValueError: `new_id` is no session's id.
        StoreError: the store cannot be opened for writing, or did not take it; nothing was stored.
    """
    if new_id is not None and new_id != export.head.id:
        export = _renamed(export, check_session_id(new_id))
    head = replace(
        export.head, open_turn=None, open_runs=(), paused_runs=(), queued_runs=(), event_count=0, overlay_seq=0
    )
    stream = stream_of(head.id)
    with contextlib.closing(open_store(store, master_key=master_key)) as opened:
        stored = opened.load(stream)
        if stored is not None and stored.head:
            raise SessionExists(
                f"there is a session {head.id!r} in {str(store)!r} already: give another id with --as ID"
            )
        batch = Batch(
            stream=stream,
            epoch=opened.claim() << ACTIVATION_BITS,  # not below that of a runtime which deleted it
            version=stored.version if stored is not None else 0,
            head=HEAD_CODEC.encode(head),
            rows=tuple(_rows(export)),
            index_rows=tuple(index_changes(None, head)),
        )
        for refusal in opened.commit([batch]):
            if refusal is not None:
                raise refusal
    return head


def _rows(export: Export) -> Iterator[Row]:
    at_ms = time.time_ns() // 1_000_000
    for message in export.messages:
        yield from message_rows([message])
    for run in export.runs:
        ended = advance(run, "interrupted", at_ms=at_ms, error=_CUT) if run.status in OPEN else run
        yield Row(Table.RUN, ended.id.encode(), RUN_CODEC.encode(ended))
    for span in export.spans:
        yield Row(Table.SPAN, span_key(span.run_id, span.number), SPAN_CODEC.encode(span))
    for edit in export.edits:
        yield Row(Table.EDIT, edit_key(edit.number), EDIT_CODEC.encode(edit))
    for line in export.state:
        yield Row(Table.STATE, line.key.encode(), STATE_VALUE_CODEC.encode(StateValue(line.value)))


def _renamed(export: Export, session_id: str) -> Export:
    ids = {run.id: make_id("run", run.created_at_ms) for run in export.runs}
    return Export(
        head=replace(export.head, id=session_id),
        messages=tuple(replace(one, run_id=ids.get(one.run_id or "", one.run_id)) for one in export.messages),
        runs=tuple(replace(one, id=ids[one.id], session_id=session_id) for one in export.runs),
        edits=tuple(replace(one, run_id=ids.get(one.run_id or "", one.run_id)) for one in export.edits),
        spans=tuple(replace(one, run_id=ids[one.run_id]) for one in export.spans),
        state=export.state,
    )
