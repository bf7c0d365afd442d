"""The spans of one run while it goes on: what ran inside it, when, and how it ended."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .limits import reason_of, storable_reason
from .message import Usage
from .run_record import SpanKind, SpanRecord

__all__ = ["LiveSpan", "SpanLog"]


@dataclass(slots=True)
class LiveSpan:
    """A span that has begun. Attributes are JSON values; `usage` is for model calls."""

    number: int
    name: str
    kind: SpanKind
    started_at_ms: int
    ended_at_ms: int | None = None
    failed: bool = False
    usage: Usage = field(default_factory=Usage)
    attributes: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())

    def fail(self, reason: str) -> None:
        """It ended as an error."""
        self.failed = True
        self.attributes["error"] = storable_reason(reason)


class SpanLog:
    """Numbers spans in the order of their starts, behind the `earlier` ones that the run has from turns before.

    `wall_ms` is the time, in milliseconds since 1970.
    """

    def __init__(self, run_id: str, wall_ms: Callable[[], int], *, earlier: int = 0) -> None:
        self._earlier = earlier
        self._run_id = run_id
        self._wall_ms = wall_ms
        self._spans: list[LiveSpan] = []

    @contextmanager
    def span(self, name: str, kind: SpanKind) -> Generator[LiveSpan]:
        """A span around a block; what the block raises marks it as an error and goes on."""
        storable = storable_reason(name)  # a model may ask for a tool of any name
        live = LiveSpan(self._earlier + len(self._spans) + 1, storable, kind, self._wall_ms())
        self._spans.append(live)
        try:
            yield live
        except BaseException as error:
            live.fail(reason_of(error))
            raise
        finally:
            live.ended_at_ms = self._wall_ms()

    def finished(self) -> tuple[SpanRecord, ...]:
        """All spans as records; those that have not ended have no end."""
        return tuple(
            SpanRecord(
                run_id=self._run_id,
                number=span.number,
                name=span.name,
                kind=span.kind,
                started_at_ms=span.started_at_ms,
                ended_at_ms=span.ended_at_ms,
                status="error" if span.failed else "ok",
                attributes=span.attributes,
                usage=span.usage,
            )
            for span in self._spans
        )
