"""What is kept about a run and its spans, and the table of where a run may go from where it is.

    queued ──► running ◄──► waiting          waiting: for a retry's backoff, a person, a slot
      │           │            │
      └───────────┴────────────┴──► failed | cancelled | interrupted ──► running, where it is resumed
                  └────────────┴──► completed

A status is a plain word, not an Enum: it is stored, exported and shown as it is, and type checkers know the words.
"""

from types import MappingProxyType
from typing import Any, Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from .approvals import ApprovalRequest
from .errors import InvalidTransition
from .message import COUNT_MAX, Message, Usage

__all__ = [
    "OPEN",
    "RUN_STATUSES",
    "TRANSITIONS",
    "RunRecord",
    "RunStatus",
    "SpanKind",
    "SpanRecord",
    "advance",
    "check_usage",
]

RunStatus = Literal["queued", "running", "waiting", "completed", "failed", "cancelled", "interrupted"]
RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)

_UNFINISHED: frozenset[RunStatus] = frozenset({"failed", "cancelled", "interrupted"})
_NONE: frozenset[RunStatus] = frozenset()

_FOLLOWERS: dict[RunStatus, frozenset[RunStatus]] = {
    "queued": _UNFINISHED.union(("running",)),
    "running": _UNFINISHED.union(("waiting", "completed")),
    "waiting": _UNFINISHED.union(("running", "completed")),
    "completed": _NONE,
    "failed": _NONE,
    "cancelled": _NONE,
    "interrupted": frozenset(("running",)),
}
TRANSITIONS = MappingProxyType(_FOLLOWERS)
"""From each status to those that may follow it. A run without a follower never changes again."""

OPEN: frozenset[RunStatus] = frozenset(("queued", "running", "waiting"))
"""The statuses of a run that has not ended. At start-up such runs of an earlier process are marked interrupted, unless
they wait for an approval."""


class RunRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="run"):
    """One execution of one agent in one turn, as stored. Times are milliseconds since 1970, UTC.

    Attributes:
        id: unique in the whole store.
        session_id: the session that it ran in.
        agent: the agent's name; "" for a run made by hand without one.
        turn: the turn's number in its session; 0 while it has none.
        status: see TRANSITIONS.
        attempts: how often it was started; 0 while queued.
        created_at_ms: when it was asked for.
        started_at_ms: when it first ran, or None.
        ended_at_ms: when it ended, or None.
        usage: tokens of all its model calls, those of failed attempts too.
        error: why it failed, was cancelled or interrupted, or what it waits to recover from; else None.
        input: what it was asked, kept also where a failed turn left no trace in history.
        model: the model's name, or "".
        first_seq: place of its first message in the session's history; 0 where it wrote none.
        last_seq: place of its last message; 0 where it wrote none.
        manual: True where the user drives it (`session.create_run()`), so that no supervisor does.
        pending: the tool calls that it waits to have approved; `agent.resume` goes on with it.
        journal: the number of the turn in which it began, where it went on in a later one; else 0.
        finish_reason: the server's word for why its last answer ended, or "".
        heard: the input that it took in while it ran (`overlap="steer"`); part of `input` where it ended without an
            answer.
        joined: the run into which its input was merged or taken, which answers it; else "".
        keep_input: True where its input stands in history also without an answer.
        input_seq: place of its input's first message in history, where that stands there before the run has written
            it: kept from an earlier turn of it, or from the run that it retries. Else 0.
        retry_of: the first run with this input, where this one tries it again; else "".
        partial: True where it was stopped and what it had done stands in history.
        submitted: True where it goes on without a caller: it was submitted, or a submission has joined it.
    """

    id: str
    session_id: str
    created_at_ms: int
    agent: str = ""
    turn: int = 0
    status: RunStatus = "queued"
    attempts: int = 0
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    usage: Usage = Usage()
    error: str | None = None
    input: tuple[Message, ...] = ()
    model: str = ""
    first_seq: int = 0
    last_seq: int = 0
    manual: bool = False
    pending: tuple[ApprovalRequest, ...] = ()
    journal: int = 0
    finish_reason: str = ""
    joined: str = ""
    heard: tuple[Message, ...] = ()
    keep_input: bool = False
    input_seq: int = 0
    retry_of: str = ""
    partial: bool = False
    submitted: bool = False

    @property
    def journal_turn(self) -> int:
        """The turn under whose number its steps are journaled."""
        return self.journal or self.turn

    @property
    def is_open(self) -> bool:
        """True until the run has ended."""
        return self.status in OPEN

    @property
    def duration_ms(self) -> int | None:
        """From its first start to its end, so without the queue; None where it has not started or not ended."""
        if self.started_at_ms is None or self.ended_at_ms is None:
            return None
        return self.ended_at_ms - self.started_at_ms


def check_usage(usage: object) -> Usage:
    """The usage, all of whose counts are whole numbers from 0 to 2**53, as is its cost but for being a fraction.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if not isinstance(usage, Usage):
        raise TypeError(f"usage must be a Usage, not {type(usage).__name__}: Usage(total_tokens=150)")
    for name in usage.__struct_fields__:
        count: object = getattr(usage, name)
        if type(count) is not int and not (name == "cost" and type(count) is float):
            raise TypeError(f"usage.{name} must be a whole number, not {type(count).__name__}")
        if not 0 <= count <= COUNT_MAX:
            raise ValueError(f"usage.{name} must be from 0 to 2**53, not {count}")
    return usage


def advance(
    record: RunRecord,
    status: RunStatus,
    *,
    at_ms: int,
    usage: Usage | None = None,
    error: str | None = None,
    attempts: int | None = None,
) -> RunRecord:
    """The record in its next status.

    Args:
        record: where the run is.
        status: where it goes.
        at_ms: the time now. A clock that was set back never makes a run end before it started.
        usage: what was spent since the last call; it is added.
        error: the reason; needed for "failed", refused for "completed". It replaces the reason that the record has.
        attempts: the number of the attempt that begins; None leaves it, and counts the first start as 1.

    Raises:
        InvalidTransition: the run cannot go there; `record` is still what holds.
        ValueError: "failed" without a reason, or "completed" with one.
    """
    if status not in TRANSITIONS[record.status]:
        raise InvalidTransition(record.id, status=record.status, wanted=status)
    if status == "failed" and not error:
        raise ValueError(f"run {record.id!r} cannot fail without a reason: pass error=")
    if status == "completed" and error is not None:
        raise ValueError(f"run {record.id!r} cannot complete with the error {error!r}: fail it, or leave error out")
    started_at_ms = record.started_at_ms
    if status == "running" and started_at_ms is None:
        started_at_ms = max(at_ms, record.created_at_ms)
        attempts = 1 if attempts is None else attempts
    earliest_ms = record.created_at_ms if started_at_ms is None else started_at_ms
    return replace(
        record,
        status=status,
        started_at_ms=started_at_ms,
        ended_at_ms=None if status in OPEN else max(at_ms, earliest_ms),
        attempts=record.attempts if attempts is None else attempts,
        usage=record.usage if usage is None else record.usage + usage,
        error=error,
    )


SpanKind = Literal["model", "tool", "commit", "custom"]


class SpanRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="span"):
    """One model call, tool call, commit or piece of the user's own work inside a run, as stored.

    Attributes:
        run_id: the run that it belongs to.
        number: its number in the run, from 1, in the order of their starts.
        parent: the number of the span that it is part of, or 0.
        name: what ran: the model's or the tool's name, or the user's word.
        kind: what sort of work it is.
        started_at_ms: milliseconds since 1970, UTC.
        ended_at_ms: the same, or None where it was cut off.
        status: "ok", or "error" with the reason in `attributes["error"]`.
        attributes: JSON values.
        usage: tokens of a model call; zero for the others.
    """

    run_id: str
    number: int
    name: str
    kind: SpanKind
    started_at_ms: int
    parent: int = 0
    ended_at_ms: int | None = None
    status: Literal["ok", "error"] = "ok"
    attributes: dict[str, Any] = {}
    usage: Usage = Usage()

    @property
    def duration_ms(self) -> int | None:
        """From start to end, or None where it was cut off."""
        return None if self.ended_at_ms is None else self.ended_at_ms - self.started_at_ms
