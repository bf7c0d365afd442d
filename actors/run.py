"""A run that the user drives by hand: `run = await session.create_run()`, then start, trace, and complete or fail."""

import logging
from contextlib import ExitStack
from types import TracebackType
from typing import get_args

import anyio
from msgspec.structs import replace

from ..runtime.ref import Ref
from ..store.errors import CallboardError
from .ledger import RunEnd
from .limits import check_agent_name, reason_of
from .message import Usage
from .persistence import persist
from .run_record import RunRecord, RunStatus, SpanKind, SpanRecord, check_usage
from .session_messages import BeginSpan, EndSpan, MoveRun, ReadRun, ReadSpans
from .spans import LiveSpan, current_span, inside_span, record_of_span

__all__ = ["Run", "Trace"]

_log = logging.getLogger("callboard.session")


class Run:
    """A handle on one run. What it shows is as of the last call made with it; `refresh` looks again."""

    def __init__(self, session: Ref, record: RunRecord) -> None:
        self._session = session
        self._record = record

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.status}>"

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def status(self) -> RunStatus:
        """queued, running, waiting, completed, failed, cancelled, interrupted."""
        return self._record.status

    @property
    def duration_ms(self) -> int | None:
        """Milliseconds from its start to its end; None while it has not ended. Time before the start does not count."""
        return self._record.duration_ms

    @property
    def record(self) -> RunRecord:
        """All that is stored about it."""
        return self._record

    async def start(self) -> None:
        """It runs from now on.

        Raises:
            InvalidTransition: it ran already, or has ended. It stays as it is; so with the methods below.
        """
        await self._move(RunEnd("running"))

    async def complete(self, *, tokens_used: int = 0, usage: Usage | None = None) -> None:
        """It has ended well. Give `usage`, or only the sum of tokens."""
        await self._move(RunEnd("completed", usage=check_usage(usage or Usage(total_tokens=tokens_used))))

    async def fail(self, error: BaseException | str) -> None:
        """It has failed, and this is why."""
        reason = reason_of(error) if isinstance(error, BaseException) else error
        if not isinstance(reason, str) or not reason:  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise ValueError("a run fails with a reason: pass an exception or a text that is not empty")
        await self._move(RunEnd("failed", reason))

    async def cancel(self, reason: str = "cancelled by hand") -> None:
        """It was given up."""
        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a reason must be a string, not {reason!r}")
        await self._move(RunEnd("cancelled", reason))

    def trace(self, name: str, *, kind: SpanKind = "custom") -> "Trace":
        """A piece of work in the run: `async with run.trace("fetch") as span: span.set(rows=3)`.

        It is part of the span that the code runs in, where that is one of this run; tasks that are started inside
        inherit that. An exception marks it as an error, and goes on.

        Args:
            name: 1 to 200 bytes.
            kind: "model", "tool" or "commit" for what is such a thing; of a model call, set `span.usage`.

        Raises:
            TypeError, ValueError: the name or the kind is no good.
            InvalidTransition: (on entering) the run has not been started, or has ended.

        Cost: two commits, which are shared with others. It is stored when it begins: what a crash cuts off is there,
            without an end.
        """
        return Trace(self._session, self.id, check_agent_name(name, what="span name"), kind)

    async def spans(self) -> list[SpanRecord]:
        """All its spans, in the order of their starts."""
        return await self._session.ask(ReadSpans(self.id))

    async def refresh(self) -> None:
        """Look at what is stored now."""
        self._record = await self._session.ask(ReadRun(self.id))

    async def _move(self, end: RunEnd) -> None:
        self._record = await self._session.ask(MoveRun(self.id, end))


class Trace:
    """A span around a block, see `Run.trace`. It is entered once."""

    def __init__(self, session: Ref, run_id: str, name: str, kind: SpanKind) -> None:
        if kind not in get_args(SpanKind):
            raise ValueError(f"there is no kind {kind!r} of spans: use one of {', '.join(get_args(SpanKind))}")
        self._session = session
        self._begin = BeginSpan(run_id, name, kind, 0)
        self._span: LiveSpan | None = None
        self._inside = ExitStack()

    async def __aenter__(self) -> LiveSpan:
        """The span has begun, and is stored."""
        if self._span is not None:
            raise RuntimeError("a trace is one span and is entered once: call run.trace() again for another")
        run_id = self._begin.run_id
        begun = await self._session.ask(replace(self._begin, parent=current_span(run_id)))
        self._span = LiveSpan(begun.number, begun.name, begun.kind, begun.started_at_ms, parent=begun.parent)
        self._inside.enter_context(inside_span(run_id, begun.number))
        return self._span

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Store how it ended. Where that fails, what the block raised goes before; a cancellation waits for it."""
        assert self._span is not None
        self._inside.close()
        if error is not None:
            self._span.fail(reason_of(error))
        end = EndSpan(record_of_span(self._begin.run_id, self._span))
        try:
            with anyio.CancelScope(shield=True):  # a span of work that was cut off has an end, too
                self._span.ended_at_ms = (await persist(lambda: self._session.ask(end))).ended_at_ms
        except CallboardError as failure:
            if error is None:
                raise
            _log.warning("the end of span %r of run %s is not stored: %s", end.span.name, end.span.run_id, failure)
