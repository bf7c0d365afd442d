"""Who stays in memory: actors leave it when idle, or as the least recently used of too many.

Only the activation is given up. The id lives on: its next message loads it again. That message cannot come in the
middle, since passivation is one plain step; and an actor with anything under way (a message, an owed reply, a commit, a
task, children, a reason of its own) stays.

Recency costs the hot path one attribute: the number of the last message. Now and then a timer notes how far the numbers
have come, so a number tells how long ago it was. Over a cap, one pass over all cells finds the oldest of those that may
go, and they are used up in their order, as long as they have not been used since. A pass is paid for by as many
messages or passivations as it finds cells, so that a cap that cannot be held costs next to nothing.

Source: Orleans (Bykov et al., "Orleans: Distributed Virtual Actors for Programmability and Scalability", 2014),
activation collection.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from .actor import ACTOR_BYTES_DEFAULT
from .cell import ActorKind, Cell
from .dispatch import Dispatcher
from .lifecycle import ABSENT, READY, Event
from .metrics import Metrics
from .observing import ActorPassivated
from .registry import Registry
from .timers import Timer

if TYPE_CHECKING:
    from .supervisor import Supervision

__all__ = ["ACTORS_BYTES_MAX", "ACTORS_MAX", "Residency"]

_log = logging.getLogger("callboard.residency")

ACTORS_MAX = 200_000
ACTORS_BYTES_MAX = 1024**3

_SWEEPS_PER_IDLE_TIME = 8
"""So an idle actor stays about an eighth longer than its kind says, at most a quarter."""

_MARKS_MAX = 512
"""So it stays a 512th of the longest idle time of all kinds longer, where that is more."""

_CANDIDATES_SHARE = 16
"""One pass over n cells finds n/16 candidates: 30 ms at 100 000 cells, shared by 6 000 passivations."""

_SWEPT_PER_STEP = 1024
"""Cells that the sweep looks at before it lets others run: 3 ms where all of them go."""


@dataclass(slots=True, eq=False)
class _Sweep:
    """One look at all cells: what is to be seen yet, and what each kind calls long ago, as a number."""

    cells: deque[Cell]
    oldest: dict[ActorKind, int]
    used_since: int
    remembered: bool = False


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
        self._timer: Timer | None = None
        self._shortest_idle_s = math.inf
        self._reached = 0
        self._next_pass = 0
        self.count = 0
        self.size_bytes = 0
        self.dispatcher: Dispatcher

    def entered(self, cell: Cell) -> None:
        """The cell was activated: count it, and make room for it."""
        if cell.kind.idle_s == math.inf or cell.state is not READY:  # its arrival may have set off its end
            return
        cell.weight_bytes = ACTOR_BYTES_DEFAULT
        self.count += 1
        self.size_bytes += ACTOR_BYTES_DEFAULT
        assert cell.context is not None
        if cell.context.instance.weighs:
            self._weigh(cell)
        if self.count > self._actors_max or self.size_bytes > self._bytes_max:
            self._make_room(cell)
        if self._timer is None or cell.kind.idle_s < self._shortest_idle_s:  # or a kind that was registered since
            self._sweep_later()

    def left(self, cell: Cell) -> None:
        """The cell's activation is no more, for whatever reason."""
        if cell.weight_bytes:
            self.count -= 1
            self.size_bytes -= cell.weight_bytes
            cell.weight_bytes = 0

    def weigh(self, cell: Cell) -> None:
        """The cell has changed what it holds: take its size anew, and make room for it."""
        self._weigh(cell)
        if self.count > self._actors_max or self.size_bytes > self._bytes_max:
            self._make_room(cell)

    def _weigh(self, cell: Cell) -> None:
        context = cell.context
        if not cell.weight_bytes or context is None or not context.instance.weighs:
            return
        try:
            weight_bytes = max(context.instance.size_bytes(), 1)
        except Exception:  # noqa: BLE001 - a user's method: it must not keep the message that waits for it
            _log.exception("%s cannot say its size", cell.id)
            weight_bytes = ACTOR_BYTES_DEFAULT
        self.size_bytes += weight_bytes - cell.weight_bytes
        cell.weight_bytes = weight_bytes

    # Leaving --------------------------------------------------------------------------------------------------------

    def passivate(self, cell: Cell) -> bool:
        """Give the activation up if nothing is under way; False where it stays."""
        if not self._may_go(cell):
            self._forget(cell, self._host.now())  # one that is not there may have been made by the asking
            return False
        assert cell.context is not None
        cell.context.end()
        cell.context = None
        cell.handlers = {}
        cell.happen(Event.RETIRE)
        self.left(cell)
        self._metrics.passivations += 1
        if self._metrics.events.observers:
            self._metrics.events.tell(ActorPassivated(cell.id))
        self._forget(cell, self._host.now())
        return True

    def _may_go(self, cell: Cell) -> bool:
        context = cell.context
        if cell.state is not READY or context is None or not cell.quiet or context.owed:
            return False
        if self._host.has_tasks(cell) or (cell.ties is not None and cell.ties.children):
            return False
        try:
            return context.instance.may_passivate()
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
        cell.box = cell.health = cell.ties = None  # a Ref may keep the cell for long

    # The caps -------------------------------------------------------------------------------------------------------

    @property
    def _crowded(self) -> bool:
        return self.count > self._actors_max or self.size_bytes > self._bytes_max

    def _make_room(self, entering: Cell | None) -> None:
        while self._crowded and (self._candidates or self._look_for_candidates(entering)):
            used_at, cell = self._candidates.popleft()
            unused = cell.used_at == used_at and cell.weight_bytes
            if unused and cell is not entering and self.passivate(cell):
                self._next_pass -= 1

    def _look_for_candidates(self, entering: Cell | None) -> bool:
        """Find the next ones that may go, oldest first; False where there are none, or a pass is not paid for yet.

        Those that have something under way are left out here: else the oldest of them would hide those that could go.
        """
        number = self._host.next_number()
        if number < self._next_pass:
            return False
        # Two more than the next call would count up by itself: after a pass in vain, there is none for the same cell.
        self._next_pass = number + 2 + self.count // _CANDIDATES_SHARE
        wanted = max(1 + len(self._registry) // _CANDIDATES_SHARE, self.count - self._actors_max)
        oldest_first = sorted(filter(_passable, self._registry), key=_last_use)
        going = (cell for cell in oldest_first if cell is not entering and self._may_go(cell))
        self._candidates.extend((cell.used_at, cell) for cell in islice(going, wanted))
        return bool(self._candidates)

    # Idle time ------------------------------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        idle_times_s = [kind.idle_s for kind in self._registry.kinds if kind.idle_s != math.inf]
        self._shortest_idle_s = min(idle_times_s)
        period_s = max(self._shortest_idle_s / _SWEEPS_PER_IDLE_TIME, max(idle_times_s) / _MARKS_MAX)
        self._run_at(self._host.now() + period_s, self._sweep)

    def _run_at(self, when: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._host.at(when, partial(self.dispatcher.run, action))

    def _sweep(self) -> None:
        now = self._host.now()
        used_since, self._reached = self._reached, self._host.next_number()
        self._marks.append((now, self._reached))
        idle_times_s = {kind: kind.idle_s for kind in self._registry.kinds if kind.idle_s != math.inf}
        oldest = {kind: self._number_at(now - idle_s) for kind, idle_s in idle_times_s.items()}
        self._drop_marks(now - max(idle_times_s.values()))
        self._sweep_some(_Sweep(deque(self._registry), oldest, used_since))

    def _sweep_some(self, sweep: _Sweep) -> None:
        for _ in range(min(_SWEPT_PER_STEP, len(sweep.cells))):
            self._sweep_one(sweep.cells.popleft(), sweep)
        if sweep.cells:
            self._run_at(self._host.now(), partial(self._sweep_some, sweep))
            return
        self._make_room(None)  # those that had something under way when a cap was passed may be free now
        self._candidates = deque(candidate for candidate in self._candidates if candidate[1].weight_bytes)
        if self.count or sweep.remembered:
            self._sweep_later()
        else:
            self._timer = None
            self._marks.clear()

    def _sweep_one(self, cell: Cell, sweep: _Sweep) -> None:
        if cell.weight_bytes and cell.used_at < sweep.oldest[cell.kind]:
            self.passivate(cell)
        elif cell.used_at > sweep.used_since:
            self._weigh(cell)  # what it was asked may have changed what it holds, without a commit
        if cell.state is ABSENT:
            self._forget(cell, self._host.now())
            sweep.remembered = sweep.remembered or cell.state is ABSENT
        if cell.box is not None and cell.box.empty:
            cell.box = None

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


_last_use = attrgetter("used_at")


def _passable(cell: Cell) -> bool:
    """False where the cell is not counted, or cannot go right now for reasons that are cheap to see."""
    return cell.weight_bytes > 0 and cell.running is None and not cell.gate and not cell.box
