"""The nouns that travel and are stored: Message, ToolCall, Usage.

A message is what one party said. Its fields are those of the OpenAI chat format plus what a shared session needs to
know: who wrote it, in which run, when. `extra` keeps what a server sent beside the known fields (DeepSeek's
`reasoning_content`, Gemini's `thought_signature`) because some servers want it back.

Source: OpenAI chat completions, message objects.
"""

from typing import Any, Literal, TypeAlias, get_args

from msgspec import Struct
from msgspec.structs import replace

__all__ = ["COUNT_MAX", "ROLES", "Message", "Part", "Role", "ToolCall", "Usage"]

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)

Part: TypeAlias = dict[str, Any]
"""One part of a multi-part content, as on the wire: {"type": "text", "text": "..."}, {"type": "image_url", ...}."""

COUNT_MAX = 2**53
"""The most that a count of `Usage` holds: what every reader of JSON takes as a whole number."""


class ToolCall(Struct, frozen=True, omit_defaults=True, gc=False):
    """A model's wish to call a tool. `arguments` is JSON text exactly as the model wrote it ("" means {}).

    `extra` keeps further fields of the call that must be sent back (Gemini's `extra_content`).
    """

    id: str
    name: str
    arguments: str = ""
    extra: dict[str, Any] = {}


class Message(Struct, frozen=True, omit_defaults=True, gc=False, tag="message", kw_only=True):
    """One message of a conversation.

    Attributes:
        role: who speaks, in the API's terms.
        content: text, a list of parts, or None (an assistant message that only calls tools).
        tool_calls: the calls that an assistant message asks for.
        tool_call_id: for role "tool": the call that this is the result of.
        name: the API's own name field, or None.
        id: unique within the session, which gives it; what a caller puts here is not kept.
        seq: place in the session's history from 1; 0 where not stored.
        author: the agent's name, or whom the caller named; None for a plain user message.
        run_id: the run that wrote it, or None.
        created_at_ms: milliseconds since 1970, UTC; 0 where not stored.
        interrupted: True where this is the part that was there when its turn was stopped.
        extra: fields of a provider that must be sent back as they came.
    """

    # gc=False, here and above: what they hold is JSON, which cannot lead back to them; a runtime may hold a million.
    role: Role
    content: str | list[Part] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    id: str = ""
    seq: int = 0
    author: str | None = None
    run_id: str | None = None
    created_at_ms: int = 0
    interrupted: bool = False
    extra: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The content's text: the string itself, or its text parts joined; "" where there is none."""
        if isinstance(self.content, list):
            return "".join(part["text"] for part in self.content if part.get("type") == "text")
        return self.content or ""


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens as the server reported them.

    `+` adds up to COUNT_MAX: however many odd numbers come together, the sum can be stored.

    Attributes:
        prompt_tokens, completion_tokens, total_tokens: as reported.
        cached_tokens: those of the prompt that the provider had cached.
        reasoning_tokens: those of the answer that were thought and not said.
        requests: the model calls in it.
        estimated: of how many of these the server reported nothing, so that their tokens are our estimate.
        cost: by the prices of a budget (`Budget(prices=...)`); 0.0 where there were none.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    estimated: int = 0
    cost: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        cost = self.cost + other.cost
        total = Usage(*(min(getattr(self, name) + getattr(other, name), COUNT_MAX) for name in _COUNTS))
        return replace(total, cost=min(cost, float(COUNT_MAX))) if cost else total  # an unset one is not stored


_COUNTS = Usage.__struct_fields__[:-1]
assert "cost" not in _COUNTS
