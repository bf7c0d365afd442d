"""A shared history as the model of one agent gets it: who else has spoken, and whose turn it is. Pure.

In the API a conversation has one assistant. On a session that several agents share, each message knows its author, and
for the model of one of them

    what it said itself        is sent as it is
    what another agent said    keeps the role "assistant" and carries that agent's name, in `name`
    what people said           is sent as it is

So a tool call stays beside its result whoever made it, and history is the same to all but for the names: an agent that
takes over goes on with the conversation, and does not read it as a report. What a model must know of the others, as
who they are, belongs into its instructions: not every server takes names, and not every model reads them.

An agent that is asked without an input goes on where history ends. Where that is an answer, a cue is sent behind it,
which is not stored: many servers want the last word to be another's than the assistant's, and some would take the
answer for the beginning of the next one.

Source: OpenAI chat completions, `name` of an assistant message: "provides the model information to differentiate
between participants of the same role"; Mistral, which refuses a history that ends with an assistant's message.
"""

import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import Final

from msgspec.structs import replace

from .message import Message

__all__ = ["GO_ON", "NAME_CHARACTERS_MAX", "NoInput", "cue", "seen_by", "wire_name"]


class NoInput(Enum):
    """That an agent is asked without an input. An Enum, so that type checkers know its one value."""

    GO_ON = "go on"

    def __repr__(self) -> str:
        return "GO_ON"


GO_ON: Final = NoInput.GO_ON
"""Instead of an input: the agent answers what its session's history ends with."""


NAME_CHARACTERS_MAX = 64
"""Of a name, and of a tool's name, in the API."""

_UNFIT = re.compile(r"[^a-zA-Z0-9_-]+")


@lru_cache(maxsize=1024)
def wire_name(author: str) -> str:
    """An agent's name as the API takes one: of a-z, A-Z, 0-9, _ and -, at most 64. Others become an underscore.

    Where nothing would be left of it, as of one in Chinese, it is "agent_" and a hash, always the same for one name.
    """
    name = _UNFIT.sub("_", author).strip("_")
    if not name:
        return f"agent_{sha256(author.encode()).hexdigest()[:8]}"
    return name[:NAME_CHARACTERS_MAX]


def seen_by(agent: str, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages as the model of this agent gets them: one for one, the same objects but for those that get a name.

    Cost: 0.1 us a message, and 0.5 us for one of another agent's.
    """
    if not any(_is_anothers(message, agent) for message in messages):
        return messages
    return [
        replace(message, name=wire_name(message.author or "")) if _is_anothers(message, agent) else message
        for message in messages
    ]


def cue(agent: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """What is sent behind this history to an agent that has no input: nothing, unless it ends with an answer."""
    if not messages or messages[-1].role != "assistant" or messages[-1].tool_calls:
        return ()
    return (Message(role="user", content=f"Go on, {agent}: it is your turn."),)


def _is_anothers(message: Message, agent: str) -> bool:
    return (
        message.role == "assistant" and message.author is not None and message.author != agent and message.name is None
    )
