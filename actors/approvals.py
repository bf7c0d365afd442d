"""Tool calls that a person, or a program in their place, must approve before they run: what is asked, what is said.

    needs approval ──► an approver is there: it decides in place, while the turn waits
                   └─► none is, or it fails: the run pauses, stored, and gives its turn back;
                       agent.resume(run_id, approve=...) goes on

A verdict is True, False, or Denied with a reason; a call that was denied has a result that says so, for the model.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias, cast

from msgspec import Struct

from .limits import storable_reason
from .message import Message

__all__ = [
    "ApprovalRequest",
    "Approver",
    "Decisions",
    "Denied",
    "Verdict",
    "as_decisions",
    "as_denied",
    "denied_result",
]


class ApprovalRequest(Struct, frozen=True, omit_defaults=True):
    """A tool call that waits for a verdict.

    Attributes:
        run_id: the run that wants to call.
        call_id: the call, unique in its answer.
        tool: the tool's name.
        arguments: JSON text as the model wrote it ("" means {}); it fits the tool's parameters.
        agent: the agent's name.
        session_id: the session, or None where there is none.
        index: its place among the calls of the answer, from 0.
    """

    run_id: str
    call_id: str
    tool: str
    arguments: str = ""
    agent: str = ""
    session_id: str | None = None
    index: int = 0


class Denied(Struct, frozen=True):
    """The call may not run; the model reads the reason."""

    reason: str = ""


Verdict: TypeAlias = bool | Denied
Approver: TypeAlias = Callable[[ApprovalRequest], Awaitable[Verdict]]
"""Decides in place. Its time counts to `RunPolicy.timeout_s`: for longer waits leave it out, and the run pauses."""

Decisions: TypeAlias = dict[int, Denied | None]
"""By the call's place in its answer: None where it is approved."""


def as_denied(verdict: object) -> Denied | None:
    """None where the call is approved.

    Raises:
        TypeError: it is no verdict. Nothing but True approves: a 1, a "yes" or a forgotten `return` does not.
    """
    if verdict is True:
        return None
    if verdict is False:
        return Denied()
    if isinstance(verdict, Denied):
        return verdict
    raise TypeError(f'a verdict is True, False or Denied("why"), not {verdict!r}')


def as_decisions(approve: object, pending: Sequence[ApprovalRequest]) -> Decisions:
    """What `approve=` says of the calls that wait: one verdict for all of them, one by call id, or none (None).

    Calls that it leaves out go on waiting.

    Raises:
        TypeError: it is no verdict, and no mapping of call ids to verdicts.
        ValueError: it names a call that does not wait.
    """
    if approve is None:
        return {}
    if not isinstance(approve, Mapping):
        denied = as_denied(approve)
        return dict.fromkeys((call.index for call in pending), denied)
    places: dict[object, int] = {call.call_id: call.index for call in pending}
    decisions: Decisions = {}
    for call_id, verdict in cast("Mapping[object, object]", approve).items():
        if call_id not in places:
            waiting = ", ".join(map(repr, places)) or "none"
            raise ValueError(
                f"approve= names the call {call_id!r}, which does not wait for a verdict; waiting: {waiting}"
            )
        decisions[places[call_id]] = as_denied(verdict)
    return decisions


def denied_result(call_id: str, denied: Denied) -> Message:
    """What the model reads as the result of a call that was denied."""
    reason = (
        f"[denied] This call was not approved: {denied.reason}"
        if denied.reason
        else "[denied] This call was not approved."
    )
    return Message(role="tool", content=storable_reason(reason), tool_call_id=call_id)
