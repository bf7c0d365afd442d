"""Editing a history of which not all can be read, or is in memory."""

from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeAlias

from callboard import Message, Runtime, Session
from callboard.actors.archive import Archive
from callboard.actors.session_records import message_key, stream_of
from callboard.actors.transfer import export_store, import_store
from callboard.store import Batch, MemoryStore, Row, Table

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


class CountingStore(MemoryStore):
    """Counts the rows of messages that were read, and in how many looks."""

    rows_read = scans = 0

    @classmethod
    def after(cls, store: MemoryStore) -> Self:
        """What the next process finds."""
        left = cls()
        import_store(left, export_store(store))
        return left

    def scan(self, stream: str, table: Table, **options: Any) -> list[tuple[bytes, bytes]]:
        rows = super().scan(stream, table, **options)
        if table is Table.MESSAGE:
            self.rows_read += len(rows)
            self.scans += 1
        return rows


def test_pop_reads_what_it_takes_and_gives_no_others_for_what_cannot_be_read(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            for number in range(1, 301):
                await Session(runtime, "s").add_messages([Message(role="user", content=f"text {number}")])
        left = CountingStore.after(store.reopened())
        stored = left.load(stream_of("s"))
        assert stored is not None
        spoilt = Row(Table.MESSAGE, message_key(299), b"\x02 no messages")
        assert left.commit([Batch(stream_of("s"), stored.epoch, stored.version, rows=(spoilt,))]) == [None]
        async with Runtime.on(lambda: left) as runtime:
            session = Session(runtime, "s")

            assert [message.seq for message in await session.pop(2)] == [300]
            assert left.rows_read < 100
            assert [message.seq for message in await session.pop(2)] == [297, 298]
            assert await session.message_count() == 296

    run(body)


def test_a_long_gap_is_passed_over_and_short_ones_are_read_with_what_is_between(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            cleared, popped = Session(runtime, "cleared"), Session(runtime, "popped")
            for _ in range(500):
                await cleared.add_messages([Message(role="user", content="gone")])
            await cleared.clear()
            await cleared.add_messages([Message(role="user", content="there")] * 3)
            for _ in range(100):
                await popped.add_messages([Message(role="user", content="there")] * 2)
                await popped.pop()
        left = CountingStore.after(store.reopened())
        async with Runtime.on(lambda: left) as runtime:
            assert len(await Session(runtime, "cleared").messages(limit=50)) == 3
            assert len(Archive(left).messages("cleared", limit=50)) == 3
            assert left.scans == 2
            assert left.rows_read <= 6
            left.rows_read = left.scans = 0
            assert len(await Session(runtime, "popped").messages(limit=50)) == 50
            assert left.scans == 1
            assert left.rows_read <= 100

    run(body)
