"""Which deltas of a session's turns are on their way to app and to its user, and which may go now. Pure.

Deliveries to one target go out at once, one behind the other, each with the id of the one before that is still on its
way. Where one fails, those behind it are refused there; when all have come back, a pause follows, and then they are
sent again in their order:

    put ──► sent ──► delivered: deleted
              └────► failed ──► (all that were sent have come back) ──► pause ──► sent again
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..store.contract import Row, Table
from .state_records import OUTBOX_CODEC, OutboxRecord, outbox_key

__all__ = ["Outbox", "Sending"]


@dataclass(frozen=True, slots=True)
class Sending:
    """A delivery that goes out now; `after` is the id of the one before it that is on its way, or ""."""

    record: OutboxRecord
    after: str


@dataclass(slots=True)
class _Lane:
    """What is on its way to one target; `halted` from a failure until the pause is over."""

    sent: set[str] = field(default_factory=set[str])
    halted: bool = False
    failures: int = 0


class Outbox:
    """The deliveries of one session, by number, in the order of their turns."""

    def __init__(self, stored: Iterable[tuple[int, OutboxRecord]] = ()) -> None:
        self._records = dict(stored)
        self._last = max(self._records, default=0)
        self._lanes: dict[str, _Lane] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def targets(self) -> list[str]:
        """Those to which something is on its way."""
        return list(dict.fromkeys(record.target for record in self._records.values()))

    def put(self, record: OutboxRecord) -> Row:
        """One more delivery; the row to store."""
        self._last += 1
        self._records[self._last] = record
        return Row(Table.OUTBOX, outbox_key(self._last), OUTBOX_CODEC.encode(record))

    def rows(self) -> list[Row]:
        """All rows, for a stream that was erased."""
        return [
            Row(Table.OUTBOX, outbox_key(number), OUTBOX_CODEC.encode(each)) for number, each in self._records.items()
        ]

    def send(self, target: str) -> list[Sending]:
        """What may go to this target now, in order; it has gone from then on."""
        lane = self._lane(target)
        if lane.halted:
            return []
        sendings: list[Sending] = []
        after = ""
        for record in self._records.values():
            if record.target != target:
                continue
            if record.id not in lane.sent:
                lane.sent.add(record.id)
                sendings.append(Sending(record, after))
            after = record.id
        return sendings

    def delivered(self, target: str, id: str) -> Row | None:
        """It was applied there: the row to delete; None where that was known."""
        lane = self._lane(target)
        lane.sent.discard(id)
        if not lane.halted:
            lane.failures = 0
        for number, record in self._records.items():
            if record.id == id and record.target == target:
                del self._records[number]
                return Row(Table.OUTBOX, outbox_key(number), None)
        return None

    def failed(self, target: str, id: str) -> None:
        """It was not applied, or nobody knows."""
        lane = self._lane(target)
        lane.sent.discard(id)
        if not lane.halted:
            lane.halted = True
            lane.failures += 1

    def pause_due(self, target: str) -> int:
        """How often in a row deliveries have failed, where a pause is to begin now; else 0."""
        lane = self._lane(target)
        return lane.failures if lane.halted and not lane.sent else 0

    def pause_over(self, target: str) -> None:
        """They may be sent again."""
        self._lane(target).halted = False

    def _lane(self, target: str) -> _Lane:
        return self._lanes.setdefault(target, _Lane())
