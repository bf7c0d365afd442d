"""The actor of a memory: ("memory", <name>). All that is stored under the name is in memory while it is loaded.

A search runs in steps beside the event loop, while what else is asked of this memory waits. So it always sees all that
was added before, and its answer goes out once that is durable.
"""

from collections.abc import Iterable, Iterator

from ..runtime.actor import Actor, handles
from ..runtime.context import Context
from ..runtime.identity import ActorId
from ..store.contract import Row, Store, Table
from ..store.errors import Corrupt
from .errors import EmbedderMismatch, TooLarge
from .long_work import work_through
from .memory_messages import (
    AddMemories,
    CountMemories,
    DeleteMemories,
    FindMemories,
    ForgetMemories,
    Made,
    ReadMark,
)
from .memory_records import (
    MEMORY_CODEC,
    MEMORY_HEAD_CODEC,
    MemoryHead,
    MemoryHit,
    MemoryRecord,
    RememberedMark,
    mark_key,
)
from .memory_shelf import Shelf
from .transfer import read_rows

__all__ = ["MEMORIES_MAX", "MEMORY_TEXT_BYTES_MAX", "MemoryActor"]

MEMORIES_MAX = 100_000
"""Of one name: with 1 536 dimensions 600 MB of vectors, of which a search reads each."""

MEMORY_TEXT_BYTES_MAX = 128 * 1024 * 1024
"""Of one name. With its index a text takes two to three times as much."""

_ACTOR_BYTES = 2_000


class MemoryActor(Actor):
    """See the module's text."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self._shelf = Shelf()
        self._marks: dict[str, RememberedMark] = {}
        self._made: Made | None = None

    def size_bytes(self) -> int:
        return _ACTOR_BYTES + self._shelf.size_bytes + 400 * len(self._marks)

    async def load(self, context: Context) -> None:
        """Cost: some 40 us a memory, in a worker thread."""
        if context.stored is None:
            return
        head = MEMORY_HEAD_CODEC.decode(context.stored.head, where=f"head of {str(self.id)!r}")
        self._made = Made(head.embedder, head.dimensions) if head.embedder else None
        await work_through(context.store, self._read(context.store))

    @handles(AddMemories, retryable=True)
    def add(self, message: AddMemories, context: Context) -> int:
        made = message.made
        self._check_made(made)
        mark, present = message.mark, self._marks.get(message.mark.session_id) if message.mark else None
        after = 0
        if mark is not None and present is not None:
            if present.created_at_ms > mark.created_at_ms:
                return 0  # of a session that was deleted, and there is another of its id
            after = present.seq if present.created_at_ms == mark.created_at_ms else 0
        new = [record for record in message.records if record.id not in self._shelf and _is_behind(record, after)]
        self._check_room(new)
        rows = [Row(Table.MEMORY, record.id.encode(), MEMORY_CODEC.encode(record)) for record in new]
        if mark is not None and mark.seq > after:
            rows.append(Row(Table.MEMORY, mark_key(mark.session_id), MEMORY_CODEC.encode(mark)))
            self._marks[mark.session_id] = mark
        for record in new:
            self._shelf.put(record)
        if made is not None and self._shelf.vector_count:
            self._made = made
        if rows:
            self._stage(rows, context)
        return len(new)

    @handles(FindMemories, on_cancel="cancel")
    async def find(self, message: FindMemories, context: Context) -> list[MemoryHit]:
        self._check_made(message.made)
        await self._tidy(context.store)
        hits: list[MemoryHit] = []
        await work_through(context.store, self._shelf.find(message.wish, hits))
        return hits

    @handles(DeleteMemories, retryable=True)
    def delete(self, message: DeleteMemories, context: Context) -> bool:
        present = message.id in self._shelf
        if present:
            self._drop([message.id], [], context)
        return present

    @handles(ForgetMemories, retryable=True)
    async def forget(self, message: ForgetMemories, context: Context) -> int:
        session_id, owner = message.session_id, message.owner

        def suits(record: MemoryRecord) -> bool:
            source = record.source.session_id if record.source is not None else None
            return session_id in (None, source) and owner in (None, record.owner)

        ids: list[str] = []
        await work_through(context.store, self._shelf.all_that(suits, ids))
        marks = [session_id] if session_id is not None and session_id in self._marks else []
        if ids or marks:
            self._drop(ids, marks, context)
        await self._tidy(context.store)
        return len(ids)

    @handles(CountMemories)
    def count(self, message: CountMemories, _context: Context) -> int:
        return self._shelf.count(message.owner)

    @handles(ReadMark)
    def read_mark(self, message: ReadMark, _context: Context) -> RememberedMark | None:
        return self._marks.get(message.session_id)

    def _read(self, store: Store) -> Iterator[None]:
        """Read all that is stored; what cannot be read is left out, and noted as damage."""
        stream = str(self.id)
        for key, value in read_rows(store, stream, Table.MEMORY):
            try:
                row = MEMORY_CODEC.decode(value, where=f"memory {key!r} of {stream!r}")
            except Corrupt as error:
                store.damage.report(error.where, error.reason)
                continue
            if isinstance(row, MemoryRecord):
                self._shelf.put(row)
            else:
                self._marks[row.session_id] = row
            yield

    async def _tidy(self, store: Store) -> None:
        if self._shelf.should_be_rebuilt:
            new = Shelf()
            await work_through(store, self._shelf.rebuild(new))
            self._shelf = new

    def _check_made(self, made: Made | None) -> None:
        present = self._made
        if made is None or present is None or made == present:
            return
        raise EmbedderMismatch(
            f"the vectors of memory {self.id.key!r} are {present.embedder!r}'s, of {present.dimensions} dimensions, "
            f"and cannot be compared with those of {made.embedder!r}, of {made.dimensions}: use the same embedder, or "
            "a memory of another name"
        )

    def _check_room(self, new: Iterable[MemoryRecord]) -> None:
        texts = [record.text for record in new]
        if len(self._shelf) + len(texts) > MEMORIES_MAX:
            raise TooLarge(f"memory {self.id.key!r} is full, with {len(self._shelf)} of {MEMORIES_MAX} memories")
        if self._shelf.text_bytes + sum(len(text.encode()) for text in texts) > MEMORY_TEXT_BYTES_MAX:
            raise TooLarge(f"memory {self.id.key!r} is full: its texts have {self._shelf.text_bytes} bytes")

    def _drop(self, ids: list[str], sessions: list[str], context: Context) -> None:
        rows = [Row(Table.MEMORY, id.encode(), None) for id in ids]
        rows += [Row(Table.MEMORY, mark_key(session_id), None) for session_id in sessions]
        for id in ids:
            self._shelf.take(id)
        for session_id in sessions:
            del self._marks[session_id]
        if not self._shelf.vector_count:
            self._made = None
        self._stage(rows, context)

    def _stage(self, rows: Iterable[Row], context: Context) -> None:
        made = self._made or Made("", 0)
        head = MemoryHead(len(self._shelf), context.wall_ms(), made.embedder, made.dimensions)
        context.stage(head=MEMORY_HEAD_CODEC.encode(head), rows=tuple(rows))


def _is_behind(record: MemoryRecord, seq: int) -> bool:
    """Whether it is none of a session's messages up to this place."""
    return record.source is None or not record.source.seq or record.source.seq > seq
