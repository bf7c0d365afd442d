"""Sessions for the OpenAI Agents SDK, kept by callboard: `Runner.run(agent, "...", session=AgentsSession(session))`.

    pip install 'callboard[openai-agents]'

The SDK keeps items of the Responses API: messages, reasoning, function calls, their outputs, and more kinds each year.
Each comes back exactly as it was given. They are stored as callboard's own messages, so that other agents, search,
export and the command line see the same conversation; what such a message cannot say stands beside it, in `extra`:

    item                                             message
    message of a user, system or developer           of that role
    message of the assistant, function calls behind  one of the assistant, with its tool calls
    function_call_output                             of the role "tool"
    reasoning and all others                         part of the assistant's message that follows

Nothing here imports the SDK: its `Session` is a protocol.

Source: OpenAI Agents SDK 0.24, agents/memory/session.py and sqlite_session.py; OpenAI API reference, Responses, items.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from callboard.actors import Message, Session, ToolCall
from callboard.actors.message import Part, Role

__all__ = ["AgentsSession", "as_items", "as_session_messages"]

Item: TypeAlias = dict[str, Any]
"""An item of the Responses API."""

ITEMS = "openai_agents"
"""Where in a message's `extra` its items stand, unless they follow from the rest of it."""

_SPEAKERS = {"user", "system", "developer"}


class AgentsSession:
    """The SDK's `Session` on a session of callboard; to be used under asyncio, as the SDK is.

    Args:
        session: where items are kept. What others write there is seen as items too.
        session_settings: the SDK's `SessionSettings`; its `limit` is that of `get_items` where none is given.

    What is written is durable when the call returns, all items of a call or none. All methods raise as those of
    `Session` do.
    """

    def __init__(self, session: Session, *, session_settings: Any = None) -> None:
        self.session: Session = session
        self.session_id: str = session.id
        self.session_settings: Any = session_settings

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """The latest items, oldest first; all where there is no limit, or a negative one."""
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if limit is None or limit < 0:
            return as_items(await self.session.messages())
        # A message is one item or more, so that as many messages are enough.
        return as_items(await self.session.messages(limit=limit))[-limit:] if limit else []

    async def add_items(self, items: list[Any]) -> None:
        """Put items at the end."""
        if items:
            await self.session.add_messages(as_session_messages(items))

    async def pop_item(self) -> Any:
        """Take the latest item away; None where there is none. It stays in the session's audit.

        Of a message that is several items the others are put back by a second write.
        """
        popped = as_items(await self.session.pop())
        if not popped:
            return None
        await self.add_items(popped[:-1])
        return popped[-1]

    async def clear_session(self) -> None:
        """Take all items away. They stay in the session's audit, and the session with its metadata."""
        await self.session.clear()


def as_items(messages: Iterable[Message]) -> list[Item]:
    """Messages as items; those that came as items come back as they were."""
    return [item for message in messages for item in _items(message)]


def as_session_messages(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Items as messages, which hold all that is in them."""
    return [message for group in _grouped(items) for message in group.messages()]


# Items to messages ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """The items of one message."""

    items: list[Item] = field(default_factory=lambda: list[Item]())
    role: Role = "assistant"
    content: str | None = None
    calls: list[ToolCall] = field(default_factory=lambda: list[ToolCall]())
    answers: str | None = None

    def messages(self) -> Iterator[Message]:
        """The message; none where there are no items."""
        if not self.items:
            return
        content = self.content if self.content is not None or self.calls else ""
        plain = Message(
            role=self.role, content=content, tool_calls=tuple(self.calls), tool_call_id=self.answers, extra={}
        )
        if list(_items(plain)) == self.items:
            yield plain
            return
        yield Message(
            role=self.role,
            content=content,
            tool_calls=plain.tool_calls,
            tool_call_id=self.answers,
            extra={ITEMS: self.items},
        )


def _grouped(items: Iterable[Mapping[str, Any]]) -> Iterator[_Group]:
    said = _Group()  # what the assistant has said so far
    for given in items:
        item = dict(given)
        kind, role = item.get("type", "message"), item.get("role")
        if kind == "function_call" and _is_text(item, "call_id", "name") and isinstance(item.get("arguments"), str):
            if any(call.id == item["call_id"] for call in said.calls):  # which no message may have twice
                yield said
                said = _Group()
            said.items.append(item)
            said.calls.append(ToolCall(item["call_id"], item["name"], item["arguments"]))
        elif kind == "function_call_output" and _is_text(item, "call_id"):
            yield said
            yield _Group([item], "tool", _text(item.get("output")), answers=item["call_id"])
            said = _Group()
        elif kind == "message" and isinstance(role, str) and role in _SPEAKERS:
            yield said
            yield _Group([item], cast("Role", role), _text(item.get("content")))
            said = _Group()
        elif kind == "message" and role == "assistant":
            if said.content is not None or said.calls:
                yield said
                said = _Group()
            said.items.append(item)
            said.content = _text(item.get("content"))
        else:
            said.items.append(item)
    yield said


def _is_text(item: Item, *names: str) -> bool:
    return all(isinstance(item.get(name), str) and item[name] for name in names)


def _text(content: Any) -> str:
    """What of it is text."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = [cast("dict[str, object]", part) for part in cast("list[object]", content) if isinstance(part, dict)]
    texts = [part.get("text", part.get("refusal")) for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


# Messages to items ----------------------------------------------------------------------------------------------------


def _items(message: Message) -> Iterator[Item]:
    if ITEMS in message.extra:
        yield from deepcopy(message.extra[ITEMS])
        return
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.text}
        return
    if message.role != "assistant":
        yield {"role": message.role, "content": _input_parts(message.content)}
        return
    if message.text or not message.tool_calls:
        yield {"role": "assistant", "content": message.text}
    for call in message.tool_calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _input_parts(content: str | list[Part] | None) -> Any:
    """A content as the Responses API takes it."""
    if not isinstance(content, list):
        return content or ""
    return [_input_part(part) for part in content]


def _input_part(part: Part) -> Part:
    if part.get("type") == "text":
        return {"type": "input_text", "text": part["text"]}
    if part.get("type") == "image_url":
        image: dict[str, Any] = part["image_url"]
        return {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail", "auto")}
    return deepcopy(part)
