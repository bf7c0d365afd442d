"""Tools: annotated Python functions that a model may call. The JSON schema and the checks come from msgspec.

    async def weather(city: Annotated[str, Meta(description="in English")], days: int = 1) -> list[str]:
        '''The forecast for a city.'''

A parameter called `context`, or annotated ToolContext, is not shown to the model and gets the call's ToolContext.
Whatever goes wrong in a call becomes a text that the model can read and react to; only cancellation passes through.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args, overload

import anyio
import anyio.lowlevel
import msgspec
from msgspec import UNSET

from .limits import TOOL_RESULT_BYTES_MAX, reason_of
from .message import ToolCall
from .model import ToolSchema
from .tool_context import ToolContext
from .tool_parameters import (
    ToolFunction,
    arguments_schema,
    arguments_struct,
    checked_name,
    first_paragraph,
    parameters_of,
)
from .tool_threads import TOOL_THREADS_MAX, ThreadedCall

__all__ = [
    "NeedsApproval",
    "OnError",
    "Tool",
    "ToolContext",
    "ToolFunction",
    "ToolResult",
    "ToolSet",
    "tool",
    "tool_schema",
]

_log = logging.getLogger("callboard.tools")

OnError: TypeAlias = Literal["result", "fail"]
NeedsApproval: TypeAlias = bool | Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model reads.

    Attributes:
        content: the text.
        is_error: True where something went wrong.
        cause: the exception behind an error, for spans and logs, where there was one.
        fails_run: True where the run is to end with it, as the tool's `on_error` says.
    """

    content: str
    is_error: bool = False
    cause: Exception | None = None
    fails_run: bool = False


class Tool:
    """A function as a tool, checked and with its schema. Called itself, it is the function.

    Args:
        function: sync or async; each parameter annotated with a type that msgspec knows.
        name: what the model calls it: 1 to 64 of a-z, A-Z, 0-9, _ and -; None takes the function's.
        description: what it is for, for the model; None takes the first paragraph of the docstring.
        timeout_s: how long a call may take; over that it is given up, as an error. None: as long as the run.
        on_error: what an exception of the function, or its timeout, becomes: a "result" that the model reads, or the
            end of the run ("fail"): RunFailed, with the exception as its cause. Arguments that do not fit are the
            model's mistake and always a result.
        approval: True: each call must be approved before it runs. A function gets the arguments by name, those that
            the model left out with their defaults, and says whether this call must; where it raises, the call must.
        repeatable: whether a call that was cut off may run again when its run goes on, as one that changes nothing
            may, or one that hands `context.idempotency_key` on. Else the model reads that it was interrupted.
        ends_run: True: once a call has succeeded, and those beside it have their results, the run is completed; the
            model is not called again. The reply's message is then the answer that called, its `output` is None.

    Raises:
        TypeError: it is no function, or a parameter of it cannot be filled from JSON; the message names it.
        ValueError: the name is none that the API takes; an option is none of those above.
    """

    __slots__ = (
        "__weakref__",
        "_approval",
        "_context_names",
        "_decoder",
        "_defaults",
        "_is_async",
        "ends_run",
        "function",
        "on_error",
        "repeatable",
        "schema",
        "timeout_s",
    )

    def __init__(
        self,
        function: ToolFunction,
        *,
        name: str | None = None,
        description: str | None = None,
        timeout_s: float | None = None,
        on_error: OnError = "result",
        approval: NeedsApproval = False,
        repeatable: bool = False,
        ends_run: bool = False,
    ) -> None:
        name = checked_name(function, name)
        parameters, self._context_names = parameters_of(function, name)
        if description is None:
            description = first_paragraph(function)
        arguments = arguments_struct(parameters)
        self.function: ToolFunction = function
        self.schema: ToolSchema = ToolSchema(name, description, arguments_schema(arguments, parameters))
        self._decoder = msgspec.json.Decoder(arguments)
        self._defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
        self._is_async = inspect.iscoroutinefunction(function)
        self.timeout_s: float | None = _checked_timeout(timeout_s, name)
        self.on_error: OnError = _checked_on_error(on_error, name)
        self._approval: NeedsApproval = _checked_approval(approval, name)
        self.repeatable: bool = repeatable
        self.ends_run: bool = ends_run

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What the function itself gives."""
        return self.function(*arguments, **options)

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.schema.name

    @property
    def takes_context(self) -> bool:
        """Whether a call gets the ToolContext."""
        return bool(self._context_names)

    def needs_approval(self, arguments: str) -> bool:
        """Whether this call must be approved before it runs; False where its arguments do not fit, as it cannot run."""
        if self._approval is False:
            return False
        given = self._given(arguments)
        if isinstance(given, ToolResult):
            return False
        if self._approval is True:
            return True
        try:
            return self._approval({**self._defaults, **given}) is not False
        except Exception:  # noqa: BLE001 -- a user's function, which did not say that the call may run
            _log.exception("approval= of the tool %s failed: the call waits for an approval", self.name)
            return True

    async def call(self, arguments: str, context: ToolContext) -> ToolResult:
        """The function's result as text, or what went wrong as text; a str as it is, everything else as JSON.

        A sync function runs in a worker thread, since it may block; up to 40 calls of it at once, the others wait.

        Cancellation: passes through. An async function is cancelled. A thread cannot be: a sync function goes on
        unwatched, unless it asks by `anyio.from_thread.check_cancelled()`. On asyncio, a function that awaits a task or
        a future which others cancelled has failed: that cancellation is not the call's.
        """
        given = self._given(arguments)
        if isinstance(given, ToolResult):
            return given
        values = {**given, **dict.fromkeys(self._context_names, context)}
        threaded = None if self._is_async else ThreadedCall(self.function, values)
        if self.timeout_s is None:
            return await self._outcome(values, threaded)
        with anyio.move_on_after(self.timeout_s):
            return await self._outcome(values, threaded)
        reason = f"it took longer than its {self.timeout_s:g} s and was given up; it may have had an effect"
        if threaded is not None and not threaded.begun:
            reason = f"it did not begin: {TOOL_THREADS_MAX} calls of it run, none has ended for {self.timeout_s:g} s"
        return self._failed(reason, TimeoutError(reason))

    def _given(self, arguments: str) -> dict[str, Any] | ToolResult:
        """Only what the model gave: the function's own defaults fill the rest, whatever objects they are."""
        try:
            given = self._decoder.decode(arguments if arguments.strip() not in ("", "null") else "{}")
        except msgspec.DecodeError as error:
            return ToolResult(f"Error: the arguments of {self.name} do not fit: {error}", is_error=True, cause=error)
        except Exception as error:  # noqa: BLE001 -- half a character, endless nesting, the __post_init__ of a user's type
            reason = reason_of(error)
            return ToolResult(f"Error: the arguments of {self.name} do not fit: {reason}", is_error=True, cause=error)
        return {key: value for key in given.__struct_fields__ if (value := getattr(given, key)) is not UNSET}

    async def _outcome(self, values: dict[str, Any], threaded: ThreadedCall | None) -> ToolResult:
        try:
            result = await self._run(values, threaded)
            content = _encodable(result if isinstance(result, str) else _json_text(result))
        except Exception as error:  # noqa: BLE001 -- whatever a user's function raises is the tool's answer
            return self._failed(reason_of(error), error)
        except anyio.get_cancelled_exc_class() as error:
            # Raises where a scope around the call is cancelled. Else the exception came from what the function awaited,
            # and a task that ended with it would be missing from its group without a word (asyncio).
            await anyio.lowlevel.checkpoint_if_cancelled()
            cause = RuntimeError("it awaited something that was cancelled")
            cause.__cause__ = error
            return self._failed(str(cause), cause)
        size_bytes = len(content.encode())
        if size_bytes <= TOOL_RESULT_BYTES_MAX:
            return ToolResult(content)
        return self._failed(
            f"its result is {size_bytes} bytes, more than the {TOOL_RESULT_BYTES_MAX} that fit: ask for less"
        )

    def _failed(self, reason: str, cause: Exception | None = None) -> ToolResult:
        content = f"Error: {self.name} failed: {reason}"
        return ToolResult(content, is_error=True, cause=cause, fails_run=self.on_error == "fail")

    async def _run(self, values: dict[str, Any], threaded: ThreadedCall | None) -> object:
        if threaded is None:
            return await self.function(**values)
        result = await threaded.run()
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

    @property
    def take_context(self) -> bool:
        """Whether a call of any of them gets the ToolContext."""
        return any(tool.takes_context for tool in self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def get(self, name: str) -> Tool | None:
        """The tool of this name, or None."""
        return self._tools.get(name)

    async def call(self, tool_call: ToolCall, context: ToolContext) -> ToolResult:
        """Run the tool that the model asks for; see `Tool.call`. An unknown name gives an error with the known ones."""
        tool = self._tools.get(tool_call.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return ToolResult(
                _encodable(f"Error: there is no tool {tool_call.name!r}. Known tools: {known}"), is_error=True
            )
        return await tool.call(tool_call.arguments, context)


@overload
def tool(function: ToolFunction, /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = None,
    on_error: OnError = "result",
    approval: NeedsApproval = False,
    repeatable: bool = False,
    ends_run: bool = False,
) -> Callable[[ToolFunction], Tool]: ...
def tool(function: ToolFunction | None = None, /, **options: Any) -> Tool | Callable[[ToolFunction], Tool]:
    """A decorator that makes a Tool of a function: `@tool`, or with options as `@tool(approval=True, timeout_s=20)`.

    Raises as Tool does.
    """
    return Tool(function, **options) if function is not None else partial(Tool, **options)


def tool_schema(function: ToolFunction) -> ToolSchema:
    """The function as a model sees it. Raises as Tool does."""
    return Tool(function).schema


def _json_text(result: object) -> str:
    return msgspec.json.encode(result, enc_hook=_as_dict).decode()


def _as_dict(value: object) -> dict[object, object]:
    """For mappings that msgspec does not know, as a context's metadata."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    raise TypeError(f"a result of type {type(value).__name__} cannot be written as JSON")


def _checked_timeout(timeout_s: object, name: str) -> float | None:
    if timeout_s is None:
        return None
    if not isinstance(timeout_s, int | float) or isinstance(timeout_s, bool):
        raise TypeError(f"tool {name}: timeout_s must be a number of seconds or None, not {timeout_s!r}")
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"tool {name}: timeout_s must be a finite number of seconds above 0, not {timeout_s}")
    return timeout_s


def _checked_on_error(on_error: object, name: str) -> OnError:
    if on_error not in get_args(OnError):
        raise ValueError(f'tool {name}: on_error must be "result" or "fail", not {on_error!r}')
    return cast("OnError", on_error)


def _checked_approval(approval: object, name: str) -> NeedsApproval:
    if isinstance(approval, bool):
        return approval
    if not callable(approval) or inspect.iscoroutinefunction(approval):
        raise TypeError(f"tool {name}: approval must be True, False or a plain function of the arguments: {approval!r}")
    return cast("Callable[[Mapping[str, Any]], bool]", approval)


def _encodable(text: str) -> str:
    # Halves of characters (from a wrongly decoded file) can be neither sent nor stored: each becomes a question mark.
    return text.encode(errors="replace").decode()
