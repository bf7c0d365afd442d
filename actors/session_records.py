"""What a session keeps in the store: its head, the rows of its stream, and its entries in the indexes.

    stream "session:<id>"
      head            SessionHead
      MESSAGE         sequence number u64              -> the messages from this place on that came together
      RUN             run id                           -> RunRecord
      SPAN            run id, number u32               -> SpanRecord
      STEP            turn number u64, entry u32       -> Step      (the turn in which the run began)
      EDIT            turn number u64                  -> EditRecord
      OVERLAY         last place that it covers u64    -> Overlay
      EVENT           event u64, place in the log u64  -> what happened beside messages, see event_rows.py
    indexes
      UPDATED         updated_at_ms u64
      OWNER, TAG      text, 0x00, updated_at_ms u64    (a text holds no control characters, so 0x00 ends it)
      OPEN_RUN        run id
      RUN_STATUS      status, 0x00, run id                        of runs that have ended without an answer

Numbers are big-endian, so that byte order is their order. Rows of messages that version 1 wrote hold one each.
"""

from typing import Any

import msgspec
from msgspec import Struct, field

from ..store.contract import Index, IndexRow, Row, Table
from ..store.records import Codec
from .edit_record import EditRecord
from .message import Message, Usage
from .run_record import RunRecord, SpanRecord
from .seq_ranges import Ranges, count_visible
from .state import StateDelta

__all__ = [
    "EDIT_CODEC",
    "HEAD_CODEC",
    "MESSAGES_CODEC",
    "RUN_CODEC",
    "SESSION_KIND",
    "SPAN_CODEC",
    "STEP_CODEC",
    "ForkOrigin",
    "OpenTurn",
    "SessionDefaults",
    "SessionHead",
    "Step",
    "copy_metadata",
    "edit_key",
    "index_changes",
    "index_prefix",
    "message_key",
    "message_rows",
    "session_id_of",
    "span_key",
    "status_value",
    "step_key",
    "stream_of",
]

SESSION_KIND = "session"


_MESSAGE, _UPDATED = Table.MESSAGE, Index.UPDATED  # 60 ns each to find in their Enum (CPython 3.11)

ROW_MESSAGES_MAX = 32
"""Messages in one row. More in a row would have to be read for a few of them; a turn with more writes several rows."""


class OpenTurn(Struct, frozen=True, gc=False):
    """The turn that runs: its number is the fence, its run the one that it was granted to."""

    number: int
    run_id: str


class SessionDefaults(Struct, frozen=True, gc=False):
    """What a session is created with, by the first write that finds none."""

    owner: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


class ForkOrigin(Struct, frozen=True, gc=False):
    """The session that one was forked from, and the place of the last message of it that was taken; 0 for none."""

    session_id: str
    seq: int


class SessionHead(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="session"):
    """All about a session but its content. Times in milliseconds since 1970, UTC.

    Attributes:
        id: the session's id.
        owner: whom it belongs to, or None.
        tags: for finding it.
        metadata: the user's own JSON object.
        created_at_ms, updated_at_ms: the first and the last change.
        revision: counts the changes, from 1.
        last_seq: the place of the last message that was ever stored; the next one has the next. Stored under the name
            that it had before there were edits.
        removed: the places that edits have taken out of history, as ranges (first, last), both included.
        forked_from: where its first messages come from, or None.
        event_count: how many rows the log of events has; see event_rows.py.
        queued_runs: runs that were submitted, and wait for their turn.
        window_cuts: where windows were cut last: the window's name, and the place of the first message behind the cut.
        overlay_seq: the key of the latest overlay; 0 for none.
        run_count: how many runs began here.
        last_turn: the number of the last turn that was granted.
        open_turn: the turn that runs, or None.
        open_runs: runs made by hand that have not ended.
        paused_runs: runs that wait for an approval, without a turn.
    """

    id: str
    created_at_ms: int
    updated_at_ms: int
    owner: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    revision: int = 0
    last_seq: int = field(default=0, name="message_count")
    run_count: int = 0
    last_turn: int = 0
    open_turn: OpenTurn | None = None
    open_runs: tuple[str, ...] = ()
    paused_runs: tuple[str, ...] = ()
    removed: Ranges = ()
    forked_from: ForkOrigin | None = None
    event_count: int = 0
    queued_runs: tuple[str, ...] = ()
    window_cuts: tuple[tuple[str, int], ...] = ()
    overlay_seq: int = 0

    @property
    def message_count(self) -> int:
        """How many messages history has; without those that edits have taken out."""
        return count_visible(self.removed, 1, self.last_seq) if self.removed else self.last_seq

    @property
    def open_run_ids(self) -> tuple[str, ...]:
        """All runs that have not ended, but those that wait for a turn and were not submitted."""
        held = () if self.open_turn is None else (self.open_turn.run_id,)
        return (*self.open_runs, *self.paused_runs, *self.queued_runs, *held)


class Step(Struct, frozen=True, omit_defaults=True, tag="step"):
    """One entry of a running turn's journal, see progress.py: what has come, or may begin. Not yet history.

    Attributes:
        number: the entry's place in the journal, from 1.
        messages: an answer that asks for tool calls (in older stores with all their results), or one after which
            `input` came; else ().
        input: what was said meanwhile, and taken into the turn; it comes behind all entries before it.
        begun: the calls of the latest answer, by place, that may have begun once this is stored.
        approved: those that may begin.
        settled: the results of calls.
        state: the turn's state, where it changed.
        deltas: all that the turn has changed in app, user and session so far, where that changed.
        usage: tokens of the run so far; with an answer only.
        span: the number of the span of the model call that gave the answer, or 0.
    """

    number: int
    messages: tuple[Message, ...]
    begun: tuple[int, ...] = ()
    approved: tuple[int, ...] = ()
    settled: dict[int, Message] = {}
    state: dict[str, Any] | None = None
    usage: Usage | None = None
    deltas: tuple[StateDelta, ...] | None = None
    input: tuple[Message, ...] = ()
    span: int = 0


HEAD_CODEC = Codec(SessionHead)
MESSAGES_CODEC: Codec[list[Message]] = Codec(list[Message], version=2, older={1: (Message, lambda message: [message])})
RUN_CODEC = Codec(RunRecord)
SPAN_CODEC = Codec(SpanRecord)
STEP_CODEC = Codec(Step)
EDIT_CODEC = Codec(EditRecord)


def copy_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """A deep copy, for those outside of the session: what they change in it must not reach the session's own."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(metadata), type=dict[str, Any]) if metadata else {}


def stream_of(session_id: str) -> str:
    """The name of the session's stream, which is its actor's id as text."""
    return f"{SESSION_KIND}:{session_id}"


def session_id_of(stream: str) -> str | None:
    """The session of a stream; None where it belongs to an actor of another kind."""
    kind, _, key = stream.partition(":")
    return key if kind == SESSION_KIND else None


def message_key(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


def message_rows(stored: list[Message]) -> list[Row]:
    """The rows of messages that stand one behind the other, with their places."""
    if not 0 < len(stored) <= ROW_MESSAGES_MAX:
        starts = range(0, len(stored), ROW_MESSAGES_MAX)
        return [row for start in starts for row in message_rows(stored[start : start + ROW_MESSAGES_MAX])]
    return [Row(_MESSAGE, message_key(stored[0].seq), MESSAGES_CODEC.encode(stored))]


def span_key(run_id: str, number: int) -> bytes:
    return run_id.encode() + number.to_bytes(4, "big")


def status_value(status: str, run_id: str) -> bytes:
    """The entry in RUN_STATUS of a run in this status. Ids begin with the time: entries are in the order of making."""
    return f"{status}\0{run_id}".encode()


def step_key(turn: int, number: int) -> bytes:
    return turn.to_bytes(8, "big") + number.to_bytes(4, "big")


def edit_key(turn: int) -> bytes:
    return turn.to_bytes(8, "big")


def index_prefix(text: str) -> bytes:
    """What all OWNER or TAG entries of this text begin with."""
    return text.encode() + b"\x00"


def index_changes(old: SessionHead | None, new: SessionHead) -> list[IndexRow]:
    """The entries to remove and to add when the head changes."""
    if old is None:
        return _entries(new, True)
    if old.updated_at_ms != new.updated_at_ms:  # no entry is as before: each has the time
        return _entries(old, False) + _entries(new, True)
    if old.owner == new.owner and old.tags == new.tags:
        return []
    before, after = _entries(old, False), _entries(new, True)
    kept = {(row.index, row.value) for row in before} & {(row.index, row.value) for row in after}
    return [row for row in before + after if (row.index, row.value) not in kept]


def _entries(head: SessionHead, present: bool) -> list[IndexRow]:
    updated = head.updated_at_ms.to_bytes(8, "big")
    entries = [IndexRow(_UPDATED, updated, present)]
    if head.owner is not None:
        entries.append(IndexRow(Index.OWNER, index_prefix(head.owner) + updated, present))
    for tag in head.tags:
        entries.append(IndexRow(Index.TAG, index_prefix(tag) + updated, present))
    return entries
