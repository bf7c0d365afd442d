"""When those give up who wait for a reply: most wait equally long, so their deadlines come up in the order of asking.

There is one queue for each timeout that is used, in the order of its deadlines, and one timer for each queue. To wait
costs an append, and to be answered nothing: what is settled is dropped when the next one comes, or behind one that
still waits, when it is most of its queue; messages and replies may be large. A timer each would cost a microsecond
(FACTS.md, "Messaging").

Source: G. Varghese, T. Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme for one timer interval.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

from msgspec import Struct, field

from .envelope import SETTLED, Delivery
from .timers import Timers

__all__ = ["Deadlines"]

_COMPACT_MIN = 128
_LINES_MAX = 64


class _Line(Struct, eq=False):
    """Those who wait equally long. `due_at`: when it is looked at next; `compact_at`: so many are too many."""

    due_at: float
    queue: deque[Delivery] = field(default_factory=lambda: deque[Delivery]())
    compact_at: int = _COMPACT_MIN


class Deadlines:
    """See the module's text. `expire` is called with each delivery that is not settled when its deadline comes."""

    def __init__(self, timers: Timers, expire: Callable[[Delivery], None]) -> None:
        self._timers = timers
        self._expire = expire
        self._lines: dict[float, _Line] = {}

    def add(self, timeout_s: float, delivery: Delivery) -> None:
        """Watch over `delivery.deadline`, a finite time that is about `timeout_s` seconds from now."""
        line = self._lines.get(timeout_s)
        if line is None:
            if len(self._lines) >= _LINES_MAX:  # every ask has another timeout: then each has its own timer
                self._timers.at(delivery.deadline, partial(self._expire_one, delivery))
                return
            line = self._lines[timeout_s] = _Line(delivery.deadline)
            self._timers.at(delivery.deadline, partial(self._due, timeout_s))
        queue = line.queue
        while queue and queue[0].phase is SETTLED:
            queue.popleft()
        if delivery.deadline < (queue[-1].deadline if queue else line.due_at):
            # A nested ask: its caller's deadline bounds it.
            self._timers.at(delivery.deadline, partial(self._expire_one, delivery))
            return
        queue.append(delivery)
        if len(queue) >= line.compact_at:
            _compact(line)

    def _due(self, timeout_s: float) -> None:
        """The deadline of the queue's first one, at the latest, has come."""
        line = self._lines[timeout_s]
        queue = line.queue
        now = self._timers.now()
        due: list[Delivery] = []
        while queue and (queue[0].phase is SETTLED or queue[0].deadline <= now):
            due.append(queue.popleft())
        if queue:
            line.due_at = queue[0].deadline
            self._timers.at(line.due_at, partial(self._due, timeout_s))
        else:
            del self._lines[timeout_s]
        for delivery in due:  # last: what follows from it may begin a wait with the same timeout
            self._expire_one(delivery)

    def _expire_one(self, delivery: Delivery) -> None:
        if delivery.phase is not SETTLED:
            self._expire(delivery)


def _compact(line: _Line) -> None:
    waiting = [delivery for delivery in line.queue if delivery.phase is not SETTLED]
    line.queue.clear()
    line.queue.extend(waiting)
    line.compact_at = max(_COMPACT_MIN, 2 * len(waiting))
