"""What an agent is, as its runs see it, and how patient they are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from ..runtime.budget import Backoff
from .instructions import Instructions
from .model import Model, ModelSettings
from .output import Output
from .reply import RunEvent
from .tools import ToolSet

__all__ = ["AgentSpec", "RunPolicy"]


class RunPolicy(Struct, frozen=True):
    """How patient a run is.

    Attributes:
        attempts_max: how often it is tried where failures are transient.
        backoff: the wait between attempts; a server's own Retry-After, up to 120 s, goes before.
        timeout_s: the whole run, without its wait for the turn.
        model_calls_max: model calls in one turn, each but the last followed by tool calls.
        output_repairs_max: how often in one run the model is asked to mend an answer that is not what `output=` wants.
    """

    attempts_max: int = 4
    backoff: Backoff = Backoff(first_s=0.5, max_s=8.0)
    timeout_s: float = 600.0
    model_calls_max: int = 32
    output_repairs_max: int = 2

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or self.model_calls_max < 1 or not self.timeout_s > 0:
            raise ValueError(f"a run has at least one attempt, one model call and some time: {self}")
        if self.output_repairs_max < 0:
            raise ValueError(f"output_repairs_max must be 0 or more, not {self.output_repairs_max}")


@dataclass(slots=True, weakref_slot=True)
class AgentSpec:
    """What an agent is. Lives in this process; `listeners` get the events of runs that are being streamed."""

    name: str
    instructions: Instructions
    model: Model
    tools: ToolSet
    settings: ModelSettings
    policy: RunPolicy
    output: Output | None = None
    listeners: dict[str, Callable[[RunEvent], None]] = field(default_factory=lambda: dict[str, Any]())
