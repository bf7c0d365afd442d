"""What happens after a crash: the message's answer, the wait before the restart, the end of the budget, the family.

A restart waits for the commits that are in flight, then loads what the store has. When the budget is spent, or what is
stored cannot be read, the actor is FAILED: what is queued is answered with ActorFailed until `resume`, watchers are
told, and its parent, where it has one, crashes. A store that does not answer spends nothing: see activation.py.

A message that crashed its actor is not delivered again, unless its handler is retryable: then it is the first one
after the restart, until it has had ATTEMPTS_MAX attempts and goes to quarantine.

Siblings that restart with it, as the parent's strategy says (families.py), do so at no cost to their own budgets. A
parent that restarts, for whatever reason, restarts all of its children, failed ones included. One that has failed takes
them with it; they are resumed when it is.

Source: Erlang/OTP supervisor principles (restart strategies, maximum restart intensity, escalation).
"""

import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..store.errors import StoreError
from .actor import Handler
from .budget import Backoff
from .cell import Cell
from .dead_letters import DeadLetter, DeadLetters
from .dispatch import Dispatcher
from .envelope import QUEUED, SETTLED, Delivery
from .errors import ActorFailed, Failed, Rejected, Stopping, Unknown
from .families import children_of, dissolve, parent_of, restarted_with
from .lifecycle import BACKING_OFF, FAILED, LOADING, READY, STOPPED, STOPPING, Event
from .metrics import Metrics
from .observing import ActorCrashed, ActorGaveUp, ActorRestarting, MessageQuarantined
from .quarantine import Quarantine, Quarantined

if TYPE_CHECKING:
    from .activation import Activation
    from .endings import Endings
    from .residency import Residency
    from .supervisor import Supervision

__all__ = ["ATTEMPTS_MAX", "Restarts"]

_log = logging.getLogger("callboard.supervisor")

ATTEMPTS_MAX = 3
"""How often a message that crashes its actor is tried, where its handler is retryable."""

_STORE_BACKOFF = Backoff(first_s=0.05, max_s=5.0)


class Restarts:
    """See the module's text."""

    def __init__(self, host: "Supervision", metrics: Metrics, dead_letters: DeadLetters) -> None:
        self._host = host
        self._metrics = metrics
        self._dead_letters = dead_letters
        self.quarantine = Quarantine()
        self.chance: Callable[[], float] = random.random
        self.activation: Activation
        self.endings: Endings
        self.dispatcher: Dispatcher
        self.residency: Residency

    # Crashes --------------------------------------------------------------------------------------------------------

    def crashed(
        self, cell: Cell, error: BaseException, delivery: Delivery | None = None, handler: Handler | None = None
    ) -> None:
        """Count the crash, answer the message that did it or try it again, and restart the actor or give it up."""
        self._metrics.crashes += 1
        _log.error("%s crashed: %r", cell.id, error, exc_info=error)
        events = self._metrics.events
        if events.observers:
            events.tell(ActorCrashed(cell.id, error, delivery.message if delivery is not None else None))
        if cell.state is STOPPING:
            self._answer(cell, error, delivery)
            self._fall(cell, error)
            return
        delay_s = cell.illness.budget.crashed(self._host.now(), self.chance())
        if delay_s is None:
            self._answer(cell, error, delivery)
            self.give_up(cell, error)
            return
        again = self._again(cell, error, delivery, handler)
        siblings = restarted_with(cell)
        self.back_off(cell, error, delay_s, again=again)
        for sibling in siblings:
            self._restart_with(sibling, cell, error, delay_s)

    def _again(
        self, cell: Cell, error: BaseException, delivery: Delivery | None, handler: Handler | None
    ) -> Delivery | None:
        """The message, where it is to be tried once more; else it is answered."""
        if delivery is None or handler is None or delivery.phase is SETTLED:
            return None
        if not handler.retryable:
            self._answer(cell, error, delivery)
            return None
        if delivery.attempt < ATTEMPTS_MAX:
            return delivery
        poison = Quarantined(
            number=delivery.number,
            to=cell.id,
            message=delivery.message,
            attempts=delivery.attempt,
            error=repr(error),
            at=self._host.now(),
            size_bytes=delivery.size_bytes,
        )
        _log.error("message %d, which crashed %s %d times, is in quarantine", poison.number, cell.id, poison.attempts)
        if self._metrics.events.observers:
            self._metrics.events.tell(MessageQuarantined(poison))
        pushed_out = self.quarantine.add(poison)
        if pushed_out is not None:
            self._dead_letters.add(
                DeadLetter(
                    to=pushed_out.to,
                    message=pushed_out.message,
                    sender=None,
                    cause="crashed",
                    error=pushed_out.error,
                    at=self._host.now(),
                    size_bytes=pushed_out.size_bytes,
                )
            )
        delivery.on_settled = None if not delivery.awaited else delivery.on_settled  # it is kept, hence no dead letter
        self._answer(cell, error, delivery, note=f"; after {delivery.attempt} attempts it is in quarantine")
        return None

    def _answer(self, cell: Cell, error: BaseException, delivery: Delivery | None, *, note: str = "") -> None:
        if delivery is not None:
            failure = Failed(f"the handler of {type(delivery.message).__name__} at {cell.id} raised {error!r}{note}")
            failure.__cause__ = error
            delivery.settle(None, failure)

    def not_stored(self, cell: Cell, error: StoreError) -> None:
        """A commit was refused, so the actor in memory is ahead of the store: reload it, at no cost to its budget."""
        _log.warning("a commit of %s failed, the actor reloads: %s", cell.id, error)
        if cell.state is STOPPING:
            self._fall(cell, error)
            return
        illness = cell.illness
        illness.store_failures += 1
        self.back_off(cell, error, _STORE_BACKOFF.delay_s(illness.store_failures, self.chance()))

    def _fall(self, cell: Cell, error: BaseException) -> None:
        """One that is STOPPING does not restart: refuse what is queued; it stops when its commits and handler end."""
        self.drop_activation(cell, error)
        for queued in cell.box.clear() if cell.box is not None else ():
            queued.settle(None, self.refusal(cell))
        self.dispatcher.ready(cell)

    # Restarting -----------------------------------------------------------------------------------------------------

    def back_off(self, cell: Cell, error: BaseException, delay_s: float, *, again: Delivery | None = None) -> None:
        """Drop the activation; load a new one after the delay, with `again` as its first message."""
        cell.happen(Event.CRASHED)  # before anybody is answered: an answer may set off anything
        cell.reload_due = False
        cell.illness.restarts += 1
        restart = cell.illness.restarts
        self._metrics.restarts += 1
        if self._metrics.events.observers:
            self._metrics.events.tell(ActorRestarting(cell.id, error, delay_s))
        self.drop_activation(cell, error, again)
        self._restart_children(cell, error, delay_s)

        def due() -> None:
            if cell.illness.restarts == restart:  # else it was stopped and resumed, and waits for another restart
                cell.reload_due = True
                self.dispatcher.run(self.reload_if_due, cell)

        self._host.at(self._host.now() + delay_s, due)

    def reload_if_due(self, cell: Cell) -> None:
        """Load anew, once nothing of the old activation is on its way: its commits decide what the store holds."""
        if cell.reload_due and cell.state is BACKING_OFF and not cell.gate and cell.running is None:
            cell.reload_due = False
            self.activation.activate(cell)
            self.dispatcher.ready(cell)

    def drop_activation(self, cell: Cell, error: BaseException, again: Delivery | None = None) -> None:
        """Forget the actor's memory; replies that it owed are asked again where that is safe, else failed."""
        cell.illness.last_error = error
        self.residency.left(cell)
        context, cell.context = cell.context, None
        handlers, cell.handlers = cell.handlers, {}
        if cell.job is not None:
            cell.job.cancel()
        self._host.disown_children(cell)
        if context is None:
            return
        context.end()
        repeated = [again] if again is not None else []
        lost: list[Delivery] = []
        for delivery in context.owed or ():
            if delivery.phase is not SETTLED:
                (repeated if handlers[type(delivery.message)].retryable else lost).append(delivery)
        self._put_back(cell, repeated)
        # Answers come last: each may set off anything.
        if cell.running is not None:
            cell.running.settle(None, Failed(f"{cell.id} was restarted while this was handled: {error!r}"))
        for delivery in lost:
            # Not Failed: its handler has returned, and what that staged is stored, or may yet be.
            unknown = Unknown(f"{cell.id} was restarted before it answered: {error!r}")
            unknown.__cause__ = error
            delivery.settle(None, unknown)

    def _put_back(self, cell: Cell, repeated: list[Delivery]) -> None:
        repeated.sort(key=lambda delivery: delivery.number)
        for delivery in repeated:
            delivery.phase = QUEUED
            delivery.admitted = True
            delivery.attempt += 1
            delivery.queued_at = self._host.now()  # one that was handled in place has never been queued
        if repeated:
            cell.mailbox.put_back(repeated)

    def _restart_with(self, cell: Cell, other: Cell, error: BaseException, delay_s: float) -> None:
        if cell.state is READY or cell.state is LOADING:
            failure = Failed(f"it restarts together with {other.id}, which crashed with {error!r}")
            failure.__cause__ = error
            self.back_off(cell, failure, delay_s)

    def _restart_children(self, cell: Cell, error: BaseException, delay_s: float) -> None:
        for child in dissolve(cell):
            if child.state is FAILED:
                self.resume(child)
            else:
                self._restart_with(child, cell, error, delay_s)

    # The end of the budget ------------------------------------------------------------------------------------------

    def give_up(self, cell: Cell, error: BaseException) -> None:
        """FAILED: answer what is queued, tell who watches, and let the parent crash."""
        parent = parent_of(cell)
        cell.happen(Event.GAVE_UP)
        if self._metrics.events.observers:
            self._metrics.events.tell(ActorGaveUp(cell.id, error))
        self.drop_activation(cell, error)
        refusal = self.refusal(cell)
        for queued in cell.box.clear() if cell.box is not None else ():
            queued.settle(None, refusal)
        for child in children_of(cell):
            if child.state in (READY, LOADING, BACKING_OFF):
                self.give_up(child, refusal)
        self.endings.failed(cell, error)
        if parent is not None and (parent.state is READY or parent.state is LOADING):
            escalated = Failed(f"{cell.id}, which it supervises, has failed: {error!r}")
            escalated.__cause__ = error
            self.crashed(parent, escalated)

    def refusal(self, cell: Cell) -> Rejected:
        """Why a cell that refuses takes no message."""
        if cell.state is not FAILED:
            return Stopping(f"{cell.id} is stopped, or stopping; runtime.resume{cell.id.parts} starts it again")
        budget, last_error = cell.illness.budget, cell.illness.last_error
        spent = f" (its restart budget: {budget.policy.restarts_max} in {budget.policy.window_s:g} s)"
        refusal = ActorFailed(
            f"{cell.id} has failed{spent if budget.crashes else ''}, at last with {last_error!r}; "
            f"mend the cause and call runtime.resume{cell.id.parts}"
        )
        refusal.__cause__ = last_error
        return refusal

    def resume(self, cell: Cell) -> None:
        """Give one that has failed or was stopped, and who failed with it, a fresh budget; a message activates it."""
        if cell.state is FAILED or cell.state is STOPPED:
            cell.happen(Event.RESUME)
            if cell.health is not None:
                cell.health.budget.reset()
            for child in dissolve(cell):
                if child.state is FAILED:
                    self.resume(child)
