"""What a runtime shows of itself: small typed records, cheap enough to ask for at any time. Looking changes nothing.

`ActorStatistics` is one actor, `RuntimeStatistics` the whole, `TraceRecord` one message of the last ones. All of them
are frozen values of plain types, which msgspec encodes as they are. What a person reads of it all is in dump.py.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from .cell import Cell
from .dead_letters import DeadLetterCause, DeadLetters
from .histogram import HistogramSnapshot
from .identity import ActorId
from .lifecycle import State
from .metrics import Metrics
from .registry import Registry

if TYPE_CHECKING:
    from .breaker import Breaker
    from .children import Children
    from .committer import Committer
    from .post_office import PostOffice
    from .quarantine import Quarantine
    from .residency import Residency
    from .timers import Timers
    from .workers import Workers

__all__ = ["ActorStatistics", "Inspection", "RuntimeStatistics", "TraceRecord"]

_NAMES_MAX = 100
"""Tasks, children and waits of one actor that are named: a record stays small whatever the actor does."""


class ActorStatistics(Struct, frozen=True):
    """One actor now.

    Attributes:
        id: kind:key.
        state: as in lifecycle.State, in lower case; "absent" also where it was never used.
        epoch: the present activation's number, 0 where there is none.
        version: the newest batch of its stream, those in flight included.
        queued: messages in its mailbox; `waiting` of them stand outside a full one.
        queued_bytes: their size.
        oldest_queued_s: how long the one among them has waited that came first; 0 where none waits.
        running: the class of the message whose async handler runs, or None; `running_s` how long it has run so far.
        attempt: which attempt that is, 1 for the first; 0 where none runs.
        owed: replies that will be given by a later handler.
        commits_in_flight: batches on their way to the disk.
        restarts: how often it was started anew.
        last_error: of its last restart, or None.
        size_bytes: what it counts against the runtime's bound; 0 where it is not in memory, or never passivated.
        tasks: the tags of the tasks that it has spawned and that have not ended.
        parent: the actor that supervises it, or None; `children` those that it supervises, in order.
        watchers: how many are told when it ends.
        waits_for: the actors that its handlers, and what these called, wait for an answer of.

    Of tasks, children and waits at most 100 are named each.
    """

    id: str
    state: str
    epoch: int = 0
    version: int = 0
    queued: int = 0
    waiting: int = 0
    queued_bytes: int = 0
    oldest_queued_s: float = 0.0
    running: str | None = None
    running_s: float = 0.0
    attempt: int = 0
    owed: int = 0
    commits_in_flight: int = 0
    restarts: int = 0
    last_error: str | None = None
    size_bytes: int = 0
    tasks: tuple[str, ...] = ()
    parent: str | None = None
    children: tuple[str, ...] = ()
    watchers: int = 0
    waits_for: tuple[str, ...] = ()


class RuntimeStatistics(Struct, frozen=True):
    """A runtime now; counts are since it was opened.

    Attributes:
        actors: ids that are known, in memory or not; `active` of them are ready; `failed` of them have spent their
            budget.
        resident: those in memory that may be passivated; `resident_bytes` their sizes, by their own word.
        children: supervised tasks, that is, agents' runs.
        queued: messages in all mailboxes; `waits` asks from handlers of actors to actors, each pair counted once.
        timers: deadlines, delays and ticks that are set.
        workers_busy, workers_idle: tasks that run async handlers or loads, and those that are parked.
        handled: messages that reached a handler.
        crashes: handlers and loads that crashed; `restarts` of actors, those after an outage of the store included.
        activations, passivations: actors that came into memory, and that left it because nobody needed them.
        dead_letters: messages that nobody awaits and that came to nothing, by cause; see DeadLetterCause.
        late_replies: replies that came after their caller had gone.
        quarantined: messages in quarantine now.
        breaker: "closed" where the store answers loads, "open" or "half_open" in an outage.
        commit_groups: transactions; `commits_in_flight` batches are on their way.
        queue_times: of messages that could not be handled at once.
        waiting_handler_times: of async handlers that waited for something, every 4th.
        plain_handler_times: of the others: of every 64th one that was answered in place, and every 16th from a mailbox.
        load_times: of activations that read the store or took a task; every 8th where it took none.
        commit_times: of batches, from when they were staged until the answer was back; every 16th where the store is
            in memory.
    """

    actors: int
    active: int
    failed: int
    resident: int
    resident_bytes: int
    children: int
    queued: int
    waits: int
    timers: int
    workers_busy: int
    workers_idle: int
    handled: int
    crashes: int
    restarts: int
    activations: int
    passivations: int
    dead_letters: dict[DeadLetterCause, int]
    late_replies: int
    quarantined: int
    breaker: str
    commit_groups: int
    commits_in_flight: int
    queue_times: HistogramSnapshot
    waiting_handler_times: HistogramSnapshot
    plain_handler_times: HistogramSnapshot
    load_times: HistogramSnapshot
    commit_times: HistogramSnapshot


class TraceRecord(Struct, frozen=True):
    """One of the last messages that reached a handler.

    Attributes:
        number: the order in which messages came.
        at: when its handler began, on the event loop's clock.
        to: the actor.
        message: the class of the message.
        sender: the actor that sent it, or None for code outside.
    """

    number: int
    at: float
    to: str
    message: str
    sender: str | None


class Inspection:
    """Looks at the rooms of a runtime. Those that are made when it is entered are set then, and None before."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        dead_letters: DeadLetters,
        *,
        quarantine: "Quarantine",
        breaker: "Breaker",
        residency: "Residency",
    ) -> None:
        self.registry = registry
        self._metrics = metrics
        self._dead_letters = dead_letters
        self._quarantine = quarantine
        self._breaker = breaker
        self._residency = residency
        self.post: PostOffice | None = None
        self.committer: Committer | None = None
        self.timers: Timers | None = None
        self.workers: Workers | None = None
        self.children: Children | None = None
        self.now: Callable[[], float] = lambda: 0.0

    def runtime(self) -> RuntimeStatistics:
        """The figures of the whole. Cost: one look at each actor, some 50 ms for 100 000."""
        actors = active = failed = queued = 0
        for cell in self.registry:
            actors += 1
            active += cell.state is State.READY
            failed += cell.state is State.FAILED
            queued += cell.queued
        metrics, workers, committer = self._metrics, self.workers, self.committer
        return RuntimeStatistics(
            actors=actors,
            active=active,
            failed=failed,
            resident=self._residency.count,
            resident_bytes=self._residency.size_bytes,
            children=len(self.children) if self.children is not None else 0,
            queued=queued,
            waits=len(self.post.waits) if self.post is not None else 0,
            timers=len(self.timers) if self.timers is not None else 0,
            workers_busy=workers.busy if workers is not None else 0,
            workers_idle=len(workers) - workers.busy if workers is not None else 0,
            handled=metrics.handled,
            crashes=metrics.crashes,
            restarts=metrics.restarts,
            activations=metrics.activations,
            passivations=metrics.passivations,
            dead_letters=dict(self._dead_letters.counts),
            late_replies=self._dead_letters.late_replies,
            quarantined=len(self._quarantine),
            breaker=self._breaker.state.name.lower(),
            commit_groups=committer.groups if committer is not None else 0,
            commits_in_flight=committer.in_flight if committer is not None else 0,
            queue_times=metrics.queues.snapshot(),
            waiting_handler_times=metrics.waiting_handlers.snapshot(),
            plain_handler_times=metrics.plain_handlers.snapshot(),
            load_times=metrics.loads.snapshot(),
            commit_times=metrics.commits.snapshot(),
        )

    def actor(self, id: ActorId, *, waits: Iterable[tuple[ActorId, ActorId]]) -> ActorStatistics:
        """The figures of one actor. Cost: its mailbox, and all waits."""
        cell = self.registry.find(id)
        if cell is None:
            return ActorStatistics(id=str(id), state=State.ABSENT.name.lower())
        return self.cell(cell, waits_for=(target for waiter, target in waits if waiter == id))

    def cell(self, cell: Cell, *, waits_for: Iterable[ActorId]) -> ActorStatistics:
        """The figures of one cell."""
        now = self.now()
        context, running, health, ties = cell.context, cell.running, cell.health, cell.ties
        active = context is not None and cell.state is State.READY
        oldest = min((delivery.queued_at for delivery in cell.box), default=now) if cell.box is not None else now
        return ActorStatistics(
            id=str(cell.id),
            state=cell.state.name.lower(),
            epoch=context.epoch if context is not None and active else 0,
            version=context.version if context is not None else 0,
            queued=cell.queued,
            waiting=cell.box.waiting if cell.box is not None else 0,
            queued_bytes=cell.box.size_bytes if cell.box is not None else 0,
            oldest_queued_s=max(now - oldest, 0.0),
            running=type(running.message).__name__ if running is not None else None,
            running_s=max(now - running.began_at, 0.0) if running is not None else 0.0,
            attempt=running.attempt if running is not None else 0,
            owed=len(context.owed or ()) if context is not None else 0,
            commits_in_flight=len(cell.gate or ()),
            restarts=health.restarts if health is not None else 0,
            last_error=repr(health.last_error) if health is not None and health.last_error is not None else None,
            size_bytes=cell.weight_bytes,
            tasks=_named(self.children.tags(cell.id) if self.children is not None else ()),
            parent=str(ties.parent.id) if ties is not None and ties.parent is not None else None,
            children=_named(child.id for child in ties.children) if ties is not None else (),
            watchers=len(ties.watchers) if ties is not None else 0,
            waits_for=_named(waits_for),
        )

    def trace(self, limit: int | None) -> tuple[TraceRecord, ...]:
        """The last messages that reached a handler, oldest first, at most `limit`."""
        entries = list(self._metrics.trace)
        if limit is not None:
            entries = entries[max(len(entries) - limit, 0) :]
        return tuple(
            TraceRecord(number, at, str(to), message.__name__, str(sender) if sender is not None else None)
            for number, at, to, message, sender in entries
        )

    def waits(self) -> list[tuple[ActorId, ActorId]]:
        """Who waits for whom, among actors in whose handlers somebody asks."""
        return self.post.waits.edges() if self.post is not None else []


def _named(things: Iterable[object]) -> tuple[str, ...]:
    return tuple(str(thing) for thing, _ in zip(things, range(_NAMES_MAX), strict=False))
