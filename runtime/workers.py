"""Tasks that run the async handlers and loads of all actors: made when needed, parked when idle, given back when many.

An actor has no task of its own. One that is to run an async handler borrows a worker: waking a parked task costs a
third of starting one. The cancel scope is the worker's and outlives its jobs; only one that was cancelled is replaced.

A job's steps run in the context variables that it is given, whatever the worker's own are: a task can be parked, but
the context of an asyncio task cannot be changed.
"""

import contextvars
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

import anyio
from anyio.abc import TaskGroup

from .guard import Outcome, run_guarded
from .waking import Backend, Waker

__all__ = ["IDLE_WORKERS_MAX", "Workers"]

IDLE_WORKERS_MAX = 256
"""Parked tasks that are kept, some 3 KiB each; more than that end when their job has."""


@dataclass(slots=True, eq=False)
class _Job:
    work: Coroutine[Any, Any, Any]
    variables: contextvars.Context
    ended: Callable[[Outcome], None]


@dataclass(slots=True, eq=False)
class _Worker:
    waker: Waker
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    job: _Job | None = None


class Workers:
    """See the module's text.

    Attributes:
        busy: how many jobs are under way.
    """

    def __init__(self, tasks: TaskGroup, backend: Backend) -> None:
        self._tasks = tasks
        self._backend = backend
        self._idle: list[_Worker] = []
        self.busy = 0

    def __len__(self) -> int:
        return self.busy + len(self._idle)

    def start(
        self, work: Coroutine[Any, Any, Any], variables: contextvars.Context, ended: Callable[[Outcome], None]
    ) -> anyio.CancelScope:
        """Run `work` in a task; the scope cancels it.

        Args:
            work: it is closed without a step where it is cancelled before its first one.
            variables: nothing else runs in them.
            ended: called in that task with how it ended, on every way but the end of the runtime's own tasks.
        """
        self.busy += 1
        job = _Job(work, variables, ended)
        if self._idle:
            worker = self._idle.pop()
            worker.job = job
            worker.waker.wake()
        else:
            worker = _Worker(self._backend.waker(), job=job)
            self._tasks.start_soon(self._serve, worker)
        return worker.scope

    async def _serve(self, worker: _Worker) -> None:
        kept = True
        while kept:
            outcome = await run_guarded(self._jobs(worker), scope=worker.scope, host=self._tasks.cancel_scope)
            # Back with a job: it was cancelled, or left with more than an Exception. Without one: the scope is spent,
            # or this worker is one too many.
            kept = worker.scope.cancel_called or worker.job is not None
            worker.scope = anyio.CancelScope()
            if worker.job is not None:
                self._end(worker, outcome)
            if kept:
                kept = await self._park(worker)

    async def _jobs(self, worker: _Worker) -> None:
        while (job := worker.job) is not None:
            if worker.scope.cancel_called:
                job.work.close()
                outcome = Outcome(cancelled=True)
            else:
                try:
                    outcome = Outcome(await _steps(job.work, job.variables))
                except Exception as error:  # noqa: BLE001 - the guard: every crash of a handler or load ends here
                    outcome = Outcome(error=error)
            spent = worker.scope.cancel_called
            self._end(worker, outcome)
            if spent or not await self._park(worker):
                return

    def _end(self, worker: _Worker, outcome: Outcome) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        self.busy -= 1
        job.ended(outcome)

    async def _park(self, worker: _Worker) -> bool:
        if len(self._idle) >= IDLE_WORKERS_MAX:
            return False
        self._idle.append(worker)
        await worker.waker.wait()
        return True


@coroutine
def _steps(work: Coroutine[Any, Any, Any], variables: contextvars.Context) -> Generator[Any, Any, Any]:
    """Await `work` with each of its steps in `variables`."""
    run, send = variables.run, work.send
    answer: Any = None
    while True:
        try:
            request = run(send, answer)
        except StopIteration as stop:
            return stop.value
        while True:
            try:
                answer = yield request
                break
            except BaseException as error:  # noqa: BLE001 - it is handed on into the work, whatever it is
                try:
                    request = run(work.throw, error)
                except StopIteration as stop:
                    return stop.value
