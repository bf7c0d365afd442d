"""Keys that change: `rotate`, `renew` and `rewrite`, broken off at every step, and what opens with what afterwards."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from callboard.store import (
    Batch,
    Conflict,
    Corrupt,
    Head,
    Index,
    IndexRow,
    MemoryStore,
    Row,
    SealedStore,
    StoreFull,
    StoreUnavailable,
    Table,
    WrongKey,
)
from callboard.store.contract import Refusal
from callboard.store.resealing import ROWS_PER_BATCH
from callboard.store.sealed_store import KEYRING_STREAM

KEY, NEXT_KEY = b"k" * 32, b"n" * 32
STREAMS = ("session:a", "session:b", "counter:c")
LONG_TAG = b"x" * 390


class Stopped(BaseException):
    """The process is killed here: nobody catches it."""


class KilledStore(MemoryStore):
    """A memory store whose process ends at the n-th commit from now on: before it, or after it was stored."""

    commits_left: int | None = None
    after_write = False

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        if self.commits_left is None:
            return super().commit(batches)
        self.commits_left -= 1
        if self.commits_left >= 0:
            return super().commit(batches)
        if self.after_write:
            super().commit(batches)
        raise Stopped


def filled(inner: MemoryStore) -> SealedStore:
    """A store with every kind of value that is sealed."""
    store = SealedStore(inner, KEY)
    for name in STREAMS:
        rows = tuple(Row(table, b"key", f"{name} {table.name}".encode()) for table in Table)
        entries = (
            IndexRow(Index.OWNER, b"ann\0" + bytes(8)),
            IndexRow(Index.TAG, LONG_TAG),
            IndexRow(Index.REMINDER_DUE, bytes(8) + LONG_TAG),
        )
        assert store.commit([Batch(name, 3, 0, head=name.encode(), rows=rows, index_rows=entries)]) == [None]
    store.commit([Batch("erased", 3, 0, head=b"gone", rows=(Row(Table.RUN, b"key", b"gone"),))])
    store.commit([Batch("erased", 3, 1, erase=True)])
    return store


def contents(store: SealedStore) -> dict[str, object]:
    """All that the store gives back, save versions, which `rewrite` counts up, and positions."""
    told: dict[str, object] = {}
    for name in (*STREAMS, "erased"):
        head = store.load(name)
        assert head is not None
        told[name] = (head.epoch, head.head, [store.scan(name, table) for table in Table])
    told["hits"] = [(hit.value, hit.stream) for index in Index for hit in store.scan_index(index)]
    return told


def sealed_values(store: SealedStore) -> list[bytes]:
    """All heads and values as they lie beneath."""
    inner = store.inner
    streams = [stream for stream in inner.streams() if stream != KEYRING_STREAM]
    heads = [head.head for stream in streams if (head := inner.load(stream)) is not None]
    return heads + [value for stream in streams for table in Table for _, value in inner.scan(stream, table)]


def generations(store: SealedStore, *more: str) -> set[int]:
    """The generations of keys that have sealed anything that lies beneath."""
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    found: set[int] = set()
    for name in (*STREAMS, "erased", *more):
        stream = store._sealing.names.of_stream(name)  # pyright: ignore[reportPrivateUsage] - the place beneath
        head = inner.load(stream)
        assert head is not None
        values = [head.head, *(value for table in Table for _, value in inner.scan(stream, table))]
        found |= {int.from_bytes(value[:2], "big") for value in values}
    return found


def reopened(store: SealedStore, key: bytes = KEY) -> SealedStore:
    assert isinstance(store.inner, MemoryStore)
    inner = KilledStore()
    inner._contents = store.inner.reopened()._contents  # pyright: ignore[reportPrivateUsage] - the same "disk"
    return SealedStore(inner, key)


# The master key.


def test_after_rotate_the_new_key_opens_and_the_old_one_does_not() -> None:
    store = filled(MemoryStore())
    before = contents(store)

    store.rotate(NEXT_KEY)

    assert contents(store) == before
    assert contents(reopened(store, NEXT_KEY)) == before
    with pytest.raises(WrongKey):
        reopened(store, KEY)


def test_rotate_writes_one_record_and_the_store_goes_on() -> None:
    inner = MemoryStore(keep_history=True)
    store = filled(inner)
    written = len(inner.committed)

    store.rotate(NEXT_KEY.hex())
    [[batch]] = inner.committed[written:]
    store.commit([Batch("new", 1, 0, head=b"new")])

    assert (batch.stream, batch.rows, batch.index_rows) == (KEYRING_STREAM, (), ())
    assert reopened(store, NEXT_KEY).load("new") == Head(1, 1, b"new")


def test_rotating_twice_needs_no_reopening() -> None:
    store = filled(MemoryStore())

    store.rotate(NEXT_KEY)
    store.rotate(KEY)

    assert reopened(store, KEY).load("session:a") is not None


def test_a_rotation_that_fails_leaves_the_old_key() -> None:
    inner = MemoryStore()
    store = filled(inner)
    inner.fail_next_commit(StoreFull("full"))

    with pytest.raises(StoreFull):
        store.rotate(NEXT_KEY)
    with pytest.raises(ValueError, match="32 bytes"):
        store.rotate("sesame")

    assert reopened(store, KEY).load("session:a") is not None


@pytest.mark.parametrize("after_write", [False, True])
def test_a_process_that_is_killed_while_rotating_leaves_one_key_that_opens(*, after_write: bool) -> None:
    inner = KilledStore()
    store = filled(inner)
    before = contents(store)
    inner.commits_left, inner.after_write = 0, after_write

    with pytest.raises(Stopped):
        store.rotate(NEXT_KEY)

    opens, refused = (NEXT_KEY, KEY) if after_write else (KEY, NEXT_KEY)
    with pytest.raises(WrongKey):
        SealedStore(inner.reopened(), refused)
    assert contents(reopened(store, opens)) == before


# The value keys.


def test_after_renew_new_values_have_new_keys_and_old_ones_still_open() -> None:
    store = filled(MemoryStore())
    before = contents(store)

    assert store.renew() == 2
    assert contents(store) == before
    assert generations(store) == {1}
    store.commit([Batch("session:a", 3, 1, head=b"session:a", rows=(Row(Table.RUN, b"key", b"session:a RUN"),))])

    assert contents(store) == before
    assert generations(store) == {1, 2}
    assert contents(reopened(store)) == before


def test_after_rewrite_only_the_newest_keys_have_sealed_anything() -> None:
    store = filled(MemoryStore())
    before = contents(store)
    seen: list[int] = []
    store.renew()

    assert store.rewrite(progress=seen.append) == 4
    assert seen == [1, 2, 3, 4]
    assert generations(store) == {2}
    assert contents(store) == before
    assert store.rewrite() == 0
    assert store.damage.list() == []
    assert contents(reopened(store)) == before


def test_no_nonce_comes_twice_also_where_values_are_sealed_again() -> None:
    store = filled(MemoryStore())
    values = sealed_values(store)
    store.renew()
    store.rewrite()
    values += sealed_values(store)

    assert len({value[2:14] for value in values}) == len(values) > 40


def test_streams_of_several_generations_are_rewritten_in_one_go() -> None:
    store = filled(MemoryStore())
    store.renew()
    store.commit([Batch("session:a", 3, 1, head=b"a"), Batch("second", 1, 0, head=b"2")])
    store.renew()
    store.commit([Batch("session:b", 3, 1, head=b"b"), Batch("third", 1, 0, head=b"3")])

    assert store.rewrite() == 5
    assert generations(store, "second", "third") == {3}
    assert [head and head.head for head in map(store.load, ("session:a", "second", "third"))] == [b"a", b"2", b"3"]


def test_a_long_stream_is_rewritten_in_batches() -> None:
    inner = MemoryStore(keep_history=True)
    store = SealedStore(inner, KEY)
    rows = tuple(Row(Table.MESSAGE, number.to_bytes(8, "big"), b"%d" % number) for number in range(1000))
    store.commit([Batch("a", 1, 0, head=b"head", rows=rows)])
    store.renew()
    written = len(inner.committed)

    store.rewrite()

    sizes = [len(batch.rows) for [batch] in inner.committed[written:]]
    assert sizes == [ROWS_PER_BATCH, ROWS_PER_BATCH, ROWS_PER_BATCH, 1000 - 3 * ROWS_PER_BATCH, 0]
    assert [value for _, value in store.scan("a", Table.MESSAGE)] == [b"%d" % number for number in range(1000)]


def kill_points() -> Iterator[tuple[int, bool]]:
    """Every commit of `renew` and `rewrite` on a filled store, before and after it is stored."""
    inner = MemoryStore(keep_history=True)
    store = filled(inner)
    written = len(inner.committed)
    store.renew()
    store.rewrite()
    for number in range(len(inner.committed) - written):
        yield number, False
        yield number, True


@pytest.mark.parametrize(("commits", "after_write"), list(kill_points()))
def test_a_process_killed_at_any_step_leaves_a_store_that_opens_and_can_go_on(
    commits: int, *, after_write: bool
) -> None:
    inner = KilledStore()
    store = filled(inner)
    before = contents(store)
    inner.commits_left, inner.after_write = commits, after_write

    with pytest.raises(Stopped):
        _renew_and_rewrite(store)
    again = reopened(store)
    between = contents(again)
    again.renew()
    again.rewrite()

    assert between == before
    assert contents(again) == before
    assert len(generations(again)) == 1
    assert contents(reopened(again)) == before


def test_there_are_several_points_at_which_a_process_is_killed() -> None:
    assert len(list(kill_points())) >= 40


def _renew_and_rewrite(store: SealedStore) -> None:
    store.renew()
    store.rewrite()


@pytest.mark.parametrize(
    ("fault", "after_write"),
    [
        (StoreFull("full"), False),
        (StoreUnavailable("lost", uncertain=True), False),
        (StoreUnavailable("lost", uncertain=True), True),
    ],
)
def test_a_renewal_that_fails_can_be_asked_for_again(fault: StoreFull | StoreUnavailable, *, after_write: bool) -> None:
    inner = MemoryStore()
    store = filled(inner)
    before = contents(store)
    inner.fail_next_commit(fault, after_write=after_write)

    with pytest.raises(type(fault)):
        store.renew()
    store.commit([Batch("new", 1, 0, head=b"new")])

    assert store.renew() == (3 if after_write else 2)
    assert store.rewrite() == 5
    assert contents(reopened(store)) == before


class InterruptedStore(MemoryStore):
    """A memory store in which `meanwhile` is called once, with the stream, just after its rows were read."""

    meanwhile: Callable[[str], object] | None = None

    def scan(
        self,
        stream: str,
        table: Table,
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        rows = super().scan(stream, table, start=start, stop=stop, limit=limit, newest_first=newest_first)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile(stream)
        return rows


def test_a_writer_that_comes_between_is_not_overwritten_but_reported_as_a_conflict() -> None:
    inner = InterruptedStore()
    store = SealedStore(inner, KEY)
    store.commit([Batch("a", 3, 0, head=b"head", rows=(Row(Table.MESSAGE, b"1", b"one"),))])
    store.renew()
    late = Batch("a", 3, 1, head=b"late", rows=(Row(Table.MESSAGE, b"1", b"changed"),))
    inner.meanwhile = lambda stream: store.commit([late])

    with pytest.raises(Conflict):
        store.rewrite()
    store.rewrite()

    assert store.load("a") == Head(3, 2, b"late")
    assert store.scan("a", Table.MESSAGE) == [(b"1", b"changed")]


def test_what_does_not_open_is_reported_and_the_rest_is_rewritten() -> None:
    inner = MemoryStore()
    store = filled(inner)
    stream = store._sealing.names.of_stream("session:a")  # pyright: ignore[reportPrivateUsage] - the place beneath
    broken = (Row(Table.RUN, b"key", b"broken"),)
    inner.commit([Batch(stream, 3, 1, head=b"broken", rows=broken)])
    store.renew()

    store.rewrite()

    assert len(store.damage.list()) == 2
    assert store.scan("session:a", Table.MESSAGE) == [(b"key", b"session:a MESSAGE")]
    assert store.scan("session:b", Table.RUN) == [(b"key", b"session:b RUN")]
    with pytest.raises(Corrupt):
        store.load("session:a")


# Readers in other processes hold the keyring as it was when they opened.


def test_a_reader_takes_up_a_generation_that_began_after_it_opened() -> None:
    inner = MemoryStore()
    writer = filled(inner)
    reader = SealedStore(inner, KEY)

    writer.renew()
    writer.rewrite()

    assert contents(reader) == contents(writer)
    assert reader.damage.list() == []


def test_a_reader_whose_master_key_was_replaced_is_told_so_when_it_needs_the_new_one() -> None:
    inner = MemoryStore()
    writer = filled(inner)
    reader = SealedStore(inner, KEY)

    writer.rotate(NEXT_KEY)
    assert reader.scan("session:a", Table.RUN) == [(b"key", b"session:a RUN")]
    writer.renew()
    writer.commit([Batch("session:a", 3, 1, head=b"new")])

    with pytest.raises(WrongKey):
        reader.load("session:a")
