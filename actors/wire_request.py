"""Requests of the chat completions API: a ModelRequest to JSON. Pure.

Source: OpenAI chat completions; FACTS.md, "Wire truth", for who deviates how.
"""

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from .message import Message, ToolCall
from .model import ModelRequest, ModelSettings, ToolSchema

__all__ = ["Dialect", "MaxTokensField", "encode_message", "encode_request"]

MaxTokensField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]


class Dialect(Struct, frozen=True):
    """How a server wants its requests.

    Attributes:
        max_tokens_field: the newer name, which OpenAI's reasoning models insist on, or the older one that others know.
        stream_usage: whether to ask for usage in streams; a few servers refuse the field that asks.
        send_extra: whether `Message.extra` goes back to the server. Off where sessions move between providers.
    """

    max_tokens_field: MaxTokensField = "max_tokens"
    stream_usage: bool = True
    send_extra: bool = True


def encode_request(request: ModelRequest, settings: ModelSettings, *, dialect: Dialect, stream: bool) -> bytes:
    """The request's JSON. `settings` are the effective ones; their `extra_body` is merged last and wins.

    Raises:
        TypeError, ValueError: something in it is not JSON (a lone surrogate, an object of your own).
    """
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [encode_message(message, send_extra=dialect.send_extra) for message in request.messages],
    }
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
        body["tools"] = [_encode_tool(tool) for tool in request.tools]
        if settings.tool_choice is not None:
            body["tool_choice"] = _encode_tool_choice(settings.tool_choice)
        if settings.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = settings.parallel_tool_calls
    if stream:
        body["stream"] = True
        if dialect.stream_usage:
            body["stream_options"] = {"include_usage": True}
    body.update(settings.extra_body)
    return msgspec.json.encode(body)


def encode_message(message: Message, *, send_extra: bool = True) -> dict[str, Any]:
    """One message as the API has it; what only a session needs (author, run, times) stays here."""
    content = message.content
    if content is None and not message.tool_calls:
        content = ""  # null is allowed beside tool calls only
    encoded: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        encoded["name"] = message.name
    if message.tool_call_id is not None:
        encoded["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        encoded["tool_calls"] = [_encode_call(call, send_extra=send_extra) for call in message.tool_calls]
    return {**message.extra, **encoded} if send_extra else encoded


def _encode_call(call: ToolCall, *, send_extra: bool) -> dict[str, Any]:
    # "" means {} in our records; some servers parse what they get back, and "" is no JSON.
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {**(call.extra if send_extra else {}), "id": call.id, "type": "function", "function": function}


def _encode_tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _encode_tool_choice(choice: str) -> str | dict[str, Any]:
    if choice in ("none", "auto", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}
