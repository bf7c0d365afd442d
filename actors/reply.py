"""What a caller of an agent gets: the reply, and the events of its making."""

from typing import TypeAlias

from msgspec import Struct

from .message import Message, Usage
from .model import Delta

__all__ = ["AttemptFailed", "Reply", "RunEvent", "RunStarted", "ToolFinished"]


class Reply(Struct, frozen=True):
    """A turn that was carried out and, with a session, stored.

    Attributes:
        message: the assistant's last message.
        messages: all that the turn added to history, the input first.
        run_id: finds the run's record: `await session.run(reply.run_id)`.
        session_id: where it is stored; None without a session.
        turn: the turn's number; 0 without a session.
        usage: tokens of all model calls of the run, failed attempts included where the server reported them.
        finish_reason: the server's own word for why the last answer ended: "stop", "length", ...
        attempts: 1, or more where an attempt failed before.
    """

    message: Message
    messages: tuple[Message, ...]
    run_id: str
    session_id: str | None
    turn: int
    usage: Usage
    finish_reason: str
    attempts: int

    @property
    def text(self) -> str:
        """The last message's text."""
        return self.message.text


class RunStarted(Struct, frozen=True):
    """The run has its turn, and its first model call begins."""

    run_id: str
    turn: int


class ToolFinished(Struct, frozen=True):
    """A tool call has its result."""

    name: str
    call_id: str
    content: str
    is_error: bool


class AttemptFailed(Struct, frozen=True):
    """The attempt failed and another follows in `delay_s` seconds. What was shown since the last tool result is
    void."""

    attempt: int
    reason: str
    delay_s: float


RunEvent: TypeAlias = RunStarted | Delta | ToolFinished | AttemptFailed
