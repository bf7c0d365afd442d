"""Rows of a stream on disk, against a dict: whatever is written, read, erased or damaged."""

import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice

import lmdb
import pytest
from hypothesis import given, settings, strategies as st

from callboard.store import chunks, keys, rows as rows_module
from callboard.store.batch import Table
from callboard.store.chunks import LargeValue, Stored, decode_chunk
from callboard.store.damage import DamageLog
from callboard.store.numbers import unpack_number
from callboard.store.rows import StoredRows

CHUNK_BYTES, CHUNK_BYTES_MIN, BLOB_BYTES_MIN = 70, 30, 40
TABLES = (Table.MESSAGE, Table.RUN)
STREAM = 7

short_keys = st.integers(0, 15).map(lambda number: b"%02d" % number) | st.sampled_from(
    [b"", b"\x00", b"\xff", b"\xff\xff", b"k" * 64]
)
some_values = st.none() | st.binary(max_size=25) | st.sampled_from([b"L" * 41, b"M" * 41, b"N" * 90, b"L" * 40])
one_write = st.tuples(st.sampled_from(TABLES), st.dictionaries(short_keys, some_values, min_size=1, max_size=12))
programs = st.lists(one_write | st.just("erase"), max_size=12)
Program = list[tuple[Table, dict[bytes, bytes | None]] | str]
Model = dict[Table, dict[bytes, bytes]]


@pytest.fixture(scope="module", autouse=True)
def small_bounds() -> Generator[None, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (chunks, rows_module):
            patch.setattr(module, "CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr(rows_module, "CHUNK_BYTES_MIN", CHUNK_BYTES_MIN)
        patch.setattr(rows_module, "BLOB_BYTES_MIN", BLOB_BYTES_MIN)
        yield


@pytest.fixture(scope="module")
def env() -> Generator[lmdb.Environment, None, None]:
    with tempfile.TemporaryDirectory() as directory, lmdb.open(directory, map_size=1 << 26, sync=False) as opened:
        yield opened


@contextmanager
def dropped(env: lmdb.Environment) -> Generator["lmdb.Transaction[bytes]", None, None]:
    """A transaction of which nothing stays."""
    txn = env.begin(write=True)
    try:
        yield txn
    finally:
        txn.abort()


def played(txn: "lmdb.Transaction[bytes]", program: Program, damage: DamageLog, *, stream: int = STREAM) -> Model:
    """Play the program to the rows of a stream, and to the dicts that are given back."""
    model: Model = {table: {} for table in TABLES}
    rows = StoredRows(txn, stream, "name", damage)
    for step in program:
        if isinstance(step, str):
            rows.erase()
            model = {table: {} for table in TABLES}
            continue
        table, writes = step
        rows.write(table, sorted(writes.items()))
        for key, value in writes.items():
            if value is None:
                model[table].pop(key, None)
            else:
                model[table][key] = value
    return model


def read(rows: StoredRows, table: Table, *, newest_first: bool = False) -> list[tuple[bytes, bytes]]:
    return list(rows.scan(table, b"", None, newest_first=newest_first))


def stored_chunks(txn: "lmdb.Transaction[bytes]", table: Table, *, stream: int = STREAM) -> list[tuple[bytes, bytes]]:
    """Key of the first row, and value, of each chunk."""
    prefix = keys.row_prefix(stream, table)
    with txn.cursor() as cursor:
        return [(key[len(prefix) :], value) for key, value in cursor if key.startswith(prefix)]


def counted(txn: "lmdb.Transaction[bytes]") -> tuple[dict[bytes, int], set[bytes]]:
    """The counts of references, and the large values that are there, by hash."""
    counts: dict[bytes, int] = {}
    blobs: set[bytes] = set()
    for key, value in txn.cursor():
        if key[:1] == keys.reference_key(b""):
            counts[key[1:]] = unpack_number(key, value, where="a count")
        elif key[:1] == keys.blob_key(b""):
            blobs.add(key[1:])
    return counts, blobs


@settings(deadline=None, max_examples=60)
@given(program=programs, other=programs)
def test_rows_are_what_a_dict_has_and_a_neighbour_is_not_touched(
    env: lmdb.Environment, program: Program, other: Program
) -> None:
    with dropped(env) as txn:
        damage = DamageLog()
        beside = {stream: played(txn, other, damage, stream=stream) for stream in (STREAM - 1, STREAM + 1)}
        model = played(txn, program, damage)

        for table in TABLES:
            rows = StoredRows(txn, STREAM, "name", damage)
            assert read(rows, table) == sorted(model[table].items())
            assert read(rows, table, newest_first=True) == sorted(model[table].items(), reverse=True)
            for stream, contents in beside.items():
                assert read(StoredRows(txn, stream, "beside", damage), table) == sorted(contents[table].items())
        assert damage.count == 0


@settings(deadline=None, max_examples=60)
@given(program=programs)
def test_chunks_lie_in_order_within_the_bounds_and_none_is_empty(env: lmdb.Environment, program: Program) -> None:
    with dropped(env) as txn:
        played(txn, program, DamageLog())

        for table in TABLES:
            found = stored_chunks(txn, table)
            decoded = [decode_chunk(value, where="") for _, value in found]
            assert [rows[0][0] for rows in decoded] == [key for key, _ in found]
            order = [key for rows in decoded for key, _ in rows]
            assert order == sorted(set(order))
            for rows in decoded:
                sizes = [len(key) + (32 if isinstance(value, LargeValue) else len(value)) + 6 for key, value in rows]
                assert len(rows) == 1 or sum(sizes) <= CHUNK_BYTES


@settings(deadline=None, max_examples=60)
@given(programs=st.tuples(programs, programs), erased=st.booleans())
def test_a_large_value_is_kept_once_and_its_count_is_the_number_of_rows_that_have_it(
    env: lmdb.Environment, programs: tuple[Program, Program], *, erased: bool
) -> None:
    with dropped(env) as txn:
        damage = DamageLog()
        models = [played(txn, program, damage, stream=stream) for stream, program in enumerate(programs)]
        if erased:
            StoredRows(txn, 0, "name", damage).erase()
            models[0] = {}

        counts, blobs = counted(txn)
        having = Counter(
            value
            for model in models
            for contents in model.values()
            for value in contents.values()
            if len(value) > BLOB_BYTES_MIN
        )
        assert Counter(counts.values()) == Counter(having.values())
        assert blobs == set(counts)


@settings(deadline=None, max_examples=50)
@given(program=programs, start=short_keys, stop=st.none() | short_keys, limit=st.integers(0, 5))
def test_a_scan_keeps_its_bounds_in_both_directions(
    env: lmdb.Environment, program: Program, *, start: bytes, stop: bytes | None, limit: int
) -> None:
    with dropped(env) as txn:
        model = played(txn, program, DamageLog())
        rows = StoredRows(txn, STREAM, "name", DamageLog())
        wanted = sorted(
            (key, value) for key, value in model[Table.RUN].items() if start <= key and (stop is None or key < stop)
        )

        assert list(rows.scan(Table.RUN, start, stop, newest_first=False)) == wanted
        assert list(rows.scan(Table.RUN, start, stop, newest_first=True)) == wanted[::-1]
        lazy = rows.scan(Table.RUN, start, stop, newest_first=True)
        assert list(islice(lazy, limit)) == wanted[::-1][:limit]


@settings(deadline=None, max_examples=50)
@given(program=programs, writes=st.dictionaries(short_keys, some_values, max_size=10), data=st.data())
def test_a_damaged_chunk_is_left_out_noted_once_and_kept_aside_when_it_is_written_over(
    env: lmdb.Environment, program: Program, writes: dict[bytes, bytes | None], data: st.DataObject
) -> None:
    with dropped(env) as txn:
        damage = DamageLog()
        model = played(txn, [*program, (Table.RUN, {b"05": b"x"})], damage)[Table.RUN]
        found = stored_chunks(txn, Table.RUN)
        first, value = data.draw(st.sampled_from(found))
        lost = {key for key, _ in decode_chunk(value, where="")}
        broken = bytearray(value)
        broken[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        chunk_key = keys.row_key(STREAM, Table.RUN, first)
        txn.put(chunk_key, bytes(broken))
        rows = StoredRows(txn, STREAM, "name", damage)

        remains = {key: value for key, value in model.items() if key not in lost}
        assert read(rows, Table.RUN) == sorted(remains.items())
        assert read(rows, Table.RUN, newest_first=True) == sorted(remains.items(), reverse=True)
        assert [seen.where for seen in damage.list()] == [rows_module.place("name", Table.RUN, first)]

        if writes:
            rows.write(Table.RUN, sorted(writes.items()))
        remains = {key: value for key, value in {**remains, **writes}.items() if value is not None}
        assert read(rows, Table.RUN) == sorted(remains.items())
        places = (chunk_key, keys.aside_key(chunk_key, bytes(broken)))
        assert bytes(broken) in [txn.get(place) for place in places], "the damaged bytes are nowhere"


def test_a_scan_reads_no_chunk_beyond_its_bounds_and_none_before_it_is_reached(
    env: lmdb.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dropped(env) as txn:
        rows = StoredRows(txn, STREAM, "name", DamageLog())
        rows.write(Table.RUN, [(b"%02d" % number, b"v" * 20) for number in range(40)])
        decoded: list[str] = []

        def counting(value: bytes, *, where: str) -> list[Stored]:
            decoded.append(where)
            return decode_chunk(value, where=where)

        monkeypatch.setattr(rows_module, "decode_chunk", counting)
        for newest_first in (False, True):
            assert len(list(rows.scan(Table.RUN, b"10", b"12", newest_first=newest_first))) == 2
            assert len(decoded) == 1
            decoded.clear()
            next(rows.scan(Table.RUN, b"05", None, newest_first=newest_first))
            assert len(decoded) == 1
            decoded.clear()
        rows.write(Table.RUN, [(b"10", b"w" * 20)])
        assert len(decoded) == 1


def test_every_bound_that_is_a_key_is_kept_in_both_directions(env: lmdb.Environment) -> None:
    everything = [(b"%02d" % number, b"v" * 8) for number in range(20)]
    with dropped(env) as txn:
        rows = StoredRows(txn, STREAM, "name", DamageLog())
        rows.write(Table.RUN, everything)
        for first in range(20):
            for last in range(first, 20):
                start, stop, wanted = b"%02d" % first, b"%02d" % last, everything[first:last]

                assert list(rows.scan(Table.RUN, start, stop, newest_first=False)) == wanted
                assert list(rows.scan(Table.RUN, start, stop, newest_first=True)) == wanted[::-1]


def one_large(txn: "lmdb.Transaction[bytes]", damage: DamageLog) -> tuple[StoredRows, bytes]:
    rows = StoredRows(txn, STREAM, "name", damage)
    rows.write(Table.RUN, [(b"1", b"L" * 41), (b"2", b"small")])
    return rows, keys.blob_key(next(iter(counted(txn)[1])))


@pytest.mark.parametrize("rotten", [None, b"", b"rotten", b"\x01\x00\x00\x00\x00 another"])
def test_a_row_whose_large_value_is_gone_or_damaged_is_left_out(env: lmdb.Environment, rotten: bytes | None) -> None:
    with dropped(env) as txn:
        damage = DamageLog()
        rows, blob = one_large(txn, damage)
        if rotten is None:
            txn.delete(blob)
        else:
            txn.put(blob, rotten)

        assert read(rows, Table.RUN) == read(rows, Table.RUN) == [(b"2", b"small")]
        assert ["large value of RUN rows from 31" in seen.where for seen in damage.list()] == [True]


def test_a_large_value_that_rotted_is_mended_by_the_next_row_that_brings_the_same(env: lmdb.Environment) -> None:
    with dropped(env) as txn:
        rows, blob = one_large(txn, DamageLog())
        txn.put(blob, b"rotten")

        rows.write(Table.RUN, [(b"3", b"L" * 41)])

        assert [key for key, _ in read(rows, Table.RUN)] == [b"1", b"2", b"3"]
        assert list(counted(txn)[0].values()) == [2]


def test_appending_reads_and_writes_the_last_chunk_alone_however_many_there_are(env: lmdb.Environment) -> None:
    with dropped(env) as txn:
        rows = StoredRows(txn, STREAM, "name", DamageLog())
        rows.write(Table.RUN, [(b"%05d" % number, b"v") for number in range(0, 2000, 2)])
        before = dict(stored_chunks(txn, Table.RUN))

        rows.write(Table.RUN, [(b"90000", b"v")])

        after = dict(stored_chunks(txn, Table.RUN))
        changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
        assert len(before) >= 200
        assert len(changed) == 1


def test_rows_appended_one_by_one_fill_their_chunks(env: lmdb.Environment) -> None:
    with dropped(env) as txn:
        rows = StoredRows(txn, STREAM, "name", DamageLog())

        for number in range(300):
            rows.write(Table.RUN, [(b"%05d" % number, b"v")])

        assert len(stored_chunks(txn, Table.RUN)) <= 300 * 12 / CHUNK_BYTES * 1.6
