"""What others want of a run that is under way: that it ends, when and with what left of it, or that it takes input in.

Pure. The run looks here where it can do something about it: before each model call, and when it is cut off.
"""

from dataclasses import dataclass, field
from typing import Literal

from .errors import RunFailed
from .message import Message
from .model import Delta
from .session_messages import When

__all__ = ["CALLER_WENT_AWAY", "RunStopped", "RunWishes"]

CALLER_WENT_AWAY = "the caller went away"
"""Why a run was cancelled that nobody waited for any more. Who joins it just then wants it all the same."""


class RunStopped(RunFailed):
    """A run ends because somebody wished so, between two steps."""


@dataclass(slots=True)
class RunWishes:
    """The wishes of one run.

    Attributes:
        status: what the run becomes where it is cut off or stopped.
        reason: why.
        keep: what it has written so far becomes history, marked as interrupted.
        after_step: no further model call.
        last_attempt: no further attempt.
        steered: input may wait that it can take in.
        said: the text of the answer that is under way, as far as it was streamed.
    """

    status: Literal["cancelled", "interrupted"] = "interrupted"
    reason: str = "the runtime was closed"
    keep: bool = False
    after_step: bool = False
    last_attempt: bool = False
    steered: bool = False
    said: list[str] = field(default_factory=list[str])

    def stop(self, reason: str, *, when: When = "now", keep: bool = False) -> bool:
        """The run is to end; True where it is to be cut off for that. A later wish replaces an earlier one."""
        self.status, self.reason, self.keep = "cancelled", reason, keep
        self.after_step, self.last_attempt = when == "after_step", when != "now"
        return when == "now"

    def hear(self, delta: Delta) -> None:
        """A piece of the answer came."""
        if delta.kind == "text":
            self.said.append(delta.text)

    def half_said(self) -> tuple[Message, ...]:
        """The answer as far as it came, if it did, and is to be kept."""
        text = "".join(self.said)
        return (Message(role="assistant", content=text, interrupted=True),) if self.keep and text.strip() else ()
