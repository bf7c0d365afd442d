"""The guard around every actor: runs its handlers, sees its crashes and commits, and lets its answers go.

This is the one place where any exception of a handler is caught. What follows from it:

| the handler | its caller gets | what it staged | the actor |
|---|---|---|---|
| returns | the value, once durable | commits | goes on |
| raises a CallboardError | that error | dropped | goes on |
| raises anything else | Failed, with the error as cause | dropped | restarts from the store, after a backoff |
| the same, and it is retryable | the outcome of the next attempt | dropped | restarts likewise |
| is cancelled | Failed | dropped | goes on, with what it changed in memory |
| returns a ticket, and the actor restarts | Unknown, unless it is retryable: then it runs again | commits | |
| (its commit is refused) | Failed, or Unknown | not stored, or nobody knows | reloads, at no cost to its budget |

How an actor comes into memory is in activation.py, how it restarts in restarts.py, how it ends in endings.py.

Every door but `step` and `handle` is entered through `Dispatcher.run`: nothing here runs in the middle of anything else
here.

Source: Erlang/OTP supervisor behaviour; Armstrong, "Making reliable distributed systems in the presence of software
errors" (2003), chapter 4.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ..store.errors import CallboardError, StoreError
from .actor import Handler
from .cell import Cell
from .committer import Committer
from .context import Context, Host, Ticket
from .dead_letters import DeadLetters
from .dispatch import Dispatcher
from .envelope import HELD, QUEUED, RUNNING, SETTLED, Delivery
from .errors import Expired, Failed, Stopping, Unknown
from .gate import Gate, HeldReply, release_all
from .guard import Outcome, interrupts
from .lifecycle import ABSENT, LOADING, READY, STOPPING
from .metrics import Metrics
from .signals import Abandoned, Tick

if TYPE_CHECKING:
    from .activation import Activation
    from .endings import Endings
    from .post_office import PostOffice
    from .residency import Residency
    from .restarts import Restarts
    from .workers import Workers

__all__ = ["Supervision", "Supervisor"]


MESSAGES_PER_SAMPLE = 16
"""Of the messages from mailboxes, which take some 4 us, so many share the 0.3 us of one sample."""
WAITS_PER_SAMPLE = 4
"""The same for async handlers that wait, which take some 8 us."""


class Supervision(Host, Protocol):
    """What the supervisor needs of the runtime beside what actors need."""

    def next_epoch(self) -> int: ...

    def disown_children(self, cell: Cell) -> None: ...

    def has_tasks(self, cell: Cell) -> bool: ...

    def next_number(self) -> int: ...


class Supervisor:
    """See the module's text. The rooms that it works with are set by the runtime, which composes them."""

    def __init__(self, host: Supervision, metrics: Metrics, dead_letters: DeadLetters) -> None:
        self._host = host
        self._metrics = metrics
        self._trace = metrics.trace
        self._dead_letters = dead_letters
        self.activation: Activation
        self.restarts: Restarts
        self.endings: Endings
        self.residency: Residency
        self.dispatcher: Dispatcher
        self.now: Callable[[], float]
        self._note_cut: Callable[[str], None] | None = None
        self._receipt = self._committed  # bound once, not for each commit
        self.committer: Committer
        self.post: PostOffice
        self.workers: Workers

    # Stepping -------------------------------------------------------------------------------------------------------

    def step(self, cell: Cell) -> None:
        """Activate the cell, or handle one message of it, or end it. For the dispatcher."""
        if cell.state is ABSENT:
            self.activation.activate(cell)
            return
        if cell.running is not None or not (cell.state is READY or cell.state is STOPPING):
            return
        delivery = cell.box.take() if cell.box is not None else None
        if delivery is None:
            if cell.state is STOPPING and cell.finished:
                self.endings.stop(cell)
            return
        now = self.now()
        if delivery.deadline < now:
            delivery.settle(None, self.expired(cell, delivery))
            return
        self._metrics.queues.add(now - delivery.queued_at)
        handler = cell.handlers.get(type(delivery.message))
        if handler is None:
            delivery.settle(None, self._not_handled(cell, delivery))
        elif isinstance(delivery.message, Tick) and cell.context and not cell.context.expects(delivery.message):
            delivery.settle(None, None)
        else:
            self.handle(cell, delivery, handler, now)
            if not delivery.number % MESSAGES_PER_SAMPLE and cell.running is None:
                self.sample(MESSAGES_PER_SAMPLE)

    def handle(self, cell: Cell, delivery: Delivery, handler: Handler, now: float) -> None:
        """Run one handler of a cell that is READY or STOPPING, and free. The dispatcher is held."""
        context = cell.context
        assert context is not None
        message = delivery.message
        delivery.phase = RUNNING
        context.delivery = delivery
        self._metrics.handled += 1
        self._trace.append((delivery.number, now, cell.id, type(message), delivery.sender))
        try:
            result = context.variables.run(handler.function, context.instance, message, context)
        except CallboardError as error:
            self._answer_error(cell, handler, delivery, error)
        except BaseException as error:  # the supervisor's guard: every crash ends here
            self.restarts.crashed(cell, error, delivery, handler)
            if interrupts(error):
                raise  # but the actor's caller has its answer
        else:
            if handler.is_async:
                delivery.began_at = now
                self._start(cell, handler, delivery, result)
            elif context.outputs is not None or context.staged is not None or cell.gate or type(result) is Ticket:
                self._finish(cell, handler, delivery, result)
            else:
                context.delivery = None  # an idle actor keeps neither message nor reply in memory
                if (
                    delivery.phase is RUNNING
                    and delivery.waker is None
                    and (delivery.on_settled is None or not delivery.awaited)
                ):
                    delivery.phase = SETTLED  # what settle does where there is nobody to tell, without the call
                    delivery.value = result
                elif not delivery.settle(result, None):
                    self._dead_letters.late_replies += 1

    def sample(self, period: int) -> None:
        """Note how long the last handler took, if its message is one of each `period`; see Metrics."""
        self._metrics.sample(period, self._host.now())

    def expired(self, cell: Cell, delivery: Delivery) -> Expired | Unknown:
        """What the caller of a message is told whose deadline passed while it was queued."""
        if delivery.attempt == 1:
            return Expired(f"the deadline passed while the message was queued at {cell.id}")
        return Unknown(
            f"the deadline passed before {cell.id} had restarted; the message was begun {delivery.attempt - 1}x"
        )

    def _not_handled(self, cell: Cell, delivery: Delivery) -> TypeError:
        known = ", ".join(sorted(kind.__name__ for kind in cell.handlers)) or "nothing"
        return TypeError(f"{cell.id} has no handler for {type(delivery.message).__name__}; it handles {known}")

    # Async handlers -------------------------------------------------------------------------------------------------

    def _start(self, cell: Cell, handler: Handler, delivery: Delivery, work: Any) -> None:
        assert cell.context is not None
        if (
            self._note_cut is not None
        ):  # the runtime closes, and cancels handlers: one that has not begun does not begin
            work.close()
            cell.context.begin(None)
            if delivery.settle(None, Stopping(f"the runtime stopped before {cell.id} handled this")):
                self._note_cut(f"{cell.id}: {type(delivery.message).__name__}")
            return
        cell.running = delivery
        variables = self.post.variables_for(cell.context, delivery)
        # When it has ended no await may come: the next message must not start before this one is finished.
        ended = partial(self.dispatcher.run, self._finish_async, cell, handler, cell.context)
        self.workers.start(cell, work, variables, ended)

    def _finish_async(self, cell: Cell, handler: Handler, context: Context, outcome: Outcome) -> None:
        delivery, cell.running, cell.job = cell.running, None, None
        assert delivery is not None
        if not delivery.number % WAITS_PER_SAMPLE:
            self._metrics.waiting_handlers.add(max(self._host.now() - delivery.began_at, 0.0))
        error = outcome.error
        if cell.context is not context:
            pass  # the actor was reloaded or stopped meanwhile and this delivery was answered then
        elif outcome.cancelled:
            context.begin(None)
            delivery.settle(None, Failed("the handler was cancelled; nothing of it was stored"))
        elif isinstance(error, CallboardError):
            self._answer_error(cell, handler, delivery, error)
        elif error is not None:
            self.restarts.crashed(cell, error, delivery, handler)
        else:
            self._finish(cell, handler, delivery, outcome.value)
        if cell.reload_due:
            self.restarts.reload_if_due(cell)
        if cell.box is not None or cell.state is not READY:
            self.dispatcher.ready(cell)

    # What a handler leaves behind -----------------------------------------------------------------------------------

    def _finish(self, cell: Cell, handler: Handler, delivery: Delivery, result: Any) -> None:
        context = cell.context
        assert context is not None
        context.delivery = None
        if context.outputs is None and context.staged is None and not cell.gate and type(result) is not Ticket:
            if not delivery.settle(result, None):
                self._dead_letters.late_replies += 1
            return
        try:
            batch = context.take_batch()
        except (TypeError, ValueError) as error:
            self.restarts.crashed(cell, error, delivery, handler)
            return
        if isinstance(result, Ticket):
            self._owe(cell, handler, delivery)  # before its reply is taken out of the outputs: it may be among them
            outputs = context.take_outputs()
        else:
            outputs = context.take_outputs()
            outputs.append(HeldReply(delivery, result, None))
        for output in outputs:
            if isinstance(output, HeldReply) and output.delivery.phase is SETTLED:
                self._dead_letters.late_replies += 1
        if delivery.phase is RUNNING:
            delivery.phase = HELD
        if batch is not None:
            self.commit(cell, batch, outputs)
        elif not (handler.gated and cell.gate and cell.gate.hold(outputs)):
            release_all(outputs)

    def commit(self, cell: Cell, batch: Any, outputs: list[Any]) -> None:
        """Give a batch to the committer; the outputs wait for it."""
        if cell.gate is None:
            cell.gate = Gate()
        cell.gate.close_behind(outputs)
        self.committer.submit(batch, partial(self._receipt, cell))

    def _owe(self, cell: Cell, handler: Handler, delivery: Delivery) -> None:
        assert cell.context is not None
        if delivery.phase is not SETTLED:
            if cell.context.owed is None:
                cell.context.owed = {}
            cell.context.owed[delivery] = None
            delivery.began_at = delivery.began_at or self._host.now()
        elif handler.on_cancel == "cancel":  # the caller went while the async handler was about to return the ticket
            self._host.signal(cell.id, Abandoned(message=delivery.message))

    def _answer_error(self, cell: Cell, handler: Handler, delivery: Delivery, error: CallboardError) -> None:
        assert cell.context is not None
        cell.context.begin(None)
        reply = HeldReply(delivery, None, error)
        if not (handler.gated and cell.gate and cell.gate.hold([reply])):
            reply.release()

    def _committed(self, cell: Cell, error: StoreError | None) -> None:
        """The oldest batch in flight came back."""
        assert cell.gate is not None
        if not cell.gate.committed(error):
            cell.gate = None
        if error is None:
            if cell.health is not None:
                cell.health.store_failures = 0
            self.residency.weigh(cell)
        elif cell.state in (READY, LOADING, STOPPING):
            # What the actor holds in memory was never stored: it must not handle another message.
            self.restarts.not_stored(cell, error)
        if cell.reload_due:
            self.restarts.reload_if_due(cell)
        if cell.box is not None or cell.state is not READY:
            self.dispatcher.ready(cell)

    # Callers that go ------------------------------------------------------------------------------------------------

    def abandon(self, cell: Cell, delivery: Delivery, error: BaseException) -> None:
        """The caller waits no longer: bury what is queued, stop or leave alone what runs, and settle with `error`."""
        if delivery.phase is SETTLED:
            return
        if delivery.phase is QUEUED:
            cell.mailbox.bury(delivery)
        else:
            self._stop_work(cell, delivery)
        delivery.settle(None, error)
        self.dispatcher.ready(cell)  # one that is stopping may have waited for just this

    def _stop_work(self, cell: Cell, delivery: Delivery) -> None:
        context = cell.context
        if delivery.phase is HELD and not (context is not None and context.owed and delivery in context.owed):
            self._dead_letters.late_replies += 1  # it was given, and waits for its commit
        if context is None:
            return
        handler = context.instance.handlers.get(type(delivery.message))
        if handler is None or handler.on_cancel != "cancel":
            return
        if cell.running is delivery and cell.job is not None:
            cell.job.cancel()
        elif context.owed and delivery in context.owed:
            del context.owed[delivery]
            self._host.signal(cell.id, Abandoned(message=delivery.message))

    def cut_short(self, cells: "list[Cell]", note: Callable[[str], None]) -> None:
        """Cancel the async handlers and loads of these, and from now on each new one as it starts."""
        self._note_cut = note
        self.workers.cut()
        for cell in cells:
            if cell.job is not None:
                cell.job.cancel()
            if cell.running is not None:
                note(f"{cell.id}: the handler of {type(cell.running.message).__name__}")
