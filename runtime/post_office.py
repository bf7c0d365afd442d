"""How a message gets into a mailbox, and how its sender waits: posting, deadlines, giving up.

Every delivery is settled exactly once, by a reply, by an error, or by its own sender's going away, whichever is first.
"""

import contextvars
import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from .cell import Cell
from .dispatch import Dispatcher
from .envelope import Delivery, Envelope, Phase, Request
from .errors import CyclicAsk, Expired, MailboxFull, Rejected, Stopping, Unknown
from .identity import ActorId
from .lifecycle import State
from .mailbox import Offered
from .ref import Overflow
from .registry import Registry
from .supervisor import Supervisor
from .timers import Timers
from .waking import Backend

__all__ = ["PostOffice"]

ASKS_PER_CHECKPOINT = 64
"""An ask that is answered in place lets others run every so many times: at about 1 us each that is well below 1 ms."""

_current_place: contextvars.ContextVar[tuple["PostOffice", tuple[ActorId, ...]] | None] = contextvars.ContextVar(
    "callboard_current_place", default=None
)
"""In a task of a runtime: that runtime, and the actors that wait for what goes on in the task, outermost first. The
runtime is named because a handler of one may ask an actor of another, which may well have the same id."""


class PostOffice:
    """The `Post` of ref.py."""

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        supervisor: Supervisor,
        *,
        dispatcher: Dispatcher,
        timers: Timers,
    ) -> None:
        self._backend = backend
        self._registry = registry
        self._supervisor = supervisor
        self._dispatcher = dispatcher
        self._timers = timers
        self._numbers = count(1)
        self._asks = 0
        self.accepting = True

    def deadline(self, timeout_s: float) -> float:
        """A timeout as a time on the event loop's clock."""
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is a number of seconds above 0, or inf, not {timeout_s}")
        return math.inf if timeout_s == math.inf else self._backend.now() + timeout_s

    def enter(self, chain: tuple[ActorId, ...]) -> None:
        """This task works for the runtime from now on, and these actors wait for it."""
        _current_place.set((self, chain))

    def post(
        self, cell: Cell, message: Request[Any], *, deadline: float, overflow: Overflow, waits: bool = True
    ) -> Delivery:
        """Queue a message for code outside or inside of actors, and run what is runnable.

        Args:
            cell, message: what goes where.
            deadline: on the loop's clock.
            overflow: see Overflow. An actor that waits for the sender cannot make space: there it means "reject".
            waits: the sender is going to wait for the reply.

        Raises:
            Stopping: the runtime is closing and the sender is not part of what is being finished.
            CyclicAsk: the actor waits for the sender. Nothing was queued.
        """
        place = _current_place.get()
        inside = place is not None and place[0] is self
        chain: tuple[ActorId, ...] = place[1] if place is not None and inside else ()
        if not (self.accepting or inside):
            raise Stopping("the runtime is closing or closed, and takes no new work")
        cyclic = cell.id in chain
        if cyclic and waits:
            asks = " -> ".join(str(id) for id in (*chain, cell.id))
            raise CyclicAsk(f"{cell.id} already waits for this request: {asks}")
        envelope = Envelope(
            message,
            next(self._numbers),
            chain[-1] if chain else None,
            chain if waits else (),  # nobody waits for what comes of a tell
            deadline=deadline,
            size_bytes=message.size_bytes(),
        )
        delivery = Delivery(envelope)
        self._enqueue(cell, delivery, wait=overflow == "wait" and not cyclic)
        return delivery

    def send(
        self,
        to: ActorId,
        message: Request[Any],
        *,
        sender: ActorId,
        on_settled: Callable[[Delivery], None] | None = None,
    ) -> None:
        """A message between actors: never refused while the runtime drains, never waits; a full mailbox queues it."""
        envelope = Envelope(message, next(self._numbers), sender, size_bytes=message.size_bytes())
        self._enqueue(self._registry.cell(to.kind, to.key), Delivery(envelope, on_settled), wait=True)

    def signal(self, to: ActorId, message: Request[None]) -> None:
        """A message of the kernel's own to an actor, by the control lane."""
        cell = self._registry.cell(to.kind, to.key)
        if cell.state not in (State.FAILED, State.STOPPED):
            cell.mailbox.offer_control(Delivery(Envelope(message, next(self._numbers))))
            self._run(cell)

    async def wait_settled(self, cell: Cell, delivery: Delivery) -> None:
        """Return once the delivery is settled, at the latest at its deadline."""
        await self._wait(cell, delivery, lambda: delivery.phase is Phase.SETTLED)

    async def wait_admitted(self, cell: Cell, delivery: Delivery) -> None:
        """Return once the mailbox has the delivery; raises where it was rejected instead."""
        await self._wait(cell, delivery, lambda: delivery.admitted or delivery.phase is Phase.SETTLED)
        if not delivery.admitted and isinstance(delivery.error, Rejected):
            raise delivery.error

    def give_up(self, cell: Cell, delivery: Delivery) -> None:
        """The sender waits no longer; see `Ref.ask`, "Cancellation"."""
        self._give_up(cell, delivery, Unknown("the caller went away"))

    async def _wait(self, cell: Cell, delivery: Delivery, done: Callable[[], bool]) -> None:
        if done():
            self._asks += 1
            if self._asks % ASKS_PER_CHECKPOINT == 0:
                await self._backend.checkpoint()
            return
        waker = delivery.waker = self._backend.waker()
        timer = None
        if delivery.envelope.deadline != math.inf:
            timer = self._timers.at(delivery.envelope.deadline, partial(self._expire, cell, delivery))
        try:
            while not done():
                await waker.wait()
        finally:
            if timer is not None:
                timer.cancel()
            if not done():  # cancelled
                self.give_up(cell, delivery)

    def _enqueue(self, cell: Cell, delivery: Delivery, *, wait: bool) -> None:
        if cell.state is State.FAILED or cell.state is State.STOPPED:
            delivery.settle(None, self._supervisor.refusal(cell))
        elif cell.mailbox.offer(delivery, wait=wait) is Offered.FULL:
            delivery.settle(None, MailboxFull(f"the mailbox of {cell.id} is full with {len(cell.mailbox)} messages"))
        else:
            self._run(cell)

    def _run(self, cell: Cell) -> None:
        self._dispatcher.ready(cell)
        self._dispatcher.run()

    def _expire(self, cell: Cell, delivery: Delivery) -> None:
        if delivery.phase is Phase.QUEUED:
            error: Exception = Expired(f"the deadline passed while the message was queued at {cell.id}")
        else:
            name = type(delivery.envelope.message).__name__
            error = Unknown(f"the deadline passed after {cell.id} had begun with {name}")
        self._give_up(cell, delivery, error)

    def _give_up(self, cell: Cell, delivery: Delivery, error: BaseException) -> None:
        self._dispatcher.run(partial(self._supervisor.abandon, cell, delivery, error))
