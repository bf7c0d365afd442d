"""What can be asked of a session about its history: to edit it, to read a page of it, to begin as a fork."""

from typing import Any

from msgspec import Struct

from ..runtime.envelope import Request
from ..store.contract import Row
from .edit_record import EditKind
from .message import Message
from .overlay import Overlay
from .session_messages import OneStep, messages_size_bytes
from .session_records import SessionHead

__all__ = ["BeginFork", "EditHistory", "Edited", "PageRead", "ReadPage"]


class Edited(Struct, frozen=True, gc=False):
    """How many messages an edit took out of history, and for a "pop" which; `refusal` is why it took none."""

    count: int
    messages: tuple[Message, ...] = ()
    refusal: str | None = None


class EditHistory(OneStep[Edited], frozen=True, kw_only=True, gc=False):
    """Take messages out of history.

    "pop" takes the latest `count`; "rewind" all from the first one that run `run_id` wrote, or all behind place
    `to_seq`; "clear" all.
    """

    kind: EditKind
    count: int = 0
    to_seq: int = 0
    run_id: str | None = None
    by: str | None = None
    reason: str = ""


class PageRead(Struct, frozen=True):
    """The messages from place `first` to place `last`, and whether there are any before and behind them."""

    messages: list[Message]
    first: int
    last: int
    more_before: bool
    more_behind: bool


class ReadPage(Request[PageRead], frozen=True):
    """The latest `limit` committed messages before a place, or the earliest behind one. Give one of both."""

    limit: int
    before_seq: int | None = None
    after_seq: int | None = None


class BeginFork(Request[SessionHead], frozen=True):
    """Begin the session with this head, these messages and their rows, this state and summary. There must be none
    yet."""

    head: SessionHead
    messages: tuple[Message, ...]
    rows: tuple[Row, ...]
    state: dict[str, Any]
    overlay: Overlay | None = None

    def size_bytes(self) -> int:
        return messages_size_bytes(self.messages)
