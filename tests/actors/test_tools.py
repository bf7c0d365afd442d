import contextvars
import enum
import functools
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import anyio
import anyio.lowlevel
import msgspec
import pytest
from msgspec import Meta, Struct

from callboard.actors.message import ToolCall
from callboard.actors.model import ToolSchema
from callboard.actors.tools import Tool, ToolContext, ToolResult, ToolSet, tool_schema

CONTEXT = ToolContext(agent="Support", run_id="r1", turn=3, session_id="user-123", metadata={"plan": "gold"})
BACKENDS = ["trio", "asyncio"]


class Place(Struct):
    city: str


class Unit(enum.Enum):
    CELSIUS = "C"
    KELVIN = "K"


async def weather(
    place: Place,
    days: Annotated[int, Meta(description="from today", ge=1)] = 1,
    unit: Unit = Unit.CELSIUS,
    note: str | None = None,
) -> list[str]:
    """The forecast for a
    city.

    Not for the model.
    """
    return [place.city, str(days), unit.name, str(note)]


def call(function: Callable[..., Any], arguments: str = "", *, backend: str = "trio") -> ToolResult:
    return anyio.run(Tool(function, name="tool").call, arguments, CONTEXT, backend=backend)


def test_schema_is_made_from_name_docstring_and_annotations() -> None:
    assert tool_schema(weather) == ToolSchema(
        "weather",
        "The forecast for a city.",
        {
            "type": "object",
            "properties": {
                "place": {
                    "title": "Place",
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
                "days": {"type": "integer", "minimum": 1, "description": "from today", "default": 1},
                "unit": {"title": "Unit", "enum": ["C", "K"]},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "required": ["place"],
            "additionalProperties": False,
        },
    )


def test_tool_without_parameters_and_docstring_has_an_empty_object_schema() -> None:
    def now() -> str:
        return "now"

    assert tool_schema(now) == ToolSchema(
        "now", "", {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    )


def test_name_and_description_can_be_given() -> None:
    tool = Tool(weather, name="forecast", description="What the sky will do.")

    assert (tool.name, tool.schema.name, tool.schema.description) == ("forecast", "forecast", "What the sky will do.")


def test_context_is_not_shown_to_the_model() -> None:
    def by_name(text: str, context: Any) -> str:
        return text

    def bare(text: str, context: Any) -> str:
        return text

    del bare.__annotations__["context"]

    def by_type(where: ToolContext, text: str) -> str:
        return text

    def optional(text: str, where: ToolContext | None = None) -> str:
        return text

    for function in (by_name, bare, by_type, optional):
        assert set(tool_schema(function).parameters["properties"]) == {"text"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_context_is_given_to_sync_and_async_tools(backend: str) -> None:
    def plain(context: ToolContext) -> str:
        return f"{context.session_id} {context.turn} {context.metadata['plan']}"

    async def waits(where: ToolContext) -> str:
        return f"{where.agent} {where.run_id}"

    assert call(plain, backend=backend) == ToolResult("user-123 3 gold")
    assert call(waits, backend=backend) == ToolResult("Support r1")


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_are_converted_to_the_annotated_types(backend: str) -> None:
    arguments = '{"place": {"city": "Paris"}, "days": 2, "unit": "K"}'

    assert call(weather, arguments, backend=backend) == ToolResult('["Paris","2","KELVIN","None"]')
    assert call(weather, '{"place": {"city": "Rome"}}') == ToolResult('["Rome","1","CELSIUS","None"]')


def test_defaults_of_any_kind_are_the_functions_own() -> None:
    marker = object()

    def tool(a: list[int] = [1, 2], b: Any = marker) -> bool:  # noqa: B006 -- such defaults must work too
        return a == [1, 2] and b is marker

    assert call(tool, "{}") == ToolResult("true")


@pytest.mark.parametrize(
    ("given", "seen"), [("0", "0"), ('""', '""'), ("null", "null"), ("false", "false"), ("[]", "[]")]
)
def test_empty_values_that_the_model_gives_replace_the_defaults(given: str, seen: str) -> None:
    def tool(a: Any = 7) -> list[Any]:
        return [a]

    assert call(tool, f'{{"a": {given}}}') == ToolResult(f"[{seen}]")


def test_arguments_nested_without_end_are_a_result_too() -> None:
    def tool(a: Any) -> Any:
        return a

    result = call(tool, '{"a": ' + "[" * 200_000)

    assert result.is_error
    assert "the arguments of tool do not fit" in result.content


@pytest.mark.parametrize("arguments", ["", "  ", "{}", "null"])
def test_no_arguments_come_in_many_forms(arguments: str) -> None:
    def tool(a: int = 7) -> int:
        return a

    assert call(tool, arguments) == ToolResult("7")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "missing required field `place`"),
        ('{"place": {"city": 5}}', "Expected `str`, got `int` - at `$.place.city`"),
        ('{"place": {"city": "x"}, "days": 0}', "Expected `int` >= 1 - at `$.days`"),
        ('{"place": {"city": "x"}, "day": 1}', "unknown field `day`"),
        ('{"place": ', "truncated"),
        ("not json", "malformed"),
        ("[]", "Expected `object`, got `array`"),
        ('"\ud800"', "half"),
    ],
)
def test_arguments_that_do_not_fit_are_a_result_that_says_why(arguments: str, reason: str) -> None:
    result = call(weather, arguments)

    assert result.is_error
    assert result.content.startswith("Error: the arguments of tool do not fit: ")
    if reason != "half":  # its text is Python's own
        assert reason in result.content
    assert result.cause is not None
    result.content.encode()


@pytest.mark.parametrize("backend", BACKENDS)
def test_exception_of_a_tool_is_a_result_without_a_traceback(backend: str) -> None:
    def plain(n: int) -> str:
        raise LookupError(f"no order {n}")

    async def waits(n: int) -> str:
        await anyio.lowlevel.checkpoint()
        raise LookupError(f"no order {n}")

    for function in (plain, waits):
        result = call(function, '{"n": 5}', backend=backend)

        assert result.is_error
        assert result.content == "Error: tool failed: LookupError: no order 5"
        assert isinstance(result.cause, LookupError)
        assert "Traceback" not in result.content


@pytest.mark.parametrize("backend", BACKENDS)
def test_metadata_is_read_only_for_a_tool_and_can_be_its_result(backend: str) -> None:
    metadata = {"plan": "gold"}
    context = ToolContext(agent="Support", run_id="r1", metadata=metadata)
    metadata["plan"] = "none"

    def change(context: Any) -> None:
        context.metadata["plan"] = "none"

    def give(context: ToolContext) -> list[object]:
        return [context.metadata]

    async def body() -> list[ToolResult]:
        return [await Tool(function).call("", context) for function in (change, give)]

    changed, given = anyio.run(body, backend=backend)

    assert changed.is_error
    assert "does not support item assignment" in changed.content
    assert given == ToolResult('[{"plan":"gold"}]')


def test_long_text_of_an_exception_is_cut() -> None:
    def tool() -> str:
        raise ValueError("x" * 100_000)

    assert len(call(tool).content) < 2_100


def test_text_is_given_as_it_is_and_everything_else_as_json() -> None:
    returned: dict[str, tuple[object, str]] = {
        "text": ('a "text" ö', 'a "text" ö'),
        "nothing": (None, "null"),
        "number": (1.5, "1.5"),
        "list": ([1, {"a": Place("Paris")}], '[1,{"a":{"city":"Paris"}}]'),
        "empty": ("", ""),
    }

    def tool(which: str) -> object:
        return returned[which][0]

    for which, (_, expected) in returned.items():
        assert call(tool, f'{{"which": "{which}"}}') == ToolResult(expected)


def test_result_that_is_not_json_is_an_error_result() -> None:
    def tool() -> object:
        return SimpleNamespace()

    result = call(tool)

    assert result.is_error
    assert "SimpleNamespace" in result.content


def test_result_that_is_too_large_is_an_error_that_says_so() -> None:
    def tool(size: int) -> str:
        return "x" * size

    assert not call(tool, '{"size": 1048576}').is_error
    result = call(tool, '{"size": 1048577}')
    assert result.is_error
    assert "its result is 1048577 bytes, more than the 1048576 that fit: ask for less" in result.content


def test_halves_of_characters_in_a_result_can_be_stored() -> None:
    def returns() -> str:
        return "a\ud800b"

    def fails() -> str:
        raise ValueError("a\ud800b")

    assert call(returns) == ToolResult("a?b")
    assert call(fails).content.endswith("a?b")


@pytest.mark.parametrize("backend", BACKENDS)
def test_sync_tool_runs_in_a_thread_and_the_loop_goes_on(backend: str) -> None:
    loop_went_on = threading.Event()

    def blocks() -> bool:
        # Waits for what only the event loop can do: on the loop's own thread it would give up after 5 s.
        return loop_went_on.wait(5) and threading.current_thread() is not threading.main_thread()

    async def body() -> ToolResult:
        results: list[ToolResult] = []

        async def run_tool() -> None:
            results.append(await Tool(blocks).call("", CONTEXT))

        async with anyio.create_task_group() as group:
            group.start_soon(run_tool)
            await anyio.lowlevel.checkpoint()
            loop_went_on.set()
        return results[0]

    assert anyio.run(body, backend=backend) == ToolResult("true")


@pytest.mark.parametrize("backend", BACKENDS)
def test_async_tool_runs_on_the_loop_in_the_callers_context(backend: str) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def waits() -> str:
        return f"{variable.get()} {threading.current_thread() is threading.main_thread()}"

    def plain() -> str:
        return variable.get()

    async def body() -> list[str]:
        variable.set("set")
        return [(await Tool(function).call("", CONTEXT)).content for function in (waits, plain)]

    assert anyio.run(body, backend=backend) == ["set True", "set"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrapper_that_returns_an_awaitable_is_awaited(backend: str) -> None:
    def logged(function: Callable[[int], Awaitable[str]]) -> Callable[[int], Awaitable[str]]:
        @functools.wraps(function)
        def wrapper(n: int) -> Awaitable[str]:
            return function(n)

        return wrapper

    @logged
    async def tool(n: int) -> str:
        await anyio.lowlevel.checkpoint()
        return f"got {n}"

    assert call(tool, '{"n": 5}', backend=backend) == ToolResult("got 5")


class Shop:
    def __init__(self) -> None:
        self.orders = {1: "shoes"}

    def order(self, number: int) -> str:
        """An order by its number."""
        return self.orders[number]

    def __call__(self, number: int) -> str:
        return self.orders[number]


def test_methods_and_callable_objects_are_tools() -> None:
    assert tool_schema(Shop().order).name == "order"
    assert call(Shop().order, '{"number": 1}') == ToolResult("shoes")
    assert call(Shop(), '{"number": 1}') == ToolResult("shoes")


def starred(*numbers: int) -> None: ...
def double_starred(**numbers: int) -> None: ...
def positional(number: int, /) -> None: ...
def bare(number: Any) -> None: ...


del bare.__annotations__["number"]


def wrong_context(context: str) -> None: ...
def unknown_type(number: object) -> None: ...
def unreadable(number: Any) -> None: ...


unreadable.__annotations__["number"] = "Missing"


def ambiguous(number: Place | Shop) -> None: ...
def generates() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (starred, r"tool starred: the parameter '\*numbers: int' cannot be given by its name"),
        (double_starred, r"'\*\*numbers: int' cannot be given by its name"),
        (positional, "'number: int' cannot be given by its name"),
        (bare, "tool bare: the parameter 'number' needs an annotation, as in number: str"),
        (wrong_context, "annotate it so, or rename the parameter"),
        (unknown_type, "the parameter 'number' is of a type that cannot come from JSON"),
        (ambiguous, "the parameter 'number' is of a type that cannot come from JSON"),
        (unreadable, "name 'Missing' is not defined"),
        (generates, "is a class or a generator"),
        (Shop, "is a class or a generator"),
        ("weather", "a tool must be a function, not str"),
    ],
)
def test_function_that_cannot_be_a_tool_is_a_type_error_naming_the_parameter(function: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        Tool(function)


@pytest.mark.parametrize("name", ["", "with space", "größe", "x" * 65])
def test_name_that_the_api_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use 1 to 64 of a-z, A-Z, 0-9"):
        Tool(weather, name=name)


def test_lambda_needs_a_name() -> None:
    with pytest.raises(ValueError, match="'<lambda>'"):
        Tool(lambda: "x")
    assert Tool(lambda: "x", name="x-1_A").name == "x-1_A"


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tools are called 'weather'"):
        ToolSet([weather, weather])

    tools = ToolSet([weather, Tool(weather, name="forecast")])
    assert tools.names == ("weather", "forecast")
    assert [schema.name for schema in tools.schemas] == ["weather", "forecast"]
    assert len(tools) == 2
    assert not ToolSet()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tool_set_runs_the_tool_that_the_model_asks_for(backend: str) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    def mode(kind: Literal["x", "y"]) -> str:
        return kind

    tools = ToolSet([add, mode])

    async def body() -> list[ToolResult]:
        return [
            await tools.call(ToolCall("1", "add", '{"a": 2, "b": 3}'), CONTEXT),
            await tools.call(ToolCall("2", "mode", '{"kind": "z"}'), CONTEXT),
            await tools.call(ToolCall("3", "subtract\ud800", "{}"), CONTEXT),
        ]

    added, refused, unknown = anyio.run(body, backend=backend)

    assert added == ToolResult("5")
    assert refused.is_error
    assert "Invalid enum value 'z'" in refused.content
    assert unknown.is_error
    assert unknown.content.endswith("Known tools: add, mode")
    unknown.content.encode()


def test_call_on_an_empty_tool_set_says_that_there_are_none() -> None:
    result = anyio.run(ToolSet().call, ToolCall("1", "add"), CONTEXT)

    assert result == ToolResult("Error: there is no tool 'add'. Known tools: none", is_error=True)


def test_schemas_are_plain_json() -> None:
    parameters = tool_schema(weather).parameters

    assert msgspec.json.decode(msgspec.json.encode(parameters)) == parameters
