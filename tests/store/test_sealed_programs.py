"""Generated programs on a sealed store beside the memory store: every table and every index, texts of every length.

tests/contracts compares the stores on what all of them do with plain bytes. Here the keys and values are of the kinds
that are hidden, and the long ones that are stored apart.
"""

import tempfile

import msgspec
from hypothesis import given, settings, strategies as st

from callboard.store import Batch, Index, IndexHit, IndexRow, LmdbStore, MemoryStore, Row, SealedStore, Store, Table

KEY = b"k" * 32
NAMES = ("session:a", "session:b", "é" * 200)
texts = st.sampled_from([b"", b"a", b"ab", b"\xff", b"b" * 150, b"c" * 383, b"\x01", b"\x02"])
times = st.sampled_from([b"", b"\0" * 8, b"\0" * 7 + b"\x01", b"\xff" * 8])
some_values = st.one_of(
    st.tuples(texts, times).map(lambda pair: (pair[0] + b"\0" + pair[1])[:400]),
    texts,
    st.binary(max_size=12),
    st.just(b"z" * 300 + bytes(100)),
)
some_keys = st.one_of(st.sampled_from([b"", b"a", b"a\0", b"b", b"\xff" * 64]), st.binary(max_size=3))
some_rows = st.builds(Row, st.sampled_from(list(Table)), some_keys, st.none() | st.binary(max_size=6))
some_entries = st.builds(IndexRow, st.sampled_from(list(Index)), some_values, st.booleans())
some_batches = st.builds(
    Batch,
    st.sampled_from(NAMES),
    st.just(1),
    st.just(0),
    head=st.none() | st.binary(max_size=4),
    rows=st.lists(some_rows, max_size=6).map(tuple),
    index_rows=st.lists(some_entries, max_size=6).map(tuple),
    erase=st.sampled_from([False, False, False, True]),
)
steps = st.lists(some_batches, min_size=1, max_size=4) | st.sampled_from(["reopen", "renew", "rewrite"])
programs = st.lists(steps, min_size=1, max_size=8)
ranges = st.tuples(some_keys, st.none() | some_keys, st.none() | st.integers(0, 3), st.booleans())
searches = st.tuples(
    st.sampled_from(list(Index)),
    st.one_of(some_values, st.sampled_from([b"", b"a", b"a\0", b"ab\0", b"b" * 150 + b"\0"])),
    st.booleans(),
)


def with_versions(store: Store, batches: list[Batch]) -> list[Batch]:
    """Each batch at the version that its stream will be at."""
    next_version: dict[str, int] = {}
    result: list[Batch] = []
    for batch in batches:
        head = store.load(batch.stream)
        version = next_version.get(batch.stream, head.version if head is not None else 0)
        result.append(msgspec.structs.replace(batch, version=version))
        next_version[batch.stream] = version + 1
    return result


def hits(store: Store, index: Index, prefix: bytes, *, newest_first: bool) -> list[tuple[bytes, str]]:
    found = store.scan_index(index, prefix=prefix, newest_first=newest_first)
    answer = [(hit.value, hit.stream) for hit in found]
    if index is Index.REMINDER_DUE:  # the one whose order within a time is its own
        assert [value[:8] for value, _ in answer] == sorted((v[:8] for v, _ in answer), reverse=newest_first)
        answer.sort()
    assert [(hit.value, hit.stream) for hit in pages(store, index, prefix, newest_first=newest_first)] == [
        (hit.value, hit.stream) for hit in found
    ]
    return answer


def pages(store: Store, index: Index, prefix: bytes, *, newest_first: bool) -> list[IndexHit]:
    found: list[IndexHit] = []
    while True:
        after = found[-1].position if found else None
        page = store.scan_index(index, prefix=prefix, after=after, limit=2, newest_first=newest_first)
        if not page:
            return found
        found += page
        assert len(found) < 1000, "the pages go round in a circle"


def everything(store: Store) -> list[object]:
    """Heads without versions, which `rewrite` counts up, rows, and the entries of each index."""
    heads = [(name, head and (head.epoch, head.head)) for name in NAMES for head in [store.load(name)]]
    rows = [store.scan(name, table) for name in NAMES for table in Table]
    entries = [store.entries(name) for name in NAMES]
    names = [store.streams(), store.streams(limit=1), *(store.streams(after=name, limit=2) for name in NAMES)]
    return [
        heads,
        rows,
        entries,
        names,
        [hits(store, index, b"", newest_first=back) for index in Index for back in (False, True)],
    ]


def played(plain: MemoryStore, sealed: SealedStore, step: list[Batch] | str) -> SealedStore:
    """The sealed store after the step, which both have taken and answered alike."""
    if step == "renew":
        sealed.renew()
    elif step == "rewrite":
        sealed.rewrite()
    elif step == "reopen":
        beneath = sealed.inner
        sealed.close()
        return SealedStore(
            beneath.reopened() if isinstance(beneath, MemoryStore) else LmdbStore(beneath.location, durability="async"),
            KEY,
        )
    else:
        assert not isinstance(step, str)
        answers = plain.commit(with_versions(plain, step))
        assert sealed.commit(with_versions(sealed, step)) == answers == [None] * len(step)
    return sealed


def agree(
    plain: MemoryStore,
    sealed: SealedStore,
    some_ranges: list[tuple[bytes, bytes | None, int | None, bool]],
    some_searches: list[tuple[Index, bytes, bool]],
) -> None:
    assert everything(sealed) == everything(plain)
    for name in NAMES:
        for table in Table:
            for start, stop, limit, back in some_ranges:
                assert sealed.scan(name, table, start=start, stop=stop, limit=limit, newest_first=back) == plain.scan(
                    name, table, start=start, stop=stop, limit=limit, newest_first=back
                )
    for index, prefix, back in some_searches:
        assert hits(sealed, index, prefix, newest_first=back) == hits(plain, index, prefix, newest_first=back)
    assert sealed.damage.list() == []


@settings(deadline=None, max_examples=150)
@given(programs, st.lists(ranges, max_size=4), st.lists(searches, max_size=6))
def test_a_sealed_store_gives_what_a_plain_one_gives(
    program: list[list[Batch] | str],
    some_ranges: list[tuple[bytes, bytes | None, int | None, bool]],
    some_searches: list[tuple[Index, bytes, bool]],
) -> None:
    plain, sealed = MemoryStore(), SealedStore(MemoryStore(), KEY)
    for step in program:
        sealed = played(plain, sealed, step)

    agree(plain, sealed, some_ranges, some_searches)


@settings(deadline=None, max_examples=40)
@given(programs, st.lists(searches, max_size=6))
def test_a_sealed_directory_gives_what_a_plain_store_gives(
    program: list[list[Batch] | str], some_searches: list[tuple[Index, bytes, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        plain, sealed = MemoryStore(), SealedStore(LmdbStore(directory, durability="async"), KEY)
        try:
            for step in program:
                sealed = played(plain, sealed, step)

            agree(plain, sealed, [], some_searches)
        finally:
            sealed.close()
