"""Tools: annotated Python functions that a model may call. The JSON schema and the checks come from msgspec.

    async def weather(city: Annotated[str, Meta(description="in English")], days: int = 1) -> list[str]:
        '''The forecast for a city.'''

A parameter called `context`, or annotated ToolContext, is not shown to the model and gets the call's ToolContext.
Whatever goes wrong in a call becomes a text that the model can read and react to; only cancellation passes through.
"""

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
from msgspec import UNSET, Struct, UnsetType

from .json_schema import schema_of
from .limits import TOOL_RESULT_BYTES_MAX, reason_of
from .message import ToolCall
from .model import ToolSchema

__all__ = ["Tool", "ToolContext", "ToolFunction", "ToolResult", "ToolSet", "tool_schema"]

ToolFunction: TypeAlias = Callable[..., Any]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what the API takes as a function's name


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """Where a tool is called from.

    Attributes:
        agent: the agent's name.
        run_id: the run that calls.
        turn: the number of its turn; 0 without a session.
        session_id: the session's id, or None where there is no session.
        metadata: the session's metadata as it was when the turn began, a read-only mapping.
    """

    agent: str
    run_id: str
    turn: int = 0
    session_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model reads. `cause` is the exception behind an error, for spans and logs, where there was one."""

    content: str
    is_error: bool = False
    cause: Exception | None = None


class Tool:
    """A function as a tool, checked and with its schema.

    Args:
        function: sync or async; each parameter annotated with a type that msgspec knows.
        name: what the model calls it: 1 to 64 of a-z, A-Z, 0-9, _ and -; None takes the function's.
        description: what it is for, for the model; None takes the first paragraph of the docstring.

    Raises:
        TypeError: it is no function, or a parameter of it cannot be filled from JSON; the message names it.
        ValueError: the name is none that the API takes.
    """

    __slots__ = ("_context_names", "_decoder", "_is_async", "function", "schema")

    def __init__(self, function: ToolFunction, *, name: str | None = None, description: str | None = None) -> None:
        name = _checked_name(function, name)
        parameters, self._context_names = _parameters(function, name)
        if description is None:
            description = _first_paragraph(function)
        arguments = _arguments_struct(parameters)
        self.function: ToolFunction = function
        self.schema: ToolSchema = ToolSchema(name, description, _arguments_schema(arguments, parameters))
        self._decoder = msgspec.json.Decoder(arguments)
        self._is_async = inspect.iscoroutinefunction(function)

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.schema.name

    async def call(self, arguments: str, context: ToolContext) -> ToolResult:
        """The function's result as text, or what went wrong as text; a str as it is, everything else as JSON.

        A sync function runs in a worker thread, since it may block.

        Cancellation: passes through. An async function is cancelled. A thread cannot be: a sync function goes on
        unwatched, unless it asks by `anyio.from_thread.check_cancelled()`. On asyncio, a function that awaits a task or
        a future which others cancelled has failed: that cancellation is not the call's.
        """
        try:
            given = self._decoder.decode(arguments if arguments.strip() not in ("", "null") else "{}")
        except msgspec.DecodeError as error:
            return ToolResult(f"Error: the arguments of {self.name} do not fit: {error}", is_error=True, cause=error)
        except Exception as error:  # noqa: BLE001 -- half a character, endless nesting, the __post_init__ of a user's type
            reason = reason_of(error)
            return ToolResult(f"Error: the arguments of {self.name} do not fit: {reason}", is_error=True, cause=error)
        # Only what the model gave: the function's own defaults fill the rest, whatever objects they are.
        values = {key: value for key in given.__struct_fields__ if (value := getattr(given, key)) is not UNSET}
        values.update(dict.fromkeys(self._context_names, context))
        try:
            result = await self._run(values)
            return _checked_size(result if isinstance(result, str) else _json_text(result), self.name)
        except Exception as error:  # noqa: BLE001 -- whatever a user's function raises is the tool's answer
            return ToolResult(f"Error: {self.name} failed: {reason_of(error)}", is_error=True, cause=error)
        except anyio.get_cancelled_exc_class() as error:
            # Raises where a scope around the call is cancelled. Else the exception came from what the function awaited,
            # and a task that ended with it would be missing from its group without a word (asyncio).
            await anyio.lowlevel.checkpoint_if_cancelled()
            cause = RuntimeError("it awaited something that was cancelled")
            cause.__cause__ = error
            return ToolResult(f"Error: {self.name} failed: {cause}", is_error=True, cause=cause)

    async def _run(self, values: dict[str, Any]) -> object:
        if self._is_async:
            return await self.function(**values)
        # In a list: trio takes a bare coroutine from a thread for a mistake, and a wrapped async function gives one.
        work = partial(_in_list, self.function, values)
        (result,) = await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        return await result if inspect.isawaitable(result) else result


class ToolSet:
    """The tools of one agent, by name.

    Raises:
        ValueError: two of them have one name.
        TypeError, ValueError: see Tool.
    """

    __slots__ = ("_tools",)

    def __init__(self, functions: Iterable[ToolFunction | Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for function in functions:
            tool = function if isinstance(function, Tool) else Tool(function)
            if tool.name in self._tools:
                raise ValueError(
                    f"two tools are called {tool.name!r}: give one another name by Tool(function, name=...)"
                )
            self._tools[tool.name] = tool

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names, in the order given."""
        return tuple(self._tools)

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        """The tools as the model sees them, in the order given."""
        return tuple(tool.schema for tool in self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    async def call(self, tool_call: ToolCall, context: ToolContext) -> ToolResult:
        """Run the tool that the model asks for; see `Tool.call`. An unknown name gives an error with the known ones."""
        tool = self._tools.get(tool_call.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return ToolResult(
                _encodable(f"Error: there is no tool {tool_call.name!r}. Known tools: {known}"), is_error=True
            )
        return await tool.call(tool_call.arguments, context)


def tool_schema(function: ToolFunction) -> ToolSchema:
    """The function as a model sees it. Raises as Tool does."""
    return Tool(function).schema


class _Parameter(Struct, frozen=True):
    name: str
    hint: Any
    default: Any  # inspect.Parameter.empty where the model must give it


def _checked_name(function: ToolFunction, name: str | None) -> str:
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


def _parameters(function: ToolFunction, name: str) -> tuple[list[_Parameter], tuple[str, ...]]:
    """What the model fills, and the names of what gets the context."""
    hints = _hints(function, name)
    parameters: list[_Parameter] = []
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
            parameters.append(_Parameter(each.name, hint, each.default))
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


def _first_paragraph(function: ToolFunction) -> str:
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n", 1)[0].split())


def _arguments_struct(parameters: list[_Parameter]) -> type[Struct]:
    fields: list[Any] = [
        (each.name, each.hint)
        if each.default is inspect.Parameter.empty
        else (each.name, typing.Union[each.hint, UnsetType], UNSET)  # noqa: UP007 -- `|` is not defined for every hint
        for each in parameters
    ]
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def _arguments_schema(arguments: type[Struct], parameters: list[_Parameter]) -> dict[str, Any]:
    schema = schema_of(arguments)
    for each in parameters:
        if type(each.default) in (str, int, float, bool):
            schema["properties"][each.name].setdefault("default", each.default)
    return schema


def _in_list(function: ToolFunction, values: dict[str, Any]) -> list[Any]:
    return [function(**values)]


def _json_text(result: object) -> str:
    return msgspec.json.encode(result, enc_hook=_as_dict).decode()


def _as_dict(value: object) -> dict[object, object]:
    """For mappings that msgspec does not know, as a context's metadata."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    raise TypeError(f"a result of type {type(value).__name__} cannot be written as JSON")


def _checked_size(content: str, name: str) -> ToolResult:
    content = _encodable(content)
    size_bytes = len(content.encode())
    if size_bytes <= TOOL_RESULT_BYTES_MAX:
        return ToolResult(content)
    reason = f"its result is {size_bytes} bytes, more than the {TOOL_RESULT_BYTES_MAX} that fit: ask for less"
    return ToolResult(f"Error: {name} failed: {reason}", is_error=True)


def _encodable(text: str) -> str:
    # Halves of characters (from a wrongly decoded file) can be neither sent nor stored: each becomes a question mark.
    return text.encode(errors="replace").decode()
