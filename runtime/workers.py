"""Tasks that run the async handlers and loads of all actors: made when needed, parked when idle, given back when many.

An actor has no task of its own. One that is to run an async handler borrows a worker: waking a parked task costs a
third of starting one, and where the first step ends the handler, the worker is not even woken (see waking.py). The
cancel scope is the worker's and outlives its jobs; only one that was cancelled is replaced.

A job's steps run in the context variables that it is given, whatever the worker's own are: a task can be parked, but
the context of an asyncio task cannot be changed.
"""

import contextvars
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct, field

from .guard import Outcome, foreign_cancellation, interrupts, run_guarded
from .waking import Backend, Resumed, Seat

__all__ = ["IDLE_WORKERS_MAX", "Holder", "Job", "Worker", "Workers"]

IDLE_WORKERS_MAX = 256
"""Parked tasks that are kept, some 3 KiB each; more than that end when their job has."""


STREAK_MAX = 64
"""What follows from the end of a job is begun by the same worker, without a step in another's name: a busy actor's
queue, mostly. But only so often, or jobs that wait for nothing would never let the event loop come round."""


class Holder(Protocol):
    """Whose work it is. `job` is set before the first step, so that whoever holds it can be stopped from within."""

    job: "Job | None"


class Job(Struct, eq=False):
    """One piece of work."""

    work: Coroutine[Any, Any, Any]
    variables: contextvars.Context
    ended: Callable[[Outcome], None]
    worker: "Worker | None" = None

    def cancel(self) -> None:
        """Cancel the work; does nothing once it has ended."""
        if self.worker is not None:
            self.worker.spent = True
            self.worker.scope.cancel()


class Worker(Struct, eq=False):
    """A task that does one job after the other.

    Attributes:
        spent: its scope was cancelled, and it needs a new one.
        streak: the jobs that it has begun since it was parked.
    """

    seat: Seat
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    job: Job | None = None
    spent: bool = False
    streak: int = 0


class Workers:
    """See the module's text.

    Attributes:
        busy: how many jobs are under way.
    """

    def __init__(self, tasks: TaskGroup, backend: Backend) -> None:
        self._tasks = tasks
        self._backend = backend
        self._idle: list[Worker] = []
        self._ending: Worker | None = None
        self._cutting = False
        self.busy = 0

    def __len__(self) -> int:
        return self.busy + len(self._idle)

    def start(
        self,
        holder: Holder,
        work: Coroutine[Any, Any, Any],
        variables: contextvars.Context,
        ended: Callable[[Outcome], None],
    ) -> None:
        """Run `work` in a task of its own; `holder.job` cancels it.

        Args:
            holder: see there.
            work: it is closed without a step where it is cancelled before its first one.
            variables: nothing else runs in them.
            ended: called with how it ended, maybe before this returns; not when the runtime's own tasks are cancelled.
        """
        self.busy += 1
        worker, parked = self._next_worker()
        job = worker.job = holder.job = Job(work, variables, ended, worker)
        if parked:
            self._begin(worker, job)
        if self._cutting:
            job.cancel()

    def _next_worker(self) -> tuple[Worker, bool]:
        """Who does the next job, and whether that one is parked; else its task comes to it by itself."""
        ending = self._ending
        if ending is not None and not ending.spent and ending.streak < STREAK_MAX:
            self._ending = None
            ending.streak += 1
            return ending, False
        if self._idle:
            return self._idle.pop(), True
        worker = Worker(self._backend.seat())
        self._tasks.start_soon(self._serve, worker)
        return worker, False

    def cut(self) -> None:
        """From now on cancel each job as it starts."""
        self._cutting = True

    def _begin(self, worker: Worker, job: Job) -> None:
        """Take the first step in the worker's name."""
        if self._cutting or not self._backend.steps:
            worker.seat.wake()
            return
        try:
            worker.seat.step(job.variables.run, job.work.send)
            return
        except StopIteration as stop:
            outcome = Outcome(stop.value)
        except Exception as error:  # noqa: BLE001 - the guard: every crash of a handler or load ends here
            outcome = Outcome(error=error)
        except anyio.get_cancelled_exc_class() as error:
            outcome = Outcome(error=foreign_cancellation(error))
        except BaseException as error:
            self._finish_in_place(worker, Outcome(error=error))
            if interrupts(error):
                raise
            return
        self._finish_in_place(worker, outcome)

    def _finish_in_place(self, worker: Worker, outcome: Outcome) -> None:
        if not worker.spent:  # else its task is on its way to take a new scope
            self._idle.append(worker)
        self._end(worker, outcome)

    async def _serve(self, worker: Worker) -> None:
        while True:
            try:
                outcome = await run_guarded(self._jobs(worker), scope=worker.scope, host=self._tasks.cancel_scope)
            except BaseException as error:
                if worker.job is not None and interrupts(error):  # but who waits for the job has its answer
                    self._end(worker, Outcome(error=error))
                raise
            spent = worker.spent or worker.job is not None
            worker.scope, worker.spent = anyio.CancelScope(), False
            if worker.job is not None:  # cancelled, or it left with more than an Exception
                self._end(worker, outcome)
            if not spent:  # this worker is one too many
                return

    async def _jobs(self, worker: Worker) -> None:
        """Do job after job within one scope, until that is spent."""
        resumed: Resumed | None = None
        while True:
            job = worker.job
            if job is None:
                if len(self._idle) >= IDLE_WORKERS_MAX:
                    return
                self._idle.append(worker)
                worker.streak = 0
                resumed = await worker.seat.park()
                continue
            if worker.spent and resumed is None:
                job.work.close()
                outcome = Outcome(cancelled=True)
            else:
                try:
                    if resumed is None:
                        resumed = Resumed()
                    if resumed.request is None and resumed.error is None:
                        resumed.request = job.variables.run(job.work.send, resumed.answer)
                    outcome = Outcome(await _steps(job.work, job.variables, resumed))
                except StopIteration as stop:
                    outcome = Outcome(stop.value)
                except Exception as error:  # noqa: BLE001 - the guard: every crash of a handler or load ends here
                    outcome = Outcome(error=error)
            resumed = None
            self._ending = worker
            try:
                self._end(worker, outcome)
            finally:
                self._ending = None
            if worker.spent and worker.job is None:
                return

    def _end(self, worker: Worker, outcome: Outcome) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        job.worker = None
        self.busy -= 1
        job.ended(outcome)


@coroutine
def _steps(
    work: Coroutine[Any, Any, Any], variables: contextvars.Context, resumed: Resumed
) -> Generator[Any, Any, Any]:
    """Await `work` from where it is, with each of its steps in `variables`."""
    run = variables.run
    answer, error, request = resumed.answer, resumed.error, resumed.request
    while True:
        if request is None:
            try:
                request = run(work.send, answer) if error is None else run(work.throw, error)
            except StopIteration as stop:
                return stop.value
        try:
            answer, error = (yield request), None
        except BaseException as raised:  # noqa: BLE001 - it is handed on into the work, whatever it is
            answer, error = None, raised
        request = None
