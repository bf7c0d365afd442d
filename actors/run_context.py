"""Which run goes on in this task: what puts a run's ids on all log records that are made in it, whoever makes them.

    handler.addFilter(RunIdsFilter())

A record then has `run_id`, `session_id`, `agent` and `turn`, be it from a tool, from an HTTP client below a model, or
from callboard; outside of runs they are None. Tasks and threads that a run starts inherit them.

Source: the logging cookbook, "Using Filters to impart contextual information".
"""

import contextvars
import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["JSONFormatter", "RunIds", "RunIdsFilter", "current_run", "enter_run"]


class RunIds(Struct, frozen=True, gc=False):
    """A run that goes on. `session_id` is None and `turn` 0 for one without a session."""

    run_id: str
    session_id: str | None
    agent: str
    turn: int


_current: contextvars.ContextVar[RunIds | None] = contextvars.ContextVar("callboard_run", default=None)


def current_run() -> RunIds | None:
    """The run that this code is a part of; None outside of runs."""
    return _current.get()


def enter_run(ids: RunIds) -> None:
    """What this task does from now on is a part of this run. For Execution, whose task is the run's own."""
    _current.set(ids)


class RunIdsFilter(logging.Filter):
    """Lets every record pass, with the ids of the run in which it was made; one that has some of them keeps those."""

    def filter(self, record: logging.LogRecord) -> bool:
        ids = _current.get()
        for name in RunIds.__struct_fields__:
            if not hasattr(record, name):
                setattr(record, name, None if ids is None else getattr(ids, name))
        return True


_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has: all else was given as `extra`, or by a filter."""


class JSONFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, `exception`, and what a record has beside these.

    Fields that are None are left out; what JSON has no form for is shown as its repr.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN and value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()
