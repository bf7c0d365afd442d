"""Threads for sync tools: so many for each function, and one counts until its function returns.

A thread cannot be cut off. So a function that hangs keeps the threads that it has, and must neither take them from
other tools or from the look-ups of names (which share the event loop's default threads), nor get new ones without end.
"""

import inspect
import threading
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import anyio
import anyio.to_thread

from ..runtime.waking import Backend, current_backend
from .per_loop import PerLoop
from .tool_parameters import ToolFunction

__all__ = ["TOOL_THREADS_MAX", "ThreadedCall"]

TOOL_THREADS_MAX = 40
"""Calls of one sync function at once, in all runs together: as many as anyio has threads for a whole program."""


@dataclass(slots=True)
class _Threads:
    """Those of one event loop."""

    backend: Backend = field(default_factory=current_backend)
    unbounded: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(inf))
    bounds: dict[object, anyio.CapacityLimiter] = field(default_factory=dict[object, anyio.CapacityLimiter])

    def bound_of(self, function: ToolFunction) -> anyio.CapacityLimiter:
        code = _code_of(function)
        if code not in self.bounds:
            self.bounds[code] = anyio.CapacityLimiter(TOOL_THREADS_MAX)
        return self.bounds[code]


_threads = PerLoop(_Threads)


@dataclass(slots=True, eq=False)
class ThreadedCall:
    """One call of a function in a thread; `begun` once it is under way."""

    function: ToolFunction
    values: dict[str, Any]
    begun: bool = False
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def run(self) -> object:
        """What the function gives.

        Cancellation: where it has not begun it never will; else it goes on unwatched, and keeps its thread.
        """
        threads = _threads.get()
        bound = threads.bound_of(self.function)
        await bound.acquire_on_behalf_of(self)
        try:
            work = partial(self._work, threads.backend, bound)
            (result,) = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=threads.unbounded)
            return result
        finally:
            with self._lock:
                self._given_up = True
                if not self.begun:
                    bound.release_on_behalf_of(self)

    def _work(self, backend: Backend, bound: anyio.CapacityLimiter) -> list[Any]:
        with self._lock:
            if self._given_up:
                return []
            self.begun = True
        try:
            # In a list: trio takes a bare coroutine from a thread for a mistake, which a wrapped async function gives.
            return [self.function(**self.values)]
        except SystemExit as error:  # of a command's function: it would end the program from a thread
            raise RuntimeError(f"it called sys.exit({error.code!r})") from error
        finally:
            backend.run_soon(partial(bound.release_on_behalf_of, self))


def _code_of(function: ToolFunction) -> object:
    """What is the same of a function that is made anew for each agent: there are only so many of it in a program.

    Behind decorators (that keep to functools.wraps), which have one code for all that they decorate.
    """
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    return getattr(function, "__code__", type(function))
