"""What a handler may do beside changing its actor: stage writes, send, owe a reply, start work.

One Context belongs to one activation. What a handler writes, sends and answers is gathered here and takes effect when
it returns; a handler that raises leaves nothing of it behind. Tasks, timers, watches and families begin at once.
"""

import contextvars
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from ..store.contract import Batch, Head, IndexRow, Row, Store
from .actor import Actor
from .envelope import SETTLED, Delivery, Request, check_message
from .errors import Stopping
from .gate import HeldCall, HeldReply, Output
from .identity import ActorId
from .reminder_records import ReminderRecord
from .reminding import Reminding
from .signals import ActorEnded, Answered, ChildEnded, Tick
from .ticks import Ticks
from .timers import Timer

if TYPE_CHECKING:
    from .ref import Ref

__all__ = ["ACTIVATION_BITS", "Context", "Host", "Staged", "Ticket"]


ACTIVATION_BITS = 32
"""An epoch is the number of the store's owner, then so many bits for the number of the activation under it."""


class Host(Protocol):
    """What an activation needs of its runtime."""

    @property
    def store(self) -> Store: ...

    @property
    def now(self) -> Callable[[], float]: ...

    def fresh_variables(self) -> contextvars.Context: ...

    def wall_ms(self) -> int: ...

    def actor(self, kind: str, key: str) -> "Ref": ...

    def check_actor(self, to: ActorId) -> None: ...

    def send(
        self,
        to: ActorId,
        message: Request[Any],
        *,
        sender: ActorId,
        on_settled: Callable[[Delivery], None] | None = None,
    ) -> None: ...

    def signal(
        self, to: ActorId, message: Request[None], *, on_settled: Callable[[Delivery], None] | None = None
    ) -> None: ...

    def at(self, when: float, action: Callable[[], None]) -> Timer: ...

    def watch(self, watcher: ActorId, tag: Any, target: ActorId) -> None: ...

    def unwatch(self, watcher: ActorId, tag: Any, target: ActorId) -> None: ...

    def supervise(self, parent: ActorId, child: ActorId) -> None: ...

    def check_durable(self, id: ActorId) -> None: ...

    def reminder_stored(self, id: ActorId, record: ReminderRecord) -> None: ...

    def spawn(self, owner: ActorId, tag: Any, work: Callable[[], Awaitable[Any]]) -> None: ...

    def cancel_child(self, owner: ActorId, tag: Any) -> bool: ...


class Ticket:
    """A reply that is owed: returned by a handler that cannot answer yet, used by a later one of the same actor."""

    __slots__ = ("_context", "_delivery")

    def __init__(self, context: "Context", delivery: Delivery) -> None:
        self._context = context
        self._delivery = delivery

    @property
    def open(self) -> bool:
        """False once the caller has its answer, or has gone."""
        return self._delivery.phase is not SETTLED

    def reply(self, value: Any) -> None:
        """Answer; held back until what the present handler stages is durable."""
        self._context.put_out(HeldReply(self._delivery, value, None, begun_before=self._begun_before))

    def fail(self, error: BaseException) -> None:
        """Answer with an error, which the caller gets raised."""
        self._context.put_out(HeldReply(self._delivery, None, error, begun_before=self._begun_before))

    @property
    def _begun_before(self) -> bool:
        """An earlier handler may have stored a part of the request, and it is not one that may be repeated."""
        context, delivery = self._context, self._delivery
        owed = context.owed is not None and delivery in context.owed
        return owed and not context.instance.handlers[type(delivery.message)].retryable


class Staged(Struct, eq=False):
    """What a handler wants written, so far. A Struct, as one is made per handler that writes: 0.1 us against 0.7."""

    head: bytes | None = None
    erase: bool = False
    rows: list[Row] = []
    index_rows: list[IndexRow] = []
    reminders: dict[str, ReminderRecord | None] = {}


class Context(Struct, eq=False):
    """See the module's text. A Struct, as Delivery: one is made per activation.

    Attributes:
        id: the actor's id.
        epoch: the activation's number; greater than that of every earlier activation of this id.
        version: the number of the newest batch, staged ones included.
        stored: guard and head as they were found at activation, not as they are now: what this activation has staged
            is not in it. None where nothing was stored then.

    For the kernel:
        instance: the actor whose activation this is.
        variables: the actor's own context variables: its handlers run in them.
        delivery: the present message.
        outputs, staged: what its handler wants sent and written, so far; None for nothing.
        owed: the replies that the activation owes; None for none yet.
    """

    # What only some activations need is made when it is first needed.
    _host: Host
    instance: Actor
    id: ActorId
    epoch: int
    variables: contextvars.Context
    stored: Head | None = None
    version: int = 0
    delivery: Delivery | None = None
    outputs: list[Output] | None = None
    staged: Staged | None = None
    owed: dict[Delivery, None] | None = None
    _stream: str | None = None
    _ticks: Ticks | None = None
    _ended: bool = False
    _watched: set[tuple[ActorId, Any]] | None = None
    _reminding: Reminding | None = None

    def begin(self, delivery: Delivery | None) -> None:
        """Start with a new message; what a handler that raised has gathered is thrown away. For the kernel."""
        self.delivery = delivery
        self.outputs = None
        self.staged = None

    @property
    def stored_by_earlier_owner(self) -> bool:
        """True where the stored state was last written before this runtime claimed the store."""
        return self.stored is not None and self.stored.epoch >> ACTIVATION_BITS != self.epoch >> ACTIVATION_BITS

    @property
    def store(self) -> Store:
        """The runtime's store, for reading: short calls, never across an await."""
        return self._host.store

    @property
    def sender(self) -> ActorId | None:
        """Who sent the present message; None for code outside of actors."""
        return self.delivery.sender if self.delivery is not None else None

    @property
    def deadline(self) -> float:
        """When the caller of the present message gives up, on the event loop's clock; inf for never."""
        return self.delivery.deadline if self.delivery is not None else math.inf

    def now(self) -> float:
        """The event loop's clock, in seconds."""
        return self._host.now()

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC; never goes back while the runtime is open."""
        return self._host.wall_ms()

    def actor(self, kind: str, key: str) -> "Ref":
        """A reference to another actor."""
        return self._host.actor(kind, key)

    def stage(
        self,
        *,
        head: bytes | None = None,
        rows: tuple[Row, ...] = (),
        index_rows: tuple[IndexRow, ...] = (),
        erase: bool = False,
    ) -> None:
        """Write these to the actor's stream when the handler returns; all of a handler's writes are one batch."""
        staged = self.staged
        if staged is None:
            staged = self.staged = Staged()
        if head is not None:
            staged.head = head
        if erase:
            staged.erase = True
        staged.rows += rows
        staged.index_rows += index_rows

    def tell(self, to: ActorId, message: Request[Any]) -> None:
        """Send without an answer, once what this handler stages is durable.

        Raises:
            UnknownActor: nobody has registered its kind.
            TypeError: no message, or no id.
        """
        check_message(message)
        _check_id(to)
        self._host.check_actor(to)
        self.put_out(HeldCall(lambda: self._host.send(to, message, sender=self.id)))

    def request(self, to: ActorId, message: Request[Any], *, tag: Any) -> None:
        """Send, once what this handler stages is durable; the outcome comes back as an `Answered` signal.

        Raises:
            UnknownActor: nobody has registered its kind.
            TypeError: no message, or no id; or this actor has no handler of `Answered`.
        """
        check_message(message)
        _check_id(to)
        self.check_hears(Answered, "the answer")
        self._host.check_actor(to)

        def answered(delivery: Delivery) -> None:
            self._host.signal(self.id, Answered(tag=tag, value=delivery.value, error=delivery.error))

        self.put_out(HeldCall(lambda: self._host.send(to, message, sender=self.id, on_settled=answered)))

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` (plain, short, must not raise) once what this handler stages is durable."""
        self.put_out(HeldCall(action))

    def defer(self) -> Ticket:
        """Owe the reply: return the ticket from the handler, and answer from a later one."""
        assert self.delivery is not None, "only a message can be answered later"
        return Ticket(self, self.delivery)

    def put_out(self, output: Output) -> None:
        """Let this go out with the handler's other outputs. For Ticket."""
        if self.outputs is None:
            self.outputs = []
        self.outputs.append(output)

    def spawn(self, work: Callable[[], Awaitable[Any]], *, tag: Any) -> None:
        """Start `work` as a supervised task of this actor, at once; its end comes back as a `ChildEnded` signal.

        Raises:
            TypeError: `work` is no function (a coroutine, say), or this actor has no handler of `ChildEnded`.
        """
        if not callable(work):
            raise TypeError(f"spawn takes an async function, not what it returns: `spawn(work, ...)`, not {work!r}")
        self.check_hears(ChildEnded, "the task's end")
        self._living.spawn(self.id, tag, work)

    def cancel_child(self, tag: Any) -> bool:
        """Cancel the task that was spawned under `tag`; False where there is none."""
        return self._living.cancel_child(self.id, tag)

    def after(self, delay_s: float, tag: Any) -> None:
        """Send this actor a `Tick` with this tag, `delay_s` seconds from now, once. See `every`."""
        self.check_hears(Tick, "its timer")
        self._timers().start(tag, delay_s, None)

    def every(self, period_s: float, tag: Any) -> None:
        """Send this actor a `Tick` with this tag every `period_s` seconds, from the end of the last one's handler.

        There are never two ticks of one tag in the mailbox. A timer is volatile: it ends with the activation (a
        restart, a passivation), and its ticks do not keep an idle actor in memory. `remind` makes one that is stored.

        Raises:
            ValueError: no number of seconds above 0.
            TypeError: this actor has no handler of `Tick`.
        """
        self.check_hears(Tick, "its timer")
        self._timers().start(tag, period_s, period_s)

    def cancel_timer(self, tag: Any) -> bool:
        """End a timer; no tick of it is handled after this. False where there is none."""
        return self._ticks is not None and self._ticks.cancel(tag)

    def watch(self, target: ActorId, *, tag: Any) -> None:
        """Send this actor one `ActorEnded` with this tag once `target` has failed or was stopped; at once if it has.

        A watch ends with the activation.

        Raises:
            UnknownActor: nobody has registered its kind.
            TypeError: no id, or this actor has no handler of `ActorEnded`.
        """
        _check_id(target)
        self.check_hears(ActorEnded, "the end that it watches for")
        host = self._living
        self._watched = self._watched or set()
        self._watched.add((target, tag))
        host.watch(self.id, tag, target)

    def note_told(self, target: ActorId, tag: Any) -> None:
        """A watch was told of its end, and is over. For the kernel."""
        if self._watched is not None:
            self._watched.discard((target, tag))

    def unwatch(self, target: ActorId, *, tag: Any) -> None:
        """End a watch; does nothing where there is none."""
        if self._watched is not None and (target, tag) in self._watched:
            self._watched.discard((target, tag))
            self._host.unwatch(self.id, tag, target)

    def supervise(self, child: ActorId) -> None:
        """Become the supervisor of `child`, after those that came before; until this activation ends.

        When one crashes, this kind's `RestartPolicy.strategy` says which others are restarted with it. One that spends
        its restart budget crashes this actor (escalation), which restarts all of its children.

        Raises:
            UnknownActor: nobody has registered its kind.
            ValueError: it has another supervisor, or is one of those above this actor.
            TypeError: no id.
        """
        _check_id(child)
        self._living.supervise(self.id, child)

    def remind(
        self, name: str, *, at_ms: int | None = None, after_s: float | None = None, every_s: float | None = None
    ) -> None:
        """Set a reminder: when it is due, this actor gets a `Reminder` signal, in this process or a later one.

        It is stored with what this handler stages, in the place of an older one of this name. At least once: its row
        is moved on or deleted in the batch of the handler of `Reminder`; where that crashes, or is not stored, the
        signal comes again, after some seconds. A handler that sets or forgets the same name has its way.

        An actor that was never stored has a head afterwards, an empty one.

        Args:
            name: 1 to 64 bytes of UTF-8.
            at_ms: when, in milliseconds since 1970, UTC; what has passed is due at once.
            after_s: seconds from now instead.
            every_s: again with this period; alone, the first time is one period from now. Its times stay on the grid of
                the first one, and what passes while it cannot be handled comes as one signal with a count.

        Raises:
            TypeError, ValueError: no such name or time, or the actor has no handler for `Reminder`.
            StoreError: an older one of this name cannot be read.

        Cost: a look-up in the store; a row and an index entry to write.
        """
        self.reminding.set(name, at_ms=at_ms, after_s=after_s, every_s=every_s)

    def forget_reminder(self, name: str) -> bool:
        """Delete a reminder with what this handler stages; no signal of it is handled after this. False: there is none.

        Raises:
            StoreError: it cannot be read.
        """
        return self.reminding.forget(name)

    @property
    def reminding(self) -> Reminding:
        """What the activation knows of its reminders. For the kernel."""
        if self._reminding is None:
            self._reminding = Reminding(self._host, self)
        return self._reminding

    def check_hears(self, signal: type, what: str) -> None:
        """For the kernel. Raises: TypeError: the actor has no handler of a signal that it is going to be sent."""
        if signal not in self.instance.handlers:
            actor = type(self.instance).__name__
            raise TypeError(f"{actor} would not hear of {what}: give it a method with @handles({signal.__name__})")

    def expects(self, tick: Tick) -> bool:
        """False where the timer has ended since. For the kernel."""
        return self._ticks is not None and self._ticks.current(tick)

    def _timers(self) -> Ticks:
        host = self._living
        if self._ticks is None:
            self._ticks = Ticks(host, self.id)
        return self._ticks

    @property
    def _living(self) -> Host:
        if self._ended:
            raise Stopping(f"this activation of {self.id} has ended, and can begin nothing any more")
        return self._host

    def end(self) -> None:
        """The activation is over: its timers and watches end, and no others begin. For the kernel."""
        self._ended = True
        if self._ticks is not None:
            self._ticks.end()
        for target, tag in self._watched or ():
            self._host.unwatch(self.id, tag, target)

    def take_outputs(self) -> list[Output]:
        """What the handler wants to go out, in order; replies in it are owed no more. For the kernel."""
        outputs = self.outputs
        if outputs is None:
            return []
        self.outputs = None  # the caller adds to the list, and must not add to the next message's
        if self.owed:
            for output in outputs:
                if isinstance(output, HeldReply):
                    self.owed.pop(output.delivery, None)
        return outputs

    def take_batch(self) -> Batch | None:
        """What the handler staged, as one batch on the present version, which goes up. For the kernel.

        Raises:
            ValueError, TypeError: no store would take it. It must not get into a group with others' batches.
        """
        staged = self.staged
        if staged is None:
            return None
        self.staged = None
        if self._stream is None:
            self._stream = str(self.id)
        batch = Batch(
            self._stream,
            self.epoch,
            self.version,
            staged.head,
            tuple(staged.rows),
            tuple(staged.index_rows),
            staged.erase,
        )
        if staged.reminders or staged.erase:
            self.reminding.given(self.version, staged.reminders, erase=staged.erase)
        self.version += 1
        return batch


def _check_id(to: Any) -> None:
    """Raises: TypeError: no ActorId."""
    if not isinstance(to, ActorId):
        raise TypeError(f"an actor is named by its ActorId, the `id` of a Ref, not by {to!r}")
