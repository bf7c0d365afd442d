"""How actors end for good: stopped, drained or killed by hand, or with the runtime; and who is told.

| verb | running handler | queue | owed replies | children |
|---|---|---|---|---|
| stop | finished | refused | given up | cancelled at the end |
| drain | finished | handled, until the deadline | waited for, until the deadline | likewise |
| kill | cancelled | refused | given up | cancelled |

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
from .envelope import Delivery
from .errors import Failed, Stopping, Unknown
from .families import dissolve, parent_of
from .lifecycle import FAILED, GONE, READY, STOPPED, STOPPING, Event
from .signals import EndReason

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

    def tell_watchers(self, cell: Cell, reason: EndReason, error: BaseException | None) -> None:
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
        if cell.state is READY:
            cell.happen(Event.HALT)
            cell.finish_owed = True
            self.dispatcher.ready(cell)
            if deadline != math.inf and cell.state is STOPPING:
                self._host.at(deadline, partial(self.dispatcher.run, partial(self._end_drain, cell)))
        elif cell.state is not STOPPING:
            self.stop(cell)

    def _end_drain(self, cell: Cell) -> None:
        if cell.state is STOPPING:
            self.kill(cell)

    def kill(self, cell: Cell) -> None:
        """Cancel what runs, refuse what is queued, and stop now."""
        if cell.scope is not None:
            cell.scope.cancel()
        self.stop(cell)

    # The end --------------------------------------------------------------------------------------------------------

    def stop(self, cell: Cell, note: Callable[[str], None] | None = None) -> None:
        """End the cell now; all that waits for it is answered. `note` gets the name of each request that was cut."""
        if cell.state is STOPPED or cell.state is GONE:
            return
        was_failed = cell.state is FAILED
        self.refuse_owed(cell, note)
        queued = cell.box.clear() if cell.box is not None else []
        context, running = cell.context, cell.running
        self.residency.left(cell)
        cell.context = None
        cell.handlers = {}
        cell.happen(Event.STOP)
        for delivery in queued:
            _cut_off(delivery, Stopping(f"{cell.id} was stopped before it handled this"), note)
        if context is not None:
            for delivery in context.owed or ():
                _cut_off(delivery, Unknown(f"{cell.id} was stopped after it had begun with this"), note)
            context.end()
            self._host.disown_children(cell)
        if running is not None:  # nothing of it can be stored any more
            running.settle(None, Failed(f"{cell.id} was stopped while it handled this; nothing of it was stored"))
        if cell.ties is not None:
            self._part(cell, was_failed=was_failed)

    def _part(self, cell: Cell, *, was_failed: bool) -> None:
        dissolve(cell)
        parent = parent_of(cell)
        if parent is not None:
            parent.bonds.children.remove(cell)
            cell.bonds.parent = None
        if not was_failed:  # else they were told then
            self.tell_watchers(cell, "stopped", None)

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
                del context.owed[delivery]
                _cut_off(delivery, Stopping(f"{cell.id} was stopped before it could answer"), note)


def _cut_off(delivery: Delivery, error: CallboardError, note: Callable[[str], None] | None) -> None:
    if delivery.settle(None, error) and note is not None:
        note(f"{delivery.to}: {type(delivery.message).__name__}")
