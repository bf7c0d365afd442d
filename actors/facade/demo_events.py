"""What the demo's worker reports to its parent: one JSON object a line on standard output.

A line that says `acknowledged` is a promise: the worker writes it after the runtime has answered, so what it names must
be in the store, whatever happens to the worker next.
"""

from typing import TypeAlias

import msgspec
from msgspec import Struct

from callboard.actors.message import Message, Usage

__all__ = [
    "Acknowledged",
    "AttemptVoided",
    "Event",
    "Opened",
    "Piece",
    "TurnStarted",
    "WorkerDone",
    "WorkerFailed",
    "decode_event",
    "encode_event",
]


class Opened(Struct, frozen=True, tag="opened"):
    """The store is claimed, and what an earlier worker left open is marked."""

    pid: int


class TurnStarted(Struct, frozen=True, tag="started"):
    """A run has begun to work on its turn."""

    session_id: str
    agent: str
    run_id: str


class Piece(Struct, frozen=True, tag="piece"):
    """A piece of an answer, while it streams."""

    session_id: str
    agent: str
    run_id: str
    text: str


class AttemptVoided(Struct, frozen=True, tag="voided"):
    """The pieces of this attempt do not count: it is tried again."""

    session_id: str
    agent: str
    run_id: str
    reason: str


class Acknowledged(Struct, frozen=True, tag="acknowledged"):
    """The runtime has acknowledged these messages. `usage` is that of their run, None for an append without one."""

    session_id: str
    messages: tuple[Message, ...]
    agent: str = ""
    run_id: str | None = None
    usage: Usage | None = None


class WorkerDone(Struct, frozen=True, tag="done"):
    """Every turn of every case is answered and the runtime is closed."""


class WorkerFailed(Struct, frozen=True, tag="failed"):
    """The worker gives up; `reason` is for people."""

    reason: str


Event: TypeAlias = Opened | TurnStarted | Piece | AttemptVoided | Acknowledged | WorkerDone | WorkerFailed

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """One line, with its newline."""
    return msgspec.json.encode(event) + b"\n"


def decode_event(line: bytes) -> Event:
    """The event of one line.

    Raises:
        msgspec.MsgspecError: it is not one of ours.
    """
    return _decoder.decode(line)
