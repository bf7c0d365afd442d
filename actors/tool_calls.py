"""The tool calls of one answer, carried out side by side."""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from .message import Message, ToolCall
from .reply import RunEvent, ToolFinished
from .spans import SpanLog
from .tools import ToolContext, ToolSet

__all__ = ["ToolCalls"]


@dataclass(slots=True)
class ToolCalls:
    """What the calls of one answer need: the tools, where they are called from, and whom to tell."""

    tools: ToolSet
    context: ToolContext
    spans: SpanLog
    emit: Callable[[RunEvent], None]

    async def run(self, calls: tuple[ToolCall, ...]) -> list[Message]:
        """All results in the order of the calls."""
        results: dict[int, Message] = {}

        async def call_one(index: int, call: ToolCall) -> None:
            results[index] = await self._call(call)

        async with anyio.create_task_group() as tasks:
            for index, call in enumerate(calls):
                tasks.start_soon(call_one, index, call)
        return [results[index] for index in range(len(calls))]

    async def _call(self, call: ToolCall) -> Message:
        with self.spans.span(call.name, "tool") as span:
            result = await self.tools.call(call, self.context)
            span.attributes["call_id"] = call.id
            if result.is_error:
                span.fail(result.content)
        self.emit(ToolFinished(call.name, call.id, result.content, result.is_error))
        return Message(role="tool", content=result.content, tool_call_id=call.id)
