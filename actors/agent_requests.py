"""What an agent's actor can be asked."""

import contextvars

from msgspec import Struct, field

from ..runtime.envelope import Request
from .approvals import Decisions
from .budgets import Spending
from .message import Message
from .outcomes import Key
from .output import Output
from .reentry import HeldTurn, TurnWait
from .reply import Reply
from .session_messages import messages_size_bytes
from .session_records import SessionDefaults
from .turns import Overlap
from .window import Window

__all__ = ["Resume", "StartRun", "SubmitRun"]


class Resume(Struct, frozen=True):
    """That a run goes on: the turn that it had last, and the verdicts on what it waited for then."""

    turn: int
    decisions: Decisions


class StartRun(Request[Reply], frozen=True):
    """Run the agent on this input, in a turn of the session or without a session; or go on with a run of it."""

    run_id: str
    input: tuple[Message, ...]
    session_id: str | None
    overlap: Overlap
    defaults: SessionDefaults
    # Live, hence within this process only: the turns that wait for the run, its own wait for a turn, the form of its
    # answer, what it spends together with others, its window, and the caller's context, for those who observe.
    within: tuple[HeldTurn, ...] = ()
    wait: TurnWait | None = None
    output: Output | None = None
    spending: Spending | None = None
    resume: Resume | None = None
    keep_input: bool = False
    retry_of: str = ""
    caller: contextvars.Context = field(default_factory=contextvars.copy_context)
    quiet_s: float = 0.0
    window: Window | None = None
    key: Key | None = None

    def size_bytes(self) -> int:
        return messages_size_bytes(self.input)


class SubmitRun(Request[str], frozen=True):
    """Begin a run that nobody waits for. Answered once it is stored that it will run, with the id of the run that
    answers: its own, or that of the run that has its key already."""

    start: StartRun

    def size_bytes(self) -> int:
        return self.start.size_bytes()
