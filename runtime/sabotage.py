"""Crashes to order, for tests of what survives them. What does not order any pays nothing.

An actor that is to crash gets its handlers behind a trap: looked up they are what they are, but whichever is called
next raises. So the crash goes the way of every other, and the trap ends with it. Actors that are not in memory get it
when they come: by a factory that is put before their kind's, once.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from ..store.errors import CallboardError
from .actor import Actor, Handler
from .context import Context
from .identity import ActorId
from .registry import Registry

__all__ = ["Sabotage"]


class _Trap(Mapping[type, Handler]):
    """The handlers of one activation: whichever is called raises the first of `errors`, and so ends the activation."""

    def __init__(self, handlers: Mapping[type, Handler], errors: deque[Exception]) -> None:
        self._handlers = handlers
        self._errors = errors

    def __getitem__(self, message_type: type) -> Handler:
        return replace(self._handlers[message_type], function=self._crash)

    def __iter__(self) -> Iterator[type]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)

    def _crash(self, _instance: Actor, _message: Any, _context: Context) -> Any:
        raise self._errors.popleft()


class Sabotage:
    """See the module's text."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._errors: dict[ActorId, deque[Exception]] = {}
        self._kinds: set[str] = set()

    def crash_next(self, id: ActorId, error: Exception) -> None:
        """The next call of a handler of this actor, or the next but as many as are ordered already, raises `error`.

        Raises:
            TypeError: it is no Exception.
            ValueError: it is a CallboardError, which would be an answer and no crash.
        """
        if not isinstance(error, Exception):  # pyright: ignore[reportUnnecessaryIsInstance] - given by the user
            raise TypeError(f"an actor crashes with an Exception, not {error!r}")
        if isinstance(error, CallboardError):
            raise ValueError(f"{error!r} raised by a handler is its answer; a crash is any other Exception")
        self._errors.setdefault(id, deque()).append(error)
        if id.kind not in self._kinds:
            self._kinds.add(id.kind)
            kind = self._registry.kind(id.kind)
            kind.factory = self._trapping(kind.factory)
        cell = self._registry.find(id)
        if cell is not None and cell.context is not None:
            self._trap(id, cell.context.instance)
            if cell.handlers:  # else it is loading, and takes them when it is ready
                cell.handlers = cell.context.instance.handlers

    def _trapping(self, factory: Callable[[ActorId], Actor]) -> Callable[[ActorId], Actor]:
        def make(id: ActorId) -> Actor:
            instance = factory(id)
            if self._errors.get(id):
                self._trap(id, instance)
            return instance

        return make

    def _trap(self, id: ActorId, instance: Actor) -> None:
        # On the instance, before the class's own, so that a look past the cell finds the same.
        vars(instance)["handlers"] = _Trap(type(instance).handlers, self._errors[id])
