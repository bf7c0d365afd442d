"""Reading sessions from a store: for their actors, for lists, and for programs that have no runtime.

These calls block, for microseconds to milliseconds, and see only what is committed. Any number of processes may read
while one writes.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from msgspec import Struct

from ..store.contract import Head, Index, IndexHit, Store, Table
from ..store.damage import DamageLog
from ..store.errors import Corrupt
from ..store.opening import open_store
from ..store.records import Codec
from .cursors import Cursors
from .edit_record import Audit, EditRecord
from .errors import UnknownRun
from .event_log import EVENTS_PAGE, read_events
from .message import Message
from .overlay import OVERLAY_CODEC, Overlay
from .run_record import RunRecord, SpanRecord
from .seq_ranges import Ranges, first_of_latest, visible_messages, visible_spans
from .session_events import StoredSessionEvent
from .session_records import (
    EDIT_CODEC,
    HEAD_CODEC,
    MESSAGES_CODEC,
    ROW_MESSAGES_MAX,
    RUN_CODEC,
    SPAN_CODEC,
    STEP_CODEC,
    SessionHead,
    Step,
    index_prefix,
    message_key,
    session_id_of,
    span_key,
    step_key,
    stream_of,
)
from .state_records import read_values

__all__ = ["WINDOW", "Archive", "SessionPage", "read_head"]

T = TypeVar("T")

_seq = attrgetter("seq")

_SPANS_MAX = 2**32 - 1
_CURSOR_ADVICE = "pass page.cursor of the page before, unchanged and with the same owner and tag"
_PAGE_SCAN = 256
"""Index entries read at a time while a filter is applied."""

WINDOW = 64
"""Places that are looked at in one go where all of a history is gone through: some 0.1 ms."""

_GAP_MAX = 64
"""So many removed messages are read and dropped rather than passed over by another look into the store."""


class SessionPage(Struct, frozen=True):
    """Sessions, the most recently changed first. `cursor` gets the next page; None where this is the last."""

    sessions: list[SessionHead]
    cursor: str | None


class Archive:
    """The sessions of one store. `Archive.open(path)` reads a directory that another process may be writing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, master_key: bytes | str | None = None) -> Self:
        """Open a store for reading; use it in a `with` block. A sealed one needs its master key, as its Runtime does.

        Raises:
            StoreUnavailable: there is no store at this path.
            NewerFormat: a newer callboard wrote it.
            WrongKey: it is sealed with another master key, or needs none, or one is missing.
        """
        return cls(open_store(Path(path), readonly=True, master_key=master_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    @property
    def location(self) -> str:
        """Where the data lies."""
        return self._store.location

    @property
    def damage(self) -> DamageLog:
        """What could not be read, and was left out."""
        return self._store.damage

    def head(self, session_id: str) -> SessionHead | None:
        """All about a session but its content; None where there is no such session.

        Raises:
            Corrupt, NewerFormat: it cannot be read.
        """
        return read_head(session_id, self._store.load(stream_of(session_id)))

    def messages(self, session_id: str, *, limit: int | None = None, before_seq: int | None = None) -> list[Message]:
        """The latest messages, or those before `before_seq`; oldest first, at most `limit`. [] for no session.

        Those that cannot be read are left out, and noted in the store's `damage`.

        Raises:
            Corrupt, NewerFormat: the head cannot be read, which knows what edits have removed.

        Cost: two looks into the store, and one for each long gap that edits have left; decodes about as many messages
        as it gives.
        """
        head = self.head(session_id)
        if head is None:
            return self.stored_messages(session_id, limit=limit, before_seq=before_seq)
        # Not beyond what this head knows: a turn and an edit may be committed before the messages are read.
        last = head.last_seq if before_seq is None else min(head.last_seq, max(before_seq, 1) - 1)
        if not head.removed:
            return self.stored_messages(session_id, limit=limit, before_seq=last + 1)
        first = 1 if limit is None else first_of_latest(head.removed, last, limit)
        return self.messages_between(session_id, first, last, removed=head.removed)

    def messages_between(self, session_id: str, first: int, last: int, *, removed: Ranges) -> list[Message]:
        """The messages from place `first` to place `last`, both included, that stand in none of these ranges.

        Cost: a look into the store, and one more for each long gap; decodes what it gives, and short gaps.
        """
        if not removed:
            return self.stored_messages(session_id, limit=last - first + 1, first_seq=first, before_seq=last + 1)
        messages: list[Message] = []
        for start, end in _joined(visible_spans(removed, first, last)):
            messages += self.stored_messages(session_id, limit=end - start + 1, first_seq=start, before_seq=end + 1)
        return visible_messages(messages, removed)

    def stored_messages(
        self, session_id: str, *, limit: int | None = None, first_seq: int = 1, before_seq: int | None = None
    ) -> list[Message]:
        """As `messages`, with those that edits have removed; none before the place `first_seq`.

        Cost: one look into the store.
        """
        if limit is not None and limit <= 0:
            return []
        start = max(1, first_seq - ROW_MESSAGES_MAX + 1)  # no row has more, so none from there on begins before
        rows = self._store.scan(
            stream_of(session_id),
            Table.MESSAGE,
            start=message_key(start) if start > 1 else b"",
            stop=message_key(before_seq) if before_seq is not None else None,
            limit=limit,
            newest_first=True,
        )
        # A row holds one message or more, most often a question with its answer.
        enough = len(rows) if limit is None else limit // 2 + 1
        messages: list[Message] = []
        for part in (rows[:enough], rows[enough:]):
            part.reverse()
            groups = self._readable(MESSAGES_CODEC, part, _messages_of, session_id)
            messages[:0] = chain.from_iterable(groups)
            while before_seq is not None and messages and messages[-1].seq >= before_seq:
                messages.pop()  # its row began before
            if limit is not None and len(messages) >= limit:
                messages = messages[len(messages) - limit :]
                break
        return messages if first_seq == 1 else messages[bisect_left(messages, first_seq, key=_seq) :]

    def edits(self, session_id: str) -> list[EditRecord]:
        """All edits of the session's history, in their order. Left out: as with `messages`."""
        rows = self._store.scan(stream_of(session_id), Table.EDIT)
        return self._readable(EDIT_CODEC, rows, _edit_of, session_id)

    def audit(self, session_id: str) -> Audit:
        """All messages that were ever stored, with those that edits have removed, and the edits. Left out: as with
        `messages`. Of a session that does not exist both are empty."""
        audit = Audit([], [])
        for _ in self.audit_steps(session_id, audit):
            pass
        return audit

    def audit_steps(self, session_id: str, audit: Audit) -> Iterator[None]:
        """The same in short steps, into an audit that is empty."""
        audit.edits.extend(self.edits(session_id))  # first: what they name is all in messages that are read later
        head = self.head(session_id)
        for window in self.windows(session_id, head.last_seq) if head is not None else ():
            audit.messages.extend(window)
            yield

    def state(self, session_id: str) -> dict[str, Any]:
        """The values of the session's own state. Left out: as with `messages`."""
        return read_values(self._store, stream_of(session_id))

    def windows(self, session_id: str, last: int, *, removed: Ranges = ()) -> Iterator[list[Message]]:
        """The messages up to place `last` that stand in none of these ranges, oldest first, some at a time: each
        is a short look into the store, which holds up nobody who reads or writes meanwhile."""
        for start in range(1, last + 1, WINDOW):
            messages = self.messages_between(session_id, start, min(start + WINDOW - 1, last), removed=removed)
            if messages:
                yield messages

    def runs(self, session_id: str, *, limit: int | None = None, before: str | None = None) -> list[RunRecord]:
        """The latest runs that have begun, or of those before the run of this id; oldest first, at most `limit`.

        Left out: as with `messages`.
        """
        stop = None if before is None else before.encode()
        rows = self._store.scan(stream_of(session_id), Table.RUN, stop=stop, limit=limit, newest_first=True)
        rows.reverse()
        return self._readable(RUN_CODEC, rows, _run_of, session_id)

    def run(self, session_id: str, run_id: str) -> RunRecord:
        """One run.

        Raises:
            UnknownRun: the session has none of this id.
        """
        key = run_id.encode()
        rows = self._store.scan(stream_of(session_id), Table.RUN, start=key, limit=1)
        if not rows or rows[0][0] != key:
            raise UnknownRun(f"session {session_id!r} has no run {run_id!r}; session.runs() lists them")
        return RUN_CODEC.decode(rows[0][1], where=_run_of(key, session_id))

    def spans(self, session_id: str, run_id: str) -> list[SpanRecord]:
        """The spans of one run that has ended, in the order of their starts. Left out: as with `messages`."""
        rows = self._store.scan(
            stream_of(session_id), Table.SPAN, start=span_key(run_id, 0), stop=span_key(run_id, _SPANS_MAX)
        )
        spans = self._readable(SPAN_CODEC, rows, _span_of, session_id)
        return [span for span in spans if span.run_id == run_id]  # not those of an id that only begins like this one

    def events(self, session_id: str, *, after: int = 0, limit: int = EVENTS_PAGE) -> list[StoredSessionEvent]:
        """What lasts of a session's events, behind number `after`, at most `limit`; [] for no session. See
        `Session.events`, which also tells what comes next. Left out: as with `messages`."""
        head = self.head(session_id)
        return [] if head is None else read_events(self._store, head, after=after, limit=limit).events

    def overlay(self, session_id: str, seq: int) -> Overlay | None:
        """The summary of the messages up to a place; None where there is none. One that cannot be read is noted in the
        store's `damage`: the messages are all there."""
        key = message_key(seq)
        rows = self._store.scan(stream_of(session_id), Table.OVERLAY, start=key, stop=key + b"\0", limit=1)
        if not rows:
            return None
        try:
            return OVERLAY_CODEC.decode(rows[0][1], where=f"the summary of session {session_id!r}")
        except Corrupt as error:
            self.damage.report(error.where, error.reason)
            return None

    def step_count(self, session_id: str, turn: int) -> int:
        """How many steps of a turn that has not ended are journaled."""
        start, stop = step_key(turn, 0), step_key(turn + 1, 0)
        return len(self._store.scan(stream_of(session_id), Table.STEP, start=start, stop=stop))

    def steps(self, session_id: str, turn: int) -> tuple[Step, ...]:
        """The journal of a run that began in this turn, all of it.

        Raises:
            Corrupt: an entry is missing or cannot be read: without it nobody knows which calls may have had an effect.
        """
        rows = self._store.scan(stream_of(session_id), Table.STEP, start=step_key(turn, 0), stop=step_key(turn + 1, 0))
        where = f"the journal of turn {turn} of session {session_id!r}"
        steps = tuple(STEP_CODEC.decode(value, where=where) for _, value in rows)
        if any(step.number != number for number, step in enumerate(steps, 1)) or (
            steps and not (steps[0].messages or steps[0].input)
        ):
            raise Corrupt(where, "some of its entries are missing")
        return steps

    def sessions(
        self,
        *,
        owner: str | None = None,
        tag: str | None = None,
        updated_after_ms: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        """Sessions, the most recently changed first, without their content.

        Args:
            owner, tag: only those that have it; both may be given.
            updated_after_ms: only those changed later than this, in milliseconds since 1970, UTC.
            limit: the most to give.
            cursor: from the page before, asked with the same filters. A session that changes meanwhile may be missed
                or come twice.

        Raises:
            TypeError, ValueError: the cursor is not from the page before, or from a list of another owner or tag.

        Cost: one index step and one head a session given; with both owner and tag, one a session of the owner.
        """
        cursors = _cursors(owner, tag)
        after: bytes | None = None
        if cursor is not None:
            after = cursors.place(cursor)
            self.check_position(after, cursor, owner=owner, tag=tag)
        sessions: list[SessionHead] = []
        for hit in self._listed(owner, tag, after):
            if updated_after_ms is not None and int.from_bytes(hit.value[-8:], "big") <= updated_after_ms:
                break
            head = self._head_of(hit.stream)
            if head is not None and (tag is None or tag in head.tags):
                if len(sessions) == limit:
                    assert after is not None
                    return SessionPage(sessions, cursors.to(after))
                sessions.append(head)
            after = hit.position
        return SessionPage(sessions, None)

    def heads(
        self, *, owner: str | None = None, tag: str | None = None, after: bytes | None = None
    ) -> Iterator[tuple[bytes, SessionHead | None]]:
        """All sessions as `sessions` lists them, each with its place in that list; None in the place of one that has
        not the tag, or cannot be read. `after` is the place to go on behind."""
        for hit in self._listed(owner, tag, after):
            head = self._head_of(hit.stream)
            yield hit.position, head if head is not None and (tag is None or tag in head.tags) else None

    def check_position(self, position: bytes, cursor: str, *, owner: str | None, tag: str | None) -> None:
        """ValueError, naming the cursor, where this is no place in this list."""
        index, _ = _index_of(owner, tag)
        try:
            self._store.scan_index(index, after=position, limit=0)  # only a store knows its positions
        except ValueError as error:
            raise _cursors(owner, tag, what="this store").refusal(cursor) from error

    def with_open_runs(self) -> list[str]:
        """The ids of the sessions in which a run is open."""
        hits = self._store.scan_index(Index.OPEN_RUN)
        ids = (session_id_of(hit.stream) for hit in hits)
        return list(dict.fromkeys(id for id in ids if id is not None))

    def with_outbox(self) -> list[str]:
        """The ids of the sessions of which deltas to app or user state are on their way, deleted ones too."""
        ids = (session_id_of(hit.stream) for hit in self._store.scan_index(Index.OUTBOX_DUE))
        return [id for id in ids if id is not None]

    def _listed(self, owner: str | None, tag: str | None, after: bytes | None) -> Iterator[IndexHit]:
        """The index entries of the sessions of this owner, or else of this tag, or of all; the latest first."""
        index, prefix = _index_of(owner, tag)
        while hits := self._store.scan_index(index, prefix=prefix, after=after, limit=_PAGE_SCAN, newest_first=True):
            yield from hits
            after = hits[-1].position

    def _head_of(self, stream: str) -> SessionHead | None:
        session_id = session_id_of(stream)
        try:
            return self.head(session_id) if session_id is not None else None
        except Corrupt as error:
            self._store.damage.report(error.where, error.reason)  # one session must not hide the others
            return None

    def _readable(
        self, codec: Codec[T], rows: Sequence[tuple[bytes, bytes]], name: Callable[[bytes, str], str], session_id: str
    ) -> list[T]:
        """The records of these rows; what cannot be read is left out, and noted once."""
        all_sound = codec.decode_all([value for _, value in rows])
        if all_sound is not None:
            return all_sound
        records: list[T] = []
        for key, value in rows:
            try:
                records.append(codec.decode(value, where=name(key, session_id)))
            except Corrupt as error:
                self._store.damage.report(error.where, error.reason)
        return records


def read_head(session_id: str, stored: Head | None) -> SessionHead | None:
    """The head of a session as its stream has it; None where there is none. Raises as `Archive.head`."""
    if stored is None or not stored.head:
        return None
    return HEAD_CODEC.decode(stored.head, where=f"head of session {session_id!r}")


def _messages_of(key: bytes, session_id: str) -> str:
    return f"messages from {int.from_bytes(key, 'big')} on of session {session_id!r}"


def _edit_of(key: bytes, session_id: str) -> str:
    return f"edit {int.from_bytes(key, 'big')} of session {session_id!r}"


def _run_of(key: bytes, session_id: str) -> str:
    return f"run {key.decode(errors='replace')!r} of session {session_id!r}"


def _span_of(key: bytes, session_id: str) -> str:
    run_id, number = key[:-4].decode(errors="replace"), int.from_bytes(key[-4:], "big")
    return f"span {number} of run {run_id!r} of session {session_id!r}"


def _joined(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans, those with a short gap between them as one."""
    held: tuple[int, int] | None = None
    for start, end in spans:
        if held is not None and start - held[1] > _GAP_MAX:
            yield held
            held = None
        held = (start if held is None else held[0], end)
    if held is not None:
        yield held


def _index_of(owner: str | None, tag: str | None) -> tuple[Index, bytes]:
    """The index that lists these sessions, and what its entries of them begin with."""
    if owner is not None:
        return Index.OWNER, index_prefix(owner)
    return (Index.TAG, index_prefix(tag)) if tag is not None else (Index.UPDATED, b"")


def _cursors(owner: str | None, tag: str | None, *, what: str = "this list") -> Cursors:
    return Cursors.of(repr((owner, tag)), what=what, advice=_CURSOR_ADVICE)
