"""Requests of the chat completions API: a ModelRequest to JSON, in the server's dialect. Pure.

Source: OpenAI chat completions; FACTS.md, "Wire truth", for who deviates how.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from .dialect import Dialect
from .message import Message, ToolCall
from .model import ModelRequest, ModelSettings, OutputSchema, ToolSchema

__all__ = ["encode_message", "encode_request"]

_encode = msgspec.json.Encoder().encode
_PLAIN = Dialect()
_NINE_LETTERS = re.compile(r"[a-zA-Z0-9]{9}").fullmatch


def encode_request(request: ModelRequest, settings: ModelSettings, *, dialect: Dialect, stream: bool) -> bytes:
    """The request's JSON. `settings` are the effective ones; their `extra_body` is merged last and wins.

    Raises:
        TypeError, ValueError: something in it is not JSON (a lone surrogate, an object of your own).

    Cost: 0.5 µs a message, and its text at 1 GB/s.
    """
    body: dict[str, Any] = {"model": settings.model, "messages": _encode_messages(request, dialect)}
    optional = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        dialect.max_tokens_field: settings.max_tokens,
        "stop": list(settings.stop) or None,
        "seed": settings.seed,
    }
    body.update({name: value for name, value in optional.items() if value is not None})
    if request.tools:
        # Without tools the other two are refused by OpenAI.
        _add_tools(body, request.tools, settings, dialect)
    if request.output is not None and dialect.output_form != "words":
        body["response_format"] = _encode_output(request.output, dialect)
    if stream:
        body["stream"] = True
        if dialect.stream_usage:
            body["stream_options"] = {"include_usage": True}
    body.update(settings.extra_body)
    return _encode(body)


# --- messages ---------------------------------------------------------------------------------------------------------


def _encode_messages(request: ModelRequest, dialect: Dialect) -> list[dict[str, Any]]:
    messages = request.messages
    if dialect.reasoning_beside_calls is None:
        encoded = [encode_message(message, dialect) for message in messages]
    else:
        places = _turns_with_calls(messages)
        encoded = [
            encode_message(message, dialect, with_calls=with_calls)
            for message, with_calls in zip(messages, places, strict=True)
        ]
    if request.output is not None and dialect.output_form != "json_schema":
        _add_instruction(encoded, request.output.instruction)
    return encoded


def encode_message(message: Message, dialect: Dialect = _PLAIN, *, with_calls: bool = True) -> dict[str, Any]:
    """One message as the API has it; what only a session needs (author, run, times) stays here.

    `with_calls` says whether there are tool calls in the message's turn.
    """
    content = message.content
    if content is None and not message.tool_calls:
        content = ""  # null is allowed beside tool calls only
    encoded: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None and dialect.message_names:
        encoded["name"] = message.name
    if message.tool_call_id is not None:
        encoded["tool_call_id"] = _call_id(message.tool_call_id, dialect)
    if message.tool_calls:
        encoded["tool_calls"] = [_encode_call(call, dialect) for call in message.tool_calls]
    if message.extra:
        encoded = {**_sent_back(message.extra, dialect), **encoded}
    if dialect.reasoning_beside_calls is not None:
        if message.tool_calls:
            encoded.setdefault(dialect.reasoning_beside_calls, "")
        elif not with_calls and message.extra:
            encoded.pop(dialect.reasoning_beside_calls, None)
    return encoded


def _encode_call(call: ToolCall, dialect: Dialect) -> dict[str, Any]:
    # "" means {} in our records; some servers parse what they get back, and "" is no JSON.
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    encoded = {"id": _call_id(call.id, dialect), "type": "function", "function": function}
    return {**_sent_back(call.extra, dialect), **encoded} if call.extra else encoded


def _sent_back(extra: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    if dialect.sends_back is None:
        return extra
    return {name: value for name, value in extra.items() if name in dialect.sends_back}


def _call_id(call_id: str, dialect: Dialect) -> str:
    if not dialect.nine_letter_ids or _NINE_LETTERS(call_id):
        return call_id
    return sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _turns_with_calls(messages: Sequence[Message]) -> list[bool]:
    """For each message whether there are tool calls between the user's messages around it."""
    places = [False] * len(messages)
    start, found = 0, False
    for place, message in enumerate(messages):
        if message.role == "user":
            places[start:place] = [found] * (place - start)
            start, found = place, False
        elif message.tool_calls:
            found = True
    places[start:] = [found] * (len(messages) - start)
    return places


def _add_instruction(encoded: list[dict[str, Any]], text: str) -> None:
    """Into the first system message, since some models' templates take one only; else as one of its own."""
    first = encoded[0] if encoded else {}
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        encoded[0] = {**first, "content": f"{first['content']}\n\n{text}".strip()}
    else:
        encoded.insert(0, {"role": "system", "content": text})


# --- tools and output -------------------------------------------------------------------------------------------------


def _add_tools(body: dict[str, Any], tools: Sequence[ToolSchema], settings: ModelSettings, dialect: Dialect) -> None:
    choice = settings.tool_choice
    if dialect.named_choice == "alone":
        alone = [tool for tool in tools if tool.name == choice]
        if alone:
            tools, choice = alone, "required"
    body["tools"] = [_encode_tool(tool) for tool in tools]
    if choice is not None:
        body["tool_choice"] = _encode_choice(choice, dialect)
    if settings.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = settings.parallel_tool_calls


def _encode_tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _encode_choice(choice: str, dialect: Dialect) -> str | dict[str, Any]:
    if choice == "required":
        return dialect.required_choice
    if choice in ("none", "auto"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def _encode_output(output: OutputSchema, dialect: Dialect) -> dict[str, Any]:
    if dialect.output_form == "json_object":
        return {"type": "json_object"}
    schema = {"name": output.name, "schema": output.schema, "strict": output.strict}
    return {"type": "json_schema", "json_schema": schema}
