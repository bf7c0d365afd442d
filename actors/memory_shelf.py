"""All memories of one name, in memory: their records, an index of their words, and their vectors. Pure.

What is deleted leaves its place in both indexes, and is passed over there until all is built anew, which is due once
more than half of it is gone.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest

from msgspec import Struct
from msgspec.structs import replace

from .memory_records import MemoryHit, MemoryMode, MemoryRecord
from .text_index import TextIndex
from .vector_table import VectorTable, numpy_if_installed

__all__ = ["Shelf", "Wish"]

FUSED_RANKS = 60
"""What is added to a place before its inverse is taken: Cormack et al. found 60 good, and little to depend on it."""

FUSED_DEPTH = 100
"""Of each list, so many are looked at for the other's sake, at least."""

REBUILD_LEAST = 1_000

_RECORD_BYTES = 900
"""A record in memory beside its text (CPython 3.11)."""


class Wish(Struct, frozen=True):
    """What is looked for: `text` and, unless the mode is "text", its `vector`; if `owner`, only what is
    this owner's."""

    text: str
    mode: MemoryMode
    limit: int
    owner: str | None = None
    vector: bytes = b""


class Shelf:
    """See the module's text."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self.vector_count = 0
        self._records: list[MemoryRecord | None] = []
        self._has_vector = bytearray()
        self._numbers: dict[str, int] = {}
        self._index = TextIndex()
        self._vectors: VectorTable | None = None
        self._counts: dict[str | None, tuple[int, int]] = {}  # memories and words of each owner

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, id: str) -> bool:
        return id in self._numbers

    @property
    def size_bytes(self) -> int:
        """Roughly what it holds."""
        vectors = self._vectors.size_bytes if self._vectors is not None else 0
        return self.text_bytes + _RECORD_BYTES * len(self) + self._index.size_bytes + vectors

    @property
    def should_be_rebuilt(self) -> bool:
        """True once more than half of what the indexes hold was deleted."""
        return len(self._records) > REBUILD_LEAST and len(self._records) > 2 * len(self)

    def put(self, record: MemoryRecord) -> None:
        """Take one in, whose id is not here. All vectors are of one number of dimensions."""
        number = len(self._records)
        words = self._index.add(record.text)
        self._records.append(replace(record, vector=b""))
        self._has_vector.append(bool(record.vector))
        self._numbers[record.id] = number
        self.text_bytes += len(record.text.encode())
        self._count(record.owner, 1, words)
        if record.vector:
            if self._vectors is None or not self.vector_count:
                self._vectors = VectorTable(len(record.vector) // 4, numpy=numpy_if_installed())
            self._vectors.add(number, record.vector)
            self.vector_count += 1

    def take(self, id: str) -> None:
        """Delete one that is here."""
        number = self._numbers.pop(id)
        record = self._records[number]
        assert record is not None, "what has a number is here"
        self._records[number] = None
        self.text_bytes -= len(record.text.encode())
        self.vector_count -= self._has_vector[number]
        self._count(record.owner, -1, -self._index.length(number))

    def count(self, owner: str | None) -> int:
        """How many there are of this owner; of all where it is None."""
        return len(self) if owner is None else self._counts.get(owner, (0, 0))[0]

    def all_that(self, suit: Callable[[MemoryRecord], bool], ids: list[str]) -> Iterator[None]:
        """Put the ids of all that suit into `ids`, in short steps."""
        for number, record in enumerate(self._records):
            if number % 1_000 == 0:
                yield
            if record is not None and suit(record):
                ids.append(record.id)

    def rebuild(self, new: "Shelf") -> Iterator[None]:
        """Put all that is here into a new one, in short steps."""
        vectors = dict(self._vectors.rows()) if self._vectors is not None and self.vector_count else {}
        for number, record in enumerate(self._records):
            if record is not None:
                new.put(replace(record, vector=vectors.get(number, b"")))
                yield

    def find(self, wish: Wish, hits: list[MemoryHit]) -> Iterator[None]:
        """Put what is found into `hits`, the best first, among equals the latest; in short steps.

        Source: of both lists as one: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (SIGIR 2009).
        """
        depth = wish.limit if wish.mode != "both" else max(FUSED_DEPTH, wish.limit)
        lists: list[list[tuple[int, float]]] = []

        def suits(number: int) -> bool:
            record = self._records[number]
            return record is not None and wish.owner in (None, record.owner)

        if wish.mode != "semantic":
            scores: dict[int, float] = {}
            yield from self._index.rank(wish.text, suits, scores, **self._population(wish.owner))
            lists.append(self._best(scores.items(), depth))
        if wish.mode != "text":
            near: list[tuple[int, float]] = []
            if self._vectors is not None and self.vector_count:
                yield from self._vectors.nearest(wish.vector, suits, near, count=depth)
            lists.append(self._best(near, depth))
        best = lists[0] if len(lists) == 1 else self._best(_fused(lists).items(), wish.limit)
        hits += [self._hit(number, score) for number, score in best]

    def _best(self, scored: Iterable[tuple[int, float]], count: int) -> list[tuple[int, float]]:
        return nlargest(count, scored, key=lambda each: (each[1], self._at(each[0]).id))

    def _at(self, number: int) -> MemoryRecord:
        record = self._records[number]
        assert record is not None, "what is deleted does not suit"
        return record

    def _hit(self, number: int, score: float) -> MemoryHit:
        record = self._at(number)
        return MemoryHit(score, record.id, record.text, record.metadata, record.owner, record.source, record.at_ms)

    def _population(self, owner: str | None) -> dict[str, int]:
        counts = [self._counts.get(owner, (0, 0))] if owner is not None else list(self._counts.values())
        return {"count": sum(count for count, _ in counts), "words": sum(words for _, words in counts)}

    def _count(self, owner: str | None, count: int, words: int) -> None:
        before = self._counts.get(owner, (0, 0))
        after = (before[0] + count, before[1] + words)
        if after[0]:
            self._counts[owner] = after
        else:
            self._counts.pop(owner, None)


def _fused(lists: list[list[tuple[int, float]]]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for ranked in lists:
        for place, (number, _) in enumerate(ranked, start=1):
            scores[number] = scores.get(number, 0.0) + 1 / (FUSED_RANKS + place)
    return scores
