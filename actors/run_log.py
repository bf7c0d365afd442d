"""Runs in the log: a RunObserver that writes records with fields, for handlers that can read them.

    runtime.observe_runs(RunLog())

| message | level | fields beside run_id, session_id, agent, turn |
|---|---|---|
| run started | INFO | model |
| run completed, waiting, ... | INFO | status, duration_ms, attempts, model_calls, tool_calls, tokens, error_type |
| run failed | WARNING | likewise |
| attempt failed | WARNING | error_type, delay_s |
| model called | DEBUG | model, duration_ms, tokens in and out, finish_reason, request_id, error_type |
| tool called | DEBUG | tool, call_id, duration_ms, error_type |
| span ended | DEBUG | span, duration_ms, error_type |

No record holds what was said: no message, no argument, no result, and no error's text either, since it may quote one.
With `content=True` the last is there as `reason`, and a tool call has its `arguments` and `result`.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from .limits import reason_of
from .run_observing import ObservedModelCall, ObservedRun, ObservedToolCall, RunObserver
from .spans import LiveSpan

__all__ = ["RunLog"]

_FIELDS_MAX_CHARS = 4_000
"""Of what was said so much is logged, where it is at all: a log is no archive, the session is."""


class RunLog(RunObserver):
    """Logs runs to a logger of the standard library.

    Args:
        logger: where to; None: "callboard.run".
        content: whether records may hold what was said.
    """

    def __init__(self, logger: logging.Logger | None = None, *, content: bool = False) -> None:
        self._logger = logger or logging.getLogger("callboard.run")
        self._content = content

    @contextmanager
    def run(self, run: ObservedRun, /) -> Generator[None]:
        began_s = perf_counter()
        self._tell(logging.INFO, "run started", run, model=run.model)
        yield
        self._tell(
            logging.WARNING if run.status == "failed" else logging.INFO,
            f"run {run.status}",
            run,
            run.error,
            status=run.status,
            duration_ms=_ms_since(began_s),
            attempts=run.attempts,
            model_calls=run.model_calls,
            tool_calls=run.tool_calls,
            tokens=run.usage.total_tokens,
        )

    @contextmanager
    def model_call(self, call: ObservedModelCall, /) -> Generator[None]:
        began_s = perf_counter()
        yield
        fields: dict[str, Any] = {"model": call.request.settings.model or call.model.name}
        if call.answer is not None:
            usage = call.answer.usage
            fields |= {
                "model": call.answer.model or fields["model"],
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
                "finish_reason": call.answer.finish_reason,
                "request_id": call.answer.request_id,
            }
        duration_ms = _ms_since(began_s)
        self._tell(logging.DEBUG, "model called", call.run, call.error, duration_ms=duration_ms, **fields)

    @contextmanager
    def tool_call(self, call: ObservedToolCall, /) -> Generator[None]:
        began_s = perf_counter()
        yield
        fields: dict[str, Any] = {"tool": call.call.name, "call_id": call.call.id, "duration_ms": _ms_since(began_s)}
        if self._content:
            fields["arguments"] = call.call.arguments[:_FIELDS_MAX_CHARS]
            fields["result"] = None if call.result is None else call.result.content[:_FIELDS_MAX_CHARS]
        if call.error is None and call.result is not None and call.result.is_error:
            fields["error_type"] = "tool_error"  # no tool of this name, or a result that is too large
        self._tell(logging.DEBUG, "tool called", call.run, call.error, **fields)

    @contextmanager
    def span(self, run: ObservedRun, span: LiveSpan, /) -> Generator[None]:
        began_s = perf_counter()
        yield
        failed = "error" if span.failed else None
        self._tell(logging.DEBUG, "span ended", run, span=span.name, duration_ms=_ms_since(began_s), error_type=failed)

    def attempt_failed(self, run: ObservedRun, error: Exception, reason: str, delay_s: float, /) -> None:
        self._tell(logging.WARNING, "attempt failed", run, error, delay_s=delay_s)

    def _tell(
        self, level: int, message: str, run: ObservedRun, error: BaseException | None = None, **fields: Any
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        if error is not None:
            fields["error_type"] = type(error).__qualname__
            if self._content:
                fields["reason"] = reason_of(error)
        ids = {"run_id": run.id, "session_id": run.session_id, "agent": run.agent, "turn": run.turn}
        self._logger.log(level, message, extra=ids | fields)


def _ms_since(began_s: float) -> int:
    return round((perf_counter() - began_s) * 1000)
