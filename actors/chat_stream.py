"""The events of one run of an agent, as they come, and its reply at the end."""

from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self

from ..runtime.ref import PendingReply
from ..runtime.waking import current_backend
from .agent_requests import StartRun
from .agent_spec import AgentSpec
from .event_queue import EventQueue
from .reply import OutputT, Reply, RunEvent

__all__ = ["ChatStream"]


class ChatStream(Generic[OutputT]):
    """The events of one run, as they come; see `Agent.stream`. For one task.

    Events: RunStarted, Delta (kind "text", ...), ToolFinished, AttemptFailed, OutputRepair, ApprovalRequested. A reader
    that is slow does not hold up the run; what it has not read is kept.
    """

    def __init__(self, spec: AgentSpec, request: StartRun, start: Callable[[StartRun], PendingReply[Reply]]) -> None:
        self._spec = spec
        self._request = request
        self._start = start
        self._reply: Reply[OutputT] | None = None
        self._entered = False

    @property
    def run_id(self) -> str:
        """The run's id, which it has before it begins."""
        return self._request.run_id

    @property
    def reply(self) -> Reply[OutputT]:
        """The reply, which is durable. Only after the events have come to their end."""
        if self._reply is None:
            raise RuntimeError("the reply is there when `async for` has ended by itself")
        return self._reply

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a stream is one run and is entered once: call agent.stream() again for another")
        self._entered = True
        self._events = EventQueue(current_backend())
        self._spec.listeners.listen(self._request.run_id, self._events)
        try:
            self._pending = self._start(self._request)
        except BaseException:
            self._close()
            raise
        self._pending.when_settled(self._events.end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pending.give_up()
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunEvent:
        """The next event; at the end the reply is there, or what `chat` would raise is raised."""
        if not self._entered:
            raise RuntimeError(
                "enter the stream first: async with agent.stream(...) as stream: async for event in stream"
            )
        event = await self._events.get()
        if event is None:
            self._reply = await self._pending.wait()
            raise StopAsyncIteration
        return event

    def _close(self) -> None:
        self._spec.listeners.leave(self._events)
        self._events.end()
