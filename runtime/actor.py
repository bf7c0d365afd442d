"""What a user writes: an Actor with handlers, one per class of message.

    class Add(Request[int], frozen=True):
        amount: int

    class Counter(Actor):
        total = 0

        @handles(Add)
        def add(self, message: Add, context: Context) -> int:
            self.total += message.amount
            return self.total

Handlers of one actor never overlap, across every await. A handler is a plain function where it needs no I/O, which
makes an ask cost no task switch, else `async`. What it stages with `context.stage` commits after it returns; its reply
and all that it sends is held back until that commit is durable, while the next message is already being handled.

What a handler raises: a CallboardError is an answer (the caller gets it, the actor goes on; raise before changing
state). Anything else is a crash: nothing of this handler is stored, the caller gets Failed with the error as its cause,
and the supervisor restarts the actor from the store.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from msgspec import Struct

from .envelope import Request
from .identity import ActorId
from .reminding import acknowledging
from .signals import Reminder

if TYPE_CHECKING:
    from .context import Context

__all__ = ["ACTOR_BYTES_DEFAULT", "Actor", "Handler", "NoActor", "handles"]

ACTOR_BYTES_DEFAULT = 1024
"""What an actor without a size of its own counts against the runtime's bound in bytes."""

MethodT = TypeVar("MethodT", bound=Callable[..., Any])
OnCancel = Literal["cancel", "detach"]

_MARK = "_callboard_handles"


class Handler(Struct, frozen=True):
    """How one class of message is handled; see `handles`."""

    function: Callable[..., Any]  # (actor, message, context)
    is_async: bool
    gated: bool
    retryable: bool
    on_cancel: OnCancel


class NoActor(TypeError):
    """A kind's factory gave something else. To call it again would not help."""


class _Options(Struct, frozen=True):
    """What a `@handles` says of its method."""

    gated: bool
    retryable: bool
    on_cancel: OnCancel


def handles(
    message_type: type[Request[Any]], *, gated: bool = True, retryable: bool = False, on_cancel: OnCancel = "detach"
) -> Callable[[MethodT], MethodT]:
    """Mark a method as the handler of a class of message. One method may be marked for several.

    It belongs to the method's name. In a subclass, a method of this name without `@handles` takes the other's place,
    with the same options; one with `@handles` handles what that says, and None handles nothing. Where several classes
    say who handles a message (mixins too), the one that comes first in the order of method resolution has it.

    Args:
        message_type: exactly this class; subclasses have their own handler.
        gated: False lets the reply go before earlier writes are durable: for reads of committed state.
        retryable: where the actor crashes, deliver the message again, if it did that or its reply was still owed; after
            ATTEMPTS_MAX attempts it goes to quarantine.
        on_cancel: what happens to the work when the caller is cancelled or its deadline passes: "cancel" it (an async
            handler is cancelled, an owed reply is announced as Abandoned), or "detach": it goes on.

    Raises:
        TypeError, ValueError: no class of message, or no such word. When the actor's class is made also: the method
            cannot be a handler, or the class has two for one message.
    """
    if not (isinstance(message_type, type) and issubclass(message_type, Request)):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a checker
        if inspect.isroutine(message_type):
            raise TypeError(
                f"@handles takes the class of the message that {message_type.__name__} handles: `@handles(Add)`"
            )
        raise TypeError(
            "@handles takes a class that derives from callboard.runtime.Request, "
            f"as in `class Add(Request[int], frozen=True)`, not {message_type!r}"
        )
    if on_cancel not in get_args(OnCancel):
        raise ValueError(f'on_cancel is "cancel" or "detach", not {on_cancel!r}')
    options = _Options(gated, retryable, on_cancel)

    def mark(method: MethodT) -> MethodT:
        marks: dict[type, _Options] = getattr(method, _MARK, {})
        if message_type in marks:
            raise TypeError(f"{method.__name__} has two `@handles({message_type.__name__})`: keep one")
        try:
            setattr(method, _MARK, {**marks, message_type: options})
        except AttributeError:
            raise TypeError(f"@handles marks a method, not {method!r}") from None
        return method

    return mark


class Actor:
    """One activation of one actor id. Derive from it, add handlers, and register the class with a runtime."""

    handlers: ClassVar[Mapping[type, Handler]] = {}
    loads: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    """Whether the class has a `load`, a `size_bytes` of its own. For the kernel, which asks nobody else."""

    def __init_subclass__(cls) -> None:
        cls.handlers = _handlers_of(cls)
        cls.loads = cls.load is not Actor.load
        cls.weighs = cls.size_bytes is not Actor.size_bytes

    def __init__(self, id: ActorId) -> None:
        self.id = id

    def may_passivate(self) -> bool:
        """False while the actor holds in memory what the store does not have and that must not be lost."""
        return True

    def size_bytes(self) -> int:
        """Roughly what this activation holds in memory; large ones say so, that the runtime can bound them.

        Asked when it is loaded and after each of its commits.
        """
        return ACTOR_BYTES_DEFAULT

    def load(self, context: "Context") -> Awaitable[None] | None:
        """Read what is needed from `context.store`, before the first message. Plain or async.

        It may stage writes (a repair, say), which commit like a handler's. An exception is a crash, save a StoreError:
        that is an outage, and is tried again without cost to the restart budget.
        """
        return None


def _handlers_of(cls: type) -> Mapping[type, Handler]:
    handlers: dict[type, Handler] = {}
    seen: set[str] = set()
    for place in cls.__mro__:
        marked = {name: marks for name, value in vars(place).items() if (marks := getattr(value, _MARK, None))}
        _check_single(place, marked)
        for name, marks in marked.items():
            value = _nearest(cls, name)
            decorated_anew = name in seen
            for message_type, options in marks.items():
                if not decorated_anew and message_type not in handlers and value is not None:
                    handlers[message_type] = _handler(f"{cls.__qualname__}.{name}", value, message_type, options)
        seen.update(marked)
    return handlers


def _nearest(cls: type, name: str) -> Any:
    return next(vars(place)[name] for place in cls.__mro__ if name in vars(place))


def _check_single(place: type, marked: Mapping[str, Mapping[type, _Options]]) -> None:
    """Raises where one class has two methods for one message."""
    names: dict[type, str] = {}
    for name, marks in marked.items():
        for message_type in marks:
            other = names.setdefault(message_type, name)
            if vars(place)[other] is not vars(place)[name]:
                raise TypeError(
                    f"{place.__qualname__}.{other} and {place.__qualname__}.{name} both handle "
                    f"{message_type.__name__}: keep one"
                )


def _handler(name: str, value: Any, message_type: type, options: _Options) -> Handler:
    """The handler of the method of this name.

    Raises:
        TypeError: it cannot be one.
    """
    if not callable(value) or isinstance(value, (staticmethod, classmethod, type)):
        raise TypeError(f"{name} handles {message_type.__name__}, and must be a method: (self, message, context)")
    inner = inspect.unwrap(value)
    if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise TypeError(f"{name} yields; a handler of messages returns its reply, once")
    _check_parameters(name, value)
    is_async = inspect.iscoroutinefunction(value)
    if not is_async and inspect.iscoroutinefunction(inner):  # behind a plain decorator
        is_async, value = True, _awaiting(value)
    handler = Handler(value, is_async, options.gated, options.retryable, options.on_cancel)
    return acknowledging(handler) if message_type is Reminder else handler


def _check_parameters(name: str, value: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except ValueError:  # some that are written in C tell none
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise TypeError(f"{name} is called as a handler with (self, message, context); it takes {signature}") from None


def _awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function for one that is not, but most likely gives something to await."""

    async def handle(actor: Any, message: Any, context: "Context") -> Any:
        result = function(actor, message, context)
        return await result if inspect.isawaitable(result) else result

    return handle
