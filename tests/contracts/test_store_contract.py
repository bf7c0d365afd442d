"""What every store promises: the numbered guarantees of callboard.store.contract, run on each implementation.

test_store_agreement.py compares the implementations with each other on generated programs.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import pytest
from database_servers import new_name, shared_postgres, shared_redis

from callboard.store import (
    Batch,
    Conflict,
    Fenced,
    Head,
    Index,
    IndexRow,
    LmdbStore,
    MemoryStore,
    ProcessStore,
    Row,
    SealedStore,
    Store,
    StoreUnavailable,
    Table,
)
from callboard.store.postgres_store import PostgresStore
from callboard.store.redis_store import RedisStore

Kind = Literal["lmdb-sync", "lmdb-async", "lmdb-rows", "lmdb-process", "memory", "postgres", "redis"]
"""lmdb-rows: each commit is moved into rows with the next ones, and read there."""
MASTER_KEY = bytes(range(32))


@pytest.fixture(
    params=[
        "lmdb-sync",
        "lmdb-async",
        "lmdb-rows",
        "lmdb-process",
        "memory",
        "postgres",
        "redis",
        "sealed lmdb-sync",
        "sealed lmdb-rows",
        "sealed memory",
        "sealed postgres",
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    beneath = open_store(request.param.removeprefix("sealed "), tmp_path / "store")
    opened = SealedStore(beneath, MASTER_KEY) if request.param.startswith("sealed ") else beneath
    yield opened
    opened.close()


def open_store(kind: Kind, path: Path) -> Store:
    if kind == "memory":
        return MemoryStore()
    if kind == "postgres":
        return PostgresStore(shared_postgres().dsn, schema=new_name())
    if kind == "redis":
        return RedisStore(shared_redis().url, prefix=new_name())
    if kind == "lmdb-process":
        return ProcessStore(path, log_bytes_max=1000)
    log_bytes_max = 0 if kind == "lmdb-rows" else 8 << 20
    return LmdbStore(path, durability="async" if kind == "lmdb-async" else "sync", log_bytes_max=log_bytes_max)


@contextmanager
def reopened(store: Store) -> Generator[Store, None, None]:
    """The same data in a new store, without anything that the old one kept in memory."""
    beneath = store.inner if isinstance(store, SealedStore) else store
    if isinstance(beneath, MemoryStore):
        again: Store = beneath.reopened()
    else:
        store.close()
        if isinstance(beneath, PostgresStore):
            again = PostgresStore(shared_postgres().dsn, schema=beneath.schema)
        elif isinstance(beneath, RedisStore):
            again = RedisStore(shared_redis().url, prefix=beneath.prefix)
        else:
            again = LmdbStore(store.location)
    if isinstance(store, SealedStore):
        again = SealedStore(again, MASTER_KEY)
    yield again
    again.close()


def put(key: bytes, value: bytes | None = b"value", table: Table = Table.MESSAGE) -> Row:
    return Row(table, key, value)


def keys_of(store: Store, stream: str, table: Table = Table.MESSAGE) -> list[bytes]:
    return [key for key, _ in store.scan(stream, table)]


def hits(store: Store, index: Index, prefix: bytes = b"", *, newest_first: bool = False) -> list[tuple[bytes, str]]:
    return [(hit.value, hit.stream) for hit in store.scan_index(index, prefix=prefix, newest_first=newest_first)]


# 1. A batch is stored whole or not at all, all the accepted ones of a call together.


def test_an_accepted_batch_is_stored_whole(store: Store) -> None:
    batch = Batch("a", 7, 0, head=b"head", rows=(put(b"k"),), index_rows=(IndexRow(Index.OWNER, b"ann"),))

    assert store.commit([batch]) == [None]
    assert store.load("a") == Head(7, 1, b"head")
    assert store.scan("a", Table.MESSAGE) == [(b"k", b"value")]
    assert hits(store, Index.OWNER) == [(b"ann", "a")]


def test_a_refused_batch_leaves_nothing_behind(store: Store) -> None:
    batch = Batch("a", 1, 3, head=b"head", rows=(put(b"k"),), index_rows=(IndexRow(Index.OWNER, b"ann"),))

    answers = store.commit([batch])

    assert isinstance(answers[0], Conflict)
    assert store.load("a") is None
    assert store.scan("a", Table.MESSAGE) == []
    assert hits(store, Index.OWNER) == []
    assert store.statistics().streams == 0


def test_a_batch_that_cannot_be_stored_stops_the_whole_call_before_it_begins(store: Store) -> None:
    good = Batch("a", 1, 0, rows=(put(b"k"),))

    with pytest.raises(ValueError, match="row key has at most 64 bytes"):
        store.commit([good, Batch("b", 1, 0, rows=(put(b"k" * 65),))])

    assert store.load("a") is None
    assert store.commit([good]) == [None]


def test_a_reader_sees_all_batches_of_a_commit_or_none(store: Store) -> None:
    seen: list[list[tuple[bytes, str]]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(hits(store, Index.UPDATED))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(100):
            moved = (
                IndexRow(Index.UPDATED, version.to_bytes(4, "big"), present=False),
                IndexRow(Index.UPDATED, (version + 1).to_bytes(4, "big")),
            )
            store.commit([Batch(name, 1, version, index_rows=moved) for name in ("a", "b")])
    finally:
        done.set()
        reader.join()
    seen.append(hits(store, Index.UPDATED))

    assert [name for _, name in seen[-1]] == ["a", "b"]
    assert all(not found or (len(found) == 2 and found[0][0] == found[1][0]) for found in seen)


# 2. What commit accepted survives.


def test_everything_is_there_after_reopening(store: Store) -> None:
    store.commit([Batch("a", 4, 0, head=b"head", rows=(put(b"k"),), index_rows=(IndexRow(Index.TAG, b"red"),))])

    with reopened(store) as again:
        assert again.load("a") == Head(4, 1, b"head")
        assert again.scan("a", Table.MESSAGE) == [(b"k", b"value")]
        assert hits(again, Index.TAG) == [(b"red", "a")]
        assert again.commit([Batch("a", 4, 1), Batch("new", 1, 0, index_rows=(IndexRow(Index.TAG, b"red"),))]) == [
            None,
            None,
        ]
        assert hits(again, Index.TAG) == [(b"red", "a"), (b"red", "new")]


# 3. Epoch and version guard a stream.


def test_an_older_epoch_is_fenced(store: Store) -> None:
    store.commit([Batch("a", 5, 0)])

    [answer] = store.commit([Batch("a", 4, 1, head=b"late")])

    assert isinstance(answer, Fenced)
    assert (answer.stream, answer.epoch, answer.stored_epoch) == ("a", 4, 5)
    assert store.load("a") == Head(5, 1, b"")


def test_epochs_are_compared_as_whole_numbers_of_63_bits(store: Store) -> None:
    store.commit([Batch("a", 2**32, 0), Batch("b", 2**32 + 5, 0)])

    answers = store.commit([Batch("a", 2**32 - 1, 1), Batch("b", 2**33, 1)])

    assert [type(answer) for answer in answers] == [Fenced, type(None)]


def test_a_newer_epoch_takes_over(store: Store) -> None:
    store.commit([Batch("a", 5, 0)])

    answers = store.commit([Batch("a", 6, 1), Batch("a", 5, 2)])

    assert answers[0] is None
    assert isinstance(answers[1], Fenced)


def test_another_version_conflicts(store: Store) -> None:
    store.commit([Batch("a", 1, 0)])

    [behind, ahead] = store.commit([Batch("a", 1, 0), Batch("a", 1, 2)])

    assert isinstance(behind, Conflict)
    assert (behind.stream, behind.version, behind.stored_version) == ("a", 0, 1)
    assert isinstance(ahead, Conflict)


def test_guards_hold_after_reopening(store: Store) -> None:
    store.commit([Batch("a", 5, 0)])

    with reopened(store) as again:
        [fenced, conflict] = again.commit([Batch("a", 4, 1), Batch("a", 5, 0)])

        assert isinstance(fenced, Fenced)
        assert isinstance(conflict, Conflict)


def test_a_refusal_touches_only_later_batches_of_its_own_stream(store: Store) -> None:
    store.commit([Batch("a", 2, 0)])

    answers = store.commit(
        [Batch("b", 1, 0), Batch("a", 1, 1), Batch("a", 2, 2), Batch("c", 1, 0), Batch("b", 1, 1)],
    )

    assert [type(answer) for answer in answers] == [type(None), Fenced, Conflict, type(None), type(None)]
    assert store.load("a") == Head(2, 1, b"")
    assert store.load("b") == Head(1, 2, b"")


def test_batches_of_one_stream_build_on_each_other_within_a_commit(store: Store) -> None:
    store.commit([Batch("a", 1, 0, head=b"1", rows=(put(b"x", b"1"), put(b"y", b"1")))])

    answers = store.commit(
        [
            Batch("a", 1, 1, rows=(put(b"x", b"2"),)),
            Batch("a", 1, 2, head=b"3", rows=(put(b"x", None), put(b"z", b"3"))),
            Batch("a", 1, 3),
        ]
    )

    assert answers == [None, None, None]
    assert store.load("a") == Head(1, 4, b"3")
    assert store.scan("a", Table.MESSAGE) == [(b"y", b"1"), (b"z", b"3")]


def test_a_batch_without_a_head_keeps_the_old_one(store: Store) -> None:
    store.commit([Batch("a", 1, 0, head=b"kept"), Batch("new", 1, 0)])
    store.commit([Batch("a", 1, 1)])

    assert store.load("a") == Head(1, 2, b"kept")
    assert store.load("new") == Head(1, 1, b"")


# 4. A commit that raises stored nothing (ValueError above; faults of the disk in tests/store).


def test_an_empty_commit_answers_with_nothing(store: Store) -> None:
    assert store.commit([]) == []


def test_what_is_no_batch_is_refused_before_anything_is_stored(store: Store) -> None:
    good = Batch("good", 1, 0, head=b"head")

    with pytest.raises(TypeError, match="a batch must be Batch, not str: pass Batch"):
        store.commit([good, cast("Any", "text")])

    assert store.load("good") is None
    assert store.commit([good]) == [None]


def test_names_keys_and_values_at_their_limits_are_stored(store: Store) -> None:
    name, key, value = "é" * 200, b"\xff" * 64, b"\xff" * 300 + bytes(100)

    store.commit([Batch(name, 2**63 - 1, 0, rows=(put(key),), index_rows=(IndexRow(Index.TAG, value),))])

    assert keys_of(store, name) == [key]
    assert hits(store, Index.TAG, value) == [(value, name)]
    assert store.load(name) == Head(2**63 - 1, 1, b"")


# 5. Reads: whole transactions, byte order, limits that cut no value.


def test_rows_come_in_byte_order_of_their_keys(store: Store) -> None:
    order = [b"", b"\x00", b"\x00\x00", b"\x01", b"a", b"a\x00", b"aa", b"b", b"\xff", b"\xff\xff"]

    store.commit([Batch("a", 1, 0, rows=tuple(put(key) for key in reversed(order)))])

    assert keys_of(store, "a") == order
    assert [key for key, _ in store.scan("a", Table.MESSAGE, newest_first=True)] == order[::-1]


def test_a_scan_stays_within_its_bounds_stream_and_table(store: Store) -> None:
    rows = tuple(put(b"%d" % n) for n in range(1, 6))
    store.commit([Batch(name, 1, 0, rows=(*rows, put(b"3", table=Table.RUN))) for name in ("a", "b", "c")])

    middle = store.scan("b", Table.MESSAGE, start=b"2", stop=b"4")
    newest = store.scan("b", Table.MESSAGE, start=b"2", stop=b"5", newest_first=True, limit=2)

    assert [key for key, _ in middle] == [b"2", b"3"]
    assert [key for key, _ in newest] == [b"4", b"3"]
    assert keys_of(store, "b", Table.RUN) == [b"3"]
    assert store.scan("b", Table.MESSAGE, start=b"4", stop=b"2") == []
    assert store.scan("b", Table.MESSAGE, start=b"4", stop=b"2", newest_first=True) == []
    assert store.scan("unknown", Table.MESSAGE) == []


def test_a_limit_counts_rows_and_never_cuts_a_value(store: Store) -> None:
    large = bytes(range(256)) * 4096  # 1 MiB: far beyond a page
    store.commit([Batch("a", 1, 0, rows=(put(b"1", large), put(b"2", b""), put(b"3", large)))])

    assert store.scan("a", Table.MESSAGE, limit=2) == [(b"1", large), (b"2", b"")]
    assert store.scan("a", Table.MESSAGE, limit=0) == []
    assert len(store.scan("a", Table.MESSAGE, limit=9)) == 3


def test_index_entries_come_in_the_order_of_value_then_stream_number(store: Store) -> None:
    values = [b"", b"a", b"a\x00", b"a\x00\x00", b"a\x00\xff", b"a\x01", b"a\xff", b"b"]
    entries = tuple(IndexRow(Index.OWNER, value) for value in values)
    store.commit([Batch("z", 1, 0, index_rows=entries), Batch("y", 1, 0, index_rows=entries)])

    expected = [(value, name) for value in values for name in ("z", "y")]

    assert hits(store, Index.OWNER) == expected
    assert hits(store, Index.OWNER, newest_first=True) == expected[::-1]
    assert hits(store, Index.OWNER, b"a\x00") == [hit for hit in expected if hit[0].startswith(b"a\x00")]
    assert hits(store, Index.TAG) == []


def test_an_index_entry_can_be_removed_and_added_twice(store: Store) -> None:
    add, remove = IndexRow(Index.TAG, b"red"), IndexRow(Index.TAG, b"red", present=False)

    store.commit([Batch("a", 1, 0, index_rows=(add, add)), Batch("b", 1, 0, index_rows=(remove,))])
    twice = hits(store, Index.TAG)
    store.commit([Batch("a", 1, 1, index_rows=(remove, remove))])

    assert twice == [(b"red", "a")]
    assert hits(store, Index.TAG) == []


def test_going_on_behind_a_position_survives_the_removal_of_its_entry(store: Store) -> None:
    store.commit([Batch(name, 1, 0, index_rows=(IndexRow(Index.TAG, b"red"),)) for name in ("a", "b", "c")])
    second = store.scan_index(Index.TAG, limit=2)[1]
    store.commit([Batch("b", 1, 1, index_rows=(IndexRow(Index.TAG, b"red", present=False),))])

    assert [hit.stream for hit in store.scan_index(Index.TAG, after=second.position)] == ["c"]
    assert [hit.stream for hit in store.scan_index(Index.TAG, after=second.position, newest_first=True)] == ["a"]


def test_nonsense_arguments_of_a_scan_are_value_errors(store: Store) -> None:
    with pytest.raises(ValueError, match="limit"):
        store.scan("a", Table.MESSAGE, limit=-1)
    with pytest.raises(ValueError, match="at most 65 bytes"):
        store.scan("a", Table.MESSAGE, start=b"x" * 66)
    with pytest.raises(ValueError, match="not a position in the index TAG"):
        store.scan_index(Index.TAG, after=b"nonsense")
    with pytest.raises(ValueError, match="400"):
        store.load("x" * 401)


def test_erase_drops_rows_and_entries_but_keeps_the_guard(store: Store) -> None:
    written = Batch(
        "a",
        3,
        0,
        head=b"head",
        rows=(put(b"k"), put(b"k", table=Table.STEP)),
        index_rows=(IndexRow(Index.OWNER, b"a\x00nn"), IndexRow(Index.TAG, b"red")),
    )
    store.commit([written, msgspec.structs.replace(written, stream="b")])

    store.commit([Batch("a", 3, 1, erase=True)])
    [late] = store.commit([Batch("a", 2, 2)])

    assert store.load("a") == Head(3, 2, b"")
    assert keys_of(store, "a") == keys_of(store, "a", Table.STEP) == []
    assert hits(store, Index.OWNER) == [(b"a\x00nn", "b")]
    assert hits(store, Index.TAG) == [(b"red", "b")]
    assert keys_of(store, "b") == [b"k"]
    assert isinstance(late, Fenced)


def test_erase_also_drops_what_batches_before_it_in_the_same_commit_wrote(store: Store) -> None:
    answers = store.commit(
        [
            Batch("a", 1, 0, head=b"old", rows=(put(b"old"),), index_rows=(IndexRow(Index.TAG, b"old"),)),
            Batch("a", 1, 1, erase=True, rows=(put(b"new"),), index_rows=(IndexRow(Index.TAG, b"new"),)),
        ]
    )

    assert answers == [None, None]
    assert store.load("a") == Head(1, 2, b"")
    assert keys_of(store, "a") == [b"new"]
    assert hits(store, Index.TAG) == [(b"new", "a")]


# 6. Owner numbers.


def test_claims_only_ever_grow(store: Store) -> None:
    first = [store.claim() for _ in range(3)]

    with reopened(store) as again:
        assert first == [1, 2, 3]
        assert again.claim() == 4


# Closing and counting.


def test_a_closed_store_answers_nothing_and_closes_twice(store: Store) -> None:
    store.close()
    store.close()

    calls: list[Callable[[], object]] = [
        store.claim,
        store.statistics,
        lambda: store.load("a"),
        lambda: store.scan("a", Table.MESSAGE),
        lambda: store.scan_index(Index.TAG),
        lambda: store.commit([]),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="closed"):
            call()


def test_statistics_count_what_happened(store: Store) -> None:
    store.commit([Batch("a", 1, 0, rows=(put(b"k", b"x" * 5000),)), Batch("b", 1, 0), Batch("a", 1, 0)])
    store.commit([Batch("a", 1, 1)])

    counted = store.statistics()

    assert (counted.commits, counted.batches, counted.refused, counted.streams) == (2, 4, 1, 2)
    assert counted.size_bytes >= 5000
