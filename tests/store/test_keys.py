"""The byte layout of keys: what byte order must mean, and that nothing outgrows LMDB's limit."""

from hypothesis import given, strategies as st

from callboard.store import Index, Table, keys
from callboard.store.batch import INDEX_VALUE_BYTES_MAX, INDEX_VALUE_ZEROS_MAX, NAME_BYTES_MAX, ROW_KEY_BYTES_MAX

streams = st.integers(1, 2**40)
values = st.binary(max_size=20) | st.lists(st.sampled_from([0, 1, 97, 255]), max_size=8).map(bytes)
indexes = st.sampled_from(list(Index))
tables = st.sampled_from(list(Table))


@given(st.tuples(values, streams), st.tuples(values, streams), indexes)
def test_entries_sort_as_their_value_and_then_their_stream_do(
    one: tuple[bytes, int], other: tuple[bytes, int], index: Index
) -> None:
    assert (keys.entry_key(index, *one) < keys.entry_key(index, *other)) == (one < other)


@given(values, values, streams, indexes)
def test_the_range_of_a_prefix_holds_exactly_the_values_that_start_with_it(
    prefix: bytes, value: bytes, stream: int, index: Index
) -> None:
    start = keys.entry_prefix(index, prefix)
    key = keys.entry_key(index, value, stream)

    assert (start <= key < keys.successor(start)) == value.startswith(prefix)


@given(values, streams, indexes)
def test_an_entry_gives_its_value_back_and_its_listing_gives_the_entry(value: bytes, stream: int, index: Index) -> None:
    entry = keys.entry_key(index, value, stream)

    assert keys.entry_value(entry) == value
    assert keys.listed_entry(keys.listed_key(stream, index, value)) == entry


@given(st.tuples(streams, tables, values), st.tuples(streams, tables, values))
def test_rows_sort_by_stream_then_table_then_key(
    one: tuple[int, Table, bytes], other: tuple[int, Table, bytes]
) -> None:
    assert (keys.row_key(*one) < keys.row_key(*other)) == (one < other)


@given(st.tuples(streams, tables), st.binary(max_size=64), st.tuples(streams, tables))
def test_the_range_of_a_table_holds_its_own_rows_only(
    one: tuple[int, Table], key: bytes, other: tuple[int, Table]
) -> None:
    start = keys.row_prefix(*other)

    assert (start <= keys.row_key(*one, key) < keys.successor(start)) == (one == other)


def test_the_longest_keys_fit_lmdb() -> None:
    zeros = bytes(INDEX_VALUE_ZEROS_MAX)
    value = zeros + b"x" * (INDEX_VALUE_BYTES_MAX - len(zeros))
    longest = [
        keys.name_key("x" * NAME_BYTES_MAX),
        keys.row_key(2**63, Table.MESSAGE, b"x" * (ROW_KEY_BYTES_MAX + 1)),
        keys.entry_key(Index.TAG, value, 2**63),
        keys.listed_key(2**63, Index.TAG, value),
    ]

    assert max(len(key) for key in longest) == 511


def test_kinds_of_keys_never_mix() -> None:
    one_of_each = [
        keys.FORMAT,
        keys.name_key("a"),
        keys.guard_key(1),
        keys.row_key(1, Table.MESSAGE, b"k"),
        keys.entry_key(Index.TAG, b"v", 1),
        keys.listed_key(1, Index.TAG, b"v"),
    ]

    assert [key[0] for key in one_of_each] == [1, 2, 3, 4, 5, 6]


def test_the_layout_on_disk_stays_what_was_released() -> None:
    assert keys.name_key("é") == b"\x02\xc3\xa9"
    assert keys.guard_key(258) == b"\x03" + bytes(6) + b"\x01\x02"
    assert keys.row_key(1, Table.SPAN, b"k") == b"\x04" + bytes(7) + b"\x01\x03k"
    assert keys.entry_key(Index.OWNER, b"a\x00", 1) == b"\x05\x02a\x00\xff\x00" + bytes(7) + b"\x01"
    assert keys.listed_key(1, Index.OWNER, b"a\x00") == b"\x06" + bytes(7) + b"\x01\x02a\x00"
