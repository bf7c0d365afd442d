"""Messages as a conversation: in and out of the wire's form, units, repair. Pure.

The API's pairing rule, which a history must obey or the server answers 400: an assistant message with tool calls is
followed at once by one result for each of its calls, and a result stands nowhere else. Crashes, cancellations and
trimming break it; `repair` restores it. A *unit* is the smallest piece that may be left out without breaking it: a user
or system message, an assistant message, or an assistant message with all its results.

Source: OpenAI chat completions, message objects, and its errors "messages with role 'tool' must be a response to a
preceding message with 'tool_calls'" and "tool_call_ids did not have response messages".
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from .limits import MESSAGE_BYTES_MAX, check_author, check_message_size, json_copy
from .message import ROLES, Message, Part, Role, ToolCall

__all__ = ["INTERRUPTED_RESULT", "Repaired", "Unit", "as_chat_dict", "as_message", "as_messages", "repair", "units"]

INTERRUPTED_RESULT = "[interrupted] This tool call was cut off before it gave a result; it may have had an effect."
"""What a model reads as the result of a call that has none."""

_WIRE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_OWN_KEYS: dict[str, type] = {
    "id": str,
    "seq": int,
    "author": str,
    "run_id": str,
    "created_at_ms": int,
    "interrupted": bool,
}
_NUMBER_MAX = 2**63 - 1  # of a place or a time: what every reader of the store takes, and 292 million years
# In place of content, an assistant message may carry one of these (OpenAI: refusal, audio, the old function_call).
_CONTENT_SUBSTITUTES = frozenset({"refusal", "audio", "function_call"})


_SPEAKERS = frozenset(ROLES) - {"tool"}
_PLAIN_BYTES_MAX = MESSAGE_BYTES_MAX - 1024  # of text; its role and all that a session adds are less than the rest


def as_message(value: object, *, author: str | None = None, where: str = "message") -> Message:
    """A checked Message from one, or from an OpenAI-style dict; it shares nothing that can change with `value`.

    Further keys of a dict are kept in `extra` and sent back as they came, save those that are None, which say nothing.

    Args:
        value: a Message, or a mapping with "role" and what goes with it.
        author: who wrote it, where the message does not say so itself.
        where: its name in errors, as in "messages[3]".

    Raises:
        TypeError, ValueError: it is no message that the API takes, or is too large; says which field and what fits.

    Cost: 0.6 us for a dict of a role and a text; for others some 10 us, and that of encoding them, to know their size.
    """
    plain = _plain(value)
    message = plain if plain is not None else _checked(_as_given(value, where), where)
    if message.author is None and author is not None:
        message = replace(message, author=author)
    if message.author is not None:
        check_author(message.author)
    if plain is None:
        check_message_size(message)
    return message


def as_messages(values: object, *, author: str | None = None) -> list[Message]:
    """`as_message` for each; errors name the place, as in "messages[3]".

    Raises:
        TypeError: `values` is one message, or text, rather than a list of messages.
    """
    items = cast("list[object]", values) if type(values) is list else _checked_iterable(values)
    return [as_message(item, author=author, where=f"messages[{index}]") for index, item in enumerate(items)]


def as_chat_dict(message: Message) -> dict[str, Any]:
    """The OpenAI wire form, a fresh dict: what the API knows, and `extra`; not what only a session knows, as author."""
    chat: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message.content, list):
        chat["content"] = deepcopy(message.content)
    if message.name is not None:
        chat["name"] = message.name
    if message.tool_calls:
        chat["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
                **deepcopy(call.extra),
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        chat["tool_call_id"] = message.tool_call_id
    if message.extra:
        chat.update(deepcopy(message.extra))
    return chat


class Unit(Struct, frozen=True):
    """Messages that stay or go together. `messages` is never empty."""

    messages: tuple[Message, ...]


def units(messages: Iterable[Message]) -> list[Unit]:
    """The messages as units, in order; joined they are the messages again.

    Raises:
        ValueError: the pairing rule does not hold; `repair` the messages first.
    """
    grouped: list[list[Message]] = []
    unanswered: deque[str] = deque()
    for message in messages:
        if message.role == "tool":
            if not unanswered or message.tool_call_id != unanswered.popleft():
                raise ValueError(f"the result of tool call {message.tool_call_id!r} is out of place: repair() first")
            grouped[-1].append(message)
            continue
        _refuse_open(unanswered)
        grouped.append([message])
        unanswered.extend(call.id for call in message.tool_calls)
    _refuse_open(unanswered)
    return [Unit(tuple(group)) for group in grouped]


class Repaired(Struct, frozen=True):
    """What `repair` gives and what it did.

    Attributes:
        messages: the history, which obeys the pairing rule.
        inserted: the results that were made up, for calls that had none.
        dropped: the results that were left out: their call is not there, or has a result already.
        reordered: True where a result had to move to stand behind its call.
    """

    messages: tuple[Message, ...]
    inserted: tuple[Message, ...] = ()
    dropped: tuple[Message, ...] = ()
    reordered: bool = False

    @property
    def changed(self) -> bool:
        """True unless the history was valid as it was."""
        return bool(self.inserted or self.dropped or self.reordered)


def repair(messages: Iterable[Message]) -> Repaired:
    """The messages with each tool call answered once, directly behind it, in the order of the calls.

    A call without a result gets one that says so, a result without a call is dropped, of several results for one call
    the first is kept. A result belongs to the nearest call of its id before it, since some servers use ids again.
    Repairing again changes nothing. A valid history comes back with the same message objects.

    Cost: linear.
    """
    history = tuple(messages)
    answers, dropped = _match_results(history)
    repaired: list[Message] = []
    inserted: list[Message] = []
    for place, message in enumerate(history):
        if message.role == "tool":
            continue
        repaired.append(message)
        for call, answer in zip(message.tool_calls, answers.get(place, ()), strict=True):
            if answer is None:
                answer = Message(role="tool", content=INTERRUPTED_RESULT, tool_call_id=call.id, interrupted=True)
                inserted.append(answer)
            repaired.append(answer)
    return Repaired(
        messages=tuple(repaired),
        inserted=tuple(inserted),
        dropped=tuple(dropped),
        reordered=_without(repaired, inserted) != _without(history, dropped),
    )


def _match_results(history: Sequence[Message]) -> tuple[dict[int, list[Message | None]], list[Message]]:
    """For each place with tool calls one slot a call, filled where it has a result; and the results that fit none."""
    answers: dict[int, list[Message | None]] = {}
    nearest: dict[str, tuple[list[Message | None], deque[int]]] = {}  # id -> its slots, and which are empty
    dropped: list[Message] = []
    for place, message in enumerate(history):
        if message.tool_calls:
            slots: list[Message | None] = [None] * len(message.tool_calls)
            answers[place] = slots
            for call_id in {call.id for call in message.tool_calls}:
                empty = deque(index for index, call in enumerate(message.tool_calls) if call.id == call_id)
                nearest[call_id] = slots, empty
        elif message.role == "tool":
            slots, empty = nearest.get(message.tool_call_id or "", ([], deque[int]()))
            if empty:
                slots[empty.popleft()] = message
            else:
                dropped.append(message)
    return answers, dropped


def _without(messages: Iterable[Message], left_out: Iterable[Message]) -> list[int]:
    # By identity: two equal results of one call are still two messages.
    gone = {id(message) for message in left_out}
    return [id(message) for message in messages if id(message) not in gone]


def _refuse_open(unanswered: Sequence[str]) -> None:
    if unanswered:
        raise ValueError(f"tool call {unanswered[0]!r} has no result behind it: repair() the messages first")


def _plain(value: object) -> Message | None:
    """The message of a dict that holds a role and a text, and no more: nothing about it can be wrong but these two.

    None where there is more to it, or something is wrong: then the checks that all others pass say what.
    """
    if type(value) is not dict:
        return None
    fields = cast("dict[str, Any]", value)
    role, text = fields.get("role"), fields.get("content")
    if len(fields) != 2 or type(text) is not str or type(role) is not str or role not in _SPEAKERS:
        return None
    try:
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return None
    return Message(role=cast("Role", role), content=text) if size_bytes <= _PLAIN_BYTES_MAX else None


def _checked_iterable(values: object) -> Iterable[object]:
    given = type(values).__name__
    if isinstance(values, Message | Mapping | str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"messages must be a list of Message or dict, not {given}: put it into a list")
    return cast("Iterable[object]", values)


def _as_given(value: object, where: str) -> Message:
    return value if isinstance(value, Message) else _from_mapping(value, where)


def _from_mapping(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{where} must be a Message or a dict like {{'role': 'user', 'content': '...'}}, not {type(value).__name__}"
        )
    fields = dict(cast("Mapping[str, Any]", value))
    if "role" not in fields:
        raise ValueError(f"{where} has no role: use one of {_roles()}")
    own = {key: fields[key] for key in _OWN_KEYS if fields.get(key) is not None}
    for key, given in own.items():
        if type(given) is not _OWN_KEYS[key]:
            raise TypeError(f'{where}["{key}"] must be {_OWN_KEYS[key].__name__}, not {type(given).__name__}')
    known = _WIRE_KEYS | _OWN_KEYS.keys()
    return Message(
        role=fields["role"],
        content=fields.get("content"),
        tool_calls=_tool_calls(fields.get("tool_calls"), f"{where}.tool_calls"),
        tool_call_id=fields.get("tool_call_id"),
        name=fields.get("name"),
        extra={key: item for key, item in fields.items() if key not in known and item is not None},
        **own,
    )


def _tool_calls(value: object, where: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise TypeError(f"{where} must be a list, not {type(value).__name__}")
    items = cast("Sequence[object]", value)
    return tuple(_tool_call(item, f"{where}[{index}]") for index, item in enumerate(items))


def _tool_call(value: object, where: str) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    shape = "{'id': '...', 'type': 'function', 'function': {'name': '...', 'arguments': '...'}}"
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be a dict like {shape}, not {type(value).__name__}")
    fields = dict(cast("Mapping[str, Any]", value))
    kind, function = fields.pop("type", "function"), fields.pop("function", None)
    if kind != "function":
        raise ValueError(f'{where} is of type {kind!r}: only type "function" is known')
    if not isinstance(function, Mapping):
        raise ValueError(f"{where} has no function: write {shape}")
    called = cast("Mapping[str, Any]", function)
    further = sorted(called.keys() - {"name", "arguments"})
    if further:
        raise ValueError(f"{where}.function has the unknown key {further[0]!r}: put it beside function, not inside")
    arguments = called.get("arguments")
    if isinstance(arguments, Mapping):  # some servers send the object itself instead of its JSON text
        plain = json_copy(dict(cast("Mapping[str, Any]", arguments)), f"{where}.function.arguments")
        arguments = msgspec.json.encode(plain).decode()
    return ToolCall(
        id=fields.get("id", ""),
        name=called.get("name", ""),
        arguments="" if arguments is None else arguments,
        extra={key: item for key, item in fields.items() if key != "id" and item is not None},
    )


def _checked(message: Message, where: str) -> Message:
    """The message with copies of what can change, once every field is what the API takes."""
    if message.role not in ROLES:
        raise ValueError(f"{where} has the unknown role {message.role!r}: use one of {_roles()}")
    collision = sorted((_WIRE_KEYS | _OWN_KEYS.keys()) & message.extra.keys())
    if collision:
        raise ValueError(f"{where}.extra holds {collision[0]!r}, which is a field of its own: set that field instead")
    _check_own(message, where)
    _check_by_role(message, where)
    if message.name is not None:
        _check_filled(message.name, f"{where}.name")
    calls = tuple(_checked_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls))
    seen: set[str] = set()
    for call in calls:
        if call.id in seen:
            raise ValueError(f"{where} has two tool calls with the id {call.id!r}: give each its own")
        seen.add(call.id)
    return replace(
        message,
        content=_checked_content(message.content, f"{where}.content"),
        tool_calls=calls,
        extra=json_copy(message.extra, f"{where}.extra"),
    )


def _check_own(message: Message, where: str) -> None:
    """What a Message that is given may hold of what a session sets."""
    for name in ("seq", "created_at_ms"):
        number: object = getattr(message, name)
        if type(number) is not int:
            raise TypeError(f"{where}.{name} must be a whole number, not {type(number).__name__}")
        if not 0 <= number <= _NUMBER_MAX:
            raise ValueError(f"{where}.{name} must be from 0 to 2**63 - 1")
    for name in ("id", "run_id"):
        text: object = getattr(message, name)
        if not isinstance(text, str) and (text is not None or name == "id"):
            raise TypeError(f"{where}.{name} must be a string, not {type(text).__name__}")
        json_copy(text, f"{where}.{name}")
    interrupted: object = message.interrupted
    if type(interrupted) is not bool:
        raise TypeError(f"{where}.interrupted must be True or False, not {type(interrupted).__name__}")


def _check_by_role(message: Message, where: str) -> None:
    role: Role = message.role
    if role == "tool":
        if message.tool_call_id is None:
            raise ValueError(f"{where} is a tool's result without tool_call_id: name the call that it answers")
        _check_filled(message.tool_call_id, f"{where}.tool_call_id")
    elif message.tool_call_id is not None:
        raise ValueError(f'{where} has a tool_call_id, but its role is {role!r}: results have the role "tool"')
    if message.tool_calls and role != "assistant":
        raise ValueError(f'{where} has tool_calls, but its role is {role!r}: only the role "assistant" calls tools')
    if message.content is None and not message.tool_calls:
        if role != "assistant":
            raise ValueError(f"{where} has no content: give a string or a list of parts")
        if not _CONTENT_SUBSTITUTES & message.extra.keys():
            raise ValueError(f"{where} is an assistant message with neither content nor tool_calls: give one of them")


def _checked_content(content: object, where: str) -> str | list[Part] | None:
    if content is None:
        return None
    if isinstance(content, str):
        return cast("str", json_copy(str.__str__(content), where))
    if not isinstance(content, list):
        raise TypeError(f"{where} must be a string, a list of parts or None, not {type(content).__name__}")
    if not content:
        raise ValueError(f"{where} is an empty list: give at least one part, or a string")
    parts = cast("list[Part]", json_copy(cast("object", content), where))
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f'{where}[{index}] must be a dict with a "type", as in {{"type": "text", "text": "..."}}')
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise TypeError(f'{where}[{index}] is of type "text" and must have its "text", a string')
    return parts


def _checked_call(call: ToolCall, where: str) -> ToolCall:
    _check_filled(call.id, f"{where}.id")
    _check_filled(call.name, f"{where}.function.name")
    if not isinstance(call.arguments, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
        raise TypeError(f"{where}.function.arguments must be JSON text, not {type(call.arguments).__name__}")
    collision = sorted({"id", "type", "function"} & call.extra.keys())
    if collision:
        raise ValueError(f"{where}.extra holds {collision[0]!r}, which is a field of its own: set that field instead")
    return replace(
        call, arguments=json_copy(call.arguments, f"{where}.arguments"), extra=json_copy(call.extra, f"{where}.extra")
    )


def _check_filled(value: object, where: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{where} must be a string, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{where} must not be empty")
    json_copy(value, where)


def _roles() -> str:
    return ", ".join(ROLES)
