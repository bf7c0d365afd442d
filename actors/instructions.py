"""An agent's instructions: fixed text, a template over the session's metadata and state, or a function. Pure.

They are made anew for each run and are sent first, as the system message; they are not part of the history.
"""

import inspect
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias, cast

__all__ = ["InstructionContext", "Instructions", "Template", "check_instructions", "look_at_state", "render"]

_BRACED = re.compile(r"\$\$|\$\{([^{}]+)\}")
_PATH = re.compile(r"(?a:[a-zA-Z_]\w*(?:\.\w+)*)")
_STATES = ("session_state", "user_state", "app_state")


class _Paths(string.Template):
    """`$key` as string.Template has it; in braces a path, whose parts stand between dots."""

    braceidpattern = r"(?a:[_a-z][_a-z0-9]*(?:\.[_a-z0-9]+)*)"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionContext:
    """What instructions may speak of.

    Attributes:
        agent: the agent's name.
        session_id: the session's id, or None where there is no session.
        metadata: the session's metadata as it is when the turn begins, a read-only mapping; empty without a session.
        run_id: the run that the instructions are for.
        session_state: what the session's turns keep for each other, likewise.
        user_state: what all sessions of its owner share, likewise.
        app_state: what all sessions share, likewise.
    """

    agent: str
    session_id: str | None = None
    metadata: Mapping[str, Any]
    run_id: str = ""
    session_state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    user_state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    app_state: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("metadata", *_STATES):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


@dataclass(frozen=True, slots=True)
class Template:
    """Text with `${key}` or `$key` for the session's metadata, `agent` and `session_id`; `$$` is a dollar sign.

    `${address.city}` and `${cart.0}` stand for what is inside of a key's value, in dicts and lists however deep, and
    `${session_state.key}`, `${user_state.key}` and `${app_state.key}` for state. `agent`, `session_id` and the three
    states are always those of the run, whatever the metadata says. Values are put in as `str` gives them. What is not
    there fails the run: a prompt with a hole in it is worse.

    Raises:
        ValueError: a dollar sign that begins no key.

    Source: string.Template.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a Template is made from a string, not {type(self.text).__name__}")
        if not _Paths(self.text).is_valid():
            odd = next((key for key in _BRACED.findall(self.text) if key and not _PATH.fullmatch(key)), None)
            if odd is not None:
                raise ValueError(
                    f"the template names ${{{odd}}}, but fills in keys of a-z, A-Z, 0-9 and _ only, with dots before "
                    "what is inside of a value: for another key use a function of the InstructionContext"
                )
            raise ValueError(f"{self.text!r} has a dollar sign that begins no ${{key}}: write $$ for the sign itself")


Instructions: TypeAlias = str | Template | Callable[[InstructionContext], str]


def check_instructions(value: object) -> Instructions:
    """The value, which is text, a Template or a plain function.

    Raises:
        TypeError: it is something else, or an async function.
    """
    if isinstance(value, str | Template):
        return value
    if inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value):
        raise TypeError("instructions must be a plain function, not an async one: fetch before, pass it as metadata")
    if not callable(value):
        given = type(value).__name__
        raise TypeError(f"instructions must be a str, a Template or a function of an InstructionContext, not {given}")
    return cast("Callable[[InstructionContext], str]", value)


def render(instructions: Instructions, context: InstructionContext) -> str:
    """The text of the instructions for one run; "" means that none are sent.

    Raises:
        ValueError: a template names a key that is not there.
        TypeError: a function returned something other than text.
        Exception: whatever a function raised.
    """
    if isinstance(instructions, str):
        return instructions
    if isinstance(instructions, Template):
        return _fill(instructions, context)
    text = cast("object", instructions(context))  # whatever its annotation says
    if inspect.iscoroutine(text):
        text.close()  # or it warns, later and elsewhere, that it was never awaited
    if not isinstance(text, str):
        raise TypeError(f"the instructions' function returned {type(text).__name__}: it must return a str")
    return text


def look_at_state(instructions: Instructions) -> bool:
    """Whether they may speak of state, so that it must be there when they are made."""
    if isinstance(instructions, Template):
        return any(name.partition(".")[0] in _STATES for name in _Paths(instructions.text).get_identifiers())
    return not isinstance(instructions, str)


class _Values(Mapping[str, object]):
    """What a template may name, by path."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def __getitem__(self, path: str) -> object:
        if path in self._values:
            return self._values[path]
        value: object = self._values
        for part in path.split("."):
            value = _inside(value, part)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _inside(value: object, part: str) -> object:
    """KeyError where there is no such part."""
    if isinstance(value, Mapping):
        return cast("Mapping[str, object]", value)[part]
    if isinstance(value, list) and part.isdecimal() and int(part) < len(items := cast("list[object]", value)):
        return items[int(part)]
    raise KeyError(part)


def _fill(template: Template, context: InstructionContext) -> str:
    values: dict[str, object] = {**context.metadata, "agent": context.agent}
    values.pop("session_id", None)
    if context.session_id is not None:
        values["session_id"] = context.session_id
    values |= {name: dict(getattr(context, name)) for name in _STATES}
    paths = _Paths(template.text)
    known = _Values(values)
    for path in paths.get_identifiers():
        if path not in known:
            raise ValueError(_not_there(path, context, sorted(values.keys() - set(_STATES))))
    return paths.substitute(known)


def _not_there(path: str, context: InstructionContext, there: list[str]) -> str:
    first, _, rest = path.partition(".")
    named = f"the instructions' template of agent {context.agent!r} names ${{{path}}}, and"
    if first in _STATES:
        keys: Mapping[str, object] = getattr(context, first)
        return f"{named} {first} has: {', '.join(sorted(keys)) or 'nothing'}. Set it there"
    if rest and first in there:
        return f"{named} {first!r} is there, but not what is to be inside of it"
    return f"{named} there is: {', '.join(there)}. Set it in the session's metadata"
