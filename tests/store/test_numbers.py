"""The numbers that all else hangs on: damage to one is found, and hides or mixes up nothing else."""

from pathlib import Path

import lmdb
import pytest

from callboard.store import Batch, Corrupt, Head, Index, IndexRow, LmdbStore, Row, Table, keys
from callboard.store.numbers import pack_number, unpack_number


def filled(path: Path) -> None:
    """Three streams in rows, then a turn of each in the log, as a crash leaves it."""
    store = LmdbStore(path)
    for _ in range(3):
        store.claim()
    names = ("s1", "s2", "s3")
    store.commit([Batch(name, 1, 0, name.encode(), (Row(Table.RUN, b"1", name.encode()),)) for name in names])
    store.checkpoint()
    store.commit([Batch(name, 1, 1, rows=(Row(Table.RUN, b"2", name.encode()),)) for name in names])
    store._give_back()  # pyright: ignore[reportPrivateUsage] -- closing would move the log into rows


def flip(path: Path, key: bytes, bit: int) -> None:
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        value = bytearray(txn.get(key) or b"")
        value[bit // 8] ^= 1 << bit % 8
        txn.put(key, bytes(value))


def test_a_number_is_read_back_under_its_own_key_alone() -> None:
    value = pack_number(b"\x02a", 7)

    assert unpack_number(b"\x02a", value, where="it") == 7
    with pytest.raises(Corrupt, match=r"the record it cannot be read.*checksum"):
        unpack_number(b"\x02b", value, where="it")
    with pytest.raises(Corrupt, match="it has 11 bytes, not 12"):
        unpack_number(b"\x02a", value[:-1], where="it")


@pytest.mark.parametrize("bit", range(0, 96, 7))
@pytest.mark.parametrize("key", [keys.LAST_TRIMMED, keys.LAST_STREAM])
def test_a_damaged_field_is_noted_and_loses_or_mixes_up_no_stream(tmp_path: Path, key: bytes, bit: int) -> None:
    filled(tmp_path)
    flip(tmp_path, key, bit)
    store = LmdbStore(tmp_path)

    store.commit([Batch("new", 1, 0, b"new", (Row(Table.RUN, b"1", b"new"),))])
    store.checkpoint()

    assert store.damage.count == 1
    for name in ("s1", "s2", "s3"):
        assert store.load(name) == Head(1, 2, name.encode())
        assert store.scan(name, Table.RUN) == [(b"1", name.encode()), (b"2", name.encode())]
    assert store.load("new") == Head(1, 1, b"new")
    assert store.scan("new", Table.RUN) == [(b"1", b"new")]
    store.close()


@pytest.mark.parametrize("key", [keys.LAST_TRIMMED, keys.LAST_STREAM])
def test_a_field_that_is_missing_is_found_from_what_is_there(tmp_path: Path, key: bytes) -> None:
    filled(tmp_path)
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        assert txn.delete(key)
    store = LmdbStore(tmp_path)

    store.commit([Batch("new", 1, 0, b"new", (Row(Table.RUN, b"1", b"new"),))])
    store.checkpoint()

    for name in ("s1", "s2", "s3"):
        assert store.scan(name, Table.RUN) == [(b"1", name.encode()), (b"2", name.encode())]
    assert store.scan("new", Table.RUN) == [(b"1", b"new")]
    store.close()


def test_a_missing_last_owner_gives_no_number_twice(tmp_path: Path) -> None:
    filled(tmp_path)
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        assert txn.delete(keys.LAST_OWNER)
    store = LmdbStore(tmp_path)

    with pytest.raises(Corrupt, match="check --repair"):
        store.claim()
    store.close()


def test_a_damaged_index_entry_makes_no_page_short(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.commit([Batch(f"s{n}", 1, 0, index_rows=(IndexRow(Index.TAG, b"%d" % n),)) for n in range(9)])
    store.close()
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        assert txn.put(keys.entry_key(Index.TAG, b"1", 2), b"\xff")
    store = LmdbStore(tmp_path)

    assert [hit.stream for hit in store.scan_index(Index.TAG, limit=3)] == ["s0", "s2", "s3"]
    assert store.damage.count == 1
    store.close()


@pytest.mark.parametrize("bit", range(0, 96, 7))
def test_a_damaged_last_owner_gives_no_number_twice(tmp_path: Path, bit: int) -> None:
    filled(tmp_path)
    flip(tmp_path, keys.LAST_OWNER, bit)
    store = LmdbStore(tmp_path)

    with pytest.raises(Corrupt, match="last owner of the store"):
        store.claim()

    assert store.load("s1") == Head(1, 2, b"s1")
    store.close()


@pytest.mark.parametrize("bit", range(0, 96, 7))
@pytest.mark.parametrize("readonly", [False, True])
def test_a_stream_whose_number_is_damaged_hides_no_other(tmp_path: Path, bit: int, readonly: bool) -> None:
    filled(tmp_path)
    flip(tmp_path, keys.name_key("s2"), bit)
    store = LmdbStore(tmp_path, readonly=readonly)

    with pytest.raises(Corrupt, match="number of stream 's2'"):
        store.load("s2")

    assert store.damage.count == 1
    assert store.scan("s3", Table.RUN) == [(b"1", b"s3"), (b"2", b"s3")]
    store.close()


def test_a_segment_with_a_stream_that_has_no_number_is_kept_aside(tmp_path: Path) -> None:
    filled(tmp_path)
    flip(tmp_path, keys.name_key("s2"), 3)
    with lmdb.open(str(tmp_path)) as env, env.begin() as txn:
        segment = txn.get(keys.segment_key(2))
        assert segment is not None

    LmdbStore(tmp_path).close()

    with lmdb.open(str(tmp_path)) as env, env.begin() as txn:
        assert txn.get(keys.aside_key(keys.segment_key(2), segment)) == segment


def test_a_name_that_is_no_text_is_left_out_of_the_list(tmp_path: Path) -> None:
    filled(tmp_path)
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        txn.put(b"\x02\xff\xfe", b"")
    store = LmdbStore(tmp_path)

    assert store.streams() == ["s1", "s2", "s3"]
    assert [damage.where for damage in store.damage.list()] == ["name of stream b'\\xff\\xfe'"]
    store.close()


@pytest.mark.parametrize("damage", [b"", None, keys.number(1)])
def test_a_large_value_whose_count_is_damaged_stays(tmp_path: Path, damage: bytes | None) -> None:
    large = bytes(100_000)
    store = LmdbStore(tmp_path)
    store.commit([Batch(name, 1, 0, rows=(Row(Table.RUN, b"1", large),)) for name in ("a", "b")])
    store.close()
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn, txn.cursor() as cursor:
        assert cursor.set_range(keys.reference_key(b""))
        key = cursor.key()
        assert txn.delete(key) if damage is None else txn.put(key, damage)
    store = LmdbStore(tmp_path)

    store.commit([Batch("a", 1, 1, erase=True)])
    store.checkpoint()

    assert store.scan("b", Table.RUN) == [(b"1", large)]
    assert [found.where.partition(" value")[0] for found in store.damage.list()] == ["count of the large"]
    store.close()
