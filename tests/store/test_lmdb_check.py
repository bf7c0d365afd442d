"""What check finds in a damaged store, and what repair makes of it without losing a byte."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import lmdb
import pytest

from callboard.store import Batch, Corrupt, Index, IndexRow, LmdbStore, NewerFormat, Row, StoreLocked, Table, keys
from callboard.store.framing import frame
from callboard.store.lmdb_check import check_directory, repair_directory
from callboard.store.numbers import pack_number
from callboard.store.segments import encode_segment

Txn: TypeAlias = "lmdb.Transaction[bytes]"
LARGE = bytes(range(256)) * 100
EPOCH = 1 << 32


def filled(path: Path, *, log: bool = True) -> Path:
    """Three streams in rows, the first with a large value and several chunks; the last with a tail in the log."""
    store = LmdbStore(path)
    store.claim()
    rows = tuple(Row(Table.MESSAGE, keys.number(number), b"v" * 500) for number in range(60))
    entries = (IndexRow(Index.OWNER, b"ann\0" + keys.number(5)), IndexRow(Index.TAG, b"t"))
    store.commit(
        [
            Batch("a", EPOCH, 0, b"head a", (*rows, Row(Table.RUN, b"large", LARGE)), entries),
            Batch("b", EPOCH, 0, b"head b", (Row(Table.RUN, b"k", b"b's"), Row(Table.RUN, b"large", LARGE))),
            Batch("c", EPOCH, 0, b"head c", (Row(Table.RUN, b"k", b"c's"),)),
        ]
    )
    store.checkpoint()
    if log:
        store.commit([Batch("c", EPOCH, 1, b"head c2", (Row(Table.RUN, b"l", b"in the log"),))])
        store.commit([Batch("c", EPOCH, 2, None, (Row(Table.RUN, b"m", b"in the log"),))])
    leave_unclosed(store)
    return path


def leave_unclosed(store: LmdbStore) -> None:
    """As a crash leaves it: nothing is moved out of the log."""
    store._give_back()  # pyright: ignore[reportPrivateUsage] -- closing would move the log into rows


def change(path: Path, work: Callable[[Txn], object]) -> None:
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        work(txn)


def values(path: Path) -> set[bytes]:
    with lmdb.open(str(path)) as env, env.begin() as txn:
        return {bytes(value) for _, value in txn.cursor()}


def first(txn: Txn, prefix: bytes) -> bytes:
    with txn.cursor() as cursor:
        assert cursor.set_range(prefix)
        assert cursor.key().startswith(prefix)
        return cursor.key()


def flip(prefix: bytes) -> Callable[[Txn], object]:
    """A bit of the last byte of the first value whose key starts so."""

    def work(txn: Txn) -> None:
        key = first(txn, prefix)
        value = bytearray(txn.get(key) or b"")
        value[-1] ^= 1
        txn.put(key, bytes(value))

    return work


def put(key: bytes, value: bytes) -> Callable[[Txn], object]:
    return lambda txn: txn.put(key, value)


def delete(prefix: bytes) -> Callable[[Txn], object]:
    return lambda txn: txn.delete(first(txn, prefix))


def move_chunk(txn: Txn) -> None:
    key = first(txn, keys.row_prefix(1, Table.MESSAGE))
    txn.put(key[:-8] + keys.number(3), txn.get(key) or b"")


def foreign_log(txn: Txn) -> None:
    txn.put(keys.segment_key(4), encode_segment([Batch("c", EPOCH, 9), Batch("nobody", EPOCH, 0)]))


TAIL = keys.segment_prefix()
DAMAGES: list[tuple[Callable[[Txn], object], str, bool]] = [
    (flip(keys.row_prefix(1, Table.MESSAGE)), "MESSAGE rows .* of stream 'a'.*checksum", True),
    (flip(keys.row_prefix(2)), "RUN rows .* of stream 'b'", True),
    (flip(keys.guard_key(2)), "guard of stream 'b'", True),
    (delete(keys.guard_key(2)), "stream 'b'.*no guard", True),
    (flip(TAIL), "number 2 of the log.*checksum", False),
    (delete(TAIL), "what lay between is lost", False),
    (foreign_log, "'nobody' has no name", False),
    (foreign_log, "'c' goes from version 3 to 9", False),
    (flip(keys.blob_key(b"")), "large value.*checksum", False),
    (delete(keys.blob_key(b"")), "large value is missing", False),
    (delete(keys.reference_key(b"")), "it says 0, and 2 rows have it", True),
    (flip(keys.reference_key(b"")), "it says nothing .*checksum.*, and 2 rows have it", True),
    (put(keys.blob_key(b"x" * 32), frame(b"whatever")), "does not have this hash", True),
    (put(keys.reference_key(b"x" * 32), pack_number(keys.reference_key(b"x" * 32), 1)), "it says 1, and 0 rows", True),
    (delete(keys.index_prefix(Index.OWNER)), "its index does not have it", True),
    (delete(keys.listed_prefix(1)), "the list of its stream does not have it", True),
    (put(keys.entry_key(Index.TAG, b"t", 3), b"b"), "does not point at a stream", True),
    (put(b"\x05\x03", b""), "does not point at a stream", True),
    (put(keys.listed_key(77, Index.TAG, b"t"), b""), "does not name an entry", True),
    (put(b"\x02\xff\xfe", keys.number(1)), "utf-8", True),
    (put(keys.name_key("d"), b"3"), "it has 1 bytes", True),
    (put(keys.name_key("d"), pack_number(keys.name_key("d"), 3)), "it has the number of 'c'", False),
    (put(keys.name_key("b"), keys.number(2) + b"junk"), "number of stream 'b'|name b'b'.*checksum", True),
    (put(keys.LAST_STREAM, b""), "last stream number.*0 bytes", True),
    (put(keys.LAST_STREAM, pack_number(keys.LAST_STREAM, 1)), "never given out", True),
    (put(keys.LAST_TRIMMED, b"x"), "last deleted segment.*1 bytes", True),
    (put(keys.guard_key(44), frame(bytes(16))), "no stream has this number", True),
    (put(keys.row_prefix(44) + b"\x01k", b"x"), "no stream has this number", True),
    (put(keys.row_prefix(1) + b"\x63k", b"x"), "or no table", True),
    (move_chunk, "not in their place", True),
    (put(b"\x01\x77", b"x"), "no such key", True),
    (put(b"\x63whatever", b"x"), "no such key", True),
    (delete(keys.LAST_OWNER), "last owner.*missing", True),
    (delete(keys.LAST_STREAM), "last stream.*missing|never given out", True),
    (delete(keys.LAST_TRIMMED), "last deleted.*missing", True),
    (put(keys.LAST_OWNER, b"x"), "last owner.*1 bytes", True),
]


def test_a_sound_store_is_found_sound_and_everything_is_counted(tmp_path: Path) -> None:
    report = check_directory(filled(tmp_path))

    assert report.findings == []
    assert (report.streams, report.rows, report.segments, report.large_values) == (3, 64, 2, 1)
    assert (report.entries, report.aside) == (2, 0)
    assert report.chunks > 5


def test_a_repair_is_refused_while_somebody_may_write(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)

    with pytest.raises(StoreLocked):
        repair_directory(tmp_path)

    store.close()


@pytest.mark.parametrize(("damage", "reason", "mended"), DAMAGES)
def test_each_damage_is_found_and_mended_or_told_and_no_byte_is_lost(
    tmp_path: Path, damage: Callable[[Txn], object], reason: str, mended: bool
) -> None:
    change(filled(tmp_path), damage)
    damaged = values(tmp_path)

    found = check_directory(tmp_path)
    before, after = repair_directory(tmp_path)

    texts = [f"{finding.where}: {finding.reason}" for finding in found.findings]
    assert any(re.search(reason, text) for text in texts), texts
    assert before.findings == found.findings
    assert bool(after.findings) is not mended, after.findings
    assert {value for value in damaged if len(value) > 12} <= values(tmp_path)


def test_what_was_sound_is_read_as_before_once_the_rest_was_mended(tmp_path: Path) -> None:
    intact = LmdbStore(filled(tmp_path / "intact"))
    sound = contents(intact, "a", "c")
    intact.close()
    filled(tmp_path / "s")
    for damage in (flip(keys.guard_key(2)), flip(keys.row_prefix(2)), delete(keys.index_prefix(Index.OWNER))):
        change(tmp_path / "s", damage)

    repair_directory(tmp_path / "s")

    store = LmdbStore(tmp_path / "s")
    assert contents(store, "a", "c") == sound
    assert store.damage.list() == []
    assert [hit.stream for hit in store.scan_index(Index.OWNER)] == ["a"]
    head = store.load("b")
    assert head is not None
    assert (head.head, head.epoch > EPOCH) == (b"", True)
    assert store.commit([Batch("b", store.claim() << 32, head.version, b"anew")]) == [None]
    store.close()


def contents(store: LmdbStore, *names: str) -> list[Any]:
    return [(store.load(name), *(store.scan(name, table) for table in Table), store.entries(name)) for name in names]


@pytest.mark.parametrize("version", [3, 0])
def test_a_store_of_another_format_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    change(filled(tmp_path), put(keys.FORMAT, keys.number(version)))
    before = (tmp_path / "data.mdb").read_bytes()

    for work in (check_directory, repair_directory):
        with pytest.raises((NewerFormat, Corrupt)):
            work(tmp_path)

    assert (tmp_path / "data.mdb").read_bytes() == before
