"""A run that was submitted: it goes on by itself, and anybody who knows its id can wait for it."""

import math
from collections.abc import AsyncGenerator
from typing import Generic, cast

from ..runtime.ref import Ref
from ..runtime.waking import current_backend
from .agent_spec import AgentSpec
from .event_queue import EventQueue
from .ids import new_id
from .reply import OutputT, Reply, RunEvent
from .run_outcome import reply_of
from .run_record import RunRecord, RunStatus
from .session_messages import CancelRun, ReadRun, WaitRun, When

__all__ = ["Submission"]


class Submission(Generic[OutputT]):
    """A handle on one run, which holds nothing: drop it, and make another with `agent.submission(run_id)`."""

    def __init__(self, spec: AgentSpec, session: Ref, run_id: str) -> None:
        self.run_id = run_id
        self._spec = spec
        self._session = session

    def __repr__(self) -> str:
        return f"<Submission {self.run_id}>"

    async def wait(self) -> Reply[OutputT]:
        """The reply, as `Agent.chat` gives it; as often as it is asked for.

        Raises:
            RunFailed: the run has failed, was cancelled or interrupted.
            ApprovalRequired: it waits for verdicts.
            UnknownRun, UnknownSession: there is no such run.

        Cancellation: the run goes on.
        """
        outcome = await self._session.ask(WaitRun(self.run_id, new_id("wait", 0)), timeout_s=math.inf)
        return cast("Reply[OutputT]", reply_of(outcome, self._spec.output))

    async def record(self) -> RunRecord:
        """All that is known now of the run, or of the one that its input was merged or taken into."""
        record = await self._session.ask(ReadRun(self.run_id))
        while record.joined:
            record = await self._session.ask(ReadRun(record.joined))
        return record

    async def status(self) -> RunStatus:
        """queued, running, waiting, completed, failed, cancelled, interrupted."""
        return (await self.record()).status

    async def cancel(
        self, *, reason: str = "cancelled by hand", when: When = "now", keep_partial: bool = False
    ) -> bool:
        """As `Session.cancel_run`."""
        return await self._session.ask(CancelRun(self.run_id, reason, when, keep_partial), timeout_s=math.inf)

    async def events(self) -> AsyncGenerator[RunEvent]:
        """The run's events in this process, from the first that anybody has listened to, until it ends or pauses.

        Use it as `async with aclosing(submission.events()) as events: async for event in events`.
        """
        queue = EventQueue(current_backend())
        self._spec.listeners.listen(self.run_id, queue, ends=True)
        try:
            if _is_over(await self.record()):  # looked at behind `listen`: no end is missed
                queue.end()
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._spec.listeners.leave(queue)


def _is_over(record: RunRecord) -> bool:
    return not record.is_open or bool(record.pending)
