"""Seeing what runs do: in logs, and by observers of your own. Spans and metrics: `callboard.otel`.

    handler = logging.StreamHandler()
    handler.addFilter(RunIdsFilter())           # run_id, session_id, agent and turn on all records made in a run
    handler.setFormatter(JSONFormatter())
    runtime.observe_runs(RunLog())              # records of runs, model calls and tool calls, to "callboard.run"

No record holds what was said, unless asked for: `RunLog(content=True)`.
"""

from callboard.actors.run_context import JSONFormatter, RunIds, RunIdsFilter, current_run
from callboard.actors.run_log import RunLog
from callboard.actors.run_observing import ObservedModelCall, ObservedRun, ObservedToolCall, RunObserver

__all__ = [
    "JSONFormatter",
    "ObservedModelCall",
    "ObservedRun",
    "ObservedToolCall",
    "RunIds",
    "RunIdsFilter",
    "RunLog",
    "RunObserver",
    "current_run",
]
