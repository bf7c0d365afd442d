"""What a run needs from a language model: one protocol, and the values that cross it.

Two implementations: `OpenAIChat` (any OpenAI-compatible server) and `callboard.testing.ScriptedModel`.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Struct, field, structs

from .message import Message, Usage

__all__ = ["Delta", "Model", "ModelAnswer", "ModelRequest", "ModelSettings", "OnDelta", "OutputSchema", "ToolSchema"]


class ToolSchema(Struct, frozen=True):
    """A tool as the model sees it; `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


class ModelSettings(Struct, frozen=True, omit_defaults=True, gc=False):
    """What may differ from call to call; None leaves it to the server.

    Attributes:
        model: the model's name; None takes the client's.
        temperature: 0 to 2.
        top_p: 0 to 1.
        max_tokens: the most tokens to be generated.
        stop: up to four texts at which to stop.
        seed: for repeatable sampling where the server can.
        tool_choice: "none", "auto", "required", or a tool's name. In a run the last two hold until a tool was called.
        parallel_tool_calls: whether one answer may ask for several tools.
        extra_body: further fields of the request's JSON, for servers with their own.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    extra_body: dict[str, Any] = field(default_factory=dict[str, Any])

    def over(self, others: "ModelSettings") -> "ModelSettings":
        """These, and the others' where these leave something open; `extra_body` is merged field by field."""
        theirs, mine = structs.asdict(others), structs.asdict(self)
        chosen = {name: theirs[name] if value in (None, ()) else value for name, value in mine.items()}
        chosen["extra_body"] = others.extra_body | self.extra_body
        return ModelSettings(**chosen)

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise TypeError(f"stop is a tuple of texts: for one write stop=({self.stop!r},)")
        for name, kinds in _SETTINGS.items():
            value: object = getattr(self, name)
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                words = " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"{name} must be of type {words}, or None, not {value!r}")
        if not isinstance(self.extra_body, dict):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f'extra_body must be a dict, as in {{"top_k": 20}}, not {self.extra_body!r}')


_SETTINGS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "temperature": (int, float),
    "top_p": (int, float),
    "max_tokens": (int,),
    "seed": (int,),
    "tool_choice": (str,),
}
"""What a setting must be where it is not None."""


class OutputSchema(Struct, frozen=True):
    """The form that an answer's text is to have: JSON that fits a schema.

    A server that cannot be held to it may ignore it: whoever asks checks the answer.

    Attributes:
        name: what the form is called: 1 to 64 of a-z, A-Z, 0-9, _ and -.
        schema: a JSON schema of type object.
        strict: whether the schema is of the part of JSON schema that servers can hold a model to (see `output.py`).
    """

    name: str
    schema: dict[str, Any]
    strict: bool = True

    @property
    def instruction(self) -> str:
        """The same in words, for a server that takes no schema, and for a model that went astray."""
        schema = msgspec.json.encode(self.schema).decode()
        return f"Answer with nothing but JSON that fits this JSON schema: {schema}"


class ModelRequest(Struct, frozen=True, gc=False):
    """One call: the messages in order (instructions first, as a system message), the tools, the settings, and the form
    of the answer where it is not free."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    settings: ModelSettings = ModelSettings()
    output: OutputSchema | None = None


class ModelAnswer(Struct, frozen=True, gc=False):
    """A whole answer.

    Attributes:
        message: role "assistant"; without id, seq, author, run_id (the session gives those).
        finish_reason: the server's own word: "stop", "length", "tool_calls", ...
        usage: what this call cost; where the server said nothing, only `requests` counts.
        model: the name that the server gave, or "".
        request_id: the server's name for the request, or None.
    """

    message: Message
    finish_reason: str
    usage: Usage = Usage()
    model: str = ""
    request_id: str | None = None


class Delta(Struct, frozen=True, gc=False):
    """A piece of an answer while it comes. `kind` says what `text` belongs to."""

    kind: Literal["text", "reasoning", "refusal", "tool_call"]
    text: str


OnDelta: TypeAlias = Callable[[Delta], None]


class Model(Protocol):
    """A language model. One object serves many runs at once.

    One that keeps connections may also have `close_expired() -> bool`: close those that were idle for too long, and say
    whether there are others. A runtime calls it now and then once a run has used the model.
    """

    @property
    def name(self) -> str:
        """What is asked for by default, for run records and spans."""
        ...

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelAnswer:
        """Answer the request. With `on_delta` the answer is streamed: it is called for each piece, in order, never
        waits, and its pieces of kind "text" joined are the returned message's text.

        Raises:
            ModelError: see `callboard.actors.errors`; `transient` says whether another try may help. Pieces that were
                handed out before are then void.

        Cancellation: the connection is closed at once and nothing is left behind.
        """
        ...

    async def aclose(self) -> None:
        """Close idle connections. The model can be used again afterwards."""
        ...
