"""Who is told what runs do, for spans, metrics and logs: a RunObserver. With none there, a run looks at an empty tuple.

An observer is asked for a context manager around each run, each model call, each tool call and each span that a tool
makes of its own. It is entered and left
in the task that does the work, so what it makes current there (an OpenTelemetry span, a logging context) holds for all
that the work does: HTTP requests, a tool's own code, runs that the tool starts. What came of the work is in the object
that it was given, when it is left.

What an observer raises is logged and disturbs nobody. It never sees the work's exception raised: that is in `error`.

Source: Erlang's telemetry (`span/3`); OpenTelemetry (context propagation).
"""

import contextvars
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

from .message import Message, ToolCall, Usage
from .model import Delta, Model, ModelAnswer, ModelRequest, OnDelta
from .run_record import RunStatus
from .spans import LiveSpan
from .tools import ToolResult

__all__ = ["ObservedModelCall", "ObservedRun", "ObservedToolCall", "RunObserver", "RunObservers"]

_log = logging.getLogger("callboard.runtime")


@dataclass(slots=True, eq=False)
class ObservedRun:
    """A run in one turn. `model` is the name that is asked for; `input` and `output` are content; `caller` is the
    context of the code that asked for the run, which waits elsewhere: its span is the run's parent.

    When it is left: `status` is what it became (where it is "completed", it is durable), `error` what was raised,
    `usage` and `attempts` are those of the whole run, `output` is the answer.
    """

    observers: "tuple[RunObserver, ...]"
    id: str
    session_id: str | None
    agent: str
    model: str
    turn: int
    input: tuple[Message, ...]
    caller: contextvars.Context | None = None
    status: RunStatus = "running"
    error: BaseException | None = None
    usage: Usage = field(default_factory=Usage)
    attempts: int = 1
    model_calls: int = 0
    tool_calls: int = 0
    output: Message | None = None

    def observe(self) -> AbstractContextManager[None]:
        """All that the run does."""
        return _observed(self.observers, lambda observer: observer.run(self))

    async def complete(self, model: Model, request: ModelRequest, on_delta: OnDelta | None) -> ModelAnswer:
        """Ask the model, with the observers around it."""
        self.model_calls += 1
        call = ObservedModelCall(self, model, request, streamed=on_delta is not None)
        with _observed(self.observers, lambda observer: observer.model_call(call)):
            return await call.carry_out(on_delta)

    async def call_tool(
        self, call: ToolCall, carry_out: Callable[[], Awaitable[ToolResult]], *, known: bool
    ) -> ToolResult:
        """Call a tool, with the observers around it."""
        self.tool_calls += 1
        observed = ObservedToolCall(self, call, known)
        with _observed(self.observers, lambda observer: observer.tool_call(observed)):
            try:
                observed.result = await carry_out()
            except BaseException as error:
                observed.error = error
                raise
            observed.error = observed.result.cause
            return observed.result

    def span(self, span: LiveSpan) -> AbstractContextManager[None]:
        """A piece of the user's own work."""
        return _observed(self.observers, lambda observer: observer.span(self, span))

    def attempt_failed(self, error: Exception, reason: str, delay_s: float) -> None:
        """Another attempt follows."""
        for observer in self.observers:
            _guarded(partial(observer.attempt_failed, self, error, reason, delay_s))


@dataclass(slots=True, eq=False)
class ObservedModelCall:
    """One call of a model. `request` and `answer` hold content.

    When it is left: `answer`, or `error` where there is none; `first_delta_s` is when the first piece of the answer
    came, in seconds from the beginning, where it was streamed.
    """

    run: ObservedRun
    model: Model
    request: ModelRequest
    streamed: bool
    answer: ModelAnswer | None = None
    error: BaseException | None = None
    first_delta_s: float | None = None

    async def carry_out(self, on_delta: OnDelta | None) -> ModelAnswer:
        """Make the call, and keep what comes of it."""
        began_s = perf_counter()

        def heard(delta: Delta) -> None:
            assert on_delta is not None, "a call that is not streamed has no pieces"
            if self.first_delta_s is None:
                self.first_delta_s = perf_counter() - began_s
            on_delta(delta)

        try:
            self.answer = await self.model.complete(self.request, on_delta=None if on_delta is None else heard)
        except BaseException as error:
            self.error = error
            raise
        return self.answer


@dataclass(slots=True, eq=False)
class ObservedToolCall:
    """One call of a tool, `known` where there is one of this name. `call.arguments` and `result.content` are content.

    When it is left: `result` is what the model will read, and `error` what the tool raised, where it did.
    """

    run: ObservedRun
    call: ToolCall
    known: bool = True
    result: ToolResult | None = None
    error: BaseException | None = None


class RunObserver:
    """Derive from this, and override what is of interest. Methods are plain and short: they run on the event loop."""

    def run(self, run: ObservedRun, /) -> AbstractContextManager[object]:
        """Around a run, from when it has its turn until that is over."""
        return nullcontext()

    def model_call(self, call: ObservedModelCall, /) -> AbstractContextManager[object]:
        """Around a model call, retries of its client included."""
        return nullcontext()

    def tool_call(self, call: ObservedToolCall, /) -> AbstractContextManager[object]:
        """Around a tool call."""
        return nullcontext()

    def span(self, run: ObservedRun, span: LiveSpan, /) -> AbstractContextManager[object]:
        """Around a piece of a tool's own work, `context.span("name")`, in the task or thread that does it."""
        return nullcontext()

    def attempt_failed(self, run: ObservedRun, error: Exception, reason: str, delay_s: float, /) -> None:
        """An attempt of the run has failed, and another follows in `delay_s` seconds."""


class RunObservers:
    """Who observes the runs of a runtime: `each` of them."""

    __slots__ = ("each",)

    def __init__(self) -> None:
        self.each: tuple[RunObserver, ...] = ()

    def add(self, observer: RunObserver) -> None:
        """Runs that begin from now on are observed by it; one that is there already is there once.

        Raises:
            TypeError: it is no RunObserver.
        """
        if not isinstance(observer, RunObserver):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"whoever observes runs derives from RunObserver, unlike {observer!r}")
        if not any(each is observer for each in self.each):
            self.each = (*self.each, observer)

    def remove(self, observer: RunObserver) -> None:
        """Runs that begin from now on are not observed by it."""
        self.each = tuple(each for each in self.each if each is not observer)


@contextmanager
def _observed(
    observers: tuple[RunObserver, ...], around: Callable[[RunObserver], AbstractContextManager[object]]
) -> Generator[None]:
    entered: list[AbstractContextManager[object]] = []
    for observer in observers:
        _guarded(partial(_enter, around, observer, entered))
    try:
        yield
    finally:
        for manager in reversed(entered):
            _guarded(partial(manager.__exit__, None, None, None))


def _enter(
    around: Callable[[RunObserver], AbstractContextManager[object]],
    observer: RunObserver,
    entered: list[AbstractContextManager[object]],
) -> None:
    manager = around(observer)
    manager.__enter__()
    entered.append(manager)


def _guarded(tell: Callable[[], object]) -> None:
    try:
        tell()
    except Exception:  # noqa: BLE001 - a user's code: see the module's text
        _log.exception("a run's observer raised")
