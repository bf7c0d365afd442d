"""Delivering: from a caller's `tell` or `ask` to the actor's mailbox, and back. Deadlines, chains, cycles, giving up.

A message for an actor that is idle, from code outside, is handled in place: the caller's own task runs the handler, as
if it had put the message into the mailbox and the dispatcher had taken it out. Everything else takes that way.

Every delivery is settled exactly once, by a reply, by an error, or by its own sender's going away, whichever is first.
One that nobody awaits and that comes to nothing is a dead letter.
"""

import contextvars
import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from .cell import Cell
from .context import Context
from .dead_letters import DeadLetter, DeadLetterCause, DeadLetters
from .deadlines import Deadlines
from .dispatch import Dispatcher
from .endings import Endings
from .envelope import QUEUED, SETTLED, Delivery, Request, check_message
from .errors import ActorFailed, CyclicAsk, Expired, Failed, MailboxFull, Rejected, Stopping, Unknown
from .identity import ActorId
from .lifecycle import ABSENT, FAILED, GONE, READY, STOPPED
from .mailbox import FULL
from .options import check_number
from .ref import ASKS_PER_CHECKPOINT, Ended, TellOverflow
from .registry import Registry
from .residency import Residency
from .signals import EndReason
from .supervisor import Supervisor
from .timers import Timers
from .wait_graph import WaitGraph
from .waking import Backend, Waker

__all__ = ["PostOffice"]

_WAKERS_MAX = 1024
"""Wakers that are kept for the next asks that wait: to make one costs 0.8 us on trio, to take one from here 0.1."""

Place = tuple["PostOffice", tuple[ActorId, ...], float]

_current_place: contextvars.ContextVar[Place | None] = contextvars.ContextVar("callboard_current_place", default=None)
"""In a task of a runtime: that runtime, the actors that wait for what goes on in the task, outermost first, and until
when. The runtime is named because a handler of one may ask an actor of another, which may well have the same id."""

_CAUSES: tuple[tuple[type[BaseException], DeadLetterCause], ...] = (
    (MailboxFull, "dropped"),
    (Expired, "expired"),
    (Stopping, "stopped"),
    (ActorFailed, "failed"),
    (Failed, "crashed"),
    (Unknown, "crashed"),
)


class PostOffice:
    """The `Post` of ref.py.

    Attributes:
        cell: the present cell of an id that was checked.
        accepting: False once the runtime is closing: only what is part of work under way may still send.
        waits: who waits for whom, among actors in whose handlers somebody asks.
    """

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        supervisor: Supervisor,
        *,
        dispatcher: Dispatcher,
        timers: Timers,
        endings: Endings,
        residency: Residency,
        dead_letters: DeadLetters,
    ) -> None:
        self._backend = backend
        self._now = backend.now
        self._registry = registry
        self._supervisor = supervisor
        self._dispatcher = dispatcher
        self._timers = timers
        self._endings = endings
        self._residency = residency
        self._dead_letters = dead_letters
        self.cell = registry.at
        self._bury = self._tell_ended  # bound once, not for each tell
        self._wakers: list[Waker] = []
        self._deadlines = Deadlines(timers, self._expire)
        self._numbers = count(1)
        self.accepting = True
        self.waits = WaitGraph[ActorId]()

    # Sending --------------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """The next number of the sequence in which requests come."""
        return next(self._numbers)

    def post(
        self,
        cell: Cell,
        message: Request[Any],
        timeout_s: float,
        overflow: TellOverflow = "wait",
        *,
        awaited: bool = True,
    ) -> Delivery:
        """Handle a message in place, or queue it and run what is runnable.

        Args:
            cell, message: what goes where.
            timeout_s: seconds from now, above 0; inf for no deadline.
            overflow: see Overflow. An actor that waits for the sender cannot make space: there "wait" means "reject".
            awaited: the sender is going to wait for the reply.

        Raises:
            Stopping: the runtime is closing and the sender is not part of what is being finished.
            CyclicAsk: the actor waits for the sender. Nothing was queued.
            ValueError, TypeError: timeout_s is no such number, overflow no such word, message no Request.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is a number of seconds above 0, or inf, not {timeout_s}")
        if overflow != "wait":
            _check_overflow(overflow, awaited=awaited)
        dispatcher = self._dispatcher
        if not dispatcher.running and self.accepting and _current_place.get() is None:
            dispatcher.running = True
            try:
                if cell.state is ABSENT and not (cell.box or cell.gate):
                    self._supervisor.activation.activate(cell)
                handler = cell.handlers.get(type(message))
                box = cell.box
                if (
                    handler is not None
                    and cell.state is READY
                    and cell.running is None
                    and (box is None or not box.length)
                ):
                    now = self._now()
                    number = next(self._numbers)
                    on_settled = None if awaited else self._bury
                    delivery = Delivery(cell.id, message, number, None, (), now + timeout_s, awaited, True, on_settled)
                    cell.used_at = number
                    self._supervisor.handle(cell, delivery, handler, now)
                    return delivery
            finally:
                dispatcher.running = False
                if dispatcher.queue:
                    dispatcher.run()
        return self._post_by_mailbox(cell, message, timeout_s, overflow, awaited=awaited)

    def _post_by_mailbox(
        self, cell: Cell, message: Request[Any], timeout_s: float, overflow: TellOverflow, *, awaited: bool
    ) -> Delivery:
        check_message(message)
        if cell.state is GONE:  # pushed out by what its own load sent
            cell = self._registry.at(cell.id)
        place = _current_place.get()
        if place is None or place[0] is not self:
            if not self.accepting:
                raise Stopping("the runtime is closing or closed, and takes no new work")
            chain: tuple[ActorId, ...] = ()
            sender = circle = None
        else:
            chain, sender = place[1], place[1][-1] if place[1] else None
            circle = self._circle(cell.id, chain) if chain else None
        if circle is not None:
            if awaited:
                raise _cyclic(circle)
            overflow = "reject" if overflow == "wait" else overflow
        now = self._now()
        deadline = now + timeout_s
        if awaited and place is not None and place[0] is self:
            deadline = min(deadline, place[2])
        # Nobody waits for what comes of a tell.
        waiting, on_settled = (chain, None) if awaited else ((), self._bury)
        delivery = Delivery(
            cell.id, message, next(self._numbers), sender, waiting, deadline, awaited, False, on_settled
        )
        if awaited and sender is not None:
            self._note_wait(delivery, sender)
        self._enqueue(cell, delivery, now, overflow=overflow)
        return delivery

    def _circle(self, target: ActorId, chain: tuple[ActorId, ...]) -> tuple[ActorId, ...] | None:
        """The whole chain of waits, where the target waits for the last one of the chain, directly or not."""
        if target in chain:
            return (*chain, target)
        path = self.waits.path(target, chain[-1])
        return (*chain, *path) if path is not None else None

    def _note_wait(self, delivery: Delivery, sender: ActorId) -> None:
        self.waits.add(sender, delivery.to)
        delivery.on_settled = self._waited

    def _waited(self, delivery: Delivery) -> None:
        assert delivery.sender is not None
        self.waits.remove(delivery.sender, delivery.to)

    def send(
        self,
        to: ActorId,
        message: Request[Any],
        *,
        sender: ActorId | None,
        on_settled: Callable[[Delivery], None] | None = None,
    ) -> None:
        """A message between actors: never refused while the runtime drains, never waits; a full mailbox queues it."""
        delivery = Delivery(to, message, next(self._numbers), sender, awaited=on_settled is not None)
        delivery.on_settled = on_settled or self._keep_dead  # it never waits for space, so it is accepted
        self._enqueue(self._registry.cell(to.kind, to.key), delivery, self._now(), overflow="wait")

    def signal(
        self, to: ActorId, message: Request[None], *, on_settled: Callable[[Delivery], None] | None = None
    ) -> None:
        """A message of the kernel's own to an actor, by the control lane; refused where the actor has ended."""
        cell = self._registry.cell(to.kind, to.key)
        delivery = Delivery(to, message, next(self._numbers), queued_at=self._now(), on_settled=on_settled)
        if cell.state is FAILED or cell.state is STOPPED:
            delivery.settle(None, self._supervisor.restarts.refusal(cell))
            return
        cell.mailbox.offer_control(delivery)
        self._run(cell)

    def _enqueue(self, cell: Cell, delivery: Delivery, now: float, *, overflow: TellOverflow) -> None:
        if cell.state is not READY and cell.refuses:
            delivery.settle(None, self._supervisor.restarts.refusal(cell))
            return
        delivery.size_bytes = delivery.message.size_bytes()
        delivery.queued_at = now
        cell.used_at = delivery.number
        mailbox = cell.mailbox
        offered = mailbox.offer(delivery, wait=overflow == "wait")
        while offered is FULL and overflow == "drop_oldest" and (oldest := mailbox.drop_oldest()) is not None:
            oldest.settle(None, MailboxFull(f"the full mailbox of {cell.id} made room for a newer message"))
            offered = mailbox.offer(delivery, wait=False)
        if offered is FULL:
            delivery.settle(None, MailboxFull(f"the mailbox of {cell.id} is full with {len(mailbox)} messages"))
        elif cell.running is None:  # else it is looked at again when that has ended
            self._run(cell)

    def _run(self, cell: Cell) -> None:
        self._dispatcher.ready(cell)
        self._dispatcher.run()

    def _tell_ended(self, delivery: Delivery) -> None:
        """A tell from outside or from an async handler came to nothing: where it was accepted before, keep it."""
        if delivery.admitted:
            self._keep_dead(delivery)

    def _keep_dead(self, delivery: Delivery) -> None:
        error = delivery.error
        causes: list[DeadLetterCause] = [cause for kind, cause in _CAUSES if isinstance(error, kind)]
        self._dead_letters.add(
            DeadLetter(
                to=delivery.to,
                message=delivery.message,
                sender=delivery.sender,
                cause=causes[0] if causes else "refused",
                error=str(error),
                at=self._now(),
                size_bytes=delivery.size_bytes,
            )
        )

    # Places ---------------------------------------------------------------------------------------------------------

    def enter(self, chain: tuple[ActorId, ...]) -> None:
        """This task works for the runtime from now on, and these actors wait for it."""
        _current_place.set((self, chain, math.inf))

    def variables_for(self, context: Context, delivery: Delivery | None) -> contextvars.Context:
        """The variables for the task of an async handler or load: the actor's own, and for whom it works until when."""
        variables = context.variables.copy()
        chain, deadline = (delivery.chain, delivery.deadline) if delivery is not None else ((), math.inf)
        variables.run(_current_place.set, (self, (*chain, context.id), deadline))
        return variables

    # Waiting --------------------------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Let others run."""
        self._supervisor.sample(ASKS_PER_CHECKPOINT)  # the message that was just handled in place
        await self._backend.checkpoint()

    async def wait_settled(self, delivery: Delivery, timeout_s: float) -> None:
        """Return once the delivery is settled, at the latest at its deadline; posted with `timeout_s`."""
        if delivery.phase is SETTLED:
            return
        waker = delivery.waker = self._wakers.pop() if self._wakers else self._backend.waker()
        wait = self._deadlines.add(timeout_s, delivery) if delivery.deadline != math.inf else None
        try:
            while delivery.phase is not SETTLED:  # pyright: ignore[reportUnnecessaryComparison] - it changes meanwhile
                await waker.wait()
        except BaseException:  # cancelled
            self.give_up(delivery)
            raise
        finally:
            if wait is not None:
                wait.over()
        delivery.waker = None  # it was waited for, and nobody else will wake it: another ask may have it
        if len(self._wakers) < _WAKERS_MAX:
            self._wakers.append(waker)

    async def wait_admitted(self, delivery: Delivery) -> None:
        """Return once the mailbox has the delivery; raises where it was rejected instead."""
        waker = delivery.waker = self._backend.waker()
        timer = None
        if delivery.sender is not None:
            self.waits.add(delivery.sender, delivery.to)
        if delivery.deadline != math.inf:  # of its own: once it is admitted, nobody waits for the deadline
            timer = self._timers.at(delivery.deadline, partial(self._expire, delivery))
        try:
            while not (delivery.admitted or delivery.phase is SETTLED):
                await waker.wait()
        finally:
            if timer is not None:
                timer.cancel()
            if delivery.sender is not None:
                self.waits.remove(delivery.sender, delivery.to)
            if not (delivery.admitted or delivery.phase is SETTLED):  # cancelled
                self.give_up(delivery)
        if not delivery.admitted and isinstance(delivery.error, Rejected):
            raise delivery.error

    def give_up(self, delivery: Delivery) -> None:
        """The sender waits no longer; see `Ref.ask`, "Cancellation"."""
        self._give_up(delivery, Unknown("the caller went away"))

    def _expire(self, delivery: Delivery) -> None:
        cell = self._registry.at(delivery.to)
        if delivery.phase is QUEUED:
            error: Exception = self._supervisor.expired(cell, delivery)
        else:
            error = Unknown(f"the deadline passed after {cell.id} had begun with {type(delivery.message).__name__}")
        self._give_up(delivery, error)

    def _give_up(self, delivery: Delivery, error: BaseException) -> None:
        if delivery.phase is SETTLED:
            return
        # The present cell, not the one that it was sent to: a delivery that is not settled keeps its cell from going.
        cell = self._registry.at(delivery.to)
        self._dispatcher.run(self._supervisor.abandon, cell, delivery, error)

    # Ends -----------------------------------------------------------------------------------------------------------

    async def wait_ended(self, cell: Cell) -> Ended:
        """Return once the actor has failed or was stopped.

        Raises:
            CyclicAsk: it waits for the one that asks, which would then wait for ever.
        """
        waiter = self._waiter_for(cell)
        waker = self._backend.waker()
        ended: list[Ended] = []

        def note(reason: EndReason, error: BaseException | None) -> None:
            ended.append(Ended(cell.id, reason, error))
            waker.wake()

        if waiter is not None:
            self.waits.add(waiter, cell.id)
        self._endings.watch(cell, waker, note)
        try:
            while not ended:
                await waker.wait()
        finally:
            self._endings.unwatch(cell, waker)
            if waiter is not None:
                self.waits.remove(waiter, cell.id)
        return ended[0]

    def _waiter_for(self, cell: Cell) -> ActorId | None:
        """The actor in whose handler somebody is going to wait for this one; None for code outside."""
        place = _current_place.get()
        chain = place[1] if place is not None and place[0] is self else ()
        circle = self._circle(cell.id, chain) if chain else None
        if circle is not None:
            raise _cyclic(circle)
        return chain[-1] if chain else None

    async def stop(self, cell: Cell) -> None:
        self._waiter_for(cell)
        self._dispatcher.run(self._endings.begin_stop, cell)
        await self.wait_ended(cell)

    async def drain(self, cell: Cell, timeout_s: float) -> None:
        check_number("timeout_s", timeout_s)
        if not timeout_s >= 0:
            raise ValueError(f"timeout_s is a number of seconds from 0, or inf, not {timeout_s}")
        self._waiter_for(cell)
        self._dispatcher.run(self._endings.begin_drain, cell, self._now() + timeout_s)
        await self.wait_ended(cell)

    def kill(self, cell: Cell) -> None:
        self._dispatcher.run(self._endings.kill, cell)

    def passivate(self, cell: Cell) -> bool:
        return not self._dispatcher.running and cell.state is not GONE and self._residency.passivate(cell)


def _check_overflow(overflow: str, *, awaited: bool) -> None:
    if overflow == "drop_oldest" and awaited:
        raise ValueError('overflow="drop_oldest" is for tell: an ask has a caller who waits; use "wait" or "reject"')
    if overflow not in ("wait", "reject", "drop_oldest"):
        raise ValueError(f'overflow is "wait", "reject" or, for tell, "drop_oldest", not {overflow!r}')


def _cyclic(circle: tuple[ActorId, ...]) -> CyclicAsk:
    return CyclicAsk(f"{circle[-1]} already waits for this request: {' -> '.join(map(str, circle))}")
