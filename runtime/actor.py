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
from typing import Any, ClassVar, Literal, TypeVar, cast

from msgspec import Struct

from .context import Context
from .envelope import Request
from .identity import ActorId
from .reminding import acknowledging
from .signals import Reminder

__all__ = ["ACTOR_BYTES_DEFAULT", "Actor", "Handler", "handles"]

ACTOR_BYTES_DEFAULT = 1024
"""What an actor without a size of its own counts against the runtime's bound in bytes."""

MethodT = TypeVar("MethodT", bound=Callable[..., Any])
OnCancel = Literal["cancel", "detach"]

_MARK = "_callboard_handles"


class Handler(Struct, frozen=True):
    """How one class of message is handled; see `handles`."""

    function: Callable[[Any, Any, Context], Any]
    is_async: bool
    gated: bool
    retryable: bool
    on_cancel: OnCancel


def handles(
    message_type: type[Request[Any]], *, gated: bool = True, retryable: bool = False, on_cancel: OnCancel = "detach"
) -> Callable[[MethodT], MethodT]:
    """Mark a method as the handler of a class of message.

    Args:
        message_type: exactly this class; subclasses have their own handler.
        gated: False lets the reply go before earlier writes are durable: for reads of committed state.
        retryable: where the actor crashes, deliver the message again, if it did that or its reply was still owed; after
            ATTEMPTS_MAX attempts it goes to quarantine.
        on_cancel: what happens to the work when the caller is cancelled or its deadline passes: "cancel" it (an async
            handler is cancelled, an owed reply is announced as Abandoned), or "detach": it goes on.
    """

    def mark(method: MethodT) -> MethodT:
        options = (inspect.iscoroutinefunction(method), gated, retryable, on_cancel)
        handler = Handler(cast("Any", method), *options)
        setattr(method, _MARK, (message_type, acknowledging(handler) if message_type is Reminder else handler))
        return method

    return mark


class Actor:
    """One activation of one actor id. Derive from it, add handlers, and register the class with a runtime."""

    handlers: ClassVar[Mapping[type, Handler]] = {}
    loads: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    """Whether the class has a `load`, a `size_bytes` of its own. For the kernel, which asks nobody else."""

    def __init_subclass__(cls) -> None:
        own = {mark[0]: mark[1] for value in vars(cls).values() if (mark := getattr(value, _MARK, None)) is not None}
        cls.handlers = {**cls.handlers, **own}
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

    def load(self, context: Context) -> Awaitable[None] | None:
        """Read what is needed from `context.store`, before the first message. Plain or async.

        It may stage writes (a repair, say), which commit like a handler's. An exception is a crash, save a StoreError:
        that is an outage, and is tried again without cost to the restart budget.
        """
        return None
