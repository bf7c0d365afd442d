"""The runtime: composes the rooms of the kernel, and is opened and closed in order. No decision is made here.

Opening: claim the store, start the service tasks, let `recover` put right what an earlier process left, then it is
ready. Closing: refuse new work from outside, let what is under way finish until the deadline, cancel the rest, flush
the commits, close. Only the wait for the deadline is the host's own and can be cancelled; all that follows is done by a
service task behind a shield, so that it happens in this order also when the host is cancelled, once or twice, and also
natively by asyncio, which knows no shields.
"""

import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from ..store.contract import Store
from .activation import Activation
from .actor import Actor
from .budget import RestartPolicy
from .cell import ActorKind, Cell
from .children import Children
from .committer import Committer, close_store
from .context import ACTIVATION_BITS
from .dead_letters import DeadLetters
from .dispatch import Dispatcher
from .endings import Endings
from .envelope import Delivery, Request
from .errors import Stopping
from .families import adopt
from .identity import ActorId
from .introspect import Inspection
from .mailbox import MAILBOX_BYTES_MAX, MAILBOX_COUNT_MAX
from .metrics import Metrics
from .options import check_interval, check_number, check_opener
from .post_office import PostOffice
from .quarantine import Quarantine
from .ref import Ref
from .registry import Registry
from .reminder_records import ReminderRecord
from .reminders import Reminders
from .residency import ACTORS_BYTES_MAX, ACTORS_MAX, Residency
from .restarts import Restarts
from .sabotage import Sabotage
from .showing import Showing
from .signals import ActorEnded, EndReason
from .supervisor import Supervisor
from .switch_interval import SWITCH_INTERVAL_S
from .timers import Timer, Timers
from .waking import Backend, Waker, current_backend
from .workers import Workers

__all__ = ["DRAIN_TIMEOUT_S", "Runtime"]

_log = logging.getLogger("callboard.runtime")

DRAIN_TIMEOUT_S = 30.0
CANCEL_GRACE_S = 5.0
"""How long cancelled work may take to say how it ended, after the drain's deadline."""


class Runtime(Showing):
    """Hosts actors in the present event loop, trio or asyncio: `async with Runtime(MemoryStore) as runtime: ...`.

    Args:
        open_store: gives the store where actors keep their state, for instance the class MemoryStore; the store is
            closed with the runtime.
        drain_timeout_s: how long work under way may go on after the block was left. Left by an exception or a
            cancellation, it is cancelled at once; so it is when a cancellation comes while it is waited for.
        actors_max, actors_bytes_max: so many actors, and bytes by their own word, stay in memory; over that the least
            recently used leave it, as far as nothing of theirs is under way. Kinds with idle_s=inf do not count.
        switch_interval_s: the interpreter's switch interval while the runtime commits to a disk, for all of its
            threads, see switch_interval.py; None leaves it as it is.

    Raises:
        ValueError, TypeError: a number is out of range, or none; `open_store` is a store, or a path.

    What holds after the block: all that was answered is stored; every request has its answer; no task is left. What was
    cut is in `cut`.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        *,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        actors_max: int = ACTORS_MAX,
        actors_bytes_max: int = ACTORS_BYTES_MAX,
        switch_interval_s: float | None = SWITCH_INTERVAL_S,
    ) -> None:
        check_opener(open_store)
        check_interval(switch_interval_s)
        check_number("drain_timeout_s", drain_timeout_s)
        check_number("actors_max", actors_max)
        check_number("actors_bytes_max", actors_bytes_max)
        if drain_timeout_s < 0:
            raise ValueError(f"drain_timeout_s is a number of seconds from 0, not {drain_timeout_s}")
        self._open_store = open_store
        self._switch_interval_s = switch_interval_s
        self._drain_timeout_s = drain_timeout_s
        self._registry = Registry()
        self._metrics = Metrics()
        self._dead_letters = DeadLetters()
        self._endings = Endings(self)
        self._restarts = Restarts(self, self._metrics, self._dead_letters)
        self._activation = Activation(self, self._metrics)
        self._supervisor = Supervisor(self, self._metrics, self._dead_letters)
        self._residency = Residency(
            self, self._registry, self._metrics, actors_max=actors_max, bytes_max=actors_bytes_max
        )
        inspection = Inspection(
            self._registry,
            self._metrics,
            self._dead_letters,
            quarantine=self._restarts.quarantine,
            breaker=self._activation.breaker,
            residency=self._residency,
        )
        super().__init__(inspection, self._metrics.events)
        self._dead_letters.on_letter = self._metrics.events.tell_of_letter
        self._sabotage = Sabotage(self._registry)
        self._busy: list[Cell] = []
        self._watching_quiet: list[Waker] = []
        self._entered = False
        self._open = False
        self._closers: list[Callable[[], Awaitable[None]]] = []

    # For users ------------------------------------------------------------------------------------------------------

    @property
    def cut(self) -> list[str]:
        """What was cut when the runtime closed, for people; empty where all that was begun was finished."""
        return self._endings.cut

    @property
    def store(self) -> Store:
        """The store, for reading.

        Raises:
            Stopping: the runtime was never entered.
        """
        if not self._entered:
            raise Stopping("the runtime is not open: use it inside `async with Runtime(...)`")
        return self._store

    def register(
        self,
        kind: str,
        factory: Callable[[ActorId], Actor],
        *,
        durable: bool = True,
        restart: RestartPolicy | None = None,
        idle_s: float | None = None,
        mailbox_count_max: int = MAILBOX_COUNT_MAX,
        mailbox_bytes_max: int = MAILBOX_BYTES_MAX,
    ) -> None:
        """Make a kind of actor known: `runtime.register("counter", Counter)`.

        Args:
            kind: the first half of these actors' ids.
            factory: called with the id for each activation; an Actor class will do.
            durable: False for actors that never stage writes.
            restart: how often a crash is forgiven, and what it means for the actors that these supervise.
            idle_s: how long one stays in memory without inbound messages; inf for ever. Without it: 300 s, or for ever
                where it is not durable, since what it knows would be lost.
            mailbox_count_max, mailbox_bytes_max: the bounds of each mailbox.

        Raises:
            ValueError: the kind is registered already, or a number is out of range.
            TypeError: a number, the factory or the policy is none.
        """
        self._registry.add(
            ActorKind(
                kind,
                factory,
                durable=durable,
                restart=restart,
                idle_s=idle_s,
                mailbox_count_max=mailbox_count_max,
                mailbox_bytes_max=mailbox_bytes_max,
            )
        )

    def actor(self, kind: str, key: str) -> Ref:
        """A reference to one actor; it is activated by its first message.

        Raises:
            UnknownActor: nobody has registered this kind.
            Stopping: the runtime is not open.
            TypeError, ValueError: the key is not text of 1 to 300 bytes.
        """
        if not self._open:
            raise Stopping("the runtime is not open: use it inside `async with Runtime(...)`")
        cell = self._registry.find(ActorId(kind, key))
        return Ref(self._post, cell.id if cell is not None else self._registry.check(kind, key), cell)

    def resume(self, kind: str, key: str) -> None:
        """Let an actor that has spent its restart budget, or that was stopped, begin again with its next message.

        Raises:
            UnknownActor, TypeError, ValueError: as `actor`.
            Stopping: the runtime is not open.
        """
        if not self._open:
            raise Stopping("the runtime is not open: use it inside `async with Runtime(...)`")
        self._restarts.resume(self._registry.cell(kind, key))

    @property
    def dead_letters(self) -> DeadLetters:
        """The messages that were accepted and came to nothing, with their causes: the newest, and counts of all."""
        return self._dead_letters

    @property
    def quarantine(self) -> Quarantine:
        """The messages that crashed their actor as often as they were tried: to list, inspect and purge."""
        return self._restarts.quarantine

    def release(self, number: int) -> None:
        """Take a message out of quarantine and send it to its actor again, as a tell with all its attempts.

        Raises:
            LookupError: no message of this number is there.
            Stopping, ActorFailed: the runtime is not open, or its actor takes no message; it stays in quarantine.
        """
        if not self._open:
            raise Stopping("the runtime is not open: use it inside `async with Runtime(...)`")
        poison = self.quarantine.inspect(number)
        cell = self._registry.at(poison.to)
        if cell.refuses:
            raise self._restarts.refusal(cell)
        self.quarantine.take(number)
        self._post.send(poison.to, poison.message, sender=None)

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Call `closer` when the runtime closes, after its actors have ended. The same one is called once.

        What it raises is logged: by then there is nothing that anybody could do about it.
        """
        if closer not in self._closers:
            self._closers.append(closer)

    @property
    def quiet(self) -> bool:
        """True where nothing is queued, running or on its way to the disk, and no task of an actor goes on.

        What only time can bring on does not count: timers, reminders, restarts that nobody waits for; nor do replies
        that are owed and that nothing under way will give.
        """
        return not self._entered or self._quiet()

    async def wait_quiet(self, *, timeout_s: float) -> bool:
        """Return True once the runtime is `quiet`; False where the time did not suffice.

        Raises:
            Stopping: the runtime is not open.
        """
        if not self._open:
            raise Stopping("the runtime is not open: use it inside `async with Runtime(...)`")
        check_number("timeout_s", timeout_s)
        return await self._wait_quiet(timeout_s)

    def crash_next(self, kind: str, key: str, error: Exception) -> None:
        """Let the next message that this actor handles crash with `error`; see `callboard.testing.crash_next`."""
        self._sabotage.crash_next(self._registry.check(kind, key), error)

    # Opening and closing --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a Runtime is opened once: make a new one")
        self._entered = True
        self._backend: Backend = current_backend()
        self._wall_offset_s = time.time() - self._backend.now()
        # The context variables as they were when the runtime was opened: no caller's leak into a handler.
        self.fresh_variables: Callable[[], contextvars.Context] = contextvars.copy_context().copy
        self._store = self._open_store()
        try:
            owner = self._store.claim()
        except BaseException:
            self._store.close()
            raise
        # Greater for every later owner of the store, and for every later activation by the same owner.
        self.next_epoch: Callable[[], int] = count((owner << ACTIVATION_BITS) + 1).__next__
        self._compose()
        await self._host_tasks.__aenter__()
        with anyio.CancelScope(shield=True):  # a host that is cancelled here could not leave what it has half entered
            self._tasks: TaskGroup = await self._host_tasks.start(self._serve)
        self._supervisor.workers = self._activation.workers = Workers(self._tasks, self._backend)
        self._inspection.workers = self._supervisor.workers
        self._children = Children(self._tasks, enter=self._post.enter, signal=self.signal, ended=self._note_change)
        self._inspection.children = self._children
        self._open = True
        try:
            await self.recover()
            self._reminders.start()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    def _compose(self) -> None:
        backend = self._backend
        self._timers = Timers(backend)
        self._dispatcher = Dispatcher(backend, self._supervisor.step)
        run, interval_s = self._dispatcher.run, self._switch_interval_s
        self._committer = Committer(self._store, backend, self._metrics, run=run, switch_interval_s=interval_s)
        self._post = PostOffice(
            backend,
            self._registry,
            self._supervisor,
            dispatcher=self._dispatcher,
            timers=self._timers,
            endings=self._endings,
            residency=self._residency,
            dead_letters=self._dead_letters,
        )
        for room in (self._supervisor, self._restarts, self._activation, self._endings, self._residency):
            room.dispatcher = self._dispatcher
        self._supervisor.activation = self._restarts.activation = self._activation
        self._supervisor.restarts = self._activation.restarts = self._restarts
        self._supervisor.endings = self._activation.endings = self._restarts.endings = self._endings
        self._supervisor.residency = self._activation.residency = self._residency
        self._restarts.residency = self._endings.residency = self._residency
        self._supervisor.post = self._activation.post = self._post
        self._supervisor.now = backend.now
        self._supervisor.committer = self._committer
        self._activation.supervisor = self._supervisor
        self._reminders = Reminders(self)
        self._inspection.post, self._inspection.timers = self._post, self._timers
        self._inspection.committer, self._inspection.now = self._committer, backend.now
        self._leaving = anyio.Event()
        self._host_tasks = anyio.create_task_group()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._post.accepting = False
        self._reminders.stop()
        try:
            if error is None:
                await self._wait_quiet(self._drain_timeout_s)
        finally:
            self._leaving.set()
            try:
                # Without the error: the task group would wrap it, and the host's own exception must leave as it is.
                await self._host_tasks.__aexit__(None, None, None)
            except anyio.get_cancelled_exc_class():
                if error is None:
                    raise  # else the host's exception goes first, or an outer scope would swallow it
            finally:
                await close_store(self._store)

    async def recover(self) -> None:
        """Put right what an earlier process left behind; called once, before the runtime is ready. For subclasses."""

    async def _serve(self, *, task_status: anyio.abc.TaskStatus[TaskGroup]) -> None:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for service in (self._timers.serve, self._dispatcher.serve, self._committer.serve):
                    tasks.start_soon(service)
                task_status.started(tasks)
                try:
                    await self._leaving.wait()
                finally:  # also where another service crashed, with a KeyboardInterrupt from a handler for instance
                    with anyio.CancelScope(shield=True):
                        await self._close()
                tasks.cancel_scope.cancel()

    async def _close(self) -> None:
        self._post.accepting = False
        self._reminders.stop()
        if not self._quiet():
            self._children.cut(self.cut.append)
            self._dispatcher.run(lambda: self._supervisor.cut_short(list(self._registry), self.cut.append))
            await self._wait_quiet(CANCEL_GRACE_S)
        self._stop_actors()
        if self.cut:
            _log.warning("closing cut %d pieces of work: %s", len(self.cut), "; ".join(self.cut[:20]))
        await self._committer.aclose()
        for closer in self._closers:
            try:
                await closer()
            except Exception:  # noqa: BLE001 - one that fails must not keep the others, or the store, open
                _log.exception("a closer of the runtime raised")

    def _stop_actors(self) -> None:
        self._open = False
        self._registry.close()

        def each(end: Callable[[Cell], None]) -> None:
            for cell in self._registry:
                end(cell)

        self._dispatcher.run(partial(each, lambda cell: self._endings.refuse_owed(cell, self.cut.append)))
        self._dispatcher.run(partial(each, lambda cell: self._endings.stop(cell, self.cut.append)))

    async def _wait_quiet(self, timeout_s: float) -> bool:
        """Wait until nothing is queued, running or in flight; False where the time did not suffice."""
        waker = self._backend.waker()
        self._watching_quiet.append(waker)
        self._dispatcher.rested = self._note_change
        try:
            with anyio.move_on_after(timeout_s):
                while not self._quiet():
                    await waker.wait()
        finally:
            self._watching_quiet.remove(waker)
            if not self._watching_quiet:
                self._dispatcher.rested = None
        return self._quiet()

    def _quiet(self) -> bool:
        # Among many cells few are busy: those are looked at again, and only when they rest, all.
        if not self._dispatcher.idle or self._children:
            return False
        self._busy = [cell for cell in self._busy if not cell.quiet]
        if not self._busy:
            self._busy = [cell for cell in self._registry if not cell.quiet]
        return not self._busy

    # For contexts and the supervisor --------------------------------------------------------------------------------

    @property
    def now(self) -> Callable[[], float]:
        return self._backend.now

    def wall_ms(self) -> int:
        return int((self._backend.now() + self._wall_offset_s) * 1000)

    def next_number(self) -> int:
        return self._post.next_number()

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        return self._timers.at(when, action)

    def check_actor(self, to: ActorId) -> None:
        self._registry.cell(to.kind, to.key)

    def send(
        self,
        to: ActorId,
        message: Request[Any],
        *,
        sender: ActorId,
        on_settled: Callable[[Delivery], None] | None = None,
    ) -> None:
        self._post.send(to, message, sender=sender, on_settled=on_settled)

    def signal(
        self, to: ActorId, message: Request[None], *, on_settled: Callable[[Delivery], None] | None = None
    ) -> None:
        self._post.signal(to, message, on_settled=on_settled)

    def watch(self, watcher: ActorId, tag: Any, target: ActorId) -> None:
        def ended(reason: EndReason, error: BaseException | None) -> None:
            context = self._registry.at(watcher).context
            if context is not None:
                context.note_told(target, tag)
            self._post.signal(watcher, ActorEnded(tag=tag, id=target, reason=reason, error=error))

        self._endings.watch(self._registry.cell(target.kind, target.key), (watcher, tag), ended)

    def unwatch(self, watcher: ActorId, tag: Any, target: ActorId) -> None:
        cell = self._registry.find(target)
        if cell is not None:
            self._endings.unwatch(cell, (watcher, tag))

    def supervise(self, parent: ActorId, child: ActorId) -> None:
        adopt(self._registry.at(parent), self._registry.cell(child.kind, child.key))

    def check_durable(self, id: ActorId) -> None:
        if not self._registry.at(id).kind.durable:
            raise TypeError(f"a reminder is stored, and actors of kind {id.kind!r} are not: register it as durable")

    def reminder_stored(self, id: ActorId, record: ReminderRecord) -> None:
        self._reminders.stored(id, record)

    def spawn(self, owner: ActorId, tag: Any, work: Callable[[], Awaitable[Any]]) -> None:
        self._children.spawn(owner, tag, work)

    def cancel_child(self, owner: ActorId, tag: Any) -> bool:
        return self._children.cancel(owner, tag)

    def disown_children(self, cell: Cell) -> None:
        self._children.disown(cell.id)

    def has_tasks(self, cell: Cell) -> bool:
        return self._children.has(cell.id)

    def _note_change(self) -> None:
        for waker in self._watching_quiet:
            waker.wake()
