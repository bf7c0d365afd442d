"""The log of what happened in a session beside its messages, as stored; and how events of both kinds are numbered.

An event's number says how many there were up to it: messages and rows of this log, in the order in which they were
staged. So numbers have no gaps, and a message needs no room for its own: of any number it is known how many messages
come before it, as the key of a row has both its number and how many rows there are up to it.

    seq of the message        1  2        3  4
    place of the row in log         1  2        3
    number                    1  2  3  4  5  6  7

    head of this session: last_seq 4, event_count 3; rows (3, 1), (4, 2) and (7, 3)

A session of a store that is older than this log has messages alone: their numbers are their places.

Rejected: a revision in each message. It would cost every message 12 bytes on disk and 40 in memory, and say no more.
"""

from typing import TypeAlias

from msgspec import Struct

from ..store.records import Codec
from .run_record import RunStatus

__all__ = ["EVENT_CODEC", "HistoryEditedRow", "MetadataRow", "RunRow", "StoredEvent", "event_key"]


class RunRow(Struct, frozen=True, gc=False, array_like=True, omit_defaults=True, tag="run"):
    """A run came into this status; `error` is why, where it has not ended well."""

    run_id: str
    status: RunStatus
    agent: str = ""
    error: str | None = None


class MetadataRow(Struct, frozen=True, gc=False, array_like=True, omit_defaults=True, tag="metadata"):
    """These keys of the metadata were set or removed. Their values are the head's: here they would be kept for ever."""

    keys: tuple[str, ...]


class HistoryEditedRow(Struct, frozen=True, gc=False, array_like=True, omit_defaults=True, tag="edit"):
    """History was edited: these places of it are not visible any more. See EditRecord for who and why."""

    kind: str
    removed: tuple[tuple[int, int], ...]


StoredEvent: TypeAlias = RunRow | MetadataRow | HistoryEditedRow

EVENT_CODEC: Codec[StoredEvent] = Codec(StoredEvent)


def event_key(number: int, place: int) -> bytes:
    """The key of the row that is the event of this number, and the row of this place in the log."""
    return number.to_bytes(8, "big") + place.to_bytes(8, "big")
