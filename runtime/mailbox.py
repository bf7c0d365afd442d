"""The queue of one actor id. Pure: no await, no clock, so that every change happens in one piece.

Two lanes: *control* is unbounded, goes first and is meant for a few small messages of the kernel; *user* is FIFO and
bounded by count and by bytes. What finds the user lane full waits in the *lobby*, in order, and moves in as space
comes; its sender knows by `Delivery.admitted`. A delivery that was given up is a tombstone: it counts no more and is
skipped.

A mailbox belongs to the id, not to an activation: it outlives restarts, and `put_back` restores the order. It is made
for the first message that has to wait; most actors never have one.
"""

from collections import deque
from collections.abc import Iterator
from enum import Enum, auto

from .envelope import QUEUED, Delivery

__all__ = ["FULL", "IN", "MAILBOX_BYTES_MAX", "MAILBOX_COUNT_MAX", "WAITING", "Mailbox", "Offered"]

MAILBOX_COUNT_MAX = 128
MAILBOX_BYTES_MAX = 8 * 1024 * 1024


class Offered(Enum):
    """What became of a delivery that was offered."""

    IN = auto()
    WAITING = auto()
    FULL = auto()


IN, WAITING, FULL = Offered  # globals, as with Phase


class Mailbox:
    """See the module's text.

    Attributes:
        length: all that is queued, lobby included, tombstones not.
        count, size_bytes: those of the user lane, without tombstones.
    """

    __slots__ = ("_bytes_max", "_control", "_count_max", "_lobby", "_user", "count", "length", "size_bytes")

    def __init__(self, *, count_max: int = MAILBOX_COUNT_MAX, bytes_max: int = MAILBOX_BYTES_MAX) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._control: deque[Delivery] = deque()
        self._user: deque[Delivery] = deque()
        self._lobby: deque[Delivery] = deque()
        self.count = 0
        self.size_bytes = 0
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Delivery]:
        """The live deliveries, in the order in which they will be taken."""
        return (d for lane in (self._control, self._user, self._lobby) for d in lane if d.phase is QUEUED)

    @property
    def empty(self) -> bool:
        """True where not even a tombstone is left."""
        return not (self._control or self._user or self._lobby)

    @property
    def waiting(self) -> int:
        """How many deliveries wait for space."""
        return len(self._lobby)

    def offer(self, delivery: Delivery, *, wait: bool = True) -> Offered:
        """Queue a delivery at the end of the user lane, in the lobby where that is full, or say FULL if not `wait`."""
        if not self._lobby and self._fits(delivery):
            self.length += 1
            self._admit(delivery)
            return IN
        if not wait:
            return FULL
        self.length += 1
        self._lobby.append(delivery)
        return WAITING

    def drop_oldest(self) -> Delivery | None:
        """Take out the oldest message of the user lane that nobody awaits, to make space; None where there is none.

        The space is for those who wait for it, where there are any.
        """
        for delivery in self._user:
            if delivery.phase is QUEUED and not delivery.awaited:
                self._user.remove(delivery)
                self._count(delivery, -1)
                self.length -= 1
                self._move_in()
                return delivery
        return None

    def offer_control(self, delivery: Delivery) -> None:
        """Queue a delivery that goes before every user message."""
        delivery.admitted = True
        self.length += 1
        self._control.append(delivery)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Queue these again before all others, in their own order, whatever the bound says: they were in before."""
        self.length += len(deliveries)
        for delivery in reversed(deliveries):
            self._user.appendleft(delivery)
            self._count(delivery, 1)

    def take(self) -> Delivery | None:
        """The next live delivery, or None. Space that comes free is given to the lobby."""
        while self._control:
            delivery = self._control.popleft()
            if delivery.phase is QUEUED:
                self.length -= 1
                return delivery
        while self._user:
            delivery = self._user.popleft()
            if delivery.phase is not QUEUED:
                continue
            self.length -= 1
            self.count -= 1
            self.size_bytes -= delivery.size_bytes
            if self._lobby:
                self._move_in()
            return delivery
        return None

    def bury(self, delivery: Delivery) -> None:
        """A delivery of the user lane or the lobby was given up: count it no more. Call it before settling."""
        self.length -= 1
        if delivery.admitted:
            self._count(delivery, -1)
            if len(self._user) > 2 * self.count + 16:  # callers that give up while a handler hangs must not pile up
                self._user = deque(d for d in self._user if d.phase is QUEUED and d is not delivery)
        else:
            self._lobby.remove(delivery)
        self._move_in()

    def clear(self, *, control: bool = True) -> list[Delivery]:
        """Empty it, or all of it but the control lane; the live deliveries that were in it, in order."""
        lanes = (self._control, self._user, self._lobby) if control else (self._user, self._lobby)
        live = [d for lane in lanes for d in lane if d.phase is QUEUED]
        for lane in lanes:
            lane.clear()
        self.length -= len(live)
        self.count = self.size_bytes = 0
        return live

    def _fits(self, delivery: Delivery) -> bool:
        # One message larger than the whole bound still goes into an empty mailbox, or it could never be delivered.
        count = self.count
        return count < self._count_max and (self.size_bytes + delivery.size_bytes <= self._bytes_max or count == 0)

    def _count(self, delivery: Delivery, sign: int) -> None:
        self.count += sign
        self.size_bytes += sign * delivery.size_bytes

    def _admit(self, delivery: Delivery) -> None:
        self._user.append(delivery)
        self.count += 1
        self.size_bytes += delivery.size_bytes
        delivery.admitted = True
        if delivery.waker is not None:
            delivery.waker.wake()

    def _move_in(self) -> None:
        while self._lobby and self._fits(self._lobby[0]):
            self._admit(self._lobby.popleft())
