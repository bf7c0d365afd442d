"""The tool calls of one answer, carried out side by side, each at most once.

    settled                      stays as it is
    begun, without a result      repeatable: runs again; else the model reads that it was interrupted
    needs an approval            approved before: runs; an approver is there: it is asked; else, or where the approver
                                 fails, the run pauses
    else                         runs

A call begins once the journal says so, and counts as done once its result is in it (progress.py). Calls that need
nothing run before the run pauses for those that do.
"""

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import anyio
from anyio.abc import TaskGroup

from ..store.errors import CallboardError
from .agent_spec import AgentSpec
from .approvals import ApprovalRequest, Denied, as_denied, denied_result
from .conversation import INTERRUPTED_RESULT
from .errors import ApprovalRequired, RunFailed
from .journal import Journal
from .limits import reason_of
from .message import Message, ToolCall, Usage
from .progress import StepProgress
from .reply import RunEvent, ToolFinished
from .run_observing import ObservedRun
from .session_messages import Grant
from .session_records import copy_metadata
from .spans import SpanLog
from .tool_context import ToolContext

if TYPE_CHECKING:
    from .session import Session

__all__ = ["ToolCalls"]

_Call: TypeAlias = tuple[int, ToolCall]


@dataclass(slots=True)
class _Plan:
    """What becomes of the open calls of a step."""

    run: list[_Call] = field(default_factory=list[_Call])
    ask: list[_Call] = field(default_factory=list[_Call])
    interrupted: list[_Call] = field(default_factory=list[_Call])


@dataclass(slots=True)
class ToolCalls:
    """Carries out the calls of one run. `attempt` is the number of the run's present attempt."""

    spec: AgentSpec
    run_id: str
    session_id: str | None
    grant: Grant
    journal: Journal
    spans: SpanLog
    emit: Callable[[RunEvent], None]
    attempt: int = 1
    observed: ObservedRun | None = None
    _queue: deque[_Call] = field(default_factory=deque[_Call])
    _workers: int = 0
    _failure: CallboardError | None = None
    _unanswered: list[tuple[_Call, Exception]] = field(default_factory=list[tuple[_Call, Exception]])
    _session: "Session | None" = None
    _asked_in: int | None = None  # the span of the model call that asked for the present calls

    async def begin(self, answer: Message, usage: Usage) -> None:
        """Journal the answer and carry out its calls.

        Raises:
            ApprovalRequired: all calls but these have their results.
            RunFailed: a tool failed whose exceptions end the run. The calls beside it were cut off.
            CallboardError: the session or its store refuses. Likewise.
        """
        plan = self._plan(StepProgress(answer))
        self._asked_in = self.spans.latest_model_call
        first = [index for index, _ in plan.run[: self.spec.policy.tool_calls_at_once]]
        await self.journal.answered(answer, begun=first, usage=usage, span=self._asked_in)
        await self._carry_out(plan)

    async def go_on(self, step: StepProgress) -> None:
        """Carry out the calls of this step, the latest one, that have no result. Raises as `begin`."""
        if self._asked_in is None:  # in a turn before this one, whose spans are stored unless it ended in a crash
            self._asked_in = step.span if step.span <= self.spans.earlier else 0
        await self._carry_out(self._plan(step))

    def _plan(self, step: StepProgress) -> _Plan:
        plan = _Plan()
        for index, call in step.open:
            tool = self.spec.tools.get(call.name)
            if index in step.begun:
                (plan.run if tool is not None and tool.repeatable else plan.interrupted).append((index, call))
            elif tool is not None and index not in step.approved and tool.needs_approval(call.arguments):
                plan.ask.append((index, call))
            else:
                plan.run.append((index, call))
        return plan

    async def _carry_out(self, plan: _Plan) -> None:
        self._failure = None
        self._unanswered.clear()
        self._queue.clear()
        self._workers = 0
        for index, call in plan.interrupted:
            result = Message(role="tool", content=INTERRUPTED_RESULT, tool_call_id=call.id, interrupted=True)
            await self._settle(index, call, result, is_error=True)
        asked = plan.ask if self.spec.approver is not None else []
        if plan.run or asked:
            async with anyio.create_task_group() as tasks:
                for index, call in asked:
                    tasks.start_soon(self._ask, index, call, tasks)
                for place in plan.run:
                    self._enqueue(place, tasks)
        if self._failure is not None:
            raise self._failure
        if plan.ask and not asked:
            raise self._approval_required(plan.ask)
        if self._unanswered:
            failure = self._unanswered[0][1]
            raise self._approval_required([call for call, _ in self._unanswered], failure) from failure

    def _enqueue(self, place: _Call, tasks: TaskGroup) -> None:
        """Let the call run as soon as fewer than the policy's most are running."""
        self._queue.append(place)
        if self._workers < self.spec.policy.tool_calls_at_once:
            self._workers += 1
            tasks.start_soon(self._work, tasks)

    async def _work(self, tasks: TaskGroup) -> None:
        while self._queue:
            index, call = self._queue.popleft()
            try:
                await self._run(index, call)
            except CallboardError as error:  # raised in the group it would come out as a group of errors
                self._failure = error
                tasks.cancel_scope.cancel()
        self._workers -= 1

    async def _run(self, index: int, call: ToolCall) -> None:
        if index not in self.journal.progress.steps[-1].begun:
            await self.journal.begun(index)
        with self.spans.span(call.name, "tool", parent=self._asked_in or 0) as span:
            span.attributes["call_id"] = call.id
            carry_out = partial(self.spec.tools.call, call, self._context(call))
            known = self.spec.tools.get(call.name) is not None
            watched = self.observed
            result = await (carry_out() if watched is None else watched.call_tool(call, carry_out, known=known))
            if result.is_error:
                span.fail(result.content)
        if result.fails_run:
            raise RunFailed(self.run_id, result.content.removeprefix("Error: ")) from result.cause
        message = Message(role="tool", content=result.content, tool_call_id=call.id)
        await self._settle(index, call, message, is_error=result.is_error)

    async def _ask(self, index: int, call: ToolCall, tasks: TaskGroup) -> None:
        try:
            denied = await self._verdict(self._request(index, call))
        except Exception as error:  # noqa: BLE001 -- a user's function. The call goes on waiting; what this is about,
            # an error of ours from another run among it, is not this run's.
            self._unanswered.append(((index, call), error))
            return
        try:
            if denied is None:
                self._enqueue((index, call), tasks)
            else:
                await self._settle(index, call, denied_result(call.id, denied), is_error=True)
        except CallboardError as error:
            self._failure = error
            tasks.cancel_scope.cancel()

    async def _verdict(self, request: ApprovalRequest) -> Denied | None:
        assert self.spec.approver is not None, "somebody is there to be asked"
        answer: object = self.spec.approver(request)
        if not inspect.isawaitable(answer):
            raise TypeError(f"approver= must be an async function, and gave {answer!r} instead of something to await")
        return as_denied(await answer)

    async def _settle(self, index: int, call: ToolCall, result: Message, *, is_error: bool) -> None:
        await self.journal.settled(index, result)
        self.emit(ToolFinished(call.name, call.id, result.text, is_error))

    def _context(self, call: ToolCall) -> ToolContext:
        if self._session is None and self.session_id is not None:
            self._session = self.spec.session_of(self.session_id)
        # Some servers use an id again, for a call of a later answer: that is another call, and has another key.
        steps = self.journal.progress.steps
        again = any(call.id == earlier.id for step in steps[:-1] for earlier in step.answer.tool_calls)
        scopes = self.journal.scopes
        return ToolContext(
            agent=self.spec.name,
            run_id=self.run_id,
            turn=self.grant.turn,
            session_id=self.session_id,
            metadata=copy_metadata(self.grant.metadata),
            call_id=call.id,
            attempt=self.attempt,
            idempotency_key=f"{self.run_id}:{call.id}" + (f"#{len(steps)}" if again else ""),
            session=self._session,
            state=self.journal.state,
            session_state=scopes.session,
            user_state=scopes.user,
            app_state=scopes.app,
            spans=self.spans,
        )

    def _request(self, index: int, call: ToolCall) -> ApprovalRequest:
        return ApprovalRequest(self.run_id, call.id, call.name, call.arguments, self.spec.name, self.session_id, index)

    def _approval_required(self, calls: list[_Call], failure: Exception | None = None) -> CallboardError:
        requests = tuple(self._request(index, call) for index, call in calls)
        failed = "" if failure is None else reason_of(failure)
        if self.session_id is not None:
            return ApprovalRequired(self.run_id, requests, reason=failed)
        names = ", ".join(request.tool for request in requests)
        mend = (
            f"its approver failed: {failed}"
            if failed
            else "give the Agent an approver=, or a session in which the run can wait"
        )
        return RunFailed(self.run_id, f"{names} must be approved: {mend}")
