"""How a run has ended: with an answer, cancelled, or with a call of a tool that is made with `ends_run=True`. Pure.

A run that ended with a call makes no further model call: its turn closes with the answer that called, and the results.
As it is told from the journal alone, a run that was cut off behind the call ends so when it goes on.
"""

from typing import cast

import anyio

from .conversation import INTERRUPTED_RESULT
from .message import Message
from .progress import Progress
from .tools import ToolSet

__all__ = ["ended_by_tool", "is_cancellation", "is_failure", "last_answer"]

_FAILURES = ("Error: ", "[denied]", INTERRUPTED_RESULT)
"""What the results begin with that are not the tool's own: see tools.py, approvals.py, conversation.py."""


def ended_by_tool(progress: Progress, tools: ToolSet) -> bool:
    """Whether all calls of the latest answer have their results, and one that ends the run has succeeded."""
    if not progress.steps or progress.open_step is not None:
        return False
    step = progress.steps[-1]
    for index, call in enumerate(step.answer.tool_calls):
        tool = tools.get(call.name)
        if tool is not None and tool.ends_run and not is_failure(step.settled[index]):
            return True
    return False


def is_failure(result: Message) -> bool:
    """Whether this result says that the call did not succeed: it failed, was denied, or was cut off."""
    return result.interrupted or result.text.startswith(_FAILURES)


def last_answer(messages: list[Message]) -> Message:
    """The latest of the assistant's messages."""
    return next(message for message in reversed(messages) if message.role == "assistant")


def is_cancellation(error: BaseException) -> bool:
    """Whether it is one, alone or in a group: what trio's own nurseries raise when they are cancelled is a group."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).split(cancelled)[1] is None
    return isinstance(error, cancelled)
