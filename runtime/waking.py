"""The one file that knows trio from asyncio: how a waiting task is woken, from the loop's thread or another.

Everything else awaits through anyio or through a Waker. On trio a Waker is a bare reschedule of the task (0.26 us less
than an Event, FACTS.md, "Messaging"); on asyncio it is a future.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import trio

__all__ = ["Backend", "Waker", "current_backend"]


class Waker(Protocol):
    """Lets one task wait until somebody wakes it. A wake that comes first is kept."""

    async def wait(self) -> None:
        """Return once woken; at once where it already was. Cancellation: nothing is lost, a later wake is harmless."""
        ...

    def wake(self) -> None:
        """Wake the waiting task, or the next that waits. From the event loop's own thread only."""
        ...


class Backend(Protocol):
    """What the kernel needs from the event loop it runs on."""

    def waker(self) -> Waker: ...

    def now(self) -> float:
        """The loop's clock in seconds: virtual time under a test's clock."""
        ...

    def run_soon(self, function: Callable[[], None]) -> None:
        """Run `function` on the loop soon; may be called from any thread. Does nothing once the loop has ended."""
        ...

    async def checkpoint(self) -> None:
        """Let other tasks run, and be cancelled here."""
        ...


class _TrioWaker:
    __slots__ = ("_task", "_woken")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._woken = False

    async def wait(self) -> None:
        if not self._woken:
            self._task = trio.lowlevel.current_task()
            try:
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            finally:
                self._task = None
        self._woken = False

    def _abort(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        # wake() may already have rescheduled; trio then never calls this, so that no wake is lost.
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            if self._task is not None:
                task, self._task = self._task, None
                trio.lowlevel.reschedule(task)


class _TrioBackend:
    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.now = trio.lowlevel.current_clock().current_time  # trio.current_time is two more calls to the same

    def waker(self) -> Waker:
        return _TrioWaker()

    def run_soon(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # the loop has ended: nobody is left to wake
            self._token.run_sync_soon(function)

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()


class _AsyncioWaker:
    __slots__ = ("_future", "_loop", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] | None = None
        self._woken = False

    async def wait(self) -> None:
        if not self._woken:
            self._future = self._loop.create_future()
            try:
                await self._future
            finally:
                self._future = None
        self._woken = False

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            if self._future is not None and not self._future.done():
                self._future.set_result(None)


class _AsyncioBackend:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time

    def waker(self) -> Waker:
        return _AsyncioWaker(self._loop)

    def run_soon(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to wake
            self._loop.call_soon_threadsafe(function)

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)


def current_backend() -> Backend:
    """The backend of the running event loop.

    Raises:
        RuntimeError: called outside of an event loop.
    """
    if trio.lowlevel.in_trio_run():
        return _TrioBackend()
    return _AsyncioBackend()
