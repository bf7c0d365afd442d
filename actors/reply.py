"""What a caller of an agent gets: the reply, and the events of its making."""

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, cast

from msgspec import Struct

from .approvals import ApprovalRequest
from .message import Message, Usage
from .model import Delta

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # With a default, which is new in Python 3.13: a plain `Reply` is a Reply[Any].
    OutputT = TypeVar("OutputT", default=Any)
else:
    from typing import TypeVar

    OutputT = TypeVar("OutputT")

__all__ = [
    "ApprovalRequested",
    "AttemptFailed",
    "Delivered",
    "DeliveredAs",
    "OutputRepair",
    "OutputT",
    "Reply",
    "RunEvent",
    "RunStarted",
    "ToolFinished",
]


class Reply(Struct, Generic[OutputT], frozen=True):
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
        output: the answer as a value, of what `output=` asks for; None where it asks for nothing.
    """

    message: Message
    messages: tuple[Message, ...]
    run_id: str
    session_id: str | None
    turn: int
    usage: Usage
    finish_reason: str
    attempts: int
    output: OutputT = cast(Any, None)

    @property
    def text(self) -> str:
        """The last message's text."""
        return self.message.text

    @property
    def refusal(self) -> str | None:
        """Why the model would not answer, in its words, where it said so instead of a text."""
        refusal = self.message.extra.get("refusal")
        return refusal if isinstance(refusal, str) else None


class RunStarted(Struct, frozen=True):
    """The run has its turn, and its first model call begins."""

    run_id: str
    turn: int


DeliveredAs: TypeAlias = Literal["queued", "held", "merged", "steered", "joined", "superseded", "stopping"]
"""How an input was delivered that did not begin a turn at once, see Delivered."""


class Delivered(Struct, frozen=True):
    """What became of an input that did not begin a turn at once.

    Attributes:
        run_id: the run that the input was to begin.
        how: "queued" at this `position`, 1 next in line. "stopping": as queued, while run `into` is stopped for it.
            "held" until its group is quiet. "merged" into run `into`, which begins now. "steered" into run `into`,
            which was under way. "joined" to run `into`, which was asked the same with the same key. "superseded" by
            run `into`: of that its own caller hears by the error Superseded, and only `session.events()` by this.
        position, into: see above.
    """

    run_id: str
    how: DeliveredAs
    position: int = 0
    into: str = ""


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


class OutputRepair(Struct, frozen=True):
    """The answer is not what `output=` asks for, and the model is asked again. What was shown since the last tool
    result is void. `repair` counts from 1; `problem` is what the model is told."""

    repair: int
    problem: str


class ApprovalRequested(Struct, frozen=True):
    """The run has paused, stored, until somebody approves or denies these calls; `agent.resume` goes on with it."""

    run_id: str
    calls: tuple[ApprovalRequest, ...]


RunEvent: TypeAlias = Delivered | RunStarted | Delta | ToolFinished | AttemptFailed | OutputRepair | ApprovalRequested
