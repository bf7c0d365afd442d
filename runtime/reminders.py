"""Durable reminders: what is set with `context.remind` comes as a Reminder signal, also after a restart or a crash.

    index REMINDER_DUE  ──scan, a page at a time──>  taken  ──signal──>  the actor's handler
       ^                                              │  ^                     │
       │                                              │  └── its row is as it was: again, after a delay
       └───────── the row is moved on, or deleted, in the batch of the handler ┘

The index is the queue: beside what is due and unfinished (*taken*), memory holds only the time of the next entry behind
the place up to which the index was taken. So a hundred thousand reminders cost one timer, and start-up reads one page.

At least once: what the handler stages has the row moved on as well (reminding.py). Until that batch is durable the row
says that the reminder is due, whoever dies meanwhile; afterwards it says that it is not. What became of a firing is
never guessed from its outcome: once it is settled, the row is read again.

At most one firing of a reminder at a time: what is taken is not taken again. And one of an actor: its next is sent when
the loop has come round. So reminders that keep their actor busier than their periods allow for still let every other
message be one of others, although signals go before those.

Source: Orleans reminders; here the acknowledgement is in the handler's own transaction.
"""

import logging
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..store.contract import Index
from ..store.errors import StoreError
from .budget import Backoff
from .errors import Rejected
from .identity import ActorId
from .reminder_records import ReminderRecord, due_entry, read_reminder
from .signals import Reminder

if TYPE_CHECKING:
    from .context import Host
    from .envelope import Delivery
    from .timers import Timer

__all__ = ["RETRYING_MAX", "TAKEN_MAX", "Reminders"]

_log = logging.getLogger("callboard.reminders")

TAKEN_MAX = 1024
"""Reminders that are due and unfinished at one time; more wait in the index."""
RETRYING_MAX = 768
"""Of these, so many may wait for another attempt; what fails beyond is put off, or it would keep all others waiting."""
PAGE = 256
"""Entries of the index read, and signals sent, before the event loop goes round: well under a millisecond to read."""
PUT_OFF_S = 300.0

BACKOFF = Backoff(first_s=5.0, max_s=300.0)
"""Before the next attempt, at least half of it: at most five attempts in any 60 s, so that a reminder whose handler
always crashes does not by itself spend the restart budget, which is that of RestartPolicy by default."""

Key = tuple[str, str]
"""Stream and name of a reminder."""


class Reminders:
    """Fires the reminders of all actors of a runtime. See the module's text.

    A handler that hangs keeps its place among the TAKEN_MAX; so many of them would keep back all other reminders.
    """

    def __init__(self, host: "Host", *, chance: Callable[[], float] = random.random) -> None:
        self._host = host
        self._chance = chance
        self._open = False
        self._taken: dict[Key, int] = {}  # with the number of attempts that came to nothing
        self._retrying: dict[Key, Timer] = {}
        self._lines: dict[str, deque[Key]] = {}  # by stream that has a firing: those that wait for its end
        self._after: bytes | None = None  # the place in the index up to which all is taken, or is gone
        self._passed_ms = -1  # the time of the entry there
        self._wake_ms = 0
        self._timer: Timer | None = None
        self._full = False
        self._putting_off = False

    def start(self) -> None:
        """Fire from now on. What is overdue goes first, once the event loop has come round: kinds may come until then.

        Raises:
            StoreError: the index cannot be read.
        """
        self._open = True
        for key in self._take():
            self._fire_in(0, key)

    def stop(self) -> None:
        """Fire no more, for good. What was fired and is not handled will come again in the next process."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()

    def stored(self, id: ActorId, record: ReminderRecord) -> None:
        """An actor has set this, and it is durable."""
        key = (str(id), record.name)
        if key in self._retrying:  # what failed was the old one
            self._retrying.pop(key).cancel()
            self._left(key)
        if key in self._taken:
            return  # the row is read again when that firing is settled
        if record.due_ms > self._passed_ms:
            self._wake_by(record.due_ms)
        elif len(self._taken) < TAKEN_MAX:
            self._taken[key] = 0
            self._fire_in(0, key)
        else:
            self._rewind()

    def _wake_by(self, due_ms: int) -> None:
        """Look at the index when `due_ms` has come, or before."""
        if not self._open or (self._timer is not None and self._wake_ms <= due_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wake_ms = due_ms
        delay_s = max(0, due_ms - self._host.wall_ms()) / 1000
        self._timer = self._host.at(self._host.now() + delay_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        try:
            due = self._take()
        except StoreError as error:
            delay_s = self._delay_s(1)
            _log.warning("which reminders are due cannot be read, it is tried again in %.1f s: %s", delay_s, error)
            self._wake_by(self._host.wall_ms() + int(delay_s * 1000))
            return
        for key in due:  # after the place was moved on: a handler runs in place, and may rewind it
            self._fire(key)

    def _take(self) -> list[Key]:
        """Take the next page of what is due, and see to it that the rest is looked at in time."""
        now_ms = self._host.wall_ms()
        due: list[Key] = []
        hits = self._host.store.scan_index(Index.REMINDER_DUE, after=self._after, limit=PAGE)
        for hit in hits:
            try:
                due_ms, name = due_entry(hit.value)
            except ValueError as error:
                _log.error("left out: an entry of %r in the index of reminders cannot be read: %s", hit.stream, error)
                self._after = hit.position
                continue
            if due_ms > now_ms:
                self._wake_by(due_ms)
                return due
            key = (hit.stream, name)
            if key not in self._taken:
                self._full = len(self._taken) >= TAKEN_MAX
                if self._full:
                    return due  # whoever leaves calls again
                self._taken[key] = 0
                due.append(key)
            self._after, self._passed_ms = hit.position, due_ms
        if len(hits) == PAGE:
            self._wake_by(now_ms)
        return due

    def _rewind(self) -> None:
        """Take the index from its beginning again; what is taken is passed over."""
        self._after = None
        self._passed_ms = -1
        self._full = True

    def _left(self, key: Key) -> None:
        del self._taken[key]
        if self._full:
            self._full = False
            self._wake_by(self._host.wall_ms())

    def _fire_in(self, delay_s: float, key: Key) -> "Timer":
        return self._host.at(self._host.now() + delay_s, partial(self._fire, key))

    def _fire(self, key: Key) -> None:
        """Send the signal of a reminder that is taken, or queue it where its actor has one."""
        self._retrying.pop(key, None)
        line = self._lines.get(key[0])
        if line is not None:
            line.append(key)
        else:
            self._lines[key[0]] = deque()
            self._send(key)

    def _send(self, key: Key) -> None:
        if not self._open:
            return
        stream, name = key
        try:
            record = read_reminder(self._host.store, *key)
            if record is None or record.due_ms > self._host.wall_ms():
                self._done(key, record)
            else:
                kind, _, actor_key = stream.partition(":")
                signal = Reminder(name=name, due_ms=record.due_ms, missed=record.missed(self._host.wall_ms()))
                settled = partial(self._settled, key, record.due_ms)
                self._host.signal(ActorId(kind, actor_key), signal, on_settled=settled)
                return
        except (StoreError, Rejected) as error:
            self._failed(key, error)
        self._next(stream)

    def _settled(self, key: Key, due_ms: int, delivery: "Delivery") -> None:
        """A firing has its outcome; what that was, the row says."""
        if not self._open:
            return
        try:
            record = read_reminder(self._host.store, *key)
            if record is not None and record.due_ms == due_ms:
                self._failed(key, delivery.error)
            else:
                self._done(key, record)
        except StoreError as error:
            self._failed(key, error)
        self._next(key[0])

    def _next(self, stream: str) -> None:
        """The actor is free for its next reminder, after the messages that it may have; see the module's text."""
        if self._lines[stream]:
            self._host.at(self._host.now(), partial(self._send, self._lines[stream].popleft()))
        else:
            del self._lines[stream]

    def _done(self, key: Key, record: ReminderRecord | None) -> None:
        """A firing is over: gone, or to come at another time, which a scan from the present place may not find."""
        if record is not None and record.due_ms <= self._passed_ms:
            self._taken[key] = 0
            self._fire_in(0, key)
            return
        self._left(key)
        if record is not None:
            self._wake_by(record.due_ms)

    def _failed(self, key: Key, error: BaseException | None) -> None:
        """The reminder is still due: again after a delay, or with all that is in the index where too many wait so."""
        failures = self._taken[key] + 1
        put_off = len(self._retrying) >= RETRYING_MAX
        delay_s = PUT_OFF_S if put_off else self._delay_s(failures)
        _log.warning("reminder %r of %s was not handled, it comes again in %.1f s: %r", key[1], key[0], delay_s, error)
        if not put_off:
            self._taken[key] = failures
            self._retrying[key] = self._fire_in(delay_s, key)
            return
        if not self._putting_off:
            self._putting_off = True
            self._host.at(self._host.now() + delay_s, self._take_up)
        self._left(key)

    def _take_up(self) -> None:
        self._putting_off = False
        self._rewind()
        self._wake_by(self._host.wall_ms())

    def _delay_s(self, failures: int) -> float:
        return BACKOFF.delay_s(failures, (1 + self._chance()) / 2)
