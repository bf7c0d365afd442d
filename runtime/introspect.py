"""What a runtime shows of itself: small typed records, cheap enough to ask for at any time."""

from msgspec import Struct

from .cell import Cell
from .lifecycle import State

__all__ = ["ActorStatistics", "RuntimeStatistics", "actor_statistics"]


class ActorStatistics(Struct, frozen=True):
    """One actor now.

    Attributes:
        id: kind:key.
        state: as in lifecycle.State, in lower case.
        epoch: the present activation's number, 0 where there is none.
        version: the newest batch of its stream, those in flight included.
        queued: messages in its mailbox; `waiting` of them stand outside a full one.
        queued_bytes: their size.
        running: the class of the message whose async handler runs, or None.
        owed: replies that will be given by a later handler.
        commits_in_flight: batches on their way to the disk.
        restarts: how often it was started anew.
        last_error: of its last restart, or None.
    """

    id: str
    state: str
    epoch: int
    version: int
    queued: int
    waiting: int
    queued_bytes: int
    running: str | None
    owed: int
    commits_in_flight: int
    restarts: int
    last_error: str | None


class RuntimeStatistics(Struct, frozen=True):
    """A runtime now; counts are since it was opened.

    Attributes:
        actors: cells, active or not; `active` of them are in memory; `failed` of them have spent their budget.
        children: supervised tasks, that is, agents' runs.
        handled: messages that reached a handler.
        crashes: handlers and loads that crashed.
        commit_groups: transactions; `commits_in_flight` batches are on their way.
    """

    actors: int
    active: int
    failed: int
    children: int
    handled: int
    crashes: int
    commit_groups: int
    commits_in_flight: int


def actor_statistics(cell: Cell) -> ActorStatistics:
    """The figures of one cell."""
    context = cell.context
    active = context is not None and cell.state is State.READY
    return ActorStatistics(
        id=str(cell.id),
        state=cell.state.name.lower(),
        epoch=context.epoch if context is not None and active else 0,
        version=context.version if context is not None else 0,
        queued=cell.queued,
        waiting=cell.box.waiting if cell.box is not None else 0,
        queued_bytes=cell.box.size_bytes if cell.box is not None else 0,
        running=type(cell.running.message).__name__ if cell.running is not None else None,
        owed=len(context.owed or ()) if context is not None else 0,
        commits_in_flight=len(cell.gate or ()),
        restarts=cell.health.restarts if cell.health is not None else 0,
        last_error=repr(cell.health.last_error)
        if cell.health is not None and cell.health.last_error is not None
        else None,
    )
