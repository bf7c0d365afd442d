"""The tools by which an agent of a team says who is next: `transfer_to_<name>` and `approve`. They end its run.

What was said by them is told from the messages alone, so it is known as well of a turn that another process had.
"""

from collections.abc import Sequence

from .message import Message
from .perspective import NAME_CHARACTERS_MAX, wire_name
from .reply import Reply
from .run_ending import is_failure
from .tools import Tool

__all__ = ["approve_tool", "approved_by_tool", "handed_over", "transfer_name", "transfer_names", "transfer_tool"]

APPROVE = "approve"


def transfer_name(agent: str) -> str:
    """What the tool is called that hands over to this agent: at most 64 characters, lower case."""
    return f"transfer_to_{wire_name(agent).lower()}"[:NAME_CHARACTERS_MAX]


def transfer_names(agents: Sequence[str]) -> dict[str, str]:
    """The agents by the names of their tools.

    Raises:
        ValueError: two would have one name.
    """
    by_tool: dict[str, str] = {}
    for agent in agents:
        other = by_tool.setdefault(transfer_name(agent), agent)
        if other != agent:
            raise ValueError(f"agents {other!r} and {agent!r} would both be {transfer_name(agent)!r}: rename one")
    return by_tool


def transfer_tool(agent: str, about: str = "") -> Tool:
    """Hands over to this agent. `about` says what it is for."""

    async def transfer(message: str = "") -> str:
        # Not "has the conversation": of two such calls in one answer, the first counts.
        return f"{agent} is asked to go on."

    description = f"Hand the conversation over to {agent}. {about}".strip()
    told = f"{description} `message`: what they should know beside the conversation; leave it out if there is nothing."
    return Tool(transfer, name=transfer_name(agent), description=told, ends_run=True, repeatable=True)


def approve_tool() -> Tool:
    """Says that what was written may stay as it is."""

    async def approve() -> str:
        return "approved"

    description = "Approve what was written last, as it is. To have it changed, answer with what is to be changed."
    return Tool(approve, name=APPROVE, description=description, ends_run=True, repeatable=True)


def handed_over(messages: Sequence[Message], agents: Sequence[str]) -> str | None:
    """To whom the last answer among these messages, with its results behind it, hands over; None: to nobody."""
    by_tool = transfer_names(agents)
    return next((by_tool[name] for name in _succeeded(messages) if name in by_tool), None)


def approved_by_tool(reply: Reply) -> bool:
    """Whether the reply's last answer called `approve`."""
    return APPROVE in _succeeded(reply.messages)


def _succeeded(messages: Sequence[Message]) -> list[str]:
    """The tools that the last answer called and that gave a result of their own, in the order of the calls."""
    last = next((place for place in range(len(messages) - 1, -1, -1) if messages[place].role == "assistant"), None)
    if last is None:
        return []
    calls = messages[last].tool_calls
    results = {message.tool_call_id: message for message in messages[last + 1 :] if message.role == "tool"}
    return [call.name for call in calls if call.id in results and not is_failure(results[call.id])]
