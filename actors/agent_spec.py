"""What an agent is, as its runs see it, and how patient they are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import Struct

from ..runtime.budget import Backoff
from ..runtime.options import check_number
from .approvals import Approver
from .boards import Boards
from .budgets import Budget, model_names
from .instructions import Instructions
from .model import Model, ModelSettings
from .output import Output
from .reply import RunEvent
from .run_feeds import RunFeeds
from .run_observing import RunObservers
from .tokens import TokenMeters
from .tools import ToolSet
from .window import Window

if TYPE_CHECKING:
    from .session import Session

__all__ = ["AgentSpec", "RunPolicy"]


class RunPolicy(Struct, frozen=True):
    """How patient a run is.

    Attributes:
        attempts_max: how often it is tried where failures are transient.
        backoff: the wait between attempts; a server's own Retry-After, up to 120 s, goes before.
        timeout_s: the whole run, without its wait for the turn.
        model_calls_max: model calls in one turn, each but the last followed by tool calls.
        output_repairs_max: how often in one run the model is asked to mend an answer that is not what `output=` wants.
        tool_calls_at_once: how many calls of one answer run side by side.
        budget: what one run may spend; None: no bound.
    """

    attempts_max: int = 4
    backoff: Backoff = Backoff(first_s=0.5, max_s=8.0)
    timeout_s: float = 600.0
    model_calls_max: int = 32
    output_repairs_max: int = 2
    tool_calls_at_once: int = 8
    budget: Budget | None = None

    def __post_init__(self) -> None:
        least = {"attempts_max": 1, "model_calls_max": 1, "output_repairs_max": 0, "tool_calls_at_once": 1}
        for name, minimum in least.items():
            value: object = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if value < minimum:
                raise ValueError(f"{name} must be {minimum} or more, not {value}")
        check_number("timeout_s", self.timeout_s)
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {self.timeout_s}")
        if not isinstance(self.backoff, Backoff):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"backoff must be a Backoff, as in Backoff(first_s=0.5, max_s=8.0), not {self.backoff!r}")
        if self.budget is not None and not isinstance(self.budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"budget must be a Budget, as in Budget(tokens=50_000), not {self.budget!r}")


@dataclass(slots=True, weakref_slot=True)
class AgentSpec:
    """What an agent is. Lives in this process.

    `session_of` makes the handle on a session that its tools get; `listeners` get the events of runs that are being
    streamed, `boards` those of all runs, for the readers of sessions; `observers` are told what runs do.
    `meters` count tokens. `window` goes before that of a session's handle.
    """

    name: str
    instructions: Instructions
    model: Model
    tools: ToolSet
    settings: ModelSettings
    policy: RunPolicy
    session_of: Callable[[str], "Session"]
    approver: Approver | None = None
    output: Output | None = None
    listeners: RunFeeds = field(default_factory=RunFeeds)
    boards: Boards = field(default_factory=Boards)
    observers: RunObservers = field(default_factory=RunObservers)
    meters: TokenMeters = field(default_factory=TokenMeters)
    window: Window | None = None

    def wants_pieces(self, run_id: str, session_id: str | None) -> bool:
        """Whether anybody wants to hear the answers of this run as they come."""
        if self.listeners.get(run_id) is not None:
            return True
        board = self.boards.find(session_id) if self.boards and session_id is not None else None
        return board is not None and board.wants_progress

    def tell(self, run_id: str, session_id: str | None, event: RunEvent) -> None:
        """Show this to who follows the run, and to who reads its session."""
        listener = self.listeners.get(run_id)
        if listener is not None:
            listener(event)
        if self.boards and session_id is not None:
            board = self.boards.find(session_id)
            if board is not None:
                board.put(run_id, self.name, event)

    def check_priced(self, budget: Budget | None) -> None:
        """ValueError where the budget bounds cost, and has no price for a model that may answer here."""
        if budget is not None:
            budget.check_priced(model_names(self.model.name, self.settings.model))
            if self.window is not None and self.window.summarizer is not None:
                budget.check_priced(model_names(self.window.summarizer.name, None))
