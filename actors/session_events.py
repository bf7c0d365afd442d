"""What happens in a session, as its readers see it: `async for event in session.events(after=number)`.

| event | lasting |
|---|---|
| MessageAdded | yes |
| RunChanged | yes |
| MetadataChanged | yes |
| HistoryEdited | yes |
| RunProgress (a piece of an answer, a tool's result, ...) | no |
| EventsDropped | no |
| SessionDeleted | no, and the last |

What lasts is in the store: every reader gets each of them once, in order, however late it comes, and in whatever
process. It has a number of its own, 1, 2, 3 ... without gaps. What does not last is only for those who are reading when
it happens, and has the number of what came before it; so the number of any event is a place to go on behind.
"""

from typing import TypeAlias

from msgspec import Struct

from .message import Message
from .reply import RunEvent
from .run_record import RunStatus

__all__ = [
    "EventsDropped",
    "HistoryEdited",
    "MessageAdded",
    "MetadataChanged",
    "RunChanged",
    "RunProgress",
    "SessionDeleted",
    "SessionEvent",
    "StoredSessionEvent",
]


class MessageAdded(Struct, frozen=True):
    """A message has become part of history. Edits may have taken it out again since: then HistoryEdited follows."""

    number: int
    message: Message


class RunChanged(Struct, frozen=True):
    """A run has come into this status; `error` is why, where it did not end well. `session.run(run_id)` has the rest.

    "running" stands before the messages of its turn, its end behind them. A retry's backoff is no change.
    """

    number: int
    run_id: str
    status: RunStatus
    agent: str
    error: str | None = None


class MetadataChanged(Struct, frozen=True):
    """These keys were set or removed; `session.metadata()` has what they are now."""

    number: int
    keys: tuple[str, ...]


class HistoryEdited(Struct, frozen=True):
    """The messages at these places, as ranges (first, last), are out of sight since an edit ("pop", "rewind", ...)."""

    number: int
    kind: str
    removed: tuple[tuple[int, int], ...]


class RunProgress(Struct, frozen=True):
    """What goes on inside a run, as `agent.stream` shows it."""

    number: int
    run_id: str
    agent: str
    event: RunEvent


class EventsDropped(Struct, frozen=True):
    """The reader was slow: so many RunProgress were not kept for it. Of what lasts it misses nothing."""

    number: int
    count: int


class SessionDeleted(Struct, frozen=True):
    """The session is no more, and this is its last event. Made anew, its numbers begin anew."""

    number: int


StoredSessionEvent: TypeAlias = MessageAdded | RunChanged | MetadataChanged | HistoryEdited

SessionEvent: TypeAlias = StoredSessionEvent | RunProgress | EventsDropped | SessionDeleted
"""Further kinds may come: a reader passes over what it does not know."""
