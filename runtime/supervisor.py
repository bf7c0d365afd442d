"""The guard around every actor: activates it, runs its handlers, sees its crashes and commits, restarts it.

This is the one place where any exception of a handler is caught. What follows from it:

| the handler | its caller gets | what it staged | the actor |
|---|---|---|---|
| returns | the value, once durable | commits | goes on |
| raises a CallboardError | that error | dropped | goes on |
| raises anything else | Failed, with the error as cause | dropped | restarts from the store, after a backoff |
| is cancelled | Failed | dropped | goes on, with what it changed in memory |
| returns a ticket, and the actor restarts | Unknown, unless it is retryable: then it runs again | commits | |
| (its commit is refused) | Failed, or Unknown | not stored, or nobody knows | reloads, at no cost to its budget |

A restart waits for the commits that are in flight, then loads what the store has. When the budget is spent, or what is
stored cannot be read, the actor is FAILED: what is queued is answered with ActorFailed until `resume`. A store that
does not answer spends nothing: loads and commits are tried again until it does.

Every door but `step` is entered through `Dispatcher.run`: nothing here runs in the middle of anything else here.

Source: Erlang/OTP supervisor behaviour; Armstrong, "Making reliable distributed systems in the presence of software
errors" (2003), chapter 4.
"""

import contextvars
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol

import anyio

from ..store.errors import CallboardError, Corrupt, NewerFormat, StoreError
from .actor import Handler
from .budget import Backoff
from .cell import Cell
from .committer import Committer
from .context import Context, Host, Ticket
from .dispatch import Dispatcher
from .envelope import Delivery, Phase
from .errors import ActorFailed, Expired, Failed, Rejected, Stopping, Unknown
from .gate import HeldReply, release_all
from .guard import Outcome
from .lifecycle import Event, State
from .signals import Abandoned

__all__ = ["Supervision", "Supervisor"]

_log = logging.getLogger("callboard.supervisor")

_STORE_BACKOFF = Backoff(first_s=0.05, max_s=5.0)


class Supervision(Host, Protocol):
    """What the supervisor needs of the runtime beside what actors need."""

    def next_epoch(self) -> int: ...

    def fresh_variables(self) -> contextvars.Context: ...

    def at(self, when: float, action: Callable[[], None]) -> object: ...

    def start_task(self, cell: Cell, work: Callable[[], Coroutine[Any, Any, None]]) -> None: ...

    async def run_guarded(self, work: Awaitable[Any], scope: anyio.CancelScope) -> Outcome: ...

    def disown_children(self, cell: Cell) -> None: ...


class Supervisor:
    """See the module's text. Counters are for introspect.py; `cut` names what the runtime's end has cut, for people."""

    def __init__(self, host: Supervision, *, chance: Callable[[], float] = random.random) -> None:
        self._host = host
        self._chance = chance
        self.dispatcher: Dispatcher
        self.committer: Committer
        self._cutting = False
        self.cut: list[str] = []
        self.handled = 0
        self.crashes = 0

    # Stepping -------------------------------------------------------------------------------------------------------

    def step(self, cell: Cell) -> None:
        """Activate the cell, or handle one message of it. For the dispatcher."""
        if cell.state is State.ABSENT:
            self._activate(cell)
            return
        if cell.state is not State.READY or cell.running is not None:
            return
        delivery = cell.mailbox.take()
        if delivery is None:
            return
        deadline = delivery.envelope.deadline
        if deadline != math.inf and deadline < self._host.now():
            delivery.settle(None, Expired(f"the deadline passed while the message was queued at {cell.id}"))
            return
        self._handle(cell, delivery)

    def _handle(self, cell: Cell, delivery: Delivery) -> None:
        actor, context, variables = cell.actor, cell.context, cell.variables
        assert actor is not None
        assert context is not None
        assert variables is not None
        message = delivery.envelope.message
        handler = actor.handlers.get(type(message))
        if handler is None:
            known = ", ".join(sorted(kind.__name__ for kind in actor.handlers)) or "nothing"
            error = TypeError(f"{cell.id} has no handler for {type(message).__name__}; it handles {known}")
            delivery.settle(None, error)
            return
        delivery.phase = Phase.RUNNING
        context.begin(delivery)
        self.handled += 1
        try:
            result = variables.run(handler.function, actor, message, context)
        except CallboardError as error:
            self._answer_error(cell, handler, delivery, error)
        except BaseException as error:  # the supervisor's guard: every crash ends here
            self._crashed(cell, error, delivery)
            if not isinstance(error, Exception):
                raise  # a KeyboardInterrupt belongs to whoever runs the loop, but the actor's caller has its answer
        else:
            if handler.is_async:
                cell.running = delivery
                cell.scope = self._new_scope()
                self._host.start_task(cell, partial(self._run_async, cell, handler, delivery, result))
            else:
                self._finish(cell, handler, delivery, result)

    def _new_scope(self) -> anyio.CancelScope:
        # Made before the task starts: a caller may go, or the actor crash, before it had its first step.
        scope = anyio.CancelScope()
        if self._cutting:
            scope.cancel()
        return scope

    async def _run_async(
        self, cell: Cell, handler: Handler, delivery: Delivery, work: Coroutine[Any, Any, Any]
    ) -> None:
        """An async handler's task. No exception leaves it, and the cell is given back in every case."""
        context, scope = cell.context, cell.scope
        assert scope is not None
        if scope.cancel_called:
            work.close()
            outcome = Outcome(cancelled=True)
        else:
            outcome = await self._host.run_guarded(work, scope)
        # No await from here on: the next message must not start before this one is finished.
        self.dispatcher.run(partial(self._async_ended, cell, handler, delivery, (context, outcome)))

    def _async_ended(
        self, cell: Cell, handler: Handler, delivery: Delivery, ended: tuple[Context | None, Outcome]
    ) -> None:
        context, (value, error, cancelled) = ended
        cell.running = None
        cell.scope = None
        if context is None or cell.context is not context:
            pass  # the actor was reloaded or stopped meanwhile and this delivery was answered then
        elif cancelled:
            context.begin(None)
            delivery.settle(None, Failed("the handler was cancelled; nothing of it was stored"))
        elif isinstance(error, CallboardError):
            self._answer_error(cell, handler, delivery, error)
        elif error is not None:
            self._crashed(cell, error, delivery)
        else:
            self._finish(cell, handler, delivery, value)
        self._reload_if_due(cell)
        self.dispatcher.ready(cell)

    def _finish(self, cell: Cell, handler: Handler, delivery: Delivery, result: Any) -> None:
        context = cell.context
        assert context is not None
        try:
            batch = context.take_batch()
        except (TypeError, ValueError) as error:
            self._crashed(cell, error, delivery)
            return
        if isinstance(result, Ticket):
            self._owe(cell, handler, delivery)  # before its reply is taken out of the outputs: it may be among them
            outputs = context.take_outputs()
        else:
            outputs = context.take_outputs()
            if batch is None and not outputs and not (handler.gated and cell.gate):
                delivery.settle(result, None)
                return
            outputs.append(HeldReply(delivery, result, None))
        if delivery.phase is Phase.RUNNING:
            delivery.phase = Phase.HELD
        if batch is not None:
            cell.gate.close_behind(outputs)
            self.committer.submit(batch, partial(self._committed, cell))
        elif not (handler.gated and cell.gate.hold(outputs)):
            release_all(outputs)

    def _owe(self, cell: Cell, handler: Handler, delivery: Delivery) -> None:
        assert cell.context is not None
        if delivery.phase is not Phase.SETTLED:
            cell.context.owed[delivery] = None
        elif handler.on_cancel == "cancel":  # the caller went while the async handler was about to return the ticket
            self._host.signal(cell.id, Abandoned(message=delivery.envelope.message))

    def _answer_error(self, cell: Cell, handler: Handler, delivery: Delivery, error: CallboardError) -> None:
        assert cell.context is not None
        cell.context.begin(None)
        reply = HeldReply(delivery, None, error)
        if not (handler.gated and cell.gate.hold([reply])):
            reply.release()

    def _committed(self, cell: Cell, error: StoreError | None) -> None:
        """The oldest batch in flight came back."""
        cell.gate.committed(error)
        if error is None:
            cell.store_failures = 0
        elif cell.state in (State.READY, State.LOADING):
            # What the actor holds in memory was never stored: it must not handle another message.
            _log.warning("a commit of %s failed, the actor reloads: %s", cell.id, error)
            self._back_off(cell, error, self._store_delay_s(cell))
        self._reload_if_due(cell)
        self.dispatcher.ready(cell)

    # Activation -----------------------------------------------------------------------------------------------------

    def _activate(self, cell: Cell) -> None:
        cell.happen(Event.ACTIVATE if cell.state is State.ABSENT else Event.RETRY)
        try:
            stored = self._host.store.load(str(cell.id)) if cell.kind.durable else None
            context = Context(self._host, cell.id, epoch=self._host.next_epoch(), stored=stored)
            actor = cell.kind.factory(cell.id)
            cell.context, cell.actor, cell.variables = context, actor, self._host.fresh_variables()
            loading = cell.variables.run(actor.load, context)
        except BaseException as error:  # the supervisor's guard: every crash ends here
            self._load_failed(cell, error)
            if not isinstance(error, Exception):
                raise
            return
        if loading is None:
            self._loaded(cell)
        else:
            cell.scope = self._new_scope()
            self._host.start_task(cell, partial(self._load_async, cell, loading))

    async def _load_async(self, cell: Cell, loading: Awaitable[None]) -> None:
        """An async load's task. No exception leaves it."""
        assert cell.scope is not None
        outcome = await self._host.run_guarded(loading, cell.scope)
        self.dispatcher.run(partial(self._load_ended, cell, outcome))

    def _load_ended(self, cell: Cell, outcome: Outcome) -> None:
        cell.scope = None
        if outcome.cancelled:  # the runtime is closing; who waits for the actor is told at once
            self.stop(cell)
        elif outcome.error is not None:
            self._load_failed(cell, outcome.error)
        else:
            self._loaded(cell)
        self.dispatcher.ready(cell)

    def _loaded(self, cell: Cell) -> None:
        if cell.state is not State.LOADING:
            return  # stopped meanwhile
        assert cell.context is not None
        try:
            batch = cell.context.take_batch()
        except (TypeError, ValueError) as error:
            self._load_failed(cell, error)
            return
        cell.happen(Event.LOADED)
        outputs = cell.context.take_outputs()
        cell.context.begin(None)
        if batch is not None:
            cell.gate.close_behind(outputs)
            self.committer.submit(batch, partial(self._committed, cell))
        else:
            release_all(outputs)

    def _load_failed(self, cell: Cell, error: BaseException) -> None:
        if cell.state is not State.LOADING:
            return
        if isinstance(error, (Corrupt, NewerFormat)):
            _log.error("%s cannot be loaded: %s", cell.id, error)
            self._give_up(cell, error)  # what is stored does not change by itself: no attempt would end otherwise
        elif isinstance(error, StoreError):
            _log.warning("%s cannot be loaded: %s", cell.id, error)
            self._back_off(cell, error, self._store_delay_s(cell))
        else:
            self._crashed(cell, error, None)

    # Crashes --------------------------------------------------------------------------------------------------------

    def _crashed(self, cell: Cell, error: BaseException, delivery: Delivery | None) -> None:
        """Count the crash, answer the message that did it, and restart the actor or give it up."""
        self.crashes += 1
        _log.error("%s crashed: %r", cell.id, error, exc_info=error)
        if delivery is not None:
            failure = Failed(f"the handler of {type(delivery.envelope.message).__name__} at {cell.id} raised {error!r}")
            failure.__cause__ = error
            delivery.settle(None, failure)
        delay_s = cell.budget.crashed(self._host.now(), self._chance())
        if delay_s is not None:
            self._back_off(cell, error, delay_s)
        else:
            self._give_up(cell, error)

    def _give_up(self, cell: Cell, error: BaseException) -> None:
        self._drop_activation(cell, error)
        cell.happen(Event.GAVE_UP)
        for queued in cell.mailbox.clear():
            queued.settle(None, self.refusal(cell))

    def refusal(self, cell: Cell) -> Rejected:
        """Why a FAILED or STOPPED cell takes no message."""
        if cell.state is State.STOPPED:
            return Stopping(f"the runtime has closed, {cell.id} is stopped")
        spent = f" (its restart budget: {cell.kind.restart.restarts_max} in {cell.kind.restart.window_s:g} s)"
        refusal = ActorFailed(
            f"{cell.id} has failed{spent if cell.budget.crashes else ''}, at last with {cell.last_error!r}; "
            f"mend the cause and call runtime.resume({cell.id.kind!r}, {cell.id.key!r})"
        )
        refusal.__cause__ = cell.last_error
        return refusal

    def _back_off(self, cell: Cell, error: BaseException, delay_s: float) -> None:
        self._drop_activation(cell, error)
        cell.happen(Event.CRASHED)
        cell.restarts += 1

        def due() -> None:
            cell.reload_due = True
            self.dispatcher.run(partial(self._reload_if_due, cell))

        self._host.at(self._host.now() + delay_s, due)

    def _reload_if_due(self, cell: Cell) -> None:
        """Load anew, once nothing of the old activation is on its way: its commits decide what the store holds."""
        if cell.reload_due and cell.state is State.BACKING_OFF and not cell.gate and cell.running is None:
            cell.reload_due = False
            self._activate(cell)
            self.dispatcher.ready(cell)

    def _drop_activation(self, cell: Cell, error: BaseException) -> None:
        """Forget the actor's memory; replies that it owed are asked again where that is safe, else failed."""
        cell.last_error = error
        actor, context = cell.actor, cell.context
        cell.actor = cell.context = cell.variables = None
        if cell.scope is not None:
            cell.scope.cancel()
        self._host.disown_children(cell)
        if cell.running is not None:
            cell.running.settle(None, Failed(f"{cell.id} was restarted while this was handled: {error!r}"))
        if actor is None or context is None:
            return
        again: list[Delivery] = []
        for delivery in context.owed:
            if delivery.phase is Phase.SETTLED:
                continue
            if actor.handlers[type(delivery.envelope.message)].retryable:
                delivery.phase = Phase.QUEUED
                again.append(delivery)
            else:
                # Not Failed: its handler has returned, and what that staged is stored, or may yet be.
                unknown = Unknown(f"{cell.id} was restarted before it answered: {error!r}")
                unknown.__cause__ = error
                delivery.settle(None, unknown)
        cell.mailbox.put_back(again)

    def _store_delay_s(self, cell: Cell) -> float:
        cell.store_failures += 1
        return _STORE_BACKOFF.delay_s(cell.store_failures, self._chance())

    # Callers that go, and the end -----------------------------------------------------------------------------------

    def abandon(self, cell: Cell, delivery: Delivery, error: BaseException) -> None:
        """The caller waits no longer: bury what is queued, stop or leave alone what runs, and settle with `error`."""
        if delivery.phase is Phase.SETTLED:
            return
        if delivery.phase is Phase.QUEUED:
            cell.mailbox.bury(delivery)
        elif cell.actor is not None and cell.context is not None:
            handler = cell.actor.handlers.get(type(delivery.envelope.message))
            if handler is not None and handler.on_cancel == "cancel":
                if cell.running is delivery and cell.scope is not None:
                    cell.scope.cancel()
                elif delivery in cell.context.owed:
                    del cell.context.owed[delivery]
                    self._host.signal(cell.id, Abandoned(message=delivery.envelope.message))
        delivery.settle(None, error)

    def resume(self, cell: Cell) -> None:
        """Give a FAILED actor a fresh budget; its next message activates it."""
        if cell.state is State.FAILED:
            cell.happen(Event.RESUME)
            cell.budget.reset()

    def cut_short(self, cells: Iterable[Cell]) -> None:
        """Cancel the async handlers and loads of these, and from now on each new one as it starts."""
        self._cutting = True
        for cell in cells:
            if cell.scope is not None:
                cell.scope.cancel()
            if cell.running is not None:
                self.cut.append(f"{cell.id}: the handler of {type(cell.running.envelope.message).__name__}")

    def refuse_owed(self, cell: Cell) -> None:
        """The runtime ends: refuse the owed replies whose handlers may be repeated, and note them in `cut`.

        To be done for all cells before the first is stopped: an actor that waits for such a reply can then still
        answer its own callers with this refusal, which is better news than Unknown.
        """
        if cell.actor is None or cell.context is None:
            return
        for delivery in list(cell.context.owed):
            if cell.actor.handlers[type(delivery.envelope.message)].retryable:
                del cell.context.owed[delivery]
                self._cut_off(cell, delivery, Stopping(f"the runtime stopped before {cell.id} could answer"))

    def stop(self, cell: Cell) -> None:
        """End the cell with the runtime; all that waits for it is answered, and noted in `cut`."""
        self.refuse_owed(cell)
        queued, owed = cell.mailbox.clear(), list(cell.context.owed) if cell.context is not None else []
        running = cell.running
        cell.actor = cell.context = cell.variables = None
        cell.happen(Event.STOP)
        for delivery in queued:
            self._cut_off(cell, delivery, Stopping(f"the runtime stopped before {cell.id} handled this"))
        for delivery in owed:
            self._cut_off(cell, delivery, Unknown(f"the runtime stopped after {cell.id} had begun with this"))
        if running is not None:  # it did not end when it was cancelled; nothing of it can be stored any more
            running.settle(None, Failed(f"the runtime stopped while {cell.id} handled this; nothing of it was stored"))

    def _cut_off(self, cell: Cell, delivery: Delivery, error: CallboardError) -> None:
        if delivery.settle(None, error):
            self.cut.append(f"{cell.id}: {type(delivery.envelope.message).__name__}")
