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

from .cell import Cell
from .envelope import Delivery, Phase, Request
from .identity import ActorId

__all__ = ["ASK_TIMEOUT_S", "Overflow", "PendingReply", "Post", "Ref"]

ReplyT = TypeVar("ReplyT")

ASK_TIMEOUT_S = 30.0

Overflow = Literal["wait", "reject"]
"""What to do at a full mailbox: wait for space, within the deadline, or raise MailboxFull."""


class Post(Protocol):
    """What a Ref needs of the runtime."""

    def post(
        self, cell: Cell, message: Request[Any], *, deadline: float, overflow: Overflow, waits: bool = True
    ) -> Delivery: ...

    def deadline(self, timeout_s: float) -> float: ...

    async def wait_settled(self, cell: Cell, delivery: Delivery) -> None: ...

    async def wait_admitted(self, cell: Cell, delivery: Delivery) -> None: ...

    def give_up(self, cell: Cell, delivery: Delivery) -> None: ...


class PendingReply(Generic[ReplyT]):
    """An ask that was sent and is not waited for yet. Wait for it, or give it up."""

    __slots__ = ("_cell", "_delivery", "_post")

    def __init__(self, post: Post, cell: Cell, delivery: Delivery) -> None:
        self._post = post
        self._cell = cell
        self._delivery = delivery

    async def wait(self) -> ReplyT:
        """The reply; errors and cancellation as with `Ref.ask`."""
        await self._post.wait_settled(self._cell, self._delivery)
        reply: ReplyT = self._delivery.result()
        return reply

    def when_settled(self, action: Callable[[], None]) -> None:
        """Call `action` (plain, short, must not raise) once the outcome is there; at once where it is."""
        if self._delivery.phase is Phase.SETTLED:
            action()
        else:

            def settled(_delivery: Delivery) -> None:
                action()

            self._delivery.on_settled = settled

    def give_up(self) -> None:
        """Wait no longer: as if an `ask` were cancelled. Does nothing where the reply is there."""
        self._post.give_up(self._cell, self._delivery)


class Ref:
    """A reference to one actor. It stays good over restarts and passivation; making one starts nothing."""

    __slots__ = ("_cell", "_post")

    def __init__(self, post: Post, cell: Cell) -> None:
        self._post = post
        self._cell = cell

    def __repr__(self) -> str:
        return f"<Ref {self._cell.id}>"

    @property
    def id(self) -> ActorId:
        return self._cell.id

    async def ask(
        self, message: Request[ReplyT], *, timeout_s: float = ASK_TIMEOUT_S, overflow: Overflow = "wait"
    ) -> ReplyT:
        """Send and wait for the reply.

        Args:
            message: one that the actor's kind handles.
            timeout_s: seconds until the caller gives up; inf for never.
            overflow: see Overflow.

        Raises:
            Rejected, Failed, Unknown: see the module's table; exactly one outcome, exactly once.

        Cancellation: while queued, the message will never run. Once it runs, the work is cancelled or goes on, as its
            handler's `on_cancel` says; a commit is never interrupted.

        Cost: no task switch where the actor is idle, its handler plain, and the reply waits for no commit.
        """
        return await self.ask_nowait(message, timeout_s=timeout_s, overflow=overflow).wait()

    def ask_nowait(
        self, message: Request[ReplyT], *, timeout_s: float = ASK_TIMEOUT_S, overflow: Overflow = "wait"
    ) -> PendingReply[ReplyT]:
        """Send now, wait later; arguments as with `ask`. The deadline counts only while somebody waits.

        Raises:
            Stopping, CyclicAsk: it was not sent. All other errors come when it is waited for.
        """
        delivery = self._post.post(self._cell, message, deadline=self._post.deadline(timeout_s), overflow=overflow)
        return PendingReply(self._post, self._cell, delivery)

    async def tell(self, message: Request[Any], *, timeout_s: float = math.inf, overflow: Overflow = "wait") -> None:
        """Send without waiting for an answer; returns once the message is queued.

        `timeout_s` bounds the whole: the wait for space, and how long the message may stay queued.

        An async handler may tell its own actor, or one that waits for it, but not wait there for space.

        Raises:
            Rejected: it was not queued, and will not run.

        Cancellation: while it waits for space, nothing happened; it never waits afterwards.
        """
        deadline = self._post.deadline(timeout_s)
        delivery = self._post.post(self._cell, message, deadline=deadline, overflow=overflow, waits=False)
        await self._post.wait_admitted(self._cell, delivery)
