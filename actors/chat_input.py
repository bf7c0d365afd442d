"""What an agent, or a team, is asked: in whatever form it comes, messages come out."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

from .conversation import as_message, as_messages
from .message import Message
from .perspective import NoInput

__all__ = ["ChatInput", "as_input"]

ChatInput: TypeAlias = str | Message | Mapping[str, Any] | Iterable[Message | Mapping[str, Any]] | NoInput
"""A user's text, one message, or several; or GO_ON, for none: what history ends with is answered."""


def as_input(messages: ChatInput, *, in_session: bool) -> list[Message]:
    """The messages of an input, checked.

    Raises:
        TypeError, ValueError: it is no message that the API takes, or none at all; or GO_ON where there is no session.
    """
    if isinstance(messages, NoInput):
        if not in_session:
            raise ValueError("there is no history to go on from: GO_ON needs a session=")
        return []
    if isinstance(messages, str):
        messages = Message(role="user", content=messages)
    if isinstance(messages, Message | Mapping):
        return [as_message(cast("object", messages))]
    if not isinstance(messages, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
        raise TypeError(f"an agent is asked with a text, a message or a list of messages, not {messages!r}")
    checked = as_messages(messages)
    if not checked:
        raise ValueError("there is nothing to answer: pass a text or at least one message")
    return checked
