"""The spans of one run while it goes on: what ran inside it, when, as part of what, and how it ended.

    the run ─┬─ model call                         parent 0
             │    └─ tool call that it asked for   parent: the model call
             │         └─ the tool's own spans     parent: whatever span of the run the code runs in
             └─ model call ...

Which span code runs in is known by a context variable: tasks and threads that are started inside of a span inherit it.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

from .limits import check_metadata, reason_of, storable_reason
from .message import Usage
from .run_record import SpanKind, SpanRecord, check_usage

__all__ = ["SPANS_MAX", "LiveSpan", "SpanLog", "current_span", "inside_span", "record_of_span"]

SPANS_MAX = 2_000
"""Of one turn: they are stored with its end, in one transaction. Model and tool calls have bounds of their own."""

_inside: ContextVar[tuple[tuple[str, int], ...]] = ContextVar("callboard_spans", default=())


@dataclass(slots=True)
class LiveSpan:
    """A span that has begun.

    Attributes:
        number: its number in the run; 0 where it is not kept, as one of too many.
        parent: the number of the span that it is part of, or 0.
        name, kind: what it is.
        started_at_ms, ended_at_ms: milliseconds since 1970, UTC; the end None while it goes on.
        failed: whether it ended as an error.
        usage: tokens, where it is a model call.
        attributes: JSON values, see `set`.
    """

    number: int
    name: str
    kind: SpanKind
    started_at_ms: int
    ended_at_ms: int | None = None
    failed: bool = False
    usage: Usage = field(default_factory=Usage)
    attributes: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    parent: int = 0

    def set(self, **attributes: Any) -> None:
        """Say more about it: `span.set(rows=3, cached=True)`. A later value takes the place of an earlier one.

        Raises:
            TypeError, ValueError: a value is not JSON, or all together are more than 64 KiB. Nothing changed.
        """
        self.attributes = check_metadata({**self.attributes, **attributes}, what="attributes")

    def fail(self, reason: str) -> None:
        """It ended as an error."""
        self.failed = True
        self.attributes["error"] = storable_reason(reason)


Around: TypeAlias = Callable[[LiveSpan], AbstractContextManager[None]]
_UNOBSERVED = nullcontext()


def current_span(run_id: str) -> int:
    """The number of the span of this run that the present task runs in; 0 where it runs in none."""
    return next((number for of_run, number in reversed(_inside.get()) if of_run == run_id), 0)


@contextmanager
def inside_span(run_id: str, number: int) -> Generator[None]:
    """What runs in the block, and the tasks that it starts, runs in this span."""
    before = _inside.get()
    _inside.set((*before, (run_id, number)))
    try:
        yield
    finally:
        _inside.set(before)


def record_of_span(run_id: str, span: LiveSpan) -> SpanRecord:
    """The span as it is stored.

    Raises:
        TypeError, ValueError: somebody made its usage or attributes into what cannot be stored.
    """
    return SpanRecord(
        run_id=run_id,
        number=span.number,
        name=span.name,
        kind=span.kind,
        started_at_ms=span.started_at_ms,
        parent=span.parent,
        ended_at_ms=span.ended_at_ms,
        status="error" if span.failed else "ok",
        attributes=check_metadata(span.attributes, what="attributes"),
        usage=check_usage(span.usage),
    )


class SpanLog:
    """Numbers spans in the order of their starts, behind the `earlier` ones that the run has from turns before.

    `wall_ms` is the time, in milliseconds since 1970. Any thread may begin and end spans.
    """

    def __init__(self, run_id: str, wall_ms: Callable[[], int], *, earlier: int = 0) -> None:
        self.earlier = earlier
        self._run_id = run_id
        self._wall_ms = wall_ms
        self._numbers = count(earlier + 1)
        self._spans: list[LiveSpan] = []
        self.latest_model_call = 0  # the number of its span, or 0
        self.around: Around | None = None  # for observers: of a user's own spans, as calls are observed by themselves

    @contextmanager
    def span(self, name: str, kind: SpanKind, *, parent: int | None = None) -> Generator[LiveSpan]:
        """A span around a block; what the block raises marks it as an error and goes on.

        `parent` None: the span of this run that the code runs in. Behind SPANS_MAX, spans of a user's own are not kept.
        """
        storable = storable_reason(name)  # a model may ask for a tool of any name
        if parent is None:
            parent = current_span(self._run_id)
        kept = kind != "custom" or len(self._spans) < SPANS_MAX
        live = LiveSpan(next(self._numbers) if kept else 0, storable, kind, self._wall_ms(), parent=parent)
        if kept:
            self._spans.append(live)
        if kind == "model":
            self.latest_model_call = live.number
        around = _UNOBSERVED if kind != "custom" or self.around is None else self.around(live)
        try:
            with inside_span(self._run_id, live.number or parent), around:
                try:
                    yield live
                except BaseException as error:
                    live.fail(reason_of(error))
                    raise
        finally:
            live.ended_at_ms = self._wall_ms()

    def finished(self) -> tuple[SpanRecord, ...]:
        """All spans as records; those that have not ended have no end."""
        return tuple(_storable(self._run_id, span) for span in self._spans)


def _storable(run_id: str, span: LiveSpan) -> SpanRecord:
    """The span as it is stored; what a user's code has made of its fields must not cost the turn."""
    try:
        return record_of_span(run_id, span)
    except (TypeError, ValueError) as error:
        span.usage, span.attributes = Usage(), {"error": storable_reason(f"its attributes are lost: {error}")}
        return record_of_span(run_id, span)
