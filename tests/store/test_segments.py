"""The log on disk: records that cannot be read are reported, kept aside, and hide nothing else."""

import shutil
from pathlib import Path

import lmdb
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from callboard.store import Batch, Corrupt, Head, Index, IndexRow, LmdbStore, Row, Table, keys
from callboard.store.framing import FRAME_BYTES, frame, frame_encoded, unframe
from callboard.store.segments import decode_segment, encode_segment

NAMES = ("a", "b", "c")


def a_turn(stream: str, version: int) -> Batch:
    row = Row(Table.RUN, keys.number(version), b"value %d" % version)
    return Batch(stream, 1, version, b"head %d" % version, (row,), (IndexRow(Index.TAG, b"%d" % version),))


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A directory after a crash: three streams with a checkpoint behind them, and three segments in the log."""
    (tmp_path / "crashed").mkdir()
    store = LmdbStore(tmp_path / "store", durability="async")
    store.commit([a_turn(name, 0) for name in NAMES])
    store.checkpoint()
    for name in NAMES:
        store.commit([a_turn(name, 1)])
    shutil.copy(tmp_path / "store" / "data.mdb", tmp_path / "crashed")
    store.close()
    return tmp_path / "crashed"


def spoil(directory: Path, key: bytes, *, at: int = -1) -> bytes:
    """Change one byte of the value of this key; the bytes that are there then."""
    with lmdb.open(str(directory)) as env, env.begin(write=True) as txn:
        value = bytearray(txn.get(key) or b"")
        value[at] ^= 1
        txn.put(key, bytes(value))
    return bytes(value)


def values_of(directory: Path, prefix: bytes) -> dict[bytes, bytes]:
    with lmdb.open(str(directory), readonly=True) as env, env.begin() as txn, txn.cursor() as cursor:
        return {key: value for key, value in cursor if key.startswith(prefix)}


def segments_of(directory: Path) -> list[bytes]:
    return list(values_of(directory, keys.segment_prefix()))


@pytest.mark.parametrize("readonly", [False, True])
def test_a_segment_that_cannot_be_read_is_reported_and_the_rest_replays(crashed: Path, *, readonly: bool) -> None:
    spoil(crashed, segments_of(crashed)[1])

    store = LmdbStore(crashed, durability="async", readonly=readonly)

    assert [store.load(name) for name in NAMES] == [Head(1, 2, b"head 1"), Head(1, 1, b"head 0"), Head(1, 2, b"head 1")]
    assert [hit.stream for hit in store.scan_index(Index.TAG, prefix=b"1")] == ["a", "c"]
    assert ["of the log" in seen.where for seen in store.damage.list()] == [True]
    assert store.statistics().damaged == 1
    store.close()


def test_a_segment_that_cannot_be_read_is_kept_aside_when_the_log_is_emptied(crashed: Path) -> None:
    key = segments_of(crashed)[1]
    rotten = spoil(crashed, key)

    store = LmdbStore(crashed, durability="async")
    assert store.commit([a_turn("b", 1)]) == [None]
    store.close()

    assert segments_of(crashed) == []
    assert values_of(crashed, keys.aside_key(key, rotten)) == {keys.aside_key(key, rotten): rotten}
    reopened = LmdbStore(crashed, durability="async")
    assert reopened.damage.count == 0
    assert reopened.load("b") == Head(1, 2, b"head 1")
    reopened.close()


def test_a_guard_that_cannot_be_read_hides_neither_its_segment_nor_what_its_own_log_says(crashed: Path) -> None:
    for key in values_of(crashed, keys.guard_prefix()):
        spoil(crashed, key)

    store = LmdbStore(crashed, durability="async")

    assert [store.load(name) for name in NAMES] == [Head(1, 2, b"head 1")] * 3
    assert store.damage.count == 0
    assert store.commit([a_turn("a", 2)]) == [None]
    store.checkpoint()
    assert store.load("a") == Head(1, 3, b"head 2")
    assert [key for key, _ in store.scan("b", Table.RUN)] == [keys.number(0), keys.number(1)]
    store.close()


def test_a_stream_whose_guard_cannot_be_read_is_refused_and_the_others_are_not(crashed: Path) -> None:
    LmdbStore(crashed, durability="async").close()
    spoil(crashed, next(iter(values_of(crashed, keys.guard_prefix()))))
    store = LmdbStore(crashed, durability="async")

    first, second = store.commit([a_turn("a", 2), a_turn("b", 2)])

    assert isinstance(first, Corrupt)
    assert "guard of stream 'a'" in first.where
    assert second is None
    with pytest.raises(Corrupt, match="guard of stream 'a'"):
        store.load("a")
    assert len(store.scan("a", Table.RUN)) == 2
    store.close()


def test_numbers_of_segments_are_never_given_twice(crashed: Path) -> None:
    """A reader that has seen number 4 would take another number 4 for the same."""
    before = segments_of(crashed)
    store = LmdbStore(crashed, durability="async")
    store.close()
    store = LmdbStore(crashed, durability="async")
    store.commit([a_turn("new", 0)])
    (crashed.parent / "copy").mkdir()
    shutil.copy(crashed / "data.mdb", crashed.parent / "copy")
    store.close()

    assert segments_of(crashed.parent / "copy") > before


some_batches = st.builds(
    Batch,
    st.text(min_size=1, max_size=5).filter(lambda name: name.isprintable()),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 2),
    head=st.none() | st.binary(max_size=5),
    rows=st.lists(st.builds(Row, st.sampled_from(Table), st.binary(max_size=64), st.none() | st.binary())).map(tuple),
    index_rows=st.lists(st.builds(IndexRow, st.sampled_from(Index), st.binary(max_size=99), st.booleans())).map(tuple),
    erase=st.booleans(),
)


@settings(max_examples=50)
@given(st.lists(some_batches, min_size=1, max_size=4), st.data())
def test_batches_come_back_equal_and_with_any_byte_changed_as_corrupt(
    batches: list[Batch], data: st.DataObject
) -> None:
    value = encode_segment(batches)
    assert decode_segment(bytes(value), number=7) == batches

    value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt) as caught:
        decode_segment(bytes(value), number=7)
    assert caught.value.where == "number 7 of the log"


@given(st.binary(max_size=30) | st.builds(msgspec.msgpack.encode, st.lists(st.lists(st.integers(0, 9) | st.text()))))
def test_sound_bytes_that_are_no_batches_are_corrupt(content: bytes) -> None:
    try:
        batches = decode_segment(frame(content), number=7)
    except Corrupt:
        return
    assert batches == []


@given(st.binary(max_size=50))
def test_a_frame_gives_its_content_back_and_both_ways_of_making_one_agree(content: bytes) -> None:
    assert bytes(unframe(frame(content), where="")) == content
    assert frame_encoded(msgspec.msgpack.Encoder(), content) == frame(msgspec.msgpack.encode(content))
    assert len(frame(content)) == FRAME_BYTES + len(content)


@given(st.binary(max_size=50))
def test_bytes_that_are_no_frame_are_corrupt_and_say_why(value: bytes) -> None:
    if value[:1] != b"\x01" or len(value) < FRAME_BYTES:
        with pytest.raises(Corrupt, match=r"header|version byte"):
            unframe(value, where="here")
