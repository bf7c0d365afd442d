"""Whether a run has ended with a tool call: one of a tool that is made with `ends_run=True`. Pure.

Such a run makes no further model call: its turn closes with the answer that called, and the results. As it is told from
the journal alone, a run that was cut off behind the call ends so when it goes on.
"""

from .conversation import INTERRUPTED_RESULT
from .message import Message
from .progress import Progress
from .tools import ToolSet

__all__ = ["ended_by_tool", "is_failure"]

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
