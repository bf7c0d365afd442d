"""The one file that knows trio from asyncio: how a waiting task is woken, and how a step is taken in its name.

Everything else awaits through anyio, through a Waker or in a Seat. On trio a Waker is a bare reschedule of the task
(0.26 us less than an Event, FACTS.md, "Messaging"); on asyncio it is a future.

Steps in another task's name. An async handler must run in a task of its own: were it part of its caller's, the caller's
cancellation would cut it off half-way. But most async handlers wait for nothing, or not at once, and a switch to a
task and back costs 7 us on trio. So the first step of a handler is taken where it is asked for, while the event loop
holds that a parked worker runs. What the step looks at (its task, its cancel scopes) is then the worker's. If the
handler ends within the step, the worker was never woken. If it waits, the worker is left waiting for that very thing,
as if it had taken the step itself, and goes on with the handler from there.

asyncio offers `_enter_task` and `_leave_task` for this ("Extending asyncio" in its documentation). trio has no public
way: the task of now, a task's abort function and the delivery of a pending cancellation are private names. They are
looked for at import; where they are missing, workers are woken for each handler instead, which is only slower. With a
public way to say "run this as that task" in trio, all of that could go.

Prior art: greenlet-style trampolines; FACTS.md, "Messaging" (0.81 us against 9.7 for a switch).
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any, Protocol

import anyio
import trio
from msgspec import Struct

__all__ = ["Backend", "Resumed", "Seat", "Waker", "current_backend"]


class Waker(Protocol):
    """Lets one task wait until somebody wakes it. A wake that comes first is kept."""

    def wait(self) -> Awaitable[None]:
        """Return once woken; at once where it already was. Cancellation: nothing is lost, a later wake is harmless."""
        ...

    def wake(self) -> None:
        """Wake the waiting task, or the next that waits. From the event loop's own thread only."""
        ...


class Resumed(Struct):
    """How a seat's task goes on with a coroutine whose first step was taken in its name.

    `answer` is to be sent into it, or `error` thrown; or, where `request` is given, that is to be yielded first.
    """

    answer: Any = None
    error: BaseException | None = None
    request: Any = None


class Seat(Protocol):
    """Where a task is parked until there is work for it."""

    def park(self) -> Awaitable[Resumed | None]:
        """Return once woken: None after `wake`, else how to go on with what `step` has begun.

        Cancellation: where nothing was begun it is raised here, else it is handed on within Resumed.
        """
        ...

    def wake(self) -> None:
        """Let the task, which is parked, go on."""
        ...

    def step(self, run: Callable[..., Any], send: Any) -> None:
        """Call `run(send, None)`, a coroutine's first step, as if the parked task took it; that goes on from there.

        Raises:
            whatever that raises; StopIteration where the coroutine has ended. The task is parked as before then.
        """
        ...


class Backend(Protocol):
    """What the kernel needs from the event loop it runs on.

    Attributes:
        steps: True where `Seat.step` works.
    """

    steps: bool

    def waker(self) -> Waker: ...

    def seat(self) -> Seat: ...

    def now(self) -> float:
        """The loop's clock in seconds: virtual time under a test's clock."""
        ...

    def run_soon(self, function: Callable[[], None]) -> None:
        """Run `function` on the loop soon; may be called from any thread. Does nothing once the loop has ended."""
        ...

    async def checkpoint(self) -> None:
        """Let other tasks run, and be cancelled here."""
        ...

    def wait_readable(self, connected: socket.socket, /) -> Awaitable[None]:
        """Return when the socket has something to read, the end and errors included."""
        ...


# trio -----------------------------------------------------------------------------------------------------------------


def _message_of(wait: Callable[..., Any], *args: Any) -> Any:
    """What trio's loop is sent by a coroutine that waits in this way."""
    waiting = wait(*args)
    message = waiting.send(None)
    waiting.close()
    return message


def _succeed(_raise_cancel: Any) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


_PARK: Any = _message_of(trio.lowlevel.wait_task_rescheduled, _succeed)
_Park: Any = _PARK.__class__
_CHECKPOINT: Any = _message_of(trio.lowlevel.cancel_shielded_checkpoint)


def _trio_run_context() -> Any:
    """Where trio keeps the task of now; None where this trio keeps it elsewhere, see the module's text."""
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT, Task
    except ImportError:
        return None
    names = ("_abort_func", "_attempt_delivery_of_any_pending_cancel")
    return GLOBAL_RUN_CONTEXT if all(hasattr(Task, name) for name in names) and hasattr(_PARK, "abort_func") else None


_RUN_CONTEXT: Any = _trio_run_context()


class _TrioWaker:
    __slots__ = ("_request", "_task", "_woken")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._woken = False
        self._request = _Park(self._abort)

    @coroutine
    def wait(self) -> Generator[Any, Any, None]:
        if not self._woken:
            self._task = trio.lowlevel.current_task()
            # What wait_task_rescheduled does, without a coroutine and a request of its own: 0.8 us less per wait.
            answer = yield self._request
            self._task = None
            answer.unwrap()
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


class _TrioSeat:
    __slots__ = ("_begun", "_request", "_task")

    def __init__(self) -> None:
        self._task: Any = None
        self._begun = False
        self._request: Any = None

    @coroutine
    def park(self) -> Generator[Any, Any, Resumed | None]:
        if self._task is None:
            self._task = trio.lowlevel.current_task()
        answer = yield _PARK  # an outcome.Outcome, as every coroutine of trio's gets it
        if self._begun:
            self._begun = False
            request, self._request = self._request, None
            return Resumed(answer=answer, request=request)
        answer.unwrap()
        return None

    def wake(self) -> None:
        trio.lowlevel.reschedule(self._task)

    def step(self, run: Callable[..., Any], send: Any) -> None:
        task, asker = self._task, _RUN_CONTEXT.task
        task._abort_func = None  # a cancellation must wait, as with every task that runs
        _RUN_CONTEXT.task = task
        try:
            request = run(send, None)
        except BaseException:
            task._abort_func = _succeed
            task._attempt_delivery_of_any_pending_cancel()
            raise
        finally:
            _RUN_CONTEXT.task = asker
        # From here on as in trio's own loop.
        self._begun = True
        if request is _CHECKPOINT:
            trio.lowlevel.reschedule(task)
        elif type(request) is _Park:
            task._abort_func = request.abort_func
            task._attempt_delivery_of_any_pending_cancel()
        else:  # not one of trio's: the task itself asks for it, and is told what trio thinks of that
            self._request = request
            trio.lowlevel.reschedule(task)


class _TrioBackend:
    steps = _RUN_CONTEXT is not None

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.now = trio.lowlevel.current_clock().current_time  # trio.current_time is two more calls to the same
        self.wait_readable = trio.lowlevel.wait_readable  # anyio's looks for the backend each time: 2 us

    def waker(self) -> Waker:
        return _TrioWaker()

    def seat(self) -> Seat:
        return _TrioSeat()

    def run_soon(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # the loop has ended: nobody is left to wake
            self._token.run_sync_soon(function)

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()


# asyncio --------------------------------------------------------------------------------------------------------------


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


class _AsyncioSeat:
    __slots__ = ("_begun", "_loop", "_request", "_task", "_waker")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waker = _AsyncioWaker(loop)
        self._task: asyncio.Task[Any] | None = None
        self._begun = False
        self._request: Any = None

    async def park(self) -> Resumed | None:
        self._task = asyncio.current_task()
        error = None
        try:
            await self._waker.wait()
        except asyncio.CancelledError as cancelled:
            if not self._begun:
                raise
            error = cancelled
        if not self._begun:
            return None
        self._begun = False
        request, self._request = self._request, None
        if error is not None and request is not None:
            request.cancel()  # as Task.cancel does with what its coroutine waits for
            request = None
        return Resumed(error=error, request=request)

    def wake(self) -> None:
        self._waker.wake()

    def step(self, run: Callable[..., Any], send: Any) -> None:
        asker = asyncio.current_task()
        assert self._task is not None, "a step is taken in the name of a task that is parked"
        if asker is not None:
            asyncio.tasks._leave_task(self._loop, asker)
        asyncio.tasks._enter_task(self._loop, self._task)
        try:
            request = run(send, None)
        finally:
            asyncio.tasks._leave_task(self._loop, self._task)
            if asker is not None:
                asyncio.tasks._enter_task(self._loop, asker)
        self._begun = True
        self._request = request
        self._waker.wake()


class _AsyncioBackend:
    steps = hasattr(asyncio.tasks, "_enter_task") and hasattr(asyncio.tasks, "_leave_task")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.wait_readable = anyio.wait_readable

    def waker(self) -> Waker:
        return _AsyncioWaker(self._loop)

    def seat(self) -> Seat:
        return _AsyncioSeat(self._loop)

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
