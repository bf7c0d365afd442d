"""What the log holds that the rows do not have yet, in memory: the tail of each stream. Pure.

A commit is only a record in the log. Its batches stay here, as the *tails* of their streams, until a checkpoint has
moved them into rows. Whoever reads lays the tail over the rows: a tail is the whole end of its stream's history, so
that its last write of a key is the truth, whatever the rows say. For that reason a replayed log is right without a look
at the rows, even where a checkpoint had moved some of it before the process died.

`decide` runs ahead of the disk, in the committer's thread: `Stream.epoch` and `version` are those of the transaction in
the making. `apply` makes it what everybody sees, `undo` takes it back. What readers use (`batches`, `head`) changes in
`apply` and `dropped` alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .batch import Batch, Table
from .contract import Head, Refusal
from .errors import Conflict, Corrupt, Fenced
from .index_overlay import IndexOverlay
from .overlay import Overlay

__all__ = ["Guard", "Log", "Stream"]

Guard = tuple[int, int, int]
"""A stream's number, epoch and version."""


@dataclass(slots=True)
class Stream:
    """One stream as the writer knows it.

    Attributes:
        number: its number in all keys.
        epoch, version: its guard, as of the transaction in the making.
        batches: its tail, oldest first.
        head: its head, where the tail has brought one; None where the stored one is right.
    """

    name: str
    number: int
    epoch: int
    version: int
    batches: list[Batch] = field(default_factory=list[Batch])
    head: bytes | None = None
    _erased_at: int = -1
    _tables: dict[Table, Overlay] | None = None
    _seen: int = 0
    _dropped: int = 0

    @property
    def erased(self) -> bool:
        """True where the tail erases what the rows have."""
        return self._erased_at >= 0

    def tables(self) -> dict[Table, Overlay]:
        """The tail's rows by table, kept for the next reader. Cost: that of the batches since the last call."""
        if self._tables is None:
            self._tables = {}
        for batch in self.batches[self._seen :]:
            if batch.erase:
                self._tables.clear()
            for row in batch.rows:
                overlay = self._tables.get(row.table)
                if overlay is None:
                    overlay = self._tables[row.table] = Overlay()
                overlay.put(row.key, row.value)
        self._seen = len(self.batches)
        return self._tables

    def guard(self) -> Head | None:
        """Epoch, version and head as of the tail's end; None where there is no tail or no head in it."""
        if not self.batches or self.head is None:
            return None
        last = self.batches[-1]
        return Head(last.epoch, last.version + 1, self.head)

    def append(self, batch: Batch) -> None:
        if batch.erase:
            self.head = b""
            self._erased_at = len(self.batches)
        if batch.head is not None:
            self.head = batch.head
        self.batches.append(batch)

    def drop(self, count: int) -> None:
        """The first `count` batches are in the rows now."""
        del self.batches[:count]
        self._erased_at = max(self._erased_at - count, -1)
        self._seen = max(self._seen - count, 0)  # what was laid may stay: it is in the rows as well, and no newer
        self._dropped += count
        if self._dropped > len(self.batches):  # not for ever, or a stream that never rests is held in memory whole
            self._tables, self._seen, self._dropped = None, 0, 0
        if not self.batches:
            self.head = None


INDEX_ENTRIES_READ_MAX = 200_000
"""A reader's overlay of more entries than this is made anew from the tails, some 20 MB."""


class Log:
    """All streams of one store that are known, and the transaction in the making.

    Args:
        last_segment: the number of the last record that was deleted before.
        reading: True for one that follows another process's log, and learns from it alone what has got into the rows.

    Attributes:
        streams: how many streams there are, those of the transaction in the making included; the greatest number.
        segments: number and bytes of each of its records on disk, oldest first; `size_bytes` of all.
        last_segment: the number of the last record that it ever had.
        accepted: the batches of the transaction in the making.
        created: the streams that it makes.
    """

    def __init__(self, *, last_segment: int = 0, reading: bool = False) -> None:
        self.streams = 0
        self.last_segment = last_segment
        self.size_bytes = 0
        self.segments: deque[tuple[int, int]] = deque()
        self.accepted: list[Batch] = []
        self.created: list[Stream] = []
        self._known: dict[str, Stream] = {}
        self._touched: list[tuple[Stream, int]] = []
        # The second one has all since the round began. When the round ends that is all that the rows do not have.
        self._index: IndexOverlay | None = None
        self._next_index: IndexOverlay | None = None
        self._index_wanted = False
        self._brought: deque[list[Stream]] | None = deque() if reading else None
        self._tails: dict[str, Stream] = {}

    def __getitem__(self, name: str) -> Stream:
        return self._known[name]

    def get(self, name: str) -> Stream | None:
        """The stream of this name, where it is known; it may exist all the same."""
        return self._known.get(name)

    def add_segment(self, number: int, size_bytes: int) -> None:
        """The log has one record more on disk."""
        self.segments.append((number, size_bytes))
        self.last_segment = number
        self.size_bytes += size_bytes

    def drop_segments(self, count: int) -> None:
        """The log has lost its oldest records on disk."""
        for _ in range(count):
            self.size_bytes -= self.segments.popleft()[1]

    def with_tail(self) -> list[Stream]:
        """The streams that have batches which the rows do not."""
        return list(self._tails.values())

    def drop(self, stream: Stream, count: int) -> None:
        """The first `count` batches of a stream's tail are in the rows now."""
        stream.drop(count)
        if not stream.batches:
            del self._tails[stream.name]

    def decide(self, batches: Sequence[Batch], stored: Callable[[str], Guard | None]) -> list[Refusal | None]:
        """Accept each batch into the transaction, or say why not.

        `stored` finds the guard of a stream that is not known here; None where it was never written.

        Cost: 0.4 us a batch of a known stream.
        """
        answers: list[Refusal | None] = []
        for batch in batches:
            stream = self._known.get(batch.stream)
            if stream is None:
                try:
                    stream = self._find(batch.stream, stored)
                except Corrupt as error:  # the others of this transaction are not to suffer
                    answers.append(error)
                    continue
            epoch, version = stream.epoch, stream.version
            if batch.epoch < epoch:
                answers.append(Fenced(batch.stream, epoch=batch.epoch, stored_epoch=epoch))
                continue
            if batch.version != version:
                answers.append(Conflict(batch.stream, version=batch.version, stored_version=version))
                continue
            if not stream.number:
                self._create(stream)
            self._touched.append((stream, epoch))
            stream.epoch, stream.version = batch.epoch, version + 1
            self.accepted.append(batch)
            answers.append(None)
        return answers

    def _find(self, name: str, stored: Callable[[str], Guard | None]) -> Stream:
        guard = stored(name)
        if guard is None:
            return Stream(name, 0, 0, 0)
        stream = self._known[name] = Stream(name, *guard)
        return stream

    def _create(self, stream: Stream) -> None:
        self.streams += 1
        stream.number = self.streams
        self.created.append(stream)
        self._known[stream.name] = stream

    def undo(self) -> None:
        """The transaction did not happen."""
        for (stream, epoch), batch in zip(reversed(self._touched), reversed(self.accepted), strict=True):
            stream.epoch, stream.version = epoch, batch.version
        for stream in self.created:
            del self._known[stream.name]
        self.streams -= len(self.created)
        self._begin_anew()

    def apply(self) -> None:
        """The transaction is durable: from now on it is what readers see. Cost: 0.2 us a batch."""
        for (stream, _), batch in zip(self._touched, self.accepted, strict=True):
            if not stream.batches:
                self._tails[stream.name] = stream
            stream.append(batch)
        for index in (self._index, self._next_index):
            if index is not None:
                for (stream, _), batch in zip(self._touched, self.accepted, strict=True):
                    index.put(stream.number, batch)
        self._begin_anew()

    def replay(self, batches: Sequence[Batch], number_of: Callable[[str], int | None]) -> list[Corrupt]:
        """Take over what a segment of the log holds, in order; it was accepted when it was written.

        Returns: for each batch that was left out, why: the number of its stream cannot be read.

        Of what is stored only the streams' numbers are asked for: a guard that cannot be read keeps nothing back.
        """
        errors: list[Corrupt] = []
        brought: list[Stream] = []
        if self._brought is not None:
            self._brought.append(brought)
        for batch in batches:
            stream = self._known.get(batch.stream)
            if stream is None:
                try:
                    number = number_of(batch.stream)
                    if number is None:
                        raise Corrupt(
                            f"number of stream {batch.stream!r}", "it is missing, and the log has a batch of it"
                        )
                except Corrupt as error:
                    errors.append(error)
                    continue
                stream = self._known[batch.stream] = Stream(batch.stream, number, 0, 0)
            stream.epoch, stream.version = batch.epoch, batch.version + 1
            if not stream.batches:
                self._tails[stream.name] = stream
            stream.append(batch)
            brought.append(stream)
            if self._index is not None:
                self._index.put(stream.number, batch)
        return errors

    def _begin_anew(self) -> None:
        self.accepted, self.created, self._touched = [], [], []

    def forget_idle(self, known_max: int) -> None:
        """Drop what the rows say as well, where more streams are known than `known_max`."""
        if len(self._known) > known_max:
            self._known = dict(self._tails)

    def follow(self, trimmed: int) -> None:
        """As a reader: the writer has deleted the segments up to this number, so the rows have what they brought."""
        assert self._brought is not None, "a writer knows what it moved"
        while self.segments and self.segments[0][0] <= trimmed:
            self.drop_segments(1)
            for stream in self._brought.popleft():
                self.drop(stream, 1)
        if self._index is not None and self._index.size > INDEX_ENTRIES_READ_MAX:
            self._index = None

    def begin_round(self) -> None:
        """All tails of now are about to be moved into rows."""
        self._next_index = IndexOverlay() if self._index is not None else None

    def end_round(self) -> None:
        """They are in the rows, so that their entries need not lie over them any more."""
        self._index = self._next_index if self._index_wanted else None
        self._next_index = None
        self._index_wanted = False

    def index(self) -> IndexOverlay:
        """The entries that the tails add or remove. Cost: the first call for long goes through all tails."""
        self._index_wanted = True
        if self._index is None:
            self._index = IndexOverlay()
            for stream in self._tails.values():
                for batch in stream.batches:
                    self._index.put(stream.number, batch)
        return self._index
