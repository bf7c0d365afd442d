"""What state keeps in the store.

stream "session:<id>"               see session_records.py
  STATE           key                          -> StateValue
  OUTBOX          number u64                   -> OutboxRecord     deltas that app or user has not confirmed yet
stream "state:app", "state:user:<owner>"
  head            StateHead
  STATE           key                          -> StateValue
  OUTBOX          id of a delivery             -> TakenRecord      which it has, and the session may send again
index
  OUTBOX_DUE      "outbox"                     sessions whose outbox is not empty
"""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from ..store.contract import Index, IndexRow, Row, Store, Table
from ..store.errors import Corrupt
from ..store.records import Codec
from .state import StateDelta

__all__ = [
    "APP",
    "OUTBOX_CODEC",
    "OUTBOX_DUE",
    "STATE_HEAD_CODEC",
    "STATE_KIND",
    "STATE_VALUE_CODEC",
    "TAKEN_CODEC",
    "OutboxRecord",
    "StateHead",
    "StateValue",
    "TakenRecord",
    "outbox_due",
    "outbox_key",
    "read_values",
    "user_key",
    "value_rows",
]

STATE_KIND = "state"
APP = "app"
"""The key of the actor that has the state of the scope app."""

OUTBOX_DUE = b"outbox"


class StateHead(Struct, frozen=True, omit_defaults=True, gc=False, tag="state"):
    """The head of the stream of app, or of a user: how often it has changed, and when last, in ms since 1970, UTC."""

    revision: int
    updated_at_ms: int


class StateValue(Struct, frozen=True, gc=False, tag="value"):
    """What a key of state holds."""

    value: Any


class OutboxRecord(Struct, frozen=True, gc=False, tag="outbox"):
    """Deltas that a turn has committed and that are on their way.

    Attributes:
        id: tells this delivery from all others to its target: the run's id.
        target: the key of the actor that gets them, "app" or "user:<owner>".
        deltas: one a key.
    """

    id: str
    target: str
    deltas: tuple[StateDelta, ...]


class TakenRecord(Struct, frozen=True, gc=False, tag="taken"):
    """That a delivery was applied, kept until it is deleted from the outbox of `stream`. `at_ms` is for people."""

    stream: str
    at_ms: int


STATE_HEAD_CODEC = Codec(StateHead)
STATE_VALUE_CODEC = Codec(StateValue)
OUTBOX_CODEC = Codec(OutboxRecord)
TAKEN_CODEC = Codec(TakenRecord)


def user_key(owner: str) -> str:
    """The key of the actor that has the state of this owner's sessions."""
    return f"user:{owner}"


def outbox_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def outbox_due(*, present: bool) -> IndexRow:
    """The entry by which a session with an outbox is found when a process starts."""
    return IndexRow(Index.OUTBOX_DUE, OUTBOX_DUE, present)


def value_rows(values: dict[str, Any], deltas: Iterable[StateDelta]) -> list[Row]:
    """The rows of the keys that these deltas change, as they are in `values` afterwards."""
    keys = dict.fromkeys(delta.key for delta in deltas)
    return [
        Row(Table.STATE, key.encode(), STATE_VALUE_CODEC.encode(StateValue(values[key])) if key in values else None)
        for key in keys
    ]


def read_values(store: Store, stream: str) -> dict[str, Any]:
    """The values of the scope that is kept in this stream. One that cannot be read is left out, and noted as damage."""
    values: dict[str, Any] = {}
    for key, value in store.scan(stream, Table.STATE):
        name = key.decode(errors="replace")
        try:
            values[name] = STATE_VALUE_CODEC.decode(value, where=f"state {name!r} of {stream!r}").value
        except Corrupt as error:
            store.damage.report(error.where, error.reason)
    return values
