"""Errors of conversations and models.

CallboardError                      callboard.store.errors draws the whole tree
├─ Rejected ── Busy                 a turn is running and the caller did not want to queue
│            └ Superseded           a newer input took this one's place before its turn came
├─ KeyReused                        also a ValueError: the idempotency key stands for another request
├─ Failed ── RunFailed              a run ended as failed; the cause is chained
│            └─ BudgetExceeded      it was stopped, since what it may spend is spent
├─ InvalidTransition                a run cannot go from where it is to where it was told to
├─ UnknownRun                       no such run in this session
├─ UnknownSession                   no such session, or it was deleted
├─ SessionExists                    there is a session of this id already
├─ TooLarge                         also a ValueError: the session's metadata, or its edits, would be more than fits
├─ EmbedderMismatch                 also a ValueError: its vectors do not go with those of a memory
├─ NotCompacted                     no summary could be made, or history changed under it; it is as it was
├─ StaleTurn                        the turn is over: what came late was refused
├─ ApprovalRequired                 the run waits, stored, until somebody approves or denies its calls
└─ ModelError
   ├─ RateLimited                   transient: too many requests or tokens for now
   ├─ ModelUnavailable              transient: refused, reset, 5xx, timed out
   ├─ Stalled                       transient: no progress for too long
   ├─ BadResponse                   transient: an answer that is no answer
   │  └─ Truncated                  a stream that ended without a finish_reason
   ├─ BadRequest                    permanent: the server refuses this request
   │  └─ ContextOverflow            permanent: more tokens than the model takes
   ├─ BadOutput(text, problem)      permanent: the answer is not what `output=` asks for, repairs included
   │  └─ Refusal                    permanent: the model will not answer
   └─ Refused                       permanent: credentials, permission, quota
"""

from ..runtime.errors import Failed, Rejected
from ..store.errors import CallboardError
from .approvals import ApprovalRequest
from .budgets import Exceeded

__all__ = [
    "ApprovalRequired",
    "BadOutput",
    "BadRequest",
    "BadResponse",
    "BudgetExceeded",
    "Busy",
    "ContextOverflow",
    "EmbedderMismatch",
    "InvalidTransition",
    "KeyReused",
    "ModelError",
    "ModelUnavailable",
    "NotCompacted",
    "RateLimited",
    "Refusal",
    "Refused",
    "RunFailed",
    "SessionExists",
    "StaleTurn",
    "Stalled",
    "Superseded",
    "TooLarge",
    "Truncated",
    "UnknownRun",
    "UnknownSession",
]


class Busy(Rejected):
    """A turn is running on the session and the caller chose `overlap="reject"`. Nothing ran."""

    def __init__(self, session_id: str, *, run_id: str, queue_length: int, full: bool = False) -> None:
        advice = "wait for some of them to end" if full else 'wait and try again, or use overlap="queue"'
        super().__init__(
            f"session {session_id!r} is busy with run {run_id!r} and {queue_length} more are queued: {advice}"
        )
        self.session_id = session_id
        self.run_id = run_id
        self.queue_length = queue_length


class Superseded(Rejected):
    """A newer input, with `overlap="latest"` as well, took this one's place in the queue. Nothing ran."""

    def __init__(self, run_id: str, *, by: str) -> None:
        super().__init__(f"run {run_id!r} never began: the newer run {by!r} took its place")
        self.run_id = run_id
        self.by = by


class KeyReused(CallboardError, ValueError):
    """The idempotency key was used for another request, which run `run_id` answers. Nothing ran."""

    def __init__(self, key: str, *, run_id: str) -> None:
        super().__init__(
            f"key {key!r} stands for another request, that of run {run_id!r}: give each request its own key, and send "
            "the very same input where you repeat one"
        )
        self.key = key
        self.run_id = run_id


class InvalidTransition(CallboardError):
    """A run cannot go from its status to the one asked for; it stays as it is."""

    def __init__(self, run_id: str, *, status: str, wanted: str) -> None:
        super().__init__(f"run {run_id!r} is {status!r} and cannot become {wanted!r}")
        self.run_id = run_id
        self.status = status
        self.wanted = wanted


class UnknownRun(CallboardError):
    """The session has no run of this id."""


class UnknownSession(CallboardError):
    """There is no session of this id, or it was deleted meanwhile."""


class SessionExists(CallboardError):
    """There is a session of this id already, and it is left as it is. Nothing was stored."""


class TooLarge(CallboardError, ValueError):
    """With this change the session's metadata, or what edits left of its history, would be larger than fits. Nothing
    was changed."""


class EmbedderMismatch(CallboardError, ValueError):
    """Vectors that an embedder gave cannot be compared with each other, or with those of the memory, which another
    embedder made. Nothing was stored."""


class NotCompacted(CallboardError):
    """A summary was not taken, for the `reason` that it tells: history is shown without it. Trying again may help."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no summary was made: {reason}")
        self.reason = reason


class StaleTurn(CallboardError):
    """The turn is over (interrupted, deleted, or lost with a crash): what came late was refused and not stored."""


class ApprovalRequired(CallboardError):
    """The run has paused, since calls of it need an approval and no approver gave one. It is stored, as "waiting".

    Go on, here or in another process, with `agent.resume(run_id, approve=...)`, or end it with `agent.cancel_run`.
    """

    def __init__(self, run_id: str, calls: tuple[ApprovalRequest, ...], *, reason: str = "") -> None:
        names = ", ".join(call.tool for call in calls)
        text = f"run {run_id!r} waits for an approval of {names}: agent.resume({run_id!r}, approve=...)"
        super().__init__(f"{text} (the approver failed: {reason})" if reason else text)
        self.run_id = run_id
        self.calls = calls


class RunFailed(Failed):
    """A run ended as failed. `run_id` finds its record, `__cause__` is the error; history is as before the turn."""

    def __init__(self, run_id: str, reason: str) -> None:
        super().__init__(f"run {run_id!r} failed: {reason}")
        self.run_id = run_id
        self.reason = reason


class BudgetExceeded(RunFailed):
    """A run was stopped before a model call, as a bound of its budget, or of a Spending, is reached.

    Attributes:
        exceeded: which bound, how much it allows, and how much is spent.
        partial: True where what was done stands in history (Budget.keep_partial).
    """

    def __init__(self, run_id: str, exceeded: Exceeded, *, partial: bool = False) -> None:
        super().__init__(run_id, str(exceeded))
        self.exceeded = exceeded
        self.partial = partial


class ModelError(CallboardError):
    """The model's server did not give a usable answer.

    Attributes:
        transient: True where the same request may succeed later.
        status: the HTTP status, or None where there was none.
        request_id: the server's name for the request, for its support desk; None where it gave none.
        retry_after_s: how many seconds the server wants to be left alone; None where it said nothing.
        should_retry: the server's own word for whether another try helps (x-should-retry); None where it said nothing.
        tries: how many requests the client made before it gave up, each of which may be billed.
    """

    transient = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        tries: int = 1,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.tries = tries


class RateLimited(ModelError):
    """Too many requests or tokens for now."""

    transient = True


class ModelUnavailable(ModelError):
    """No connection, a connection that broke, a timeout, or a server's own failure (5xx)."""

    transient = True


class Stalled(ModelError):
    """The stream is open and nothing of use has come for the progress timeout."""

    transient = True


class BadResponse(ModelError):
    """The server answered with something that is not an answer of this API."""

    transient = True


class Truncated(BadResponse):
    """The stream ended without a finish_reason: what came is a fragment, not an answer."""


class BadRequest(ModelError):
    """The server refuses the request as it stands; sending it again would not help."""


class ContextOverflow(BadRequest):
    """The messages are more tokens than the model takes."""


class Refused(ModelError):
    """The key, its permissions or its quota do not allow this."""


class BadOutput(ModelError):
    """The model answered, and the answer is not what `output=` asks for. `text` is the answer, `problem` what is wrong
    with it, in words for the model."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(f"the answer is not the output asked for: {problem}")
        self.text = text
        self.problem = problem


class Refusal(BadOutput):
    """The model, or its server's filter, will not answer. `text` is what was said instead; asking again is no use."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text, problem)
        self.args = (f"the model will not answer: {problem}",)
