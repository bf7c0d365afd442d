"""Rows that lie together as one value: they come back as they were, within the bounds, or as Corrupt."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from callboard.store import chunks
from callboard.store.chunks import LargeValue, Stored, decode_chunk, encode_chunks, last_key
from callboard.store.errors import Corrupt
from callboard.store.framing import frame

SMALL_BYTES = 60
row_keys = st.binary(max_size=64)
values = st.binary(max_size=40) | st.builds(LargeValue, st.binary(min_size=32, max_size=32))
sorted_rows = st.dictionaries(row_keys, values, min_size=1, max_size=30).map(lambda rows: sorted_by_key(rows))


def sorted_by_key(rows: dict[bytes, bytes | LargeValue]) -> list[Stored]:
    return sorted(rows.items(), key=lambda row: row[0])


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", SMALL_BYTES)
        yield


@given(sorted_rows)
def test_rows_come_back_as_they_were_each_chunk_under_its_first_key(rows: list[Stored]) -> None:
    made = encode_chunks(rows)

    decoded = [decode_chunk(value, where="here") for _, value in made]
    assert [row for chunk in decoded for row in chunk] == rows
    assert [key for key, _ in made] == [chunk[0][0] for chunk in decoded]


@given(sorted_rows)
def test_the_last_key_of_a_chunk_is_told_without_decoding_it(rows: list[Stored]) -> None:
    for _, value in encode_chunks(rows):
        assert last_key(value) == decode_chunk(value, where="here")[-1][0]


@given(sorted_rows)
def test_a_chunk_is_as_full_as_the_bound_allows_and_a_large_value_has_one_of_its_own(rows: list[Stored]) -> None:
    decoded = [decode_chunk(value, where="here") for _, value in encode_chunks(rows)]

    for chunk in decoded:
        assert len(chunk) == 1 or not any(isinstance(value, LargeValue) for _, value in chunk)
        assert len(chunk) == 1 or size_bytes(chunk) <= SMALL_BYTES
    for chunk, following in pairwise(decoded):
        assert is_large(chunk) or is_large(following) or size_bytes([*chunk, following[0]]) > SMALL_BYTES


def is_large(chunk: list[Stored]) -> bool:
    return isinstance(chunk[0][1], LargeValue)


def size_bytes(chunk: list[Stored]) -> int:
    """What the rows take at most: key and value, and 6 bytes for their two lengths."""
    return sum(len(key) + len(value) + 6 for key, value in chunk if isinstance(value, bytes))


def test_no_rows_are_no_chunks() -> None:
    assert encode_chunks([]) == []


@settings(max_examples=30)
@given(sorted_rows, st.data())
def test_a_chunk_with_any_byte_changed_or_cut_is_corrupt_and_named(rows: list[Stored], data: st.DataObject) -> None:
    _, value = encode_chunks(rows)[0]
    at = data.draw(st.integers(0, len(value) - 1))
    changed = bytearray(value)
    changed[at] ^= data.draw(st.integers(1, 255))

    for damaged in (bytes(changed), value[:at]):
        with pytest.raises(Corrupt) as caught:
            decode_chunk(damaged, where="here")
        assert caught.value.where == "here"


@given(st.binary(max_size=40))
def test_sound_bytes_that_are_no_chunk_are_rows_or_corrupt_and_the_last_key_never_raises(content: bytes) -> None:
    value = frame(content)

    last_key(value)
    last_key(content)
    try:
        rows = decode_chunk(value, where="here")
    except Corrupt:
        return
    assert all(isinstance(key, bytes) for key, _ in rows)


@pytest.mark.parametrize(
    "content", [b"\x00\x00" + msgspec.msgpack.encode([b"key alone"]), b"\x00\x00" + msgspec.msgpack.encode([1, 2])]
)
def test_a_list_that_is_no_pairs_of_bytes_is_corrupt(content: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_chunk(frame(content), where="here")
