"""How far a run is, told by the journal of its turn: which answers came, which of their calls began and which settled.

    entry 1   messages: the answer with its calls     begun: those that begin once this is stored
    entry 2   settled: the result of one call, or of several that came together; begun: further calls
    entry 3   messages: the next answer ...

An entry is stored before what it says may happen. So a run that goes on, in this process or another, repeats no call
that has settled, and knows of each other call whether it may have had an effect. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .message import Message, ToolCall, Usage
from .session_records import Step
from .state import StateDelta

__all__ = ["Progress", "StepProgress"]


@dataclass(slots=True)
class StepProgress:
    """One answer and its calls, each named by its place: which have begun, were approved, and have their result.

    `heard` is the input that was taken in behind them, `span` the number of the span in which the answer came.
    """

    answer: Message
    begun: set[int] = field(default_factory=set[int])
    approved: set[int] = field(default_factory=set[int])
    settled: dict[int, Message] = field(default_factory=dict[int, Message])
    heard: list[Message] = field(default_factory=list[Message])
    span: int = 0

    @property
    def open(self) -> list[tuple[int, ToolCall]]:
        """The calls that have no result yet, with their places."""
        calls = self.answer.tool_calls
        return [(index, call) for index, call in enumerate(calls) if index not in self.settled]

    @property
    def messages(self) -> list[Message]:
        """The answer and the results that are there, in the order of the calls."""
        return [self.answer, *(self.settled[index] for index in sorted(self.settled))]


class Progress:
    """What the entries of a turn's journal come to.

    Attributes:
        entries: how many there are; the number of the latest.
        steps: each answer that asked for calls, or that input came behind, oldest first.
        heard_first: the input that was taken in before the first of them.
        state: the turn's state as of the latest entry.
        deltas: what the turn has changed in app, user and session, likewise.
        usage: tokens of the run, as of the latest answer that is journaled.
    """

    __slots__ = ("deltas", "entries", "heard_first", "state", "steps", "usage")

    def __init__(self, entries: Iterable[Step] = ()) -> None:
        self.entries = 0
        self.heard_first: list[Message] = []
        self.steps: list[StepProgress] = []
        self.state: dict[str, Any] = {}
        self.deltas: tuple[StateDelta, ...] = ()
        self.usage = Usage()
        for entry in entries:
            self.take(entry)

    def take(self, entry: Step) -> None:
        """The next entry was stored."""
        assert entry.number == self.entries + 1, "entries come one after the other"
        self.entries = entry.number
        if entry.messages:
            answer, *results = entry.messages  # results: of a callboard that journaled them with their answer
            self.steps.append(
                StepProgress(answer, settled=dict(enumerate(results[: len(answer.tool_calls)])), span=entry.span)
            )
        if entry.state is not None:
            self.state = entry.state
        if entry.deltas is not None:
            self.deltas = entry.deltas
        if entry.usage is not None:
            self.usage = entry.usage
        if entry.input:
            (self.steps[-1].heard if self.steps else self.heard_first).extend(entry.input)
            return
        assert self.steps, "the first entry has an answer, or input"
        step = self.steps[-1]
        step.begun.update(entry.begun)
        step.approved.update(entry.approved)
        step.settled.update(entry.settled)

    @property
    def open_step(self) -> StepProgress | None:
        """The latest step, where calls of it have no result yet."""
        step = self.steps[-1] if self.steps else None
        return step if step is not None and len(step.settled) < len(step.answer.tool_calls) else None

    @property
    def messages(self) -> list[Message]:
        """All of them, in the order that the API wants."""
        return [*self.heard_first, *(message for step in self.steps for message in (*step.messages, *step.heard))]
