"""Who stays in memory: actors leave it when idle, or as the least recently used of too many.

Only the activation is given up. The id lives on: its next message loads it again. That message cannot come in the
middle, since passivation is one plain step; and an actor with anything under way (a message, an owed reply, a commit, a
task, children, a reason of its own) stays.

Recency costs the hot path one attribute: the number of the last message. Now and then a timer notes how far the numbers
have come, so a number tells how long ago it was. Over a cap, the oldest are found by one pass over all cells and then
used up, as long as they have not been used since: what is passivated is always the least recently used.

Source: Orleans (Bykov et al., "Orleans: Distributed Virtual Actors for Programmability and Scalability", 2014),
activation collection.
"""

import heapq
import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from .actor import ACTOR_BYTES_DEFAULT
from .cell import Cell
from .dispatch import Dispatcher
from .lifecycle import ABSENT, READY, Event
from .metrics import Metrics
from .registry import Registry

if TYPE_CHECKING:
    from .supervisor import Supervision

__all__ = ["ACTORS_BYTES_MAX", "ACTORS_MAX", "Residency"]

_log = logging.getLogger("callboard.residency")

ACTORS_MAX = 200_000
ACTORS_BYTES_MAX = 1024**3

_SWEEPS_PER_IDLE_TIME = 8
"""So an idle actor stays at most an eighth longer than its kind says."""

_MARKS_MAX = 512

_CANDIDATES_SHARE = 16
"""One pass over n cells finds n/16 candidates: 10 ms at 100 000 cells, shared by 6 000 passivations."""


class Residency:
    """See the module's text.

    Attributes:
        count, size_bytes: the actors in memory that may be passivated, and their sizes by their own word.
    """

    def __init__(
        self, host: "Supervision", registry: Registry, metrics: Metrics, *, actors_max: int, bytes_max: int
    ) -> None:
        if actors_max < 1 or bytes_max < 1:
            raise ValueError(f"keep room for at least 1 actor and 1 byte, not {actors_max} and {bytes_max}")
        self._host = host
        self._registry = registry
        self._metrics = metrics
        self._actors_max = actors_max
        self._bytes_max = bytes_max
        self._candidates: deque[tuple[int, Cell]] = deque()
        self._marks: deque[tuple[float, int]] = deque()
        self._sweeping = False
        self._next_pass = 0
        self.count = 0
        self.size_bytes = 0
        self.dispatcher: Dispatcher

    def entered(self, cell: Cell) -> None:
        """The cell was activated: count it, and make room for it."""
        if cell.kind.idle_s == math.inf:
            return
        self.count += 1
        self.size_bytes += 1
        cell.weight_bytes = 1
        self._weigh(cell)
        if not self._sweeping:
            self._sweeping = True
            self._sweep_later()

    def left(self, cell: Cell) -> None:
        """The cell's activation is no more, for whatever reason."""
        if cell.weight_bytes:
            self.count -= 1
            self.size_bytes -= cell.weight_bytes
            cell.weight_bytes = 0

    def weigh(self, cell: Cell) -> None:
        """The cell has changed what it holds: take its size anew."""
        if cell.weight_bytes and cell.context is not None:
            self._weigh(cell)

    def _weigh(self, cell: Cell) -> None:
        assert cell.context is not None
        try:
            weight_bytes = max(cell.context.instance.size_bytes(), 1)
        except Exception:  # noqa: BLE001 - a user's method: it must not keep the message that waits for it
            _log.exception("%s cannot say its size", cell.id)
            weight_bytes = ACTOR_BYTES_DEFAULT
        self.size_bytes += weight_bytes - cell.weight_bytes
        cell.weight_bytes = weight_bytes
        if self.count > self._actors_max or self.size_bytes > self._bytes_max:
            self._make_room(cell)

    # Leaving --------------------------------------------------------------------------------------------------------

    def passivate(self, cell: Cell) -> bool:
        """Give the activation up if nothing is under way; False where it stays."""
        context = cell.context
        if cell.state is not READY or context is None or not cell.quiet or context.owed:
            return False
        if self._host.has_tasks(cell) or (cell.ties is not None and cell.ties.children) or not self._may(cell):
            return False
        context.end()
        cell.context = None
        cell.handlers = {}
        cell.happen(Event.RETIRE)
        self.left(cell)
        self._metrics.passivations += 1
        self._forget(cell, self._host.now())
        return True

    def _may(self, cell: Cell) -> bool:
        assert cell.context is not None
        try:
            return cell.context.instance.may_passivate()
        except Exception:  # noqa: BLE001 - a user's method, called by a timer or by somebody else's message
            _log.exception("%s cannot say whether it may be passivated, so it stays", cell.id)
            return False

    def _forget(self, cell: Cell, now: float) -> None:
        """Let the cell itself go, where it remembers nothing that is still worth it."""
        if cell.state is not ABSENT or not cell.quiet or (cell.ties is not None and not cell.ties.none):
            return
        if cell.health is not None and cell.health.budget.remembers(now):
            return
        self._registry.forget(cell)

    # The caps -------------------------------------------------------------------------------------------------------

    def _make_room(self, entering: Cell) -> None:
        while self.count > self._actors_max or self.size_bytes > self._bytes_max:
            cell = self._least_recently_used()
            if cell is None:
                return  # all the others have something under way: the caps are passed for now
            if cell is not entering:
                self.passivate(cell)

    def _least_recently_used(self) -> Cell | None:
        """The next one that may be up for passivation, oldest first; None where a new pass is not worth it yet."""
        while self._candidates:
            used_at, cell = self._candidates.popleft()
            if cell.used_at == used_at and cell.weight_bytes:
                return cell
        number = self._host.next_number()
        if number < self._next_pass:
            return None
        self._next_pass = number + self.count // _CANDIDATES_SHARE
        wanted = max(1 + len(self._registry) // _CANDIDATES_SHARE, self.count - self._actors_max)
        found = heapq.nsmallest(
            wanted,
            ((cell.used_at, index, cell) for index, cell in enumerate(self._registry) if _passable(cell)),
        )
        self._candidates.extend((used_at, cell) for used_at, _, cell in found)
        if not self._candidates:
            return None
        return self._candidates.popleft()[1]

    # Idle time ------------------------------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        idle_times_s = [kind.idle_s for kind in self._registry.kinds if kind.idle_s != math.inf]
        period_s = max(min(idle_times_s) / _SWEEPS_PER_IDLE_TIME, max(idle_times_s) / _MARKS_MAX)
        self._host.at(self._host.now() + period_s, lambda: self.dispatcher.run(self._sweep))

    def _sweep(self) -> None:
        now = self._host.now()
        self._marks.append((now, self._host.next_number()))
        oldest = {kind: self._number_at(now - kind.idle_s) for kind in self._registry.kinds if kind.idle_s != math.inf}
        self._drop_marks(now - max((kind.idle_s for kind in oldest), default=0.0))
        for cell in self._registry:
            if cell.state is READY and cell.weight_bytes and cell.used_at < oldest[cell.kind]:
                self.passivate(cell)
            elif cell.state is ABSENT:
                self._forget(cell, now)
            if cell.box is not None and cell.box.empty:
                cell.box = None
        if len(self._registry) or self._marks:
            self._sweep_later()
        else:
            self._sweeping = False

    def _number_at(self, when: float) -> int:
        """The number that the newest mark of that time or before has; 0 where there is none."""
        number = 0
        for time, reached in self._marks:
            if time > when:
                break
            number = reached
        return number

    def _drop_marks(self, horizon: float) -> None:
        while len(self._marks) > 1 and self._marks[1][0] <= horizon:
            self._marks.popleft()
        if not self.count:
            self._marks.clear()


def _passable(cell: Cell) -> bool:
    """False where the cell is not counted, or cannot go right now for reasons that are cheap to see."""
    return bool(cell.weight_bytes) and cell.running is None and not cell.gate and not cell.box
