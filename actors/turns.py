"""The turn queue of one session: who may extend the conversation now, and who waits. Pure.

A turn is the exclusive right to extend the conversation. It has a number, one greater than the last one, which is a
fence: what comes under an older number came too late and is refused. A write of a single step is a turn too and stands
in the same queue, so that history keeps the order of arrival.

             offer                              finish(number)
    entry ──────────► idle: granted             ──────────► next in line is granted, or idle
                      busy: as OVERLAP_RULES has it

    overlap     where it waits     besides
    queue       behind all
    reject      not at all         refused, naming who runs
    merge       behind all         granted together with those of its group next to it that merge
    debounce    behind all         as merge; its caller offers it when its group has been quiet for a while
    latest      behind all         of its group, those that came before it and wait are superseded
    interrupt   before all         the turn that runs while it waits is stopped, what it has is kept
    rollback    before all         the turn that runs while it waits is stopped and dropped
    steer       behind all         the turn that runs may take it in, see `take_in`
"""

from collections import OrderedDict
from types import MappingProxyType
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

from msgspec import Struct

from .errors import StaleTurn

__all__ = [
    "OVERLAPS",
    "OVERLAP_RULES",
    "WAITING_MAX",
    "Entry",
    "Granted",
    "Outcome",
    "Overlap",
    "OverlapRule",
    "Queued",
    "Refused",
    "Stop",
    "Turn",
    "TurnQueue",
    "check_overlap",
]

T = TypeVar("T")

Overlap = Literal["queue", "reject", "merge", "debounce", "latest", "interrupt", "rollback", "steer"]
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)

Stop = Literal["keep", "drop"]
"""How a turn is stopped for another: what it has written so far becomes history, or does not."""

WAITING_MAX = 1_000
"""Entries that may wait in one session. At a second a turn the last waits a quarter of an hour: more is a mistake."""


class OverlapRule(Struct, frozen=True):
    """What becomes of an entry that comes while a turn runs. The fields are the columns of the table above."""

    waits: bool = True
    first: bool = False
    stops: Stop | None = None
    merges: bool = False
    supersedes: bool = False
    steers: bool = False


OVERLAP_RULES: MappingProxyType[Overlap, OverlapRule] = MappingProxyType(
    {
        "queue": OverlapRule(),
        "reject": OverlapRule(waits=False),
        "merge": OverlapRule(merges=True),
        "debounce": OverlapRule(merges=True),
        "latest": OverlapRule(supersedes=True),
        "interrupt": OverlapRule(first=True, stops="keep"),
        "rollback": OverlapRule(first=True, stops="drop"),
        "steer": OverlapRule(steers=True),
    }
)


def check_overlap(overlap: object) -> Overlap:
    """The policy of this name.

    Raises:
        ValueError: there is none.
    """
    for name in OVERLAPS:
        if name == overlap:
            return name
    raise ValueError(f"there is no overlap policy {overlap!r}: use one of {', '.join(OVERLAPS)}")


class Entry(Struct, Generic[T], frozen=True):
    """One request for a turn.

    Attributes:
        run_id: who asks: the run, or an id of its own for a turn of one step. Unique among those in the queue.
        payload: the caller's own; not looked at.
        overlap: what becomes of it where a turn runs.
        group: those of one group can be merged, or supersede one another.
    """

    run_id: str
    payload: T
    overlap: Overlap = "queue"
    group: str = ""

    @property
    def rule(self) -> OverlapRule:
        """What its policy says."""
        return OVERLAP_RULES[self.overlap]


class Turn(Struct, Generic[T], frozen=True):
    """An entry that holds the turn of this number, together with others that were merged into it."""

    number: int
    entry: Entry[T]
    merged: tuple[Entry[T], ...] = ()


class Granted(Struct, frozen=True):
    """The entry holds the turn of this number, until `finish`."""

    number: int


class Queued(Struct, Generic[T], frozen=True):
    """The entry waits; `position` 1 is next in line. `superseded` were taken out of the queue for it."""

    position: int
    superseded: tuple[Entry[T], ...] = ()


class Refused(Struct, frozen=True):
    """The entry was not taken. `run_id` is who runs; `full` tells a full queue from the caller's own wish."""

    run_id: str
    queue_length: int
    full: bool = False


Outcome: TypeAlias = Granted | Queued[T] | Refused


class TurnQueue(Generic[T]):
    """The turns of one session: at most one running, the others wait in line.

    Calls take constant time, but an offer with `latest`, which looks through all that wait.
    """

    __slots__ = ("_first", "_last_number", "_running", "_steering", "_waiting", "_waiting_max")

    def __init__(self, *, waiting_max: int = WAITING_MAX) -> None:
        # By run id, in order of arrival: those that go before all others, and the others.
        self._first: OrderedDict[str, Entry[T]] = OrderedDict()
        self._waiting: OrderedDict[str, Entry[T]] = OrderedDict()
        self._steering: dict[str, Entry[T]] = {}  # those of them that steer
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
        return (*self._first.values(), *self._waiting.values())

    @property
    def last_number(self) -> int:
        """The number of the last turn that was granted, 0 before the first."""
        return self._last_number

    @property
    def stop(self) -> Stop | None:
        """How the running turn is to be stopped for one that waits; None where it may go on."""
        if self._running is None or not self._first:
            return None
        return next(iter(self._first.values())).rule.stops

    def __len__(self) -> int:
        """How many wait."""
        return len(self._first) + len(self._waiting)

    def holds(self, run_id: str) -> bool:
        """Whether it runs, or waits."""
        running = self._running
        if running is not None and running.entry.run_id == run_id:
            return True
        return run_id in self._waiting or run_id in self._first

    def offer(self, entry: Entry[T]) -> Outcome[T]:
        """Grant the entry a turn where none runs; else do as its policy says.

        Raises:
            ValueError: the run is in the queue already. Nothing changed.
        """
        if self.holds(entry.run_id):
            raise ValueError(f"run {entry.run_id!r} is in the turn queue already: give each request its own id")
        running, rule = self._running, entry.rule
        if running is None:
            return Granted(self._grant(entry).number)
        if not rule.waits:
            return Refused(running.entry.run_id, len(self))
        superseded = self._superseded(entry) if rule.supersedes else ()
        if len(self) - len(superseded) >= self._waiting_max:
            return Refused(running.entry.run_id, len(self), full=True)
        for other in superseded:
            del self._waiting[other.run_id]
        line = self._first if rule.first else self._waiting
        line[entry.run_id] = entry
        if rule.steers:
            self._steering[entry.run_id] = entry
        return Queued(len(line) if rule.first else len(self), superseded)

    def offer_together(self, entries: tuple[Entry[T], ...]) -> Turn[T] | None:
        """Let these of one group, which merge, wait behind all; the turn, where none runs and they are granted it.

        They count as what waits already: the queue takes them even where it is full.
        """
        assert entries
        assert all(entry.rule.merges and not self.holds(entry.run_id) for entry in entries)
        self._waiting.update((entry.run_id, entry) for entry in entries)
        return self._grant_next() if self._running is None else None

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
        return self._grant_next()

    def withdraw(self, run_id: str) -> Entry[T] | None:
        """Take out one who waits, and return it; None where nobody of this id waits (it runs, ended, or never came)."""
        self._steering.pop(run_id, None)
        return self._first.pop(run_id, None) or self._waiting.pop(run_id, None)

    def find(self, run_id: str) -> Entry[T] | None:
        """Who waits under this id, or None."""
        return self._first.get(run_id) or self._waiting.get(run_id)

    def steering(self) -> tuple[Entry[T], ...]:
        """Those who wait and may be taken into the running turn, in order of arrival; they stay in the queue."""
        return tuple(self._steering.values())

    def clear(self) -> tuple[Entry[T], ...]:
        """Take out all who wait, next in line first. The running turn stays."""
        entries = self.waiting
        self._first.clear()
        self._waiting.clear()
        self._steering.clear()
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

    def _superseded(self, entry: Entry[T]) -> tuple[Entry[T], ...]:
        return tuple(other for other in self._waiting.values() if other.rule.supersedes and other.group == entry.group)

    def _grant_next(self) -> Turn[T] | None:
        for line in (self._first, self._waiting):
            if line:
                _, entry = line.popitem(last=False)
                return self._grant(entry)
        return None

    def _grant(self, entry: Entry[T]) -> Turn[T]:
        assert self._running is None, "two turns at once"
        self._last_number += 1
        self._steering.pop(entry.run_id, None)
        self._running = Turn(self._last_number, entry, self._merged_into(entry) if entry.rule.merges else ())
        return self._running

    def _merged_into(self, entry: Entry[T]) -> tuple[Entry[T], ...]:
        """Those next in line that merge with the entry, taken out of it."""
        merged: list[Entry[T]] = []
        while self._waiting:
            following = next(iter(self._waiting.values()))
            if not following.rule.merges or following.group != entry.group:
                break
            merged.append(following)
            del self._waiting[following.run_id]
        return tuple(merged)
