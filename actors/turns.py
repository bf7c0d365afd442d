"""The turn queue of one session: who may extend the conversation now, and who waits. Pure.

A turn is the exclusive right to extend the conversation. It has a number, one greater than the last one, which is a
fence: what comes under an older number came too late and is refused. A plain append is a turn of one step and stands in
the same queue, so that history keeps the order of arrival.

             offer                              finish(number)
    entry ──────────► idle: granted             ──────────► next in line is granted, or idle
                      busy: _BUSY_RULES[overlap]
                            queue   waits, first in first out, up to `waiting_max`
                            reject  refused, naming who runs

Further overlap policies (merge, latest, interrupt, ...) are further rows of _BUSY_RULES, and outcomes beside these.
"""

from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

from msgspec import Struct

from .errors import StaleTurn

__all__ = [
    "OVERLAPS",
    "WAITING_MAX",
    "Entry",
    "Granted",
    "Outcome",
    "Overlap",
    "Queued",
    "Refused",
    "Turn",
    "TurnQueue",
]

T = TypeVar("T")

Overlap = Literal["queue", "reject"]
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)

WAITING_MAX = 1_000
"""Entries that may wait in one session. At a second a turn the last waits a quarter of an hour: more is a mistake."""


class Entry(Struct, Generic[T], frozen=True):
    """One request for a turn.

    Attributes:
        run_id: who asks: the run, or an id of its own for a turn of one step. Unique among those in the queue.
        payload: the caller's own; not looked at.
    """

    run_id: str
    payload: T


class Turn(Struct, Generic[T], frozen=True):
    """An entry that holds the turn of this number."""

    number: int
    entry: Entry[T]


class Granted(Struct, frozen=True):
    """The entry holds the turn of this number, until `finish`."""

    number: int


class Queued(Struct, frozen=True):
    """The entry waits; `position` 1 is next in line."""

    position: int


class Refused(Struct, frozen=True):
    """The entry was not taken. `run_id` is who runs; `full` tells a full queue from the caller's own wish."""

    run_id: str
    queue_length: int
    full: bool = False


Outcome: TypeAlias = Granted | Queued | Refused


def _queue(running_id: str, queue_length: int, waiting_max: int) -> Queued | Refused:
    if queue_length >= waiting_max:
        return Refused(running_id, queue_length, full=True)
    return Queued(queue_length + 1)


def _reject(running_id: str, queue_length: int, _waiting_max: int) -> Queued | Refused:
    return Refused(running_id, queue_length)


# What becomes of an entry that comes while a turn runs: (who runs, how many wait, how many may) -> outcome.
_Rule: TypeAlias = Callable[[str, int, int], Queued | Refused]
_BUSY_RULES: MappingProxyType[str, _Rule] = MappingProxyType({"queue": _queue, "reject": _reject})


class TurnQueue(Generic[T]):
    """The turns of one session: at most one running, the others first in, first out. Calls take constant time."""

    __slots__ = ("_last_number", "_running", "_waiting", "_waiting_max")

    def __init__(self, *, waiting_max: int = WAITING_MAX) -> None:
        self._waiting: OrderedDict[str, Entry[T]] = OrderedDict()  # by run id, in order of arrival
        self._running: Turn[T] | None = None
        self._last_number = 0
        self._waiting_max = waiting_max

    @property
    def running(self) -> Turn[T] | None:
        """The turn that runs, or None."""
        return self._running

    @property
    def waiting(self) -> tuple[Entry[T], ...]:
        """Those who wait, next in line first."""
        return tuple(self._waiting.values())

    @property
    def last_number(self) -> int:
        """The number of the last turn that was granted, 0 before the first."""
        return self._last_number

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def offer(self, entry: Entry[T], overlap: Overlap = "queue") -> Outcome:
        """Grant the entry a turn where none runs; else do as `overlap` says.

        Raises:
            ValueError: there is no such overlap policy, or the run is in the queue already. Nothing changed.
        """
        rule = _BUSY_RULES.get(overlap)
        if rule is None:
            raise ValueError(f"there is no overlap policy {overlap!r}: use one of {', '.join(OVERLAPS)}")
        running = self._running
        if entry.run_id in self._waiting or (running is not None and running.entry.run_id == entry.run_id):
            raise ValueError(f"run {entry.run_id!r} is in the turn queue already: give each request its own id")
        if running is None:
            return Granted(self._grant(entry).number)
        outcome = rule(running.entry.run_id, len(self._waiting), self._waiting_max)
        if isinstance(outcome, Queued):
            self._waiting[entry.run_id] = entry
        return outcome

    def pass_by(self) -> int | None:
        """Grant a turn that is over at once: its number; None where it would have to wait. As `offer` and `finish`."""
        if self._running is not None:
            return None
        self._last_number += 1
        return self._last_number

    def check(self, number: int) -> Turn[T]:
        """The running turn, which is the one of this number.

        Raises:
            StaleTurn: it is over, or was never granted.
        """
        if self._running is None or self._running.number != number:
            now = "none runs" if self._running is None else f"turn {self._running.number} runs"
            raise StaleTurn(f"turn {number} is over ({now}, the last one was {self._last_number}): this came too late")
        return self._running

    def finish(self, number: int) -> Turn[T] | None:
        """End the running turn; the next in line is granted its turn, which is returned, or None where none waits.

        Raises:
            StaleTurn: the running turn is another one. Nothing changed.
        """
        self.check(number)
        self._running = None
        if not self._waiting:
            return None
        _, entry = self._waiting.popitem(last=False)
        return self._grant(entry)

    def withdraw(self, run_id: str) -> Entry[T] | None:
        """Take out one who waits, and return it; None where nobody of this id waits (it runs, ended, or never came)."""
        return self._waiting.pop(run_id, None)

    def clear(self) -> tuple[Entry[T], ...]:
        """Take out all who wait, next in line first. The running turn stays."""
        entries = self.waiting
        self._waiting.clear()
        return entries

    def restore(self, last_number: int) -> None:
        """Go on counting behind `last_number`, which the store had. Only for a queue that was not used yet."""
        assert self._running is None, "restore comes before the first turn"
        assert last_number >= self._last_number, "turn numbers never go back"
        self._last_number = last_number

    def restore_running(self, number: int, entry: Entry[T]) -> None:
        """Go on with a turn that ran before its session was loaded anew. Only for a queue that was not used yet."""
        assert self._running is None, "restore comes before the first turn"
        assert number <= self._last_number, "a turn that runs was granted"
        self._running = Turn(number, entry)

    def _grant(self, entry: Entry[T]) -> Turn[T]:
        assert self._running is None, "two turns at once"
        self._last_number += 1
        self._running = Turn(self._last_number, entry)
        return self._running
