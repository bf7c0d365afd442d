"""A picture of a runtime for people: who supervises whom, who is not idle, who waits for whom and since when.

For the moment when nothing moves any more: `print(runtime.dump())`. It is bounded, so that it can be logged whatever
the runtime holds, and a frozen value of plain types, so that msgspec encodes it as it is.

Source: Erlang's observer and crash dumps; Java's thread dumps (who holds what, who waits for whom).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import nsmallest

from msgspec import Struct

from .cell import Cell
from .envelope import QUEUED, SETTLED, Delivery
from .identity import ActorId
from .introspect import ActorStatistics, Inspection, RuntimeStatistics
from .lifecycle import State

__all__ = ["ACTORS_SHOWN_MAX", "Branch", "Dump", "Wait", "WaitingMessage", "dump"]

ACTORS_SHOWN_MAX = 100
_BRANCHES_MAX = 400
_WAITS_MAX = 400
_MESSAGES_MAX = 50

_BUSY_STATES = {State.LOADING, State.BACKING_OFF, State.FAILED, State.STOPPING}


class Branch(Struct, frozen=True):
    """One actor of the supervision tree. Those below it follow, one deeper."""

    depth: int
    id: str
    state: str
    restarts: int


class Wait(Struct, frozen=True):
    """A handler of `waiter`, or what it called, waits for an answer of `target`."""

    waiter: str
    target: str


class WaitingMessage(Struct, frozen=True):
    """A message without an answer. `where` is "queued", "running" or "owed"; `age_s` since it was queued, or begun."""

    number: int
    to: str
    message: str
    sender: str | None
    where: str
    age_s: float


class Dump(Struct, frozen=True):
    """See the module's text; `str(dump)` is meant to be read.

    Attributes:
        statistics: the figures of the whole.
        tree: the supervised actors, each below its supervisor; `tree_left_out` were too many.
        actors: those that are not idle, with those first whose oldest message came first; `actors_left_out` were too
            many.
        waits: the wait-for graph; `waits_left_out` were too many.
        oldest: the messages without an answer that came first.
    """

    statistics: RuntimeStatistics
    tree: tuple[Branch, ...]
    tree_left_out: int
    actors: tuple[ActorStatistics, ...]
    actors_left_out: int
    waits: tuple[Wait, ...]
    waits_left_out: int
    oldest: tuple[WaitingMessage, ...]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def dump(inspection: Inspection, *, waits: list[tuple[ActorId, ActorId]], actors_max: int) -> Dump:
    """Look at everything once. Cost: some 100 ms for 100 000 actors, and what is not idle."""
    now = inspection.now()
    cells = list(inspection.registry)
    busy: list[tuple[float, int, Cell]] = []
    oldest: list[tuple[float, int, Delivery]] = []
    for cell in cells:
        if _busy(cell) or (inspection.children is not None and inspection.children.has(cell.id)):
            open_now = [(_since(each), each.number, each) for each in _unanswered(cell)]
            since, number = min(open_now)[:2] if open_now else (now, 0)
            busy.append((since, number, cell))
            oldest = nsmallest(_MESSAGES_MAX, [*oldest, *open_now])
    targets: dict[ActorId, list[ActorId]] = defaultdict(list)
    for waiter, target in waits:
        targets[waiter].append(target)
    tree = list(_tree(cells))
    busy.sort(key=lambda entry: entry[:2])
    return Dump(
        statistics=inspection.runtime(),
        tree=tuple(tree[:_BRANCHES_MAX]),
        tree_left_out=max(len(tree) - _BRANCHES_MAX, 0),
        actors=tuple(inspection.cell(cell, waits_for=targets.get(cell.id, ())) for _, _, cell in busy[:actors_max]),
        actors_left_out=max(len(busy) - actors_max, 0),
        waits=tuple(Wait(str(waiter), str(target)) for waiter, target in waits[:_WAITS_MAX]),
        waits_left_out=max(len(waits) - _WAITS_MAX, 0),
        oldest=tuple(_message(each, now) for _, _, each in oldest),
    )


# Looking ------------------------------------------------------------------------------------------------------------


def _busy(cell: Cell) -> bool:
    owes = cell.context is not None and cell.context.owed
    return not cell.quiet or bool(owes) or cell.state in _BUSY_STATES


def _unanswered(cell: Cell) -> Iterator[Delivery]:
    if cell.box is not None:
        yield from cell.box
    if cell.running is not None and cell.running.phase is not SETTLED:
        yield cell.running
    if cell.context is not None:
        yield from (delivery for delivery in cell.context.owed or () if delivery.phase is not SETTLED)


def _since(delivery: Delivery) -> float:
    return delivery.queued_at if delivery.phase is QUEUED else delivery.began_at


def _message(delivery: Delivery, now: float) -> WaitingMessage:
    return WaitingMessage(
        number=delivery.number,
        to=str(delivery.to),
        message=type(delivery.message).__name__,
        sender=str(delivery.sender) if delivery.sender is not None else None,
        where={"held": "owed"}.get(phase := delivery.phase.name.lower(), phase),
        age_s=max(now - _since(delivery), 0.0),
    )


def _tree(cells: Iterable[Cell]) -> Iterator[Branch]:
    """Each supervisor that has none above it, with all that are below; not by recursion, which is not bounded."""
    for root in cells:
        if root.ties is None or root.ties.parent is not None or not root.ties.children:
            continue
        stack = [(0, root)]
        while stack:
            depth, cell = stack.pop()
            restarts = cell.health.restarts if cell.health is not None else 0
            yield Branch(depth, str(cell.id), cell.state.name.lower(), restarts)
            if cell.ties is not None:
                stack.extend((depth + 1, child) for child in reversed(cell.ties.children))


# Text ---------------------------------------------------------------------------------------------------------------


def _lines(dump: Dump) -> Iterator[str]:
    total = dump.statistics
    yield (
        f"{total.actors} actors ({total.active} ready, {total.failed} failed), {total.children} tasks, "
        f"{total.queued} messages queued, {total.commits_in_flight} commits in flight, store {total.breaker}"
    )
    yield from _section(
        "supervision",
        [f"{'  ' * each.depth}{each.id}  {each.state}{_times(each.restarts)}" for each in dump.tree],
        dump.tree_left_out,
    )
    yield from _section("not idle", map(_actor_line, dump.actors), dump.actors_left_out)
    yield from _section(
        "who waits for whom", [f"{each.waiter} -> {each.target}" for each in dump.waits], dump.waits_left_out
    )
    yield from _section(
        "oldest messages without an answer",
        [
            f"{each.age_s:8.3f} s  {each.message} to {each.to} from {each.sender or 'outside'}, {each.where}"
            for each in dump.oldest
        ],
        0,
    )


def _section(title: str, lines: Iterable[str], left_out: int) -> Iterator[str]:
    yield f"{title}:"
    shown = list(lines)
    yield from (f"  {line}" for line in shown or ["none"])
    if left_out:
        yield f"  ... and {left_out} more"


def _times(restarts: int) -> str:
    return f", restarted {restarts}x" if restarts else ""


def _actor_line(actor: ActorStatistics) -> str:
    parts = [f"{actor.id}  {actor.state}{_times(actor.restarts)}"]
    if actor.running is not None:
        attempt = f" (attempt {actor.attempt})" if actor.attempt > 1 else ""
        parts.append(f"runs {actor.running} for {actor.running_s:.3f} s{attempt}")
    if actor.queued:
        parts.append(f"{actor.queued} queued, the oldest for {actor.oldest_queued_s:.3f} s")
    if actor.owed:
        parts.append(f"owes {actor.owed}")
    if actor.commits_in_flight:
        parts.append(f"{actor.commits_in_flight} commits in flight")
    if actor.tasks:
        parts.append(f"tasks {', '.join(actor.tasks)}")
    if actor.waits_for:
        parts.append(f"waits for {', '.join(actor.waits_for)}")
    if actor.last_error is not None:
        parts.append(f"last error {actor.last_error}")
    return ", ".join(parts)
