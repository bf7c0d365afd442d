"""Every session of a store looked at: does each record decode, and do head, rows and index entries agree?

The store's own check (store/lmdb_check.py) knows bytes; this one knows what they mean, and works on every store. What
it can mend it mends with batches, as any writer would: index entries are made anew from the head, and a head that is
lost or cannot be read from messages, runs, edits and index entries. Metadata is then empty; the bytes of such a head
are kept as an outcome of the name `damaged head`. Rows that cannot be read stay where they are: readers leave them out.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from ..runtime.context import ACTIVATION_BITS
from ..runtime.reminder_records import REMINDER_CODEC, ReminderRecord, due_value
from ..store.contract import Batch, Head, Index, IndexRow, Row, Store, Table
from ..store.errors import Corrupt, NewerFormat
from ..store.records import Codec
from .edit_record import EditRecord
from .event_rows import EVENT_CODEC, StoredEvent
from .message import Message
from .overlay import OVERLAY_CODEC
from .run_record import RunRecord
from .seq_ranges import Ranges, add_range
from .session_records import (
    EDIT_CODEC,
    HEAD_CODEC,
    MESSAGES_CODEC,
    RUN_CODEC,
    SPAN_CODEC,
    STEP_CODEC,
    SessionHead,
    index_changes,
    session_id_of,
    status_value,
)
from .state_records import OUTBOX_CODEC, OUTBOX_DUE, STATE_VALUE_CODEC, OutboxRecord
from .transfer import IMPORTING, read_rows

__all__ = ["DAMAGED_HEAD", "SessionFinding", "check_sessions", "repair_sessions"]

DAMAGED_HEAD = b"damaged head"
"""The key of the outcome row that keeps the bytes of a head that could not be read."""

_NAMES_PAGE = 500


class SessionFinding(Struct, frozen=True):
    """Something that is not as it must be; `batch` makes it right, once it has an owner's epoch."""

    where: str
    reason: str
    batch: Batch | None = None


def check_sessions(store: Store) -> Iterator[SessionFinding]:
    """What is wrong with the sessions. Lazy; nobody may write meanwhile.

    Cost: reads and decodes every record, some 200 MB a second.
    """
    names = store.streams(limit=_NAMES_PAGE)
    while names:
        for name in names:
            session_id = session_id_of(name)
            if session_id is not None:
                yield from _Session(store, name, session_id).findings()
        names = store.streams(after=names[-1], limit=_NAMES_PAGE)


def repair_sessions(store: Store) -> list[SessionFinding]:
    """Check, and mend what can be mended; what was found.

    Raises:
        StoreError: what comes before is mended; repair again.
    """
    epoch = store.claim() << ACTIVATION_BITS
    found: list[SessionFinding] = []
    for finding in check_sessions(store):
        found.append(finding)
        if finding.batch is not None:
            batch = finding.batch
            mend = Batch(batch.stream, epoch, batch.version, batch.head, batch.rows, batch.index_rows)
            for refusal in store.commit([mend]):
                if refusal is not None:
                    raise refusal
    return found


class _Session:
    """One session as it is read."""

    def __init__(self, store: Store, stream: str, session_id: str) -> None:
        self._store = store
        self._stream = stream
        self._id = session_id
        self._what = f"session {session_id!r}"
        self._count = self._last_seq = self._runs = self._last_turn = self._events = 0
        self._times: list[int] = []
        self._removed: Ranges = ()
        self._open_runs: list[RunRecord] = []
        self._unfinished: list[bytes] = []
        self._reminders: list[ReminderRecord] = []
        self._outbox = False

    def findings(self) -> Iterator[SessionFinding]:
        try:
            stored = self._store.load(self._stream)
        except Corrupt as error:
            yield SessionFinding(error.where, error.reason)
            return
        if stored is None:
            return
        yield from self._rows()
        entries = {(entry.index, entry.value) for entry in self._store.entries(self._stream)}
        if stored.head == IMPORTING:
            yield SessionFinding(self._what, "its import was cut off: import it again with --existing skip")
            return
        if not stored.head:
            outbox_only = self._outbox and entries == {(Index.OUTBOX_DUE, OUTBOX_DUE)}  # it outlives a delete
            if self._count or self._runs or (entries and not outbox_only):
                yield self._new_head(stored, entries, "it has content and no head")
            return
        try:
            head = HEAD_CODEC.decode(stored.head, where=f"head of {self._what}")
        except NewerFormat as error:
            yield SessionFinding(f"head of {self._what}", str(error))
            return
        except Corrupt as error:
            yield self._new_head(stored, entries, error.reason)
            return
        if self._count != head.last_seq or self._last_seq > head.last_seq:
            reason = f"{head.last_seq} were stored; {self._count}, up to number {self._last_seq}, can be read"
            yield SessionFinding(f"messages of {self._what}", reason)
        if self._events != head.event_count:
            reason = f"{head.event_count} were stored; {self._events} can be read"
            yield SessionFinding(f"events of {self._what}", reason)
        changes = self._entry_changes(head, entries)
        if changes:
            reason = f"{len(changes)} of its index entries are missing or too many"
            yield SessionFinding(self._what, reason, Batch(self._stream, 0, stored.version, index_rows=changes))

    def _rows(self) -> Iterator[SessionFinding]:
        codecs: dict[Table, Codec[Any]] = {
            Table.MESSAGE: MESSAGES_CODEC,
            Table.RUN: RUN_CODEC,
            Table.SPAN: SPAN_CODEC,
            Table.STEP: STEP_CODEC,
            Table.EDIT: EDIT_CODEC,
            Table.OVERLAY: OVERLAY_CODEC,
            Table.REMINDER: REMINDER_CODEC,
            Table.EVENT: EVENT_CODEC,
            Table.STATE: STATE_VALUE_CODEC,
            Table.OUTBOX: OUTBOX_CODEC,
        }
        for table, codec in codecs.items():
            for key, value in read_rows(self._store, self._stream, table):
                where = f"{table.name.lower()} {key.hex()} of {self._what}"
                try:
                    record = codec.decode(value, where=where)
                except Corrupt as error:
                    yield SessionFinding(where, error.reason)
                except NewerFormat as error:
                    yield SessionFinding(where, str(error))
                else:
                    self._note(record)

    def _note(self, record: object) -> None:
        if isinstance(record, list):
            for message in record:  # pyright: ignore[reportUnknownVariableType] -- of messages: no other codec has lists
                if isinstance(message, Message):
                    self._count += 1
                    self._last_seq = max(self._last_seq, message.seq)
                    self._times.append(message.created_at_ms)
                    self._times = [min(self._times), max(self._times)]
        elif isinstance(record, RunRecord):
            self._runs += 1
            self._last_turn = max(self._last_turn, record.turn)
            if record.is_open:
                self._open_runs.append(record)
            elif record.status != "completed":
                self._unfinished.append(status_value(record.status, record.id))
        elif isinstance(record, StoredEvent):
            self._events += 1
        elif isinstance(record, EditRecord):
            self._last_turn = max(self._last_turn, record.number)
            for first, last in record.removed:
                self._removed = add_range(self._removed, first, last)
        elif isinstance(record, ReminderRecord):
            self._reminders.append(record)
        elif isinstance(record, OutboxRecord):
            self._outbox = True

    def _entry_changes(self, head: SessionHead, present: set[tuple[Index, bytes]]) -> tuple[IndexRow, ...]:
        wanted = {(entry.index, entry.value) for entry in index_changes(None, head)}
        wanted |= {(Index.OPEN_RUN, run_id.encode()) for run_id in head.open_run_ids}
        wanted |= {(Index.RUN_STATUS, value) for value in self._unfinished}
        wanted |= {(Index.REMINDER_DUE, due_value(record)) for record in self._reminders}
        wanted |= {(Index.OUTBOX_DUE, OUTBOX_DUE)} if self._outbox else set()
        gone = [IndexRow(index, value, present=False) for index, value in sorted(present - wanted)]
        return (*gone, *(IndexRow(index, value) for index, value in sorted(wanted - present)))

    def _last_place(self) -> int:
        latest = self._store.scan(self._stream, Table.EVENT, limit=1, newest_first=True)
        return int.from_bytes(latest[0][0][8:], "big") if latest else 0

    def _new_head(self, stored: Head, entries: set[tuple[Index, bytes]], reason: str) -> SessionFinding:
        updated = [int.from_bytes(value[-8:], "big") for index, value in entries if index is Index.UPDATED]
        times = [*self._times, *updated] or [0]
        head = SessionHead(
            id=self._id,
            created_at_ms=min(times),
            updated_at_ms=max(times),
            owner=next(iter(_texts(entries, Index.OWNER)), None),
            tags=tuple(_texts(entries, Index.TAG)),
            revision=1,
            last_seq=self._last_seq,
            removed=self._removed,
            run_count=self._runs,
            event_count=self._last_place(),
            last_turn=self._last_turn,
            open_runs=tuple(record.id for record in self._open_runs if not record.pending),
            paused_runs=tuple(record.id for record in self._open_runs if record.pending),
        )
        kept = (Row(Table.OUTCOME, DAMAGED_HEAD, stored.head),) if stored.head else ()
        batch = Batch(
            self._stream, 0, stored.version, HEAD_CODEC.encode(head), kept, self._entry_changes(head, entries)
        )
        return SessionFinding(f"head of {self._what}", reason, batch)


def _texts(entries: set[tuple[Index, bytes]], index: Index) -> list[str]:
    return sorted({value[:-9].decode(errors="replace") for found, value in entries if found is index})
