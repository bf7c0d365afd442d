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

from .envelope import SETTLED, Delivery
from .timers import Timers

__all__ = ["Deadlines"]

_COMPACT_MIN = 128
_QUEUES_MAX = 64


class Deadlines:
    """See the module's text. `expire` is called with each delivery that is not settled when its deadline comes."""

    def __init__(self, timers: Timers, expire: Callable[[Delivery], None]) -> None:
        self._timers = timers
        self._expire = expire
        self._queues: dict[float, deque[Delivery]] = {}
        self._due_at: dict[float, float] = {}
        self._compact_at: dict[float, int] = {}

    def add(self, timeout_s: float, delivery: Delivery) -> None:
        """Watch over `delivery.deadline`, a finite time that is about `timeout_s` seconds from now."""
        queue = self._queues.get(timeout_s)
        if queue is None:
            if len(self._queues) >= _QUEUES_MAX:  # every ask has another timeout: then each has its own timer
                self._timers.at(delivery.deadline, partial(self._expire_one, delivery))
                return
            queue = self._queues[timeout_s] = deque()
            self._compact_at[timeout_s] = _COMPACT_MIN
            self._wake_at(timeout_s, delivery.deadline)
        while queue and queue[0].phase is SETTLED:
            queue.popleft()
        if delivery.deadline < (queue[-1].deadline if queue else self._due_at[timeout_s]):
            # A nested ask: its caller's deadline bounds it.
            self._timers.at(delivery.deadline, partial(self._expire_one, delivery))
            return
        queue.append(delivery)
        if len(queue) >= self._compact_at[timeout_s]:
            self._compact(timeout_s, queue)

    def _wake_at(self, timeout_s: float, when: float) -> None:
        self._due_at[timeout_s] = when
        self._timers.at(when, partial(self._due, timeout_s))

    def _due(self, timeout_s: float) -> None:
        """The deadline of the queue's first one, at the latest, has come."""
        queue = self._queues[timeout_s]
        now = self._timers.now()
        due: list[Delivery] = []
        while queue and (queue[0].phase is SETTLED or queue[0].deadline <= now):
            due.append(queue.popleft())
        if queue:
            self._wake_at(timeout_s, queue[0].deadline)
        else:
            del self._queues[timeout_s], self._compact_at[timeout_s], self._due_at[timeout_s]
        for delivery in due:  # last: what follows from it may begin a wait with the same timeout
            self._expire_one(delivery)

    def _expire_one(self, delivery: Delivery) -> None:
        if delivery.phase is not SETTLED:
            self._expire(delivery)

    def _compact(self, timeout_s: float, queue: deque[Delivery]) -> None:
        waiting = [delivery for delivery in queue if delivery.phase is not SETTLED]
        queue.clear()
        queue.extend(waiting)
        self._compact_at[timeout_s] = max(_COMPACT_MIN, 2 * len(waiting))
