"""One group commit folded into what it does to each stream, for stores that commit by one request to a server.

The batches of a group build on each other: what the first of a stream leaves is what the second must have been built
on. Folded, a group is one condition and one change a stream, so that a server checks and writes all of it in one go,
however many batches there are. Pure: what the streams stand at is passed in, or assumed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from .batch import Batch, Index, Table
from .contract import Refusal
from .errors import Conflict, Fenced

__all__ = ["Folded", "Guard", "StreamChange", "fold", "refusals"]


class Guard(Struct, frozen=True, gc=False):
    """What a stream stands at; both are 0 where it was never written."""

    epoch: int
    version: int


@dataclass(slots=True)
class StreamChange:
    """What the accepted batches of one stream do together.

    Attributes:
        built_on: the version at which the stream must stand, 0 for one that must not exist.
        epoch_max: the newest epoch that it may have seen.
        epoch, version: what it stands at afterwards.
        head: the new head; None keeps the old one.
        erase: first drop all rows and index entries that are stored.
        rows: the last write to each row; None deletes it.
        entries: whether each index entry is there afterwards.
    """

    built_on: int
    epoch_max: int
    epoch: int
    version: int
    head: bytes | None = None
    erase: bool = False
    rows: dict[tuple[Table, bytes], bytes | None] = field(default_factory=dict[tuple[Table, bytes], bytes | None])
    entries: dict[tuple[Index, bytes], bool] = field(default_factory=dict[tuple[Index, bytes], bool])

    def take(self, batch: Batch) -> None:
        """Let it do what this batch does as well, which was accepted after all others."""
        self.epoch, self.version = batch.epoch, batch.version + 1
        if batch.erase:
            self.erase, self.head = True, b""
            self.rows.clear()
            self.entries.clear()
        if batch.head is not None:
            self.head = batch.head
        for row in batch.rows:
            self.rows[row.table, row.key] = row.value
        for entry in batch.index_rows:
            self.entries[entry.index, entry.value] = entry.present


@dataclass(slots=True)
class Folded:
    """A group: an answer a batch, and the changes of the streams that have any, by their names in order of arrival."""

    answers: list[Refusal | None]
    changes: dict[str, StreamChange]


def fold(batches: Sequence[Batch], guards: Mapping[str, Guard] | None = None) -> Folded:
    """The group as it ends where the streams stand at `guards`; those that are missing there were never written.

    Without `guards`, where each stream stands at what its first batch was built on: true of nearly every group, and
    checked by the store when it writes.

    Cost: about 1 us a batch, and 0.1 us more a row.
    """
    assumed = guards is None
    now: dict[str, Guard] = {} if guards is None else dict(guards)
    answers: list[Refusal | None] = []
    changes: dict[str, StreamChange] = {}
    for batch in batches:
        guard = now.get(batch.stream)
        if guard is None:
            guard = Guard(batch.epoch, batch.version) if assumed else Guard(0, 0)
        refusal = _refusal(batch, guard)
        answers.append(refusal)
        if refusal is not None:
            now[batch.stream] = guard
            continue
        now[batch.stream] = Guard(batch.epoch, batch.version + 1)
        change = changes.get(batch.stream)
        if change is None:
            change = changes[batch.stream] = StreamChange(batch.version, batch.epoch, batch.epoch, batch.version)
        change.take(batch)
    return Folded(answers, changes)


def refusals(answers: Iterable[Refusal | None]) -> int:
    """How many of a group's batches were refused."""
    return sum(answer is not None for answer in answers)


def _refusal(batch: Batch, guard: Guard) -> Refusal | None:
    if batch.epoch < guard.epoch:
        return Fenced(batch.stream, epoch=batch.epoch, stored_epoch=guard.epoch)
    if batch.version != guard.version:
        return Conflict(batch.stream, version=batch.version, stored_version=guard.version)
    return None
