"""A function's parameters as a model sees them: what it fills, from annotations, and what gets the context. Pure."""

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from .json_schema import schema_of
from .tool_context import ToolContext

__all__ = [
    "Parameter",
    "ToolFunction",
    "arguments_schema",
    "arguments_struct",
    "checked_name",
    "first_paragraph",
    "parameters_of",
]

ToolFunction: TypeAlias = Callable[..., Any]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what the API takes as a function's name


class Parameter(Struct, frozen=True):
    """What the model fills."""

    name: str
    hint: Any
    default: Any  # inspect.Parameter.empty where the model must give it


def checked_name(function: ToolFunction, name: str | None) -> str:
    """What the model calls the function. TypeError, ValueError where it cannot be a tool, or not of this name."""
    if not callable(function):
        raise TypeError(f"a tool must be a function, not {type(function).__name__}")
    if inspect.isclass(function) or inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function!r} is a class or a generator: a tool is a function that returns its result")
    name = str(getattr(function, "__name__", "")) if name is None else name
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a tool cannot be called {name!r}: use 1 to 64 of a-z, A-Z, 0-9, _ and -, as in Tool(f, name='search')"
        )
    return name


def parameters_of(function: ToolFunction, name: str) -> tuple[list[Parameter], tuple[str, ...]]:
    """What the model fills, and the names of what gets the context."""
    hints = _hints(function, name)
    parameters: list[Parameter] = []
    context_names: list[str] = []
    for each in inspect.signature(function).parameters.values():
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise TypeError(
                f"tool {name}: the parameter {str(each)!r} cannot be given by its name: use plain ones, without * and /"
            )
        hint = hints.get(each.name, each.empty)
        if _is_context(each.name, hint, name):
            context_names.append(each.name)
        elif hint is each.empty:
            raise TypeError(f"tool {name}: the parameter {each.name!r} needs an annotation, as in {each.name}: str")
        else:
            _check_hint(hint, f"tool {name}: the parameter {each.name!r}")
            parameters.append(Parameter(each.name, hint, each.default))
    return parameters, tuple(context_names)


def _hints(function: ToolFunction, name: str) -> dict[str, Any]:
    annotated: Any = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except NameError as error:
        reason = f"an annotation cannot be looked up ({error}): import or define it globally"
        raise TypeError(f"tool {name}: {reason}") from None


def _is_context(parameter: str, hint: object, name: str) -> bool:
    if hint is ToolContext or ToolContext in typing.get_args(hint):
        return True
    if parameter == "context" and hint is not inspect.Parameter.empty and hint is not Any:
        raise TypeError(f"tool {name}: `context` gets the ToolContext: annotate it so, or rename the parameter")
    return parameter == "context"


def _check_hint(hint: object, where: str) -> None:
    try:
        msgspec.json.schema(hint)
        msgspec.json.Decoder(hint)
    except (TypeError, NameError) as error:
        raise TypeError(f"{where} is of a type that cannot come from JSON: {error}") from error


def first_paragraph(function: ToolFunction) -> str:
    """Of the docstring, on one line; "" where there is none."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n", 1)[0].split())


def arguments_struct(parameters: list[Parameter]) -> type[Struct]:
    """The type of a call's arguments; what the model leaves out is UNSET."""
    fields: list[Any] = [
        (each.name, each.hint)
        if each.default is inspect.Parameter.empty
        else (each.name, typing.Union[each.hint, UnsetType], UNSET)  # noqa: UP007 -- `|` is not defined for every hint
        for each in parameters
    ]
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def arguments_schema(arguments: type[Struct], parameters: list[Parameter]) -> dict[str, Any]:
    """The JSON schema of a call's arguments, with the defaults that JSON has."""
    schema = schema_of(arguments)
    for each in parameters:
        if type(each.default) in (str, int, float, bool):
            schema["properties"][each.name].setdefault("default", each.default)
    return schema
