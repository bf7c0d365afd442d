"""Folding a group into one change a stream: it comes out as if the batches had been stored one after the other."""

from hypothesis import given, strategies as st

from callboard.store import Batch, Conflict, Fenced, Index, IndexRow, MemoryStore, Row, Table
from callboard.store.folding import Guard, fold

NAMES = ("a", "b", "c")
some_keys = st.sampled_from([b"", b"1", b"2"])
some_rows = st.builds(Row, st.sampled_from([Table.MESSAGE, Table.RUN]), some_keys, st.none() | st.binary(max_size=2))
some_entries = st.builds(IndexRow, st.sampled_from([Index.TAG, Index.OWNER]), some_keys, st.booleans())
some_batches = st.builds(
    Batch,
    st.sampled_from(NAMES),
    st.integers(1, 3),
    st.integers(0, 4),
    head=st.none() | st.binary(max_size=2),
    rows=st.lists(some_rows, max_size=4).map(tuple),
    index_rows=st.lists(some_entries, max_size=4).map(tuple),
    erase=st.booleans(),
)
groups = st.lists(some_batches, max_size=8)


def guards_of(store: MemoryStore) -> dict[str, Guard]:
    heads = {name: store.load(name) for name in NAMES}
    return {name: Guard(head.epoch, head.version) for name, head in heads.items() if head is not None}


def state_of(store: MemoryStore) -> list[object]:
    heads: list[object] = [store.load(name) for name in NAMES]
    rows = [store.scan(name, table) for name in NAMES for table in (Table.MESSAGE, Table.RUN)]
    return [*heads, *rows, *(store.entries(name) for name in NAMES)]


def apply(store: MemoryStore, batches: list[Batch], guards: dict[str, Guard] | None) -> list[tuple[type, str]]:
    """What a store does with a folded group: one batch for each change, on a guard that it sets to what is needed."""
    folded = fold(batches, guards)
    for name, change in folded.changes.items():
        head = store.load(name)
        version = head.version if head is not None else 0
        assert (version, change.epoch_max >= (head.epoch if head is not None else 0)) == (change.built_on, True)
        rows = tuple(Row(table, key, value) for (table, key), value in change.rows.items())
        entries = tuple(IndexRow(index, value, present) for (index, value), present in change.entries.items())
        for version in range(change.built_on, change.version - 1):  # a change counts as all of its batches
            store.commit([Batch(name, change.epoch_max, version)])
        whole = Batch(name, change.epoch, change.version - 1, change.head, rows, entries, change.erase)
        assert store.commit([whole]) == [None]
    return [(type(answer), str(answer)) for answer in folded.answers]


@given(groups, groups)
def test_a_folded_group_comes_out_as_its_batches_one_after_the_other(before: list[Batch], group: list[Batch]) -> None:
    one_by_one, folded = MemoryStore(), MemoryStore()
    for store in (one_by_one, folded):
        store.commit(before)

    expected = [(type(answer), str(answer)) for answer in one_by_one.commit(group)]

    assert apply(folded, group, guards_of(folded)) == expected
    assert state_of(folded) == state_of(one_by_one)


@given(groups)
def test_without_guards_each_stream_is_taken_to_stand_where_its_first_batch_was_built(group: list[Batch]) -> None:
    first: dict[str, Guard] = {}
    for batch in group:
        first.setdefault(batch.stream, Guard(batch.epoch, batch.version))

    assumed, known = fold(group), fold(group, first)

    assert assumed.changes == known.changes
    assert [str(answer) for answer in assumed.answers] == [str(answer) for answer in known.answers]


def test_an_erase_takes_back_what_batches_before_it_wrote() -> None:
    row, entry = Row(Table.MESSAGE, b"old", b"v"), IndexRow(Index.TAG, b"old")
    new = Row(Table.MESSAGE, b"new", b"v")
    written = Batch("a", 1, 0, head=b"old", rows=(row,), index_rows=(entry,))

    change = fold([written, Batch("a", 1, 1, rows=(new,), erase=True)]).changes["a"]

    assert (change.erase, change.head) == (True, b"")
    assert change.rows == {(Table.MESSAGE, b"new"): b"v"}
    assert change.entries == {}


def test_an_epoch_is_looked_at_before_a_version() -> None:
    answers = fold([Batch("a", 1, 9), Batch("a", 3, 9), Batch("a", 3, 4)], {"a": Guard(2, 4)}).answers

    assert [type(answer) for answer in answers] == [Fenced, Conflict, type(None)]
