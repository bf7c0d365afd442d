"""How an actor comes into memory: from the store, a few at a time, and patiently where the store is out of order.

A load that fails with a StoreError is an outage, not a crash: it spends no restart budget. It opens the breaker: from
then on one actor at a time tries, with a growing delay in between, and the others wait for how it ends. Whoever waits
for one of them is answered, or finds its deadline. A probe that hangs holds up nobody for good: its load may itself
wait for an actor that is not there yet.

What is stored and cannot be read does not change by itself: that actor fails at once, and only that one.
"""

import logging
import random
from collections import deque
from collections.abc import Awaitable, Coroutine
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any

from ..store.errors import Corrupt, NewerFormat, StoreError
from .actor import Actor, NoActor
from .breaker import Breaker, BreakerState
from .cell import Cell
from .context import Context
from .dispatch import Dispatcher
from .families import dissolve
from .gate import release_all
from .guard import Outcome, interrupts
from .lifecycle import ABSENT, ACTIVATE, LOADED, LOADING, Event
from .metrics import Metrics
from .observing import ActorActivated, BreakerMoved

if TYPE_CHECKING:
    from .endings import Endings
    from .post_office import PostOffice
    from .residency import Residency
    from .restarts import Restarts
    from .supervisor import Supervision, Supervisor
    from .workers import Workers

__all__ = ["LOADS_MAX", "Activation"]

_log = logging.getLogger("callboard.supervisor")

LOADS_MAX = 50
"""Async loads at a time; more activations than that wait in line."""

LOADS_PER_SAMPLE = 8
"""Of the loads that need no task, so many share the 0.3 us of one measurement; all that read nothing are left out."""

PROBE_PATIENCE_S = 5.0
"""How long the others wait for a probe's async load before the next of them tries: the breaker's longest delay."""


class Activation:
    """See the module's text."""

    def __init__(self, host: "Supervision", metrics: Metrics) -> None:
        self._host = host
        self._metrics = metrics
        self._loads = 0
        self._line: deque[Cell] = deque()
        self._outage: deque[Cell] = deque()
        self._probing: Cell | None = None
        self._probes = 0
        self.breaker = Breaker()
        self._told = self.breaker.state
        self.supervisor: Supervisor
        self.restarts: Restarts
        self.endings: Endings
        self.residency: Residency
        self.dispatcher: Dispatcher
        self.post: PostOffice
        self.workers: Workers

    def activate(self, cell: Cell) -> None:
        """Bring a cell that is ABSENT, or whose restart is due, into memory, now or when its turn comes."""
        if cell.state is ABSENT and cell.running is not None:
            return  # stopped and resumed while a handler of before goes on: its end looks here again
        cell.happen(ACTIVATE if cell.state is ABSENT else Event.RETRY)
        self._begin(cell)

    def _begin(self, cell: Cell) -> None:
        if not self.breaker.closed and cell.kind.durable:
            self._outage.append(cell)
        elif self._loads >= LOADS_MAX:
            self._line.append(cell)
        else:
            self._load(cell)

    def _load(self, cell: Cell) -> None:
        # There may be a great many that are over in a few microseconds: of those, some are measured.
        metrics = self._metrics
        measured = cell.kind.durable and (not metrics.activations % LOADS_PER_SAMPLE or metrics.events.observers)
        began_at = self._host.now() if measured else None
        try:
            stored = self._host.store.load(str(cell.id)) if cell.kind.durable else None
            context = cell.context = Context(
                self._host,
                _made(cell),
                cell.id,
                self._host.next_epoch(),
                self._host.fresh_variables(),
                stored,
                stored.version if stored is not None else 0,
            )
            loading = context.variables.run(context.instance.load, context) if context.instance.loads else None
        except BaseException as error:  # the supervisor's guard: every crash ends here
            self._failed(cell, error)
            if interrupts(error):
                raise
            return
        if loading is None:
            self._loaded(cell, began_at)
        else:
            self._loads += 1
            began_at = began_at if began_at is not None else self._host.now()
            variables = self.post.variables_for(context, None)
            self.workers.start(cell, _awaited(loading), variables, partial(self._load_ended, cell, context, began_at))

    def _load_ended(self, cell: Cell, context: Context, began_at: float | None, outcome: Outcome) -> None:
        self.dispatcher.run(self._finish_load, cell, context, began_at, outcome)

    def _finish_load(self, cell: Cell, context: Context, began_at: float | None, outcome: Outcome) -> None:
        self._loads -= 1
        if cell.context is not context:  # stopped or restarted while it loaded
            self._probe_again(cell)
        else:
            cell.job = None
            if outcome.cancelled:  # the runtime is closing; who waits for the actor is told at once
                self._probe_again(cell)
                self.endings.stop(cell)
            elif outcome.error is not None:
                self._failed(cell, outcome.error)
            else:
                self._loaded(cell, began_at)
            self.dispatcher.ready(cell)
        while self._line and self._loads < LOADS_MAX:
            self._begin_if_waiting(self._line.popleft())

    def _begin_if_waiting(self, cell: Cell) -> None:
        if cell.state is LOADING and cell.context is None:  # else it was stopped in the meantime
            self._begin(cell)
            self.dispatcher.ready(cell)

    def _loaded(self, cell: Cell, began_at: float | None) -> None:
        context = cell.context
        if context is None:  # its own load has killed it
            self._probe_again(cell)
            return
        try:
            batch = context.take_batch() if context.staged is not None else None
        except (TypeError, ValueError) as error:
            self._failed(cell, error)
            return
        cell.happen(LOADED)
        cell.handlers = context.instance.handlers
        self._metrics.activations += 1
        if began_at is not None or self._metrics.events.observers:
            self._note_loaded(cell, began_at)
        if not self.breaker.closed:
            self._store_answered(cell)
        self.residency.entered(cell)  # first: a commit that is refused in place takes it out again
        self.endings.begin_due_drain(cell)
        if batch is not None:
            self.supervisor.commit(cell, batch, context.take_outputs())
        elif context.outputs is not None:
            release_all(context.take_outputs())

    def _note_loaded(self, cell: Cell, began_at: float | None) -> None:
        duration_s = 0.0
        if began_at is not None:
            duration_s = max(self._host.now() - began_at, 0.0)
            self._metrics.loads.add(duration_s)
        if self._metrics.events.observers:
            self._metrics.events.tell(ActorActivated(cell.id, duration_s))

    def _failed(self, cell: Cell, error: BaseException) -> None:
        if cell.state is not LOADING:  # its own load has killed it, then raised
            self._probe_again(cell)
            return
        if isinstance(error, (Corrupt, NewerFormat, NoActor)):
            _log.error("%s cannot be loaded: %s", cell.id, error)
            self.restarts.give_up(cell, error)
        elif isinstance(error, StoreError):
            _log.warning("%s cannot be loaded: %s", cell.id, error)
            self._wait_for_store(cell, error)
            return
        else:
            self.restarts.crashed(cell, error)
        self._store_answered(cell)

    # Outages --------------------------------------------------------------------------------------------------------

    def _wait_for_store(self, cell: Cell, error: StoreError) -> None:
        """Leave the cell LOADING, without an activation, until a probe has found the store in order again."""
        self.restarts.drop_activation(cell, error)
        dissolve(cell)  # those that its load has supervised; they never heard of it
        cell.illness.restarts += 1
        self._metrics.restarts += 1
        self._outage.append(cell)
        probe_comes = self.breaker.state is BreakerState.OPEN
        delay_s = self.breaker.failed(random.random())
        self._note_breaker()
        if not probe_comes:
            self._probe_in(delay_s)

    def _probe_in(self, delay_s: float) -> None:
        self._host.at(self._host.now() + delay_s, partial(self.dispatcher.run, self._probe))

    def _probe(self) -> None:
        """Let one of those that wait try, with the breaker half open."""
        while self._outage and not self.breaker.closed:
            cell = self._outage.popleft()
            if cell.state is LOADING and cell.context is None:
                if self.breaker.probe():
                    self._note_breaker()
                    self._probing = cell
                    self._probes += 1
                    overdue = partial(self._probe_overdue, self._probes)
                    self._load(cell)
                    self.dispatcher.ready(cell)
                    if self.breaker.state is BreakerState.HALF_OPEN:
                        self._host.at(self._host.now() + PROBE_PATIENCE_S, partial(self.dispatcher.run, overdue))
                else:
                    self._outage.appendleft(cell)
                return
        if self.breaker.state is BreakerState.OPEN:
            self.breaker.succeeded()  # nobody is left who needs the store: the next one will find out

    def _probe_overdue(self, probe: int) -> None:
        if probe == self._probes and self._probing is not None:
            self._probe_again(self._probing)

    def _probe_again(self, cell: Cell) -> None:
        """A load ended, or lasts too long, without having said anything of the store: where it was the probe, go on."""
        if cell is self._probing and self.breaker.state is BreakerState.HALF_OPEN:
            self.breaker.abandoned()
            self._probe_in(0.0)

    def _store_answered(self, cell: Cell) -> None:
        """The store answers again: everybody who waits for it may try, until one finds that it does not."""
        if self.breaker.closed or not (cell.kind.durable or cell is self._probing):
            return
        self.breaker.succeeded()
        self._note_breaker()
        waiting, self._outage = self._outage, deque()
        for each in waiting:
            self._begin_if_waiting(each)

    def _note_breaker(self) -> None:
        told, self._told = self._told, self.breaker.state
        if self._metrics.events.observers and self._told is not told:
            self._metrics.events.tell(BreakerMoved(self.breaker.state.name.lower(), self.breaker.failures))


def _made(cell: Cell) -> Actor:
    actor = cell.kind.factory(cell.id)
    if not isinstance(actor, Actor):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a checker
        raise NoActor(
            f"the factory of {cell.kind.name!r} gave {actor!r}; it must give an actor, as `lambda id: Counter(id)` does"
        )
    return actor


def _awaited(loading: Awaitable[None]) -> Coroutine[Any, Any, None]:
    # A coroutine as it is: one within another would never be closed where the load is cancelled before its first step.
    return loading if iscoroutine(loading) else _wait_for(loading)


async def _wait_for(loading: Awaitable[None]) -> None:
    await loading
