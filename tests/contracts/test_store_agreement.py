"""The implementations of the store against each other, on generated programs of commits, scans and restarts.

They were written apart (sorted lists here, byte keys there), so that a mistake in one is a difference.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Literal

import msgspec
from database_servers import new_name, shared_postgres, shared_redis
from hypothesis import given, settings, strategies as st

from callboard.store import (
    Batch,
    Index,
    IndexHit,
    IndexRow,
    LmdbStore,
    MemoryStore,
    ProcessStore,
    Row,
    SealedStore,
    Store,
    Table,
)
from callboard.store.postgres_store import PostgresStore
from callboard.store.redis_store import RedisStore

TABLES = (Table.MESSAGE, Table.RUN)
INDEXES = (Index.UPDATED, Index.OWNER)
NAMES = ("a", "ab", "é", "b" * 400)
some_bytes = st.sampled_from([b"", b"\x00", b"\x00\xff", b"a", b"a\x00", b"a\x00b", b"a\xff", b"\xff", b"b"])
some_rows = st.builds(Row, st.sampled_from(TABLES), some_bytes, st.none() | st.binary(max_size=6))
some_entries = st.builds(IndexRow, st.sampled_from(INDEXES), some_bytes, st.booleans())
# Versions are drawn relative to what a careful writer would use, which is 1 here: mostly right, some stale or ahead.
some_batches = st.builds(
    Batch,
    st.sampled_from(NAMES),
    st.sampled_from([1, 1, 1, 2]),
    st.sampled_from([1, 1, 1, 1, 1, 0, 2]),
    head=st.none() | st.binary(max_size=4),
    rows=st.lists(some_rows, max_size=4).map(tuple),
    index_rows=st.lists(some_entries, max_size=4).map(tuple),
    erase=st.sampled_from([False, False, False, True]),
)
programs = st.lists(
    st.lists(some_batches, max_size=5) | st.sampled_from(["reopen", "checkpoint"]), min_size=1, max_size=10
)

Program = list[list[Batch] | Literal["reopen", "checkpoint"]]


def hits(store: Store, index: Index, prefix: bytes = b"", *, newest_first: bool = False) -> list[tuple[bytes, str]]:
    return [(hit.value, hit.stream) for hit in store.scan_index(index, prefix=prefix, newest_first=newest_first)]


def with_versions(store: Store, batches: list[Batch]) -> list[Batch]:
    next_version: dict[str, int] = {}
    result: list[Batch] = []
    for batch in batches:
        head = store.load(batch.stream)
        version = next_version.get(batch.stream, head.version if head is not None else 0)
        result.append(msgspec.structs.replace(batch, version=max(0, version + batch.version - 1)))
        next_version[batch.stream] = version + (batch.version == 1)
    return result


def answers_of(store: Store, batches: list[Batch]) -> list[tuple[type, str]]:
    return [(type(answer), str(answer)) for answer in store.commit(batches)]


def pages(store: Store, index: Index, prefix: bytes, *, newest_first: bool) -> list[tuple[bytes, str]]:
    """All hits, read two at a time, each page behind the last hit of the one before."""
    found: list[IndexHit] = []
    while True:
        after = found[-1].position if found else None
        page = store.scan_index(index, prefix=prefix, after=after, limit=2, newest_first=newest_first)
        if not page:
            return [(hit.value, hit.stream) for hit in found]
        found += page
        assert len(found) <= len(NAMES) * 10, "the pages go round in a circle"


def everything(store: Store) -> list[object]:
    seen: list[object] = [store.load(name) for name in NAMES]
    seen += [store.entries(name) for name in NAMES]
    seen += [store.streams(), store.streams(limit=1), *(store.streams(after=name, limit=2) for name in NAMES)]
    for newest_first in (False, True):
        for name in NAMES:
            for table in TABLES:
                seen.append(store.scan(name, table, newest_first=newest_first))
                seen.append(store.scan(name, table, start=b"\x00", stop=b"a\x00b", newest_first=newest_first, limit=2))
        for index in INDEXES:
            for prefix in (b"", b"\x00", b"a", b"a\x00", b"\xff"):
                whole = hits(store, index, prefix, newest_first=newest_first)
                assert pages(store, index, prefix, newest_first=newest_first) == whole
                seen.append(whole)
    return [*seen, store.statistics().streams]


@settings(deadline=None, max_examples=150)
@given(programs, st.sampled_from([0, 200, 1 << 20]))
def test_the_memory_store_and_lmdb_agree_on_every_program(program: Program, log_bytes_max: int) -> None:
    compare_with_memory(partial(LmdbStore, durability="async", log_bytes_max=log_bytes_max), program)


@settings(deadline=None, max_examples=10)
@given(programs)
def test_a_reader_beside_the_writing_process_sees_what_the_memory_store_has(program: Program) -> None:
    compare_with_memory(partial(ProcessStore, durability="async", log_bytes_max=200), program)


@settings(deadline=None, max_examples=8)
@given(programs)
def test_postgresql_agrees_with_the_memory_store_on_every_program(program: Program) -> None:
    schema = new_name()
    compare_with_memory(lambda _: PostgresStore(shared_postgres().dsn, schema=schema), program)


@settings(deadline=None, max_examples=8)
@given(programs)
def test_redis_agrees_with_the_memory_store_on_every_program(program: Program) -> None:
    prefix = new_name()
    compare_with_memory(lambda _: RedisStore(shared_redis().url, prefix=prefix), program)


def compare_with_memory(open_store: Callable[[str], Store], program: Program) -> None:
    with tempfile.TemporaryDirectory() as directory:
        memory: Store = MemoryStore()
        disk = open_store(directory)
        try:
            for step in program:
                if step == "reopen":
                    disk.close()
                    disk = open_store(directory)
                    continue
                if step == "checkpoint":
                    if isinstance(disk, (LmdbStore, ProcessStore)):  # others keep no log of their own
                        disk.checkpoint()
                    continue
                batches = with_versions(memory, step)

                assert answers_of(disk, batches) == answers_of(memory, batches)
                assert everything(disk) == everything(memory)
        finally:
            disk.close()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=12), max_size=30), st.binary(max_size=3))
def test_a_prefix_of_an_index_finds_exactly_the_values_that_start_with_it(values: list[bytes], prefix: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        sealed = SealedStore(MemoryStore(), bytes(range(32)))
        for store in (MemoryStore(), LmdbStore(directory, durability="async"), sealed):
            check_prefix(store, values, prefix)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.binary(max_size=12), max_size=30), st.binary(max_size=3) | st.just(b"\xff"))
def test_so_it_does_on_database_servers(values: list[bytes], prefix: bytes) -> None:
    check_prefix(PostgresStore(shared_postgres().dsn, schema=new_name()), values, prefix)
    check_prefix(RedisStore(shared_redis().url, prefix=new_name()), values, prefix)


def check_prefix(store: Store, values: list[bytes], prefix: bytes) -> None:
    store.commit([Batch("a", 1, 0, index_rows=tuple(IndexRow(Index.TAG, value) for value in values))])
    found = hits(store, Index.TAG, prefix)
    store.close()

    assert found == [(value, "a") for value in sorted(set(values)) if value.startswith(prefix)]
