"""Reading the events of a session from the store, behind any number; see event_rows.py for how they are numbered.

What cannot be read leaves its number out, is noted in the store's `damage`, and hides nothing else.
"""

from collections.abc import Iterator

from msgspec import Struct

from ..store.contract import Store, Table
from ..store.errors import Corrupt
from .event_rows import EVENT_CODEC, HistoryEditedRow, MetadataRow, RunRow, StoredEvent, event_key
from .message import Message
from .session_events import HistoryEdited, MessageAdded, MetadataChanged, RunChanged, StoredSessionEvent
from .session_records import MESSAGES_CODEC, ROW_MESSAGES_MAX, SessionHead, message_key, stream_of

__all__ = ["EVENTS_PAGE", "EventPage", "last_number", "read_events"]

EVENTS_PAGE = 256
"""So many are read at once: some 0.3 ms of the event loop."""


class EventPage(Struct, frozen=True):
    """Events in order. `upto` is the number through which these are all, `last` that of the latest there is."""

    events: list[StoredSessionEvent]
    upto: int
    last: int


def last_number(head: SessionHead | None) -> int:
    """The number of the latest event of a session; 0 where there is none."""
    return 0 if head is None else head.last_seq + head.event_count


def read_events(store: Store, head: SessionHead, *, after: int, limit: int = EVENTS_PAGE) -> EventPage:
    """The events behind number `after`, at most `limit`, of a session whose committed head this is.

    Raises:
        StoreError: they could not be read.

    Cost: two or three looks into the store; decodes about as many records as it gives.
    """
    last = last_number(head)
    upto = min(after + limit, last)
    if after >= last:
        return EventPage([], last, last)
    events: list[StoredSessionEvent] = []
    rows, passed = _rows(store, head, after, upto)
    first_seq = after + 1 - (rows[0].place - 1 if rows else passed)
    messages = {each.seq: each for each in _messages(store, head.id, first_seq, upto - passed)}
    position = after
    for row in [*rows, _Row(upto + 1, passed + 1, b"")]:
        for number in range(position + 1, row.number):
            message = messages.pop(number - row.place + 1, None)
            if message is not None:
                events.append(MessageAdded(number, message))
        stored = _decoded(store, row, head.id) if row.number <= upto else None
        if stored is not None:
            events.append(_event(row.number, stored))
        position = row.number
    return EventPage(events, upto, last)


class _Row(Struct, frozen=True):
    """A row of the log: the event of this number, and the row of this place."""

    number: int
    place: int
    value: bytes


def _rows(store: Store, head: SessionHead, after: int, upto: int) -> tuple[list[_Row], int]:
    """The rows behind `after` up to `upto`, and how many there are up to there in all."""
    stream = stream_of(head.id)
    found = store.scan(stream, Table.EVENT, start=event_key(after + 1, 0), stop=event_key(upto + 1, 0))
    rows = [_Row(int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big"), value) for key, value in found]
    if rows:
        return rows, rows[-1].place
    following = store.scan(stream, Table.EVENT, start=event_key(upto + 1, 0), limit=1)
    return rows, int.from_bytes(following[0][0][8:], "big") - 1 if following else head.event_count


def _messages(store: Store, session_id: str, first: int, last: int) -> Iterator[Message]:
    """The messages at these places, those that edits have taken out of sight too."""
    if first > last:
        return
    # The row in which the first one stands begins with it, or with one before.
    start = message_key(max(1, first - ROW_MESSAGES_MAX + 1))
    for key, value in store.scan(stream_of(session_id), Table.MESSAGE, start=start, stop=message_key(last + 1)):
        where = f"messages from {int.from_bytes(key, 'big')} on of session {session_id!r}"
        try:
            group = MESSAGES_CODEC.decode(value, where=where)
        except Corrupt as error:
            store.damage.report(error.where, error.reason)
            continue
        yield from (message for message in group if first <= message.seq <= last)


def _decoded(store: Store, row: _Row, session_id: str) -> StoredEvent | None:
    try:
        return EVENT_CODEC.decode(row.value, where=f"event {row.number} of session {session_id!r}")
    except Corrupt as error:
        store.damage.report(error.where, error.reason)
        return None


def _event(number: int, row: StoredEvent) -> StoredSessionEvent:
    match row:
        case RunRow(run_id, status, agent, error):
            return RunChanged(number, run_id, status, agent, error)
        case MetadataRow(keys):
            return MetadataChanged(number, keys)
        case HistoryEditedRow(kind, removed):
            return HistoryEdited(number, kind, removed)
