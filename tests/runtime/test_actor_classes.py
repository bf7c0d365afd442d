"""Which method of a class handles which message, over inheritance and decorators; and what no class can be."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import Actor, Context, Reminder, Request, Runtime, handles
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


class Add(Request[Any], frozen=True):
    pass


class Take(Request[Any], frozen=True):
    pass


class Plain(Actor):
    @handles(Add, retryable=True)
    def add(self, _message: Add, _context: Context) -> Any:
        return "plain"


class Slow(Actor):
    @handles(Take)
    async def take(self, _message: Take, _context: Context) -> Any:
        await anyio.sleep(1.0)
        return "slow"


class Mixin:
    @handles(Take)
    def mixed(self, _message: Take, _context: Context) -> Any:
        return "mixin"


class Overriding(Plain):
    async def add(self, _message: Add, _context: Context) -> Any:
        await anyio.sleep(1.0)
        return "override"


class Both(Plain, Slow):
    pass


class Mixed(Mixin, Slow):
    pass


class Renamed(Plain):
    @handles(Add)
    def other(self, _message: Add, _context: Context) -> Any:
        return "nearest"


class Diamond(Plain, Slow):
    @handles(Add)
    @handles(Take)
    def add(self, message: Add | Take, _context: Context) -> Any:
        return type(message).__name__


def logged(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*arguments: Any) -> Any:
        return method(*arguments)

    return wrapper


def doubled(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*arguments: Any) -> Any:
        return method(*arguments) * 2

    return wrapper


class Decorated(Actor):
    @handles(Add)
    @logged
    async def add(self, _message: Add, _context: Context) -> Any:
        await anyio.sleep(1.0)
        return "decorated"

    @doubled
    @handles(Take)
    def take(self, _message: Take, _context: Context) -> Any:
        return "twice"


ANSWERS: list[tuple[type[Actor], Request[Any], str]] = [
    (Overriding, Add(), "override"),
    (Both, Add(), "plain"),
    (Both, Take(), "slow"),
    (Mixed, Take(), "mixin"),
    (Renamed, Add(), "nearest"),
    (Diamond, Add(), "Add"),
    (Diamond, Take(), "Take"),
    (Decorated, Add(), "decorated"),
    (Decorated, Take(), "twicetwice"),
]


@pytest.mark.parametrize(("kind", "message", "answer"), ANSWERS)
def test_the_method_that_python_itself_would_find_handles_the_message(
    run: Run, kind: type[Actor], message: Request[Any], answer: str
) -> None:
    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("it", kind)

            assert await runtime.actor("it", "k").ask(message) == answer

    run(body)


def test_an_override_keeps_the_options_of_the_method_that_it_takes_the_place_of() -> None:
    assert Overriding.handlers[Add].retryable
    assert Overriding.handlers[Add].is_async
    assert not Plain.handlers[Add].is_async


def test_a_method_that_is_decorated_anew_handles_only_what_it_says() -> None:
    class Anew(Plain):
        @handles(Take)
        def add(self, _message: Any, _context: Context) -> Any:
            return "anew"

    assert set(Anew.handlers) == {Take}


def test_none_in_the_place_of_a_method_takes_the_handler_away() -> None:
    class Less(Plain):
        add = None  # type: ignore[assignment] # pyright: ignore[reportAssignmentType] - the mistake would be a method

    assert not Less.handlers


def test_an_overridden_handler_of_reminders_still_acknowledges_them(run: Run) -> None:
    heard: list[str] = []

    class Ringing(Actor):
        @handles(Add)
        def add(self, _message: Add, context: Context) -> None:
            context.remind("once", after_s=1.0)

        @handles(Reminder)
        def ring(self, _reminder: Reminder, _context: Context) -> Any:
            raise AssertionError("it was overridden")

    class Overridden(Ringing):
        async def ring(self, reminder: Reminder, _context: Context) -> None:
            heard.append(reminder.name)

    async def body() -> None:
        heard.clear()
        async with Runtime(MemoryStore) as runtime:
            runtime.register("it", Overridden)
            await runtime.actor("it", "k").ask(Add())
            await anyio.sleep(3600.0)

            assert heard == ["once"]

    run(body)


def no_class() -> None:
    handles(int)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake


def no_parentheses() -> object:
    def add(_self: Actor, _message: Add, _context: Context) -> None: ...

    return handles(add)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake


def no_such_word() -> None:
    handles(Add, on_cancel="bogus")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake


def two_for_one() -> object:
    class Torn(Actor):
        @handles(Add)
        def add(self, _message: Add, _context: Context) -> None: ...

        @handles(Add)
        def other(self, _message: Add, _context: Context) -> None: ...

    return Torn


def twice_the_same() -> object:
    class Twice(Actor):
        @handles(Add)
        @handles(Add)
        def add(self, _message: Add, _context: Context) -> None: ...

    return Twice


def yielding() -> object:
    class Yielding(Actor):
        @handles(Add)
        async def add(self, _message: Add, _context: Context) -> Any:
            yield 1

    return Yielding


def yielding_behind_a_decorator() -> object:
    class Yielding(Actor):
        @handles(Add)
        @logged
        def add(self, _message: Add, _context: Context) -> Any:
            yield 1

    return Yielding


def static() -> object:
    class Static(Actor):
        @handles(Add)
        @staticmethod
        def add(_message: Add, _context: Context) -> None: ...

    return Static


def short_of_a_parameter() -> object:
    class Short(Actor):
        @handles(Add)
        def add(self, _message: Add) -> None: ...

    return Short


def no_method() -> object:
    class Number(Plain):
        add = 5  # type: ignore[assignment] # pyright: ignore[reportAssignmentType] - the mistake

    return Number


MISTAKES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (no_class, TypeError, r"derives from callboard\.runtime\.Request.*not <class 'int'>"),
    (no_parentheses, TypeError, r"class of the message that add handles: `@handles\(Add\)`"),
    (no_such_word, ValueError, r'"cancel" or "detach", not \'bogus\''),
    (two_for_one, TypeError, r"Torn\.add and .*Torn\.other both handle Add: keep one"),
    (twice_the_same, TypeError, r"add has two `@handles\(Add\)`"),
    (yielding, TypeError, r"Yielding\.add yields"),
    (yielding_behind_a_decorator, TypeError, r"Yielding\.add yields"),
    (static, TypeError, r"Static\.add handles Add, and must be a method"),
    (short_of_a_parameter, TypeError, r"\(self, message, context\); it takes \(self, _message"),
    (no_method, TypeError, r"Number\.add handles Add, and must be a method"),
]


@pytest.mark.parametrize(("define", "mistake", "told"), MISTAKES)
def test_a_class_that_makes_no_sense_is_refused_where_it_is_made(
    define: Callable[[], object], mistake: type[Exception], told: str
) -> None:
    with pytest.raises(mistake, match=told):
        define()
