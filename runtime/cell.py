"""The place of one actor id in a runtime: its mailbox and gate, and whoever lives there now."""

import contextvars
from collections.abc import Callable

import anyio

from .actor import Actor
from .budget import RestartBudget, RestartPolicy
from .context import Context
from .envelope import Delivery
from .gate import Gate
from .identity import ActorId
from .lifecycle import Event, State, next_state
from .mailbox import MAILBOX_BYTES_MAX, MAILBOX_COUNT_MAX, Mailbox

__all__ = ["ActorKind", "Cell"]


class ActorKind:
    """How actors of one kind are made and kept.

    Attributes:
        name: the kind of their ids.
        factory: called with the id for each activation.
        durable: False for actors that are never stored; their activation reads nothing.
        restart: how often a crash is forgiven.
        mailbox_count_max, mailbox_bytes_max: the bounds of each mailbox.
    """

    __slots__ = ("durable", "factory", "mailbox_bytes_max", "mailbox_count_max", "name", "restart")

    def __init__(
        self,
        name: str,
        factory: Callable[[ActorId], Actor],
        *,
        durable: bool = True,
        restart: RestartPolicy | None = None,
        mailbox_count_max: int = MAILBOX_COUNT_MAX,
        mailbox_bytes_max: int = MAILBOX_BYTES_MAX,
    ) -> None:
        self.name = name
        self.factory = factory
        self.durable = durable
        self.restart = restart or RestartPolicy()
        self.mailbox_count_max = mailbox_count_max
        self.mailbox_bytes_max = mailbox_bytes_max


class Cell:
    """See the module's text. Mailbox, gate and budget outlive activations; actor and context are of the present one.

    Attributes:
        running: the delivery whose handler runs; a plain handler runs to its end before anybody can see this.
        scope: cancels the async handler or load that runs.
        runnable_queued: True while the cell stands in the dispatcher's queue.
        reload_due: a restart's delay is over, but commits or a handler of the old activation are still on their way.
        store_failures: loads and commits in a row that the store refused: they lengthen the wait, but spend no budget.
        closed: stopped for good with the runtime.
    """

    __slots__ = (
        "actor",
        "budget",
        "context",
        "gate",
        "id",
        "kind",
        "last_error",
        "mailbox",
        "reload_due",
        "restarts",
        "runnable_queued",
        "running",
        "scope",
        "state",
        "store_failures",
        "variables",
    )

    def __init__(self, id: ActorId, kind: ActorKind) -> None:
        self.id = id
        self.kind = kind
        self.mailbox = Mailbox(count_max=kind.mailbox_count_max, bytes_max=kind.mailbox_bytes_max)
        self.gate = Gate()
        self.budget = RestartBudget(kind.restart)
        self.state = State.ABSENT
        self.actor: Actor | None = None
        self.context: Context | None = None
        self.variables: contextvars.Context | None = None
        self.running: Delivery | None = None
        self.scope: anyio.CancelScope | None = None
        self.runnable_queued = False
        self.reload_due = False
        self.store_failures = 0
        self.restarts = 0
        self.last_error: BaseException | None = None

    def happen(self, event: Event) -> None:
        """Move along the table of lifecycle.py."""
        self.state = next_state(self.state, event)

    @property
    def runnable(self) -> bool:
        """True where a step would do something now."""
        if self.running is not None or not len(self.mailbox):
            return False
        # After a resume, commits of the failed activation may still be on their way: they decide what is to be loaded.
        return self.state is State.READY or (self.state is State.ABSENT and not self.gate)

    @property
    def quiet(self) -> bool:
        """True where nothing is queued, running or on its way to the disk.

        An owed reply does not count: once all cells are quiet and the door is closed, nobody is left to give it.
        """
        return self.running is None and not self.gate and len(self.mailbox) == 0
