"""PerLoop: what one object keeps for each event loop that it is used in.

Sockets, events and deadlines belong to an event loop, and an OpenAIChat may outlive it, or serve several.
"""

from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

from anyio.lowlevel import RunVar

__all__ = ["PerLoop"]

T = TypeVar("T")

_numbers = count(1)


class PerLoop(Generic[T]):
    """A value of the running event loop, made by `make` when it is first asked for there."""

    __slots__ = ("_make", "_values")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        # The name is unique because anyio before 4.9 keys by it.
        self._values: RunVar[T] = RunVar(f"callboard.{next(_numbers)}")

    def get(self) -> T:
        """The running event loop's.

        Raises:
            anyio.NoEventLoopError: none runs.
        """
        try:
            return self._values.get()
        except LookupError:
            value = self._make()
            self._values.set(value)
            return value
