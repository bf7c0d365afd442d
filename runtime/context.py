"""What a handler may do beside changing its actor: stage writes, send, owe a reply, start work.

One Context belongs to one activation. All that a handler asks for is gathered here and takes effect when it returns;
a handler that raises leaves nothing behind.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..store.contract import Batch, Head, IndexRow, Row, Store
from ..store.keys import check_batch
from .envelope import Delivery, Phase, Request
from .gate import HeldCall, HeldReply, Output
from .identity import ActorId
from .signals import Answered

if TYPE_CHECKING:
    from .ref import Ref

__all__ = ["ACTIVATION_BITS", "Context", "Host", "Ticket"]


ACTIVATION_BITS = 32
"""An epoch is the number of the store's owner, then so many bits for the number of the activation under it."""


class Host(Protocol):
    """What an activation needs of its runtime."""

    @property
    def store(self) -> Store: ...

    def now(self) -> float: ...

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

    def signal(self, to: ActorId, message: Request[None]) -> None: ...

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
        return self._delivery.phase is not Phase.SETTLED

    def reply(self, value: Any) -> None:
        """Answer; held back until what the present handler stages is durable."""
        self._context.put_out(HeldReply(self._delivery, value, None))

    def fail(self, error: BaseException) -> None:
        """Answer with an error, which the caller gets raised."""
        self._context.put_out(HeldReply(self._delivery, None, error))


class Context:
    """See the module's text.

    Attributes:
        id: the actor's id.
        epoch: the activation's number; greater than that of every earlier activation of this id.
        version: the number of the newest batch, staged ones included.
        stored: guard and head as they were found at activation; None where the actor was never stored.
        owed: the replies that the activation owes. For the kernel.
    """

    __slots__ = (
        "_batch_erase",
        "_batch_head",
        "_delivery",
        "_dirty",
        "_host",
        "_index_rows",
        "_outputs",
        "_rows",
        "_staged",
        "epoch",
        "id",
        "owed",
        "stored",
        "version",
    )

    def __init__(self, host: Host, id: ActorId, *, epoch: int, stored: Head | None) -> None:
        self._host = host
        self.id = id
        self.epoch = epoch
        self.stored = stored
        self.version = stored.version if stored is not None else 0
        self.owed: dict[Delivery, None] = {}
        self._dirty = True
        self.begin(None)

    def begin(self, delivery: Delivery | None) -> None:
        """Start with a new message; what a handler that raised has gathered is thrown away. For the kernel."""
        self._delivery = delivery
        if self._dirty:
            self._dirty = False
            self._outputs: list[Output] = []
            self._staged = False
            self._batch_head: bytes | None = None
            self._batch_erase = False
            self._rows: list[Row] = []
            self._index_rows: list[IndexRow] = []

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
        return self._delivery.envelope.sender if self._delivery is not None else None

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
        self._dirty = self._staged = True
        self._batch_head = head if head is not None else self._batch_head
        self._batch_erase = self._batch_erase or erase
        self._rows.extend(rows)
        self._index_rows.extend(index_rows)

    def tell(self, to: ActorId, message: Request[Any]) -> None:
        """Send without an answer, once what this handler stages is durable.

        Raises:
            UnknownActor: nobody has registered its kind.
        """
        self._host.check_actor(to)
        self.put_out(HeldCall(lambda: self._host.send(to, message, sender=self.id)))

    def request(self, to: ActorId, message: Request[Any], *, tag: Any) -> None:
        """Send, once what this handler stages is durable; the outcome comes back as an `Answered` signal.

        Raises:
            UnknownActor: nobody has registered its kind.
        """
        self._host.check_actor(to)

        def answered(delivery: Delivery) -> None:
            self._host.signal(self.id, Answered(tag=tag, value=delivery.value, error=delivery.error))

        self.put_out(HeldCall(lambda: self._host.send(to, message, sender=self.id, on_settled=answered)))

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` (plain, short, must not raise) once what this handler stages is durable."""
        self.put_out(HeldCall(action))

    def defer(self) -> Ticket:
        """Owe the reply: return the ticket from the handler, and answer from a later one."""
        assert self._delivery is not None, "only a message can be answered later"
        return Ticket(self, self._delivery)

    def put_out(self, output: Output) -> None:
        """Let this go out with the handler's other outputs. For Ticket."""
        self._dirty = True
        self._outputs.append(output)

    def spawn(self, work: Callable[[], Awaitable[Any]], *, tag: Any) -> None:
        """Start `work` as a supervised task of this actor, at once; its end comes back as a `ChildEnded` signal."""
        self._host.spawn(self.id, tag, work)

    def cancel_child(self, tag: Any) -> bool:
        """Cancel the task that was spawned under `tag`; False where there is none."""
        return self._host.cancel_child(self.id, tag)

    def take_outputs(self) -> list[Output]:
        """What the handler wants to go out, in order; replies in it are owed no more. For the kernel."""
        outputs = self._outputs
        self._outputs = []  # also where it is empty: the caller adds to its list, and must not add to the next one's
        for output in outputs:
            if isinstance(output, HeldReply):
                self.owed.pop(output.delivery, None)
        return outputs

    def take_batch(self) -> Batch | None:
        """What the handler staged, as one batch on the present version, which goes up. For the kernel.

        Raises:
            ValueError, TypeError: no store would take it. It must not get into a group with others' batches.
        """
        if not self._staged:
            return None
        batch = Batch(
            stream=str(self.id),
            epoch=self.epoch,
            version=self.version,
            head=self._batch_head,
            rows=tuple(self._rows),
            index_rows=tuple(self._index_rows),
            erase=self._batch_erase,
        )
        check_batch(batch)
        self.version += 1
        return batch
