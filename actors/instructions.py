"""An agent's instructions: fixed text, a template over the session's metadata, or a function. Pure.

They are made anew for each run and are sent first, as the system message; they are not part of the history.
"""

import inspect
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

__all__ = ["InstructionContext", "Instructions", "Template", "check_instructions", "render"]

_BRACED = re.compile(r"\$\$|\$\{([^{}]+)\}")
_KEY = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")  # as string.Template has it


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionContext:
    """What instructions may speak of.

    Attributes:
        agent: the agent's name.
        session_id: the session's id, or None where there is no session.
        metadata: the session's metadata as it is when the turn begins, a read-only mapping; empty without a session.
        run_id: the run that the instructions are for.
    """

    agent: str
    session_id: str | None = None
    metadata: Mapping[str, Any]
    run_id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))


@dataclass(frozen=True, slots=True)
class Template:
    """Text with `${key}` or `$key` for the session's metadata, `agent` and `session_id`; `$$` is a dollar sign.

    `agent` and `session_id` are always those of the run, whatever the metadata says. Values are put in as `str` gives
    them. A key that the metadata does not have fails the run: a prompt with a hole in it is worse. What stands inside
    of a key's value is for a function to take out.

    Raises:
        ValueError: a dollar sign that begins no key.

    Source: string.Template.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a Template is made from a string, not {type(self.text).__name__}")
        if not string.Template(self.text).is_valid():
            odd = next((key for key in _BRACED.findall(self.text) if key and not _KEY.fullmatch(key)), None)
            if odd is not None:
                raise ValueError(
                    f"the template names ${{{odd}}}, but fills in whole keys of a-z, A-Z, 0-9 and _ only: for a value "
                    "inside of another, or another key, use a function of the InstructionContext"
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


def _fill(template: Template, context: InstructionContext) -> str:
    values = {**context.metadata, "agent": context.agent}
    values.pop("session_id", None)
    if context.session_id is not None:
        values["session_id"] = context.session_id
    try:
        return string.Template(template.text).substitute(values)
    except KeyError as error:
        there = ", ".join(sorted(values))
        raise ValueError(
            f"the instructions' template of agent {context.agent!r} names ${{{error.args[0]}}}, and there is: {there}. "
            "Set it in the session's metadata"
        ) from None
