"""The place of one actor id in a runtime: its mailbox and gate, and whoever lives there now."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from .actor import Actor, Handler
from .budget import RestartBudget, RestartPolicy
from .context import Context
from .envelope import Delivery
from .gate import Gate
from .identity import ActorId
from .lifecycle import ABSENT, FAILED, READY, STOPPED, STOPPING, Event, State, next_state
from .mailbox import MAILBOX_BYTES_MAX, MAILBOX_COUNT_MAX, Mailbox
from .options import check_factory, check_number
from .signals import EndReason
from .workers import Job

__all__ = ["IDLE_S", "ActorKind", "Cell", "Health", "Ties", "Watcher"]

IDLE_S = 300.0
"""How long an actor without inbound messages stays in memory."""

Watcher = Callable[[EndReason, BaseException | None], None]

_NO_HANDLERS: Mapping[type, Handler] = {}


class ActorKind:
    """How actors of one kind are made and kept.

    Attributes:
        name: the kind of their ids.
        factory: called with the id for each activation.
        durable: False for actors that are never stored; their activation reads nothing.
        restart: how often a crash is forgiven, and what it means for an actor's children.
        idle_s: how long an actor without inbound messages stays in memory; inf: it is never passivated, not even over
            the runtime's caps. None: IDLE_S, or inf where it is not durable, since nothing could bring it back.
        mailbox_count_max, mailbox_bytes_max: the bounds of each mailbox.

    Raises:
        ValueError: a bound leaves room for nothing.
        TypeError: a number, a factory or a policy is none.
    """

    __slots__ = ("durable", "factory", "idle_s", "mailbox_bytes_max", "mailbox_count_max", "name", "restart")

    def __init__(
        self,
        name: str,
        factory: Callable[[ActorId], Actor],
        *,
        durable: bool = True,
        restart: RestartPolicy | None = None,
        idle_s: float | None = None,
        mailbox_count_max: int = MAILBOX_COUNT_MAX,
        mailbox_bytes_max: int = MAILBOX_BYTES_MAX,
    ) -> None:
        check_factory(factory)
        if not (restart is None or isinstance(restart, RestartPolicy)):  # pyright: ignore[reportUnnecessaryIsInstance] - without a checker
            raise TypeError(f"restart is a callboard.runtime.RestartPolicy, not {restart!r}")
        check_number("mailbox_count_max", mailbox_count_max)
        check_number("mailbox_bytes_max", mailbox_bytes_max)
        if idle_s is not None:
            check_number("idle_s", idle_s)
        if mailbox_count_max < 1 or mailbox_bytes_max < 1:
            raise ValueError(
                f"a mailbox holds at least 1 message and 1 byte, not {mailbox_count_max} and {mailbox_bytes_max}"
            )
        if idle_s is not None and not idle_s > 0:
            raise ValueError(f"idle_s is a number of seconds above 0, or inf for never, not {idle_s}")
        self.name = name
        self.factory = factory
        self.durable = durable
        self.restart = restart or RestartPolicy()
        self.idle_s = idle_s if idle_s is not None else IDLE_S if durable else math.inf
        self.mailbox_count_max = mailbox_count_max
        self.mailbox_bytes_max = mailbox_bytes_max


@dataclass(slots=True)
class Health:
    """What an actor that has crashed once is remembered for.

    Attributes:
        budget: its crashes within the restart window.
        restarts: how often it was started anew.
        store_failures: commits in a row that the store refused: they lengthen the wait, but spend no budget.
        last_error: of the last restart.
    """

    budget: RestartBudget
    restarts: int = 0
    store_failures: int = 0
    last_error: BaseException | None = None


@dataclass(slots=True, eq=False)
class Ties:
    """Who has to do with an actor: see children.py for tasks, families.py for supervised actors and watchers.

    Attributes:
        parent: the actor that supervises this one.
        children: the actors that this one supervises, in the order in which they came.
        watchers: called with (reason, error) once the actor has ended.
    """

    parent: "Cell | None" = None
    children: "list[Cell]" = field(default_factory=lambda: list["Cell"]())
    watchers: dict[object, Watcher] = field(default_factory=lambda: dict[object, Watcher]())

    @property
    def none(self) -> bool:
        return self.parent is None and not self.children and not self.watchers


class Cell(Struct, eq=False):
    """See the module's text. Mailbox, gate, health and ties outlive activations; the context is the present one's.

    A Struct, with everything that only some actors need made when they need it: an idle actor costs some hundred bytes.

    Attributes:
        context: the present activation, the actor included; None where there is none.
        handlers: those of the actor while it is READY, else none.
        running: the delivery whose async handler runs; a plain handler runs to its end before anybody can see this.
        job: the async handler or load that runs, to cancel it.
        used_at: the number of the last message that it was sent from outside: greater is more recent.
        weight_bytes: what it counts against the runtime's bound, while it is counted; see residency.py.
        runnable_queued: True while the cell stands in the dispatcher's queue.
        reload_due: a restart's delay is over, but commits or a handler of the old activation are still on their way.
        finish_owed: while STOPPING: owed replies are waited for.
    """

    id: ActorId
    kind: ActorKind
    state: State = ABSENT
    handlers: Mapping[type, Handler] = _NO_HANDLERS
    context: Context | None = None
    box: Mailbox | None = None
    gate: Gate | None = None
    running: Delivery | None = None
    job: Job | None = None
    used_at: int = 0
    weight_bytes: int = 0
    runnable_queued: bool = False
    reload_due: bool = False
    finish_owed: bool = False
    health: Health | None = None
    ties: Ties | None = None

    def happen(self, event: Event) -> None:
        """Move along the table of lifecycle.py."""
        self.state = next_state(self.state, event)

    @property
    def mailbox(self) -> Mailbox:
        """The mailbox; made at first use."""
        if self.box is None:
            self.box = Mailbox(count_max=self.kind.mailbox_count_max, bytes_max=self.kind.mailbox_bytes_max)
        return self.box

    @property
    def queued(self) -> int:
        """How many messages are in the mailbox or wait to get in."""
        return self.box.length if self.box is not None else 0

    @property
    def illness(self) -> Health:
        """Its health; made at its first crash."""
        if self.health is None:
            self.health = Health(RestartBudget(self.kind.restart))
        return self.health

    @property
    def bonds(self) -> Ties:
        """Its ties; made at first use."""
        if self.ties is None:
            self.ties = Ties()
        return self.ties

    @property
    def runnable(self) -> bool:
        """True where a step would do something now."""
        if self.running is not None:
            return False
        if self.state is READY:
            return bool(self.box)
        if self.state is STOPPING:
            return bool(self.box) or self.finished
        # After a resume, commits of the failed activation may still be on their way: they decide what is to be loaded.
        return self.state is ABSENT and bool(self.box) and not self.gate

    @property
    def quiet(self) -> bool:
        """True where nothing is queued, running or on its way to the disk.

        An owed reply does not count: once all cells are quiet and the door is closed, nobody is left to give it.
        """
        return self.running is None and not self.gate and not self.box

    @property
    def finished(self) -> bool:
        """True where an actor that is STOPPING has nothing left to do."""
        return self.quiet and not (self.finish_owed and self.context is not None and self.context.owed)

    @property
    def refuses(self) -> bool:
        """True where no message can be taken."""
        return self.state is FAILED or self.state is STOPPED or self.state is STOPPING
