"""How code outside of actors, and async handlers, talk to an actor: `tell` and `ask`.

| | returns |
|---|---|
| tell | once the message is queued |
| ask | the reply, durable with all that it depends on |

| raised | what it means |
|---|---|
| Rejected | it did not run, or was not queued: safe to send again |
| Failed | it ran, and nothing was stored; the cause is chained |
| Unknown | it may have been stored |
| another CallboardError | the handler's own answer; nothing was stored |
"""

import math
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar

from msgspec import Struct

from .cell import Cell
from .envelope import SETTLED, Delivery, Request
from .identity import ActorId
from .lifecycle import GONE
from .signals import EndReason

__all__ = ["ASKS_PER_CHECKPOINT", "ASK_TIMEOUT_S", "Ended", "Overflow", "PendingReply", "Post", "Ref"]

ReplyT = TypeVar("ReplyT")

ASK_TIMEOUT_S = 30.0

ASKS_PER_CHECKPOINT = 64
"""What is answered in place lets others run every so many messages: at about 1 us each that is well below 1 ms."""

Overflow = Literal["wait", "reject"]
"""What to do at a full mailbox: wait for space, within the deadline, or raise MailboxFull."""

TellOverflow = Literal["wait", "reject", "drop_oldest"]
"""The same for a tell, which may also push out the oldest message that nobody awaits: it becomes a dead letter."""


class Ended(Struct, frozen=True):
    """How an actor has ended: `reason` as in EndReason, `error` what it failed with at last."""

    id: ActorId
    reason: EndReason
    error: BaseException | None


class Post(Protocol):
    """What a Ref needs of the runtime."""

    def cell(self, id: ActorId) -> Cell: ...

    def post(
        self, cell: Cell, message: Request[Any], timeout_s: float, overflow: TellOverflow, *, awaited: bool = True
    ) -> Delivery: ...

    async def checkpoint(self) -> None: ...

    async def wait_settled(self, delivery: Delivery, timeout_s: float) -> None: ...

    async def wait_admitted(self, delivery: Delivery) -> None: ...

    def give_up(self, delivery: Delivery) -> None: ...

    async def wait_ended(self, cell: Cell) -> Ended: ...

    async def stop(self, cell: Cell) -> None: ...

    async def drain(self, cell: Cell, timeout_s: float) -> None: ...

    def kill(self, cell: Cell) -> None: ...

    def passivate(self, cell: Cell) -> bool: ...


class PendingReply(Generic[ReplyT]):
    """An ask that was sent and is not waited for yet. Wait for it, or give it up."""

    __slots__ = ("_delivery", "_post", "_timeout_s")

    def __init__(self, post: Post, delivery: Delivery, timeout_s: float) -> None:
        self._post = post
        self._delivery = delivery
        self._timeout_s = timeout_s

    async def wait(self) -> ReplyT:
        """The reply; errors and cancellation as with `Ref.ask`."""
        await self._post.wait_settled(self._delivery, self._timeout_s)
        reply: ReplyT = self._delivery.result()
        return reply

    def when_settled(self, action: Callable[[], None]) -> None:
        """Call `action` (plain, short, must not raise) once the outcome is there; at once where it is."""
        if self._delivery.phase is SETTLED:
            action()
            return
        before = self._delivery.on_settled

        def settled(delivery: Delivery) -> None:
            if before is not None:
                before(delivery)
            action()

        self._delivery.on_settled = settled

    def give_up(self) -> None:
        """Wait no longer: as if an `ask` were cancelled. Does nothing where the reply is there."""
        self._post.give_up(self._delivery)


class Ref:
    """A reference to one actor. It stays good over restarts and passivation; making one starts nothing."""

    __slots__ = ("_cell", "_post", "id")

    def __init__(self, post: Post, id: ActorId, cell: Cell | None) -> None:
        self._post = post
        self._cell = cell
        self.id = id

    def __repr__(self) -> str:
        return f"<Ref {self.id}>"

    def _present(self) -> Cell:
        cell = self._cell
        if cell is None or cell.state is GONE:  # never used, or passivated since
            cell = self._cell = self._post.cell(self.id)
        return cell

    async def ask(
        self, message: Request[ReplyT], *, timeout_s: float = ASK_TIMEOUT_S, overflow: Overflow = "wait"
    ) -> ReplyT:
        """Send and wait for the reply.

        Args:
            message: one that the actor's kind handles.
            timeout_s: seconds until the caller gives up; inf for never. Within an async handler at most what is left
                for its own caller.
            overflow: see Overflow.

        Raises:
            Rejected, Failed, Unknown: see the module's table; exactly one outcome, exactly once.

        Cancellation: while queued, the message will never run. Once it runs, the work is cancelled or goes on, as its
            handler's `on_cancel` says; a commit is never interrupted.

        Cost: no task switch where the actor is idle, its handler plain, and the reply waits for no commit.
        """
        cell = self._cell
        if cell is None or cell.state is GONE:
            cell = self._present()
        delivery = self._post.post(cell, message, timeout_s, overflow)
        if delivery.phase is not SETTLED:
            await self._post.wait_settled(delivery, timeout_s)
        elif not delivery.number % ASKS_PER_CHECKPOINT:
            await self._post.checkpoint()
        if delivery.error is not None:
            raise delivery.error
        reply: ReplyT = delivery.value
        return reply

    def ask_nowait(
        self, message: Request[ReplyT], *, timeout_s: float = ASK_TIMEOUT_S, overflow: Overflow = "wait"
    ) -> PendingReply[ReplyT]:
        """Send now, wait later; arguments as with `ask`. The deadline counts only while somebody waits.

        Raises:
            Stopping, CyclicAsk: it was not sent. All other errors come when it is waited for.
        """
        delivery = self._post.post(self._present(), message, timeout_s, overflow)
        return PendingReply(self._post, delivery, timeout_s)

    async def tell(
        self, message: Request[Any], *, timeout_s: float = math.inf, overflow: TellOverflow = "wait"
    ) -> None:
        """Send without waiting for an answer; returns once the message is queued.

        `timeout_s` bounds the whole: the wait for space, and how long the message may stay queued. A message that is
        accepted and comes to nothing is in `Runtime.dead_letters`.

        An async handler may tell its own actor, or one that waits for it, but not wait there for space.

        Raises:
            Rejected: it was not queued, and will not run.

        Cancellation: while it waits for space, nothing happened; it never waits afterwards.
        """
        cell = self._cell
        if cell is None or cell.state is GONE:
            cell = self._present()
        delivery = self._post.post(cell, message, timeout_s, overflow, awaited=False)
        if not delivery.admitted:
            await self._post.wait_admitted(delivery)
        elif not delivery.number % ASKS_PER_CHECKPOINT:
            await self._post.checkpoint()

    async def wait_ended(self) -> Ended:
        """Return once the actor has failed or was stopped; at once where it has. Passivation is no end.

        Cancellation: nothing happened.
        """
        return await self._post.wait_ended(self._present())

    async def stop(self) -> None:
        """Let the running handler finish, refuse what is queued, and end the actor; see endings.py for its verbs.

        Afterwards messages are refused with Stopping, until `Runtime.resume`. What it has stored stays.

        Cancellation: it stops nevertheless.
        """
        await self._post.stop(self._present())

    async def drain(self, *, timeout_s: float) -> None:
        """Take no new message, handle what was accepted for at most so many seconds, then end the actor, as `stop`.

        Cancellation: it goes on draining until the deadline.
        """
        await self._post.drain(self._present(), timeout_s)

    def kill(self) -> None:
        """End the actor now: what runs is cancelled, what is queued refused. Commits in flight are not interrupted."""
        self._post.kill(self._present())

    def passivate(self) -> bool:
        """Take the actor out of memory now; False where something is under way, or it is not there."""
        return self._post.passivate(self._present())
