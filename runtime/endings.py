"""How actors end for good: stopped, drained or killed by hand, or with the runtime; and who is told.

| verb | running handler | queue | owed replies | children |
|---|---|---|---|---|
| stop | finished | refused | given up | cancelled at the end |
| drain | finished | handled, until the deadline | waited for, until the deadline | likewise |
| kill | cancelled | refused | given up | cancelled |

Children are the tasks that it has spawned; actors that it supervises go on without it. A drain that finds its actor on
the way into memory lets it arrive, and takes no more messages from then on. A crash ends a stop and a drain: what is
still queued is refused. A plain handler cannot be cancelled: one that kills its own actor is that actor's last one.

Commits that are in flight are never interrupted: what waits for them goes out when they are durable. A stopped actor
refuses messages with Stopping until `resume`. What it has stored stays.

Source: Erlang/OTP gen_server:stop, exit(kill); Akka, PoisonPill against Kill.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..store.errors import CallboardError
from .cell import Cell, Watcher
from .dispatch import Dispatcher
from .envelope import RUNNING, Delivery
from .errors import Failed, Stopping, Unknown
from .families import dissolve, parent_of
from .lifecycle import BACKING_OFF, FAILED, GONE, LOADING, READY, STOPPED, STOPPING, Event
from .signals import EndReason
from .timers import Timer

if TYPE_CHECKING:
    from .residency import Residency
    from .supervisor import Supervision

__all__ = ["Endings"]


class Endings:
    """See the module's text. `cut` names what the runtime's end has cut, for people."""

    def __init__(self, host: "Supervision") -> None:
        self._host = host
        self.dispatcher: Dispatcher
        self.residency: Residency
        self.cut: list[str] = []
        self._drains: dict[Cell, tuple[float, Timer | None]] = {}

    # Watching -------------------------------------------------------------------------------------------------------

    def watch(self, cell: Cell, key: object, watcher: Watcher) -> None:
        """Call `watcher` once when the actor has ended; now, where it has. A `key` is used for one watcher."""
        if cell.state is FAILED:
            watcher("failed", cell.illness.last_error)
        elif cell.state is STOPPED:
            watcher("stopped", None)
        else:
            cell.bonds.watchers[key] = watcher

    def unwatch(self, cell: Cell, key: object) -> None:
        """Forget a watcher; nothing where there is none."""
        if cell.ties is not None:
            cell.ties.watchers.pop(key, None)

    def failed(self, cell: Cell, error: BaseException) -> None:
        """The actor's budget is spent, or what is stored cannot be read."""
        self._forget_drain(cell)
        self._tell_watchers(cell, "failed", error)

    def _tell_watchers(self, cell: Cell, reason: EndReason, error: BaseException | None) -> None:
        """The actor has ended: each watcher is called, and forgotten."""
        if cell.ties is None or not cell.ties.watchers:
            return
        watchers, cell.ties.watchers = cell.ties.watchers, {}
        for watcher in watchers.values():
            watcher(reason, error)

    # The verbs for one actor ----------------------------------------------------------------------------------------

    def begin_stop(self, cell: Cell) -> None:
        """Refuse what is queued, let the running handler finish, then stop."""
        if cell.state is READY:
            cell.happen(Event.HALT)
        if cell.state is not STOPPING:
            self.stop(cell)
            return
        cell.finish_owed = False
        for delivery in cell.box.clear(control=False) if cell.box is not None else ():
            delivery.settle(None, Stopping(f"{cell.id} was stopped before it handled this"))
        self.dispatcher.ready(cell)

    def begin_drain(self, cell: Cell, deadline: float) -> None:
        """Take no new message, finish what was accepted, then stop; at the deadline stop in any case."""
        arriving = cell.state is LOADING or cell.state is BACKING_OFF
        if cell.state is STOPPING or cell.state is READY or (arriving and cell.box):
            self._end_drain_at(cell, deadline)
            self.begin_due_drain(cell)
        else:
            self.stop(cell)

    def begin_due_drain(self, cell: Cell) -> None:
        """Where a cell that is READY is to be drained, begin with it."""
        if cell.state is READY and cell in self._drains:
            cell.happen(Event.HALT)
            cell.finish_owed = True
            self.dispatcher.ready(cell)

    def _end_drain_at(self, cell: Cell, deadline: float) -> None:
        """Kill it at the deadline, or at an earlier one that it has already."""
        present, timer = self._drains.get(cell, (math.inf, None))
        if deadline < present:
            if timer is not None:
                timer.cancel()
            timer = self._host.at(deadline, partial(self.dispatcher.run, partial(self.kill, cell)))
        self._drains[cell] = (min(deadline, present), timer)

    def _forget_drain(self, cell: Cell) -> None:
        _, timer = self._drains.pop(cell, (math.inf, None))
        if timer is not None:  # or it would end a later incarnation
            timer.cancel()

    def kill(self, cell: Cell) -> None:
        """Cancel what runs, refuse what is queued, and stop now, or as soon as its plain handler has returned."""
        delivery = cell.context.delivery if cell.context is not None else None
        if delivery is not None and delivery.phase is RUNNING and cell.running is None:  # this is called by it
            self.begin_stop(cell)
        else:
            self.stop(cell)

    # The end --------------------------------------------------------------------------------------------------------

    def stop(self, cell: Cell, note: Callable[[str], None] | None = None) -> None:
        """End the cell now; all that waits for it is answered. `note` gets the name of each request that was cut."""
        if cell.state is STOPPED or cell.state is GONE:
            return
        self._forget_drain(cell)
        if cell.job is not None:
            cell.job.cancel()
        self.refuse_owed(cell, note)
        queued = cell.box.clear(control=False) if cell.box is not None else []
        signals = cell.box.clear() if cell.box is not None else []
        context, running = cell.context, cell.running
        self.residency.left(cell)
        cell.context = None
        cell.handlers = {}
        cell.happen(Event.STOP)
        for delivery in queued:
            _cut_off(delivery, Stopping(f"{cell.id} was stopped before it handled this"), note)
        for signal in signals:
            _cut_off(signal, Stopping(f"{cell.id} was stopped before it handled this"), None)
        if context is not None:
            for delivery in context.owed or ():
                _cut_off(delivery, Unknown(f"{cell.id} was stopped after it had begun with this"), note)
            context.end()
            self._host.disown_children(cell)
        if running is not None:  # nothing of it can be stored any more
            running.settle(None, Failed(f"{cell.id} was stopped while it handled this; nothing of it was stored"))
        self._part(cell)
        self._tell_watchers(cell, "stopped", None)  # one that had failed has told them then, and has none any more

    def _part(self, cell: Cell) -> None:
        dissolve(cell)
        parent = parent_of(cell)
        if parent is not None:
            parent.bonds.children.remove(cell)
            cell.bonds.parent = None

    def refuse_owed(self, cell: Cell, note: Callable[[str], None] | None = None) -> None:
        """Refuse the owed replies whose handlers may be repeated.

        When the runtime ends, this is done for all cells before the first is stopped: an actor that waits for such a
        reply can then still answer its own callers with this refusal, which is better news than Unknown.
        """
        context = cell.context
        if context is None or not context.owed:
            return
        for delivery in list(context.owed):
            if context.instance.handlers[type(delivery.message)].retryable:
                context.owed.pop(delivery, None)
                _cut_off(delivery, Stopping(f"{cell.id} was stopped before it could answer"), note)


def _cut_off(delivery: Delivery, error: CallboardError, note: Callable[[str], None] | None) -> None:
    if delivery.settle(None, error) and note is not None:
        note(f"{delivery.to}: {type(delivery.message).__name__}")
