"""A whole store as JSON lines, and back: every stream with its head, rows and index entries.

    {"type":"export","format":1,...}                     first
    {"type":"stream","name":...,"epoch":...,"version":...,"record"|"raw":head}
    {"type":"row","table":"run","key":...,"record"|"raw":value}       of the stream above, in order
    {"type":"entry","index":"tag","value":...}                        likewise
    {"type":"end","streams":...,"rows":...,"entries":...}             last, or the file was cut off

What callboard knows (heads, messages, runs, spans, steps, edits, reminders, state, memories) is written as `record`,
for people and their tools; all else, and whatever would not come back byte for byte, as `raw`. Keys, index values and
raw bytes are base64.

An import gives every stream the same head, rows and entries, byte for byte. Renewed are: epochs and versions, which
fence writers of the store that they come from; the numbers of streams, which decide among index entries of one value.
Tombstones are left out, as nobody who could write late knows the new store.

Each stream is imported whole or not at all: a large one takes several commits, and until the last of them its head is
IMPORTING, which nobody takes for a record of theirs. The next import finds it and begins that stream anew.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ..runtime.context import ACTIVATION_BITS
from ..runtime.reminder_records import REMINDER_CODEC, ReminderRecord
from ..store.contract import Batch, Head, Index, IndexRow, Row, Store, Table
from ..store.errors import CallboardError, Conflict, Corrupt, NewerFormat
from ..store.records import Codec
from .edit_record import EditRecord
from .memory_records import MEMORY_CODEC, MEMORY_HEAD_CODEC, MEMORY_KIND, MemoryHead, MemoryRow
from .message import Message
from .overlay import OVERLAY_CODEC, Overlay
from .run_record import RunRecord, SpanRecord
from .session_records import (
    EDIT_CODEC,
    HEAD_CODEC,
    MESSAGES_CODEC,
    RUN_CODEC,
    SPAN_CODEC,
    STEP_CODEC,
    SessionHead,
    Step,
    session_id_of,
)
from .state_records import (
    OUTBOX_CODEC,
    STATE_HEAD_CODEC,
    STATE_KIND,
    STATE_VALUE_CODEC,
    TAKEN_CODEC,
    OutboxRecord,
    StateHead,
    StateValue,
    TakenRecord,
)

__all__ = [
    "EXPORT_FORMAT",
    "IMPORTING",
    "BadLine",
    "Existing",
    "StreamsExist",
    "Transferred",
    "check_export",
    "clashes",
    "export_store",
    "import_store",
    "read_rows",
]

EXPORT_FORMAT = 1
IMPORTING = b"\x00importing"
"""The head of a stream of which an import has stored a part: no codec has version 0."""

COMMIT_BYTES = 4 << 20
"""One commit of an import, unless a single row is larger."""
COMMIT_STREAMS = 500
PAGE = 16
"""Rows read at a time: a message may have 4 MiB."""
NAMES_PAGE = 500
_CLASHES_TOLD = 5

Existing: TypeAlias = Literal["refuse", "skip", "replace"]
"""What to do where there is a stream of this name already."""

State: TypeAlias = StateHead | StateValue | OutboxRecord | TakenRecord
Record: TypeAlias = (
    SessionHead
    | RunRecord
    | SpanRecord
    | Step
    | EditRecord
    | Overlay
    | ReminderRecord
    | State
    | MemoryHead
    | MemoryRow
    | list[Message]
)

_SESSION_CODECS: dict[Table, Codec[Any]] = {
    Table.MESSAGE: MESSAGES_CODEC,
    Table.RUN: RUN_CODEC,
    Table.SPAN: SPAN_CODEC,
    Table.STEP: STEP_CODEC,
    Table.EDIT: EDIT_CODEC,
    Table.STATE: STATE_VALUE_CODEC,
    Table.OUTBOX: OUTBOX_CODEC,
    Table.OVERLAY: OVERLAY_CODEC,
}

_STATE_STREAMS = f"{STATE_KIND}:"
_STATE_CODECS: dict[Table, Codec[Any]] = {Table.STATE: STATE_VALUE_CODEC, Table.OUTBOX: TAKEN_CODEC}
_MEMORY_STREAMS = f"{MEMORY_KIND}:"


class ExportLine(Struct, frozen=True, tag_field="type", tag="export"):
    """The first line."""

    format: int
    exported_at_ms: int


class StreamLine(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="stream"):
    """A stream begins. `epoch` and `version` are told for people; an import renews them."""

    name: str
    epoch: int
    version: int
    record: Record | None = None
    raw: bytes | None = None


class RowLine(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="row"):
    """A row of the stream above."""

    table: str
    key: bytes
    record: Record | None = None
    raw: bytes | None = None


class EntryLine(Struct, frozen=True, tag_field="type", tag="entry"):
    """An index entry of the stream above."""

    index: str
    value: bytes


class EndLine(Struct, frozen=True, tag_field="type", tag="end"):
    """The last line: how many came before it."""

    streams: int
    rows: int
    entries: int


Line: TypeAlias = ExportLine | StreamLine | RowLine | EntryLine | EndLine

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_records: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class BadLine(CallboardError):
    """A line is not what an export has there; `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class StreamsExist(CallboardError):
    """Some of the streams are there already; nothing was stored. `names` are all of them."""

    def __init__(self, location: str, names: list[str]) -> None:
        told = ", ".join(map(repr, names[:_CLASHES_TOLD])) + (", ..." if len(names) > _CLASHES_TOLD else "")
        super().__init__(
            f"{len(names)} of the streams are in {location!r} already: {told}; nothing was imported. Choose --existing "
            "skip (also to go on with an import that was cut off) or --existing replace"
        )
        self.names = names


@dataclass(slots=True)
class Transferred:
    """How much was exported or imported; `skipped` streams were there already."""

    streams: int = 0
    rows: int = 0
    entries: int = 0
    skipped: int = 0


# Export ---------------------------------------------------------------------------------------------------------------


def export_store(store: Store, told: Transferred | None = None) -> Iterator[bytes]:
    """The lines of an export, each with its newline. Nobody may write to the store meanwhile.

    What cannot be read is left out, and noted in the store's `damage`. `told` is counted up as lines are given.

    Raises:
        Conflict: a stream was written while it was read.

    Cost: holds a page of rows at a time.
    """
    told = told if told is not None else Transferred()
    yield _line(ExportLine(EXPORT_FORMAT, time.time_ns() // 1_000_000))
    names = store.streams(limit=NAMES_PAGE)
    while names:
        for name in names:
            yield from _export_stream(store, name, told)
        names = store.streams(after=names[-1], limit=NAMES_PAGE)
    yield _line(EndLine(told.streams, told.rows, told.entries))


def _export_stream(store: Store, name: str, told: Transferred) -> Iterator[bytes]:
    try:
        head = store.load(name)
    except Corrupt as error:
        store.damage.report(error.where, error.reason)
        return
    if head is None or head.head == IMPORTING or not _has_content(store, name, head):
        return
    yield _line(StreamLine(name, head.epoch, head.version, **_value(head.head, _head_codec(name))))
    told.streams += 1
    for table in Table:
        codec = _row_codec(name, table)
        for key, value in read_rows(store, name, table):
            yield _line(RowLine(table.name.lower(), key, **_value(value, codec)))
            told.rows += 1
    for entry in store.entries(name):
        yield _line(EntryLine(entry.index.name.lower(), entry.value))
        told.entries += 1
    after = store.load(name)
    if after is None or after.version != head.version:
        raise Conflict(name, version=head.version, stored_version=after.version if after is not None else 0)


def read_rows(store: Store, name: str, table: Table) -> Iterator[tuple[bytes, bytes]]:
    """All rows of a table, a page at a time."""
    start = b""
    while page := store.scan(name, table, start=start, limit=PAGE):
        yield from page
        start = page[-1][0] + b"\0"


def _has_content(store: Store, name: str, head: Head) -> bool:
    return bool(head.head) or any(store.scan(name, table, limit=1) for table in Table) or bool(store.entries(name))


def _value(value: bytes, codec: Codec[Any] | None) -> dict[str, Any]:
    """The value as a record, where that gives the same bytes again."""
    if codec is not None and value:
        try:
            record = codec.decode(value, where="")
            if codec.encode(_records.decode(_encoder.encode(record))) == value:
                return {"record": record}
        except (Corrupt, NewerFormat, msgspec.MsgspecError, TypeError, ValueError):
            pass
    return {"raw": value}


def _head_codec(name: str) -> Codec[Any] | None:
    if name.startswith(_STATE_STREAMS):
        return STATE_HEAD_CODEC
    if name.startswith(_MEMORY_STREAMS):
        return MEMORY_HEAD_CODEC
    return HEAD_CODEC if session_id_of(name) is not None else None


def _row_codec(name: str, table: Table) -> Codec[Any] | None:
    if table is Table.REMINDER:
        return REMINDER_CODEC
    if name.startswith(_STATE_STREAMS):
        return _STATE_CODECS.get(table)
    if name.startswith(_MEMORY_STREAMS):
        return MEMORY_CODEC if table is Table.MEMORY else None
    return _SESSION_CODECS.get(table) if session_id_of(name) is not None else None


def _line(line: Line) -> bytes:
    return _encoder.encode(line) + b"\n"


# Import ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stream:
    """A stream of which lines are read."""

    name: str
    head: bytes
    rows: list[Row] = field(default_factory=list[Row])
    entries: list[IndexRow] = field(default_factory=list[IndexRow])
    size_bytes: int = 0


def check_export(lines: Iterable[bytes], on_stream: Callable[[str], None] = lambda name: None) -> Transferred:
    """How much an export holds, once every line of it was read and found good; `on_stream` is told each name.

    Raises:
        BadLine: names the first line that is wrong, and why.
    """
    told = Transferred()
    names: set[str] = set()
    for number, item in _parts(lines):
        if isinstance(item, _Stream):
            if item.name in names:
                raise BadLine(number, f"a second stream of the name {item.name!r} begins here")
            names.add(item.name)
            on_stream(item.name)
            told.streams += 1
        elif isinstance(item, Row):
            told.rows += 1
        elif isinstance(item, IndexRow):
            told.entries += 1
        elif item is not None and (item.streams, item.rows, item.entries) != (told.streams, told.rows, told.entries):
            raise BadLine(
                number, f"{item.streams} streams and {item.rows} rows should stand above, which are not there"
            )
    return told


def import_store(store: Store, lines: Iterable[bytes], *, existing: Existing = "refuse") -> Transferred:
    """Store an export that `check_export` has found good. With "refuse" the caller has seen that nothing clashes.

    Raises:
        BadLine, StoreError: what came before is stored, stream by stream; import again with existing="skip".
    """
    told = Transferred()
    importer = _Importer(store, told, existing)
    for _, item in _parts(lines):
        if isinstance(item, _Stream):
            importer.end_stream()
            importer.begin(item)
        elif item is not None:
            importer.add(item)
    importer.end_stream()
    importer.flush()
    return told


def clashes(store: Store, name: str) -> bool:
    """True where the store has a stream of this name with something in it."""
    try:
        head = store.load(name)
    except Corrupt:
        return True
    return head is not None and head.head != IMPORTING and _has_content(store, name, head)


class _Importer:
    def __init__(self, store: Store, told: Transferred, existing: Existing) -> None:
        self._store = store
        self._told = told
        self._existing = existing
        self._epoch = store.claim() << ACTIVATION_BITS
        self._present: _Stream | None = None
        self._version = 0
        self._erase = False
        self._batches: list[Batch] = []
        self._size_bytes = 0

    def begin(self, stream: _Stream) -> None:
        if clashes(self._store, stream.name):
            if self._existing == "refuse":
                raise StreamsExist(self._store.location, [stream.name])
            if self._existing == "skip":
                self._told.skipped += 1
                return
        stored = self._store.load(stream.name)
        self._present, self._version, self._erase = stream, stored.version if stored else 0, stored is not None
        self._told.streams += 1

    def add(self, item: Row | IndexRow | EndLine) -> None:
        stream = self._present
        if stream is None or isinstance(item, EndLine):
            return
        if isinstance(item, Row):
            stream.rows.append(item)
            stream.size_bytes += len(item.key) + len(item.value or b"")
            self._told.rows += 1
            if stream.size_bytes > COMMIT_BYTES:
                self._put(stream, head=IMPORTING)
        else:
            stream.entries.append(item)
            self._told.entries += 1

    def end_stream(self) -> None:
        if self._present is not None:
            self._put(self._present, head=self._present.head, entries=tuple(self._present.entries))
            self._present = None

    def _put(self, stream: _Stream, *, head: bytes, entries: tuple[IndexRow, ...] = ()) -> None:
        batch = Batch(stream.name, self._epoch, self._version, head, tuple(stream.rows), entries, erase=self._erase)
        self._batches.append(batch)
        self._size_bytes += stream.size_bytes
        self._version, self._erase = self._version + 1, False
        stream.rows, stream.size_bytes = [], 0
        if self._size_bytes > COMMIT_BYTES or len(self._batches) >= COMMIT_STREAMS:
            self.flush()

    def flush(self) -> None:
        batches, self._batches, self._size_bytes = self._batches, [], 0
        for refusal in self._store.commit(batches) if batches else ():
            if refusal is not None:
                raise refusal


def _parts(lines: Iterable[bytes]) -> Iterator[tuple[int, "_Stream | Row | IndexRow | EndLine | None"]]:
    """What each line says, with its number. BadLine where it is not what an export has there."""
    name: str | None = None
    ended = False
    number = 0
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        line = _decoded(number, text)
        if ended or isinstance(line, ExportLine) != (number == 1):
            raise BadLine(number, 'an export begins with "type":"export", once, and nothing follows its "type":"end"')
        try:
            match line:
                case ExportLine():
                    _check_format(line)
                case StreamLine():
                    name = line.name
                    stream = _Stream(name, _bytes(line.record, line.raw, _head_codec(name)))
                    Batch(name, 0, 0, stream.head)  # it checks the name
                    yield number, stream
                case RowLine():
                    yield number, _row(_of(name), line)
                case EntryLine():
                    entry = IndexRow(Index[line.index.upper()], line.value)
                    Batch(_of(name), 0, 0, index_rows=(entry,))
                    yield number, entry
                case EndLine():
                    ended = True
                    yield number, line
        except (TypeError, ValueError, KeyError, Corrupt) as error:
            raise BadLine(number, str(error)) from error
    if not ended:
        raise BadLine(number + 1, 'the file was cut off: an export ends with "type":"end"')


def _decoded(number: int, text: bytes) -> Line:
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(number, str(error)) from error


def _check_format(line: ExportLine) -> None:
    if line.format != EXPORT_FORMAT:
        raise ValueError(f"it has format {line.format}, and this callboard reads {EXPORT_FORMAT}: upgrade callboard")


def _of(name: str | None) -> str:
    if name is None:
        raise ValueError('a "type":"stream" has to come first')
    return name


def _row(name: str, line: RowLine) -> Row:
    table = Table[line.table.upper()]
    row = Row(table, line.key, _bytes(line.record, line.raw, _row_codec(name, table)))
    Batch(name, 0, 0, rows=(row,))  # it checks the row
    return row


def _bytes(record: Record | None, raw: bytes | None, codec: Codec[Any] | None) -> bytes:
    if (record is None) == (raw is None):
        raise ValueError('there is either a "record" or a "raw"')
    if raw is not None:
        return raw
    if codec is None:
        raise ValueError("records of this stream or table are not callboard's: it has to be raw")
    value = codec.encode(record)
    codec.decode(value, where="line")  # a run where a span belongs, say
    return value
