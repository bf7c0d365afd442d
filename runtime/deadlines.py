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

from .envelope import Delivery
from .timers import Timer, Timers

__all__ = ["Deadlines", "Wait"]

_COMPACT_MIN = 128
_LINES_MAX = 64


class Wait(Struct, eq=False):
    """One who waits. It lets go of the delivery, and of the reply in it, as soon as the wait is over."""

    deadline: float
    delivery: Delivery | None
    timer: Timer | None = None

    def over(self) -> None:
        """The delivery is settled, or nobody waits for it any more."""
        self.delivery = None
        if self.timer is not None:
            self.timer.cancel()


class _Line(Struct, eq=False):
    """Those who wait equally long. `due_at`: when it is looked at next; `compact_at`: so many are too many."""

    due_at: float
    queue: deque[Wait] = field(default_factory=lambda: deque[Wait]())
    compact_at: int = _COMPACT_MIN


class Deadlines:
    """See the module's text. `expire` is called with each delivery that is waited for when its deadline comes."""

    def __init__(self, timers: Timers, expire: Callable[[Delivery], None]) -> None:
        self._timers = timers
        self._expire = expire
        self._lines: dict[float, _Line] = {}

    def add(self, timeout_s: float, delivery: Delivery) -> Wait:
        """Watch over `delivery.deadline`, a finite time about `timeout_s` seconds from now, until the wait is over."""
        wait = Wait(delivery.deadline, delivery)
        line = self._lines.get(timeout_s)
        if line is None:
            if len(self._lines) >= _LINES_MAX:  # every ask has another timeout: then each has its own timer
                wait.timer = self._timers.at(wait.deadline, partial(self._expire_one, wait))
                return wait
            line = self._lines[timeout_s] = _Line(wait.deadline)
            self._timers.at(wait.deadline, partial(self._due, timeout_s))
        queue = line.queue
        while queue and queue[0].delivery is None:
            queue.popleft()
        if wait.deadline < (queue[-1].deadline if queue else line.due_at):
            # A nested ask: its caller's deadline bounds it.
            wait.timer = self._timers.at(wait.deadline, partial(self._expire_one, wait))
            return wait
        queue.append(wait)
        if len(queue) >= line.compact_at:
            _compact(line)
        return wait

    def _due(self, timeout_s: float) -> None:
        """The deadline of the queue's first one, at the latest, has come."""
        line = self._lines[timeout_s]
        queue = line.queue
        now = self._timers.now()
        due: list[Wait] = []
        while queue and (queue[0].delivery is None or queue[0].deadline <= now):
            due.append(queue.popleft())
        if queue:
            line.due_at = queue[0].deadline
            self._timers.at(line.due_at, partial(self._due, timeout_s))
        else:
            del self._lines[timeout_s]
        for wait in due:  # last: what follows from it may begin a wait with the same timeout
            self._expire_one(wait)

    def _expire_one(self, wait: Wait) -> None:
        if wait.delivery is not None:
            self._expire(wait.delivery)


def _compact(line: _Line) -> None:
    waiting = [wait for wait in line.queue if wait.delivery is not None]
    line.queue.clear()
    line.queue.extend(waiting)
    line.compact_at = max(_COMPACT_MIN, 2 * len(waiting))
