"""What SealedStore has beyond the contract: what lies beneath, what is found out, and which key opens what.

The contract itself: tests/contracts. Keys that change: test_sealed_keys.py. Real conversations: tests/facade.
"""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from callboard.store import (
    Batch,
    Conflict,
    Corrupt,
    Fenced,
    Index,
    IndexHit,
    IndexRow,
    LmdbStore,
    MemoryStore,
    Row,
    SealedStore,
    StoreUnavailable,
    Table,
    WrongKey,
)
from callboard.store.pseudonyms import HIDDEN_KEYS, INDEX_LAYOUTS
from callboard.store.sealed_store import KEYRING_STREAM

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
TIME = (1_700_000_000_000).to_bytes(8, "big")


def sealed_memory() -> SealedStore:
    return SealedStore(MemoryStore(keep_history=True), KEY)


def memory_of(store: SealedStore) -> MemoryStore:
    assert isinstance(store.inner, MemoryStore)
    return store.inner


def beneath(store: SealedStore) -> Batch:
    """The last batch that reached the store beneath."""
    return memory_of(store).committed[-1][-1]


def overwrite(store: SealedStore, stream: str, *rows: Row, head: bytes | None = None) -> None:
    """Write to the store beneath what an attacker or a broken disk would."""
    found = store.inner.load(stream)
    assert found is not None
    assert store.inner.commit([Batch(stream, found.epoch, found.version, head, rows)]) == [None]


def places(store: SealedStore) -> list[str]:
    return [damage.where for damage in store.damage.list()]


# What lies beneath.


def test_every_table_and_every_index_has_its_decision() -> None:
    assert set(HIDDEN_KEYS) == set(Table)
    assert set(INDEX_LAYOUTS) == set(Index)


def test_nothing_of_names_keys_texts_and_values_lies_beneath() -> None:
    store = sealed_memory()
    secrets = [b"secret-stream", b"secret-head", b"secret-value", b"secret-key", b"secret-owner", b"secret-name"]

    store.commit(
        [
            Batch(
                "kind:secret-stream",
                1,
                0,
                head=b"secret-head",
                rows=tuple(
                    Row(table, b"secret-key" if HIDDEN_KEYS[table] else TIME, b"secret-value") for table in Table
                ),
                index_rows=(
                    IndexRow(Index.OWNER, b"secret-owner\0" + TIME),
                    IndexRow(Index.TAG, b"secret-owner\0" + TIME),
                    IndexRow(Index.TAG, b"secret-owner" * 20 + bytes(80)),
                    IndexRow(Index.REMINDER_DUE, TIME + b"secret-name"),
                ),
            )
        ]
    )
    written = msgspec.msgpack.encode(memory_of(store).committed)

    assert [secret for secret in secrets if secret in written] == []
    assert b"secret" not in written


def test_the_same_value_is_other_bytes_each_time() -> None:
    store = sealed_memory()
    twins = (Row(Table.MESSAGE, b"1", b"value"), Row(Table.MESSAGE, b"2", b"value"))

    store.commit([Batch("a", 1, 0, head=b"head", rows=twins)])
    store.commit([Batch("a", 1, 1, head=b"head", rows=twins)])
    values = [row.value for [batch] in memory_of(store).committed[1:] for row in batch.rows]
    heads = [batch.head for [batch] in memory_of(store).committed[1:]]
    nonces = [value[2:14] for value in [*values, *heads] if value is not None]

    assert len(set(nonces)) == 6
    assert len({value[14:] for value in [*values, *heads] if value is not None}) == 6


def test_an_idempotency_key_has_another_pseudonym_in_each_stream_and_table() -> None:
    store = sealed_memory()
    rows = (Row(Table.OUTCOME, b"key", b""), Row(Table.REMINDER, b"key", b""))

    store.commit([Batch("a", 1, 0, rows=rows), Batch("b", 1, 0, rows=rows)])
    inner_keys = [row.key for batch in memory_of(store).committed[-1] for row in batch.rows]

    assert len(set(inner_keys)) == 4


def test_a_value_grows_by_thirty_bytes() -> None:
    store = sealed_memory()

    store.commit([Batch("a", 1, 0, rows=(Row(Table.MESSAGE, b"1", b"x" * 660),))])
    [row] = beneath(store).rows

    assert row.value is not None
    assert len(row.value) == 690


def test_tombstones_of_hidden_rows_and_entries_reach_what_they_delete() -> None:
    store = sealed_memory()
    entries = [
        IndexRow(Index.TAG, b"red\0" + TIME),
        IndexRow(Index.TAG, b"x" * 390),
        IndexRow(Index.REMINDER_DUE, b"x" * 390),
    ]
    gone = tuple(msgspec.structs.replace(entry, present=False) for entry in entries)
    store.commit([Batch("a", 1, 0, rows=(Row(Table.OUTCOME, b"key", b"v"),), index_rows=tuple(entries))])

    store.commit([Batch("a", 1, 1, rows=(Row(Table.OUTCOME, b"key", None),), index_rows=gone)])

    assert store.scan("a", Table.OUTCOME) == []
    assert [store.scan_index(index) for index in (Index.TAG, Index.REMINDER_DUE)] == [[], []]
    stream = beneath(store).stream
    assert [store.inner.scan(stream, table) for table in Table] == [[]] * len(Table)


def test_refusals_name_the_stream_as_the_caller_does() -> None:
    store = sealed_memory()
    store.commit([Batch("session:a", 5, 0)])

    fenced, conflict = store.commit([Batch("session:a", 4, 1), Batch("session:a", 5, 7)])

    assert isinstance(fenced, Fenced)
    assert (fenced.stream, fenced.epoch, fenced.stored_epoch) == ("session:a", 4, 5)
    assert isinstance(conflict, Conflict)
    assert (conflict.stream, conflict.version, conflict.stored_version) == ("session:a", 7, 1)


def test_the_wrapper_counts_only_what_its_users_did() -> None:
    store = sealed_memory()
    store.commit([Batch("a", 1, 0), Batch("b", 1, 3)])
    store.renew()

    counted = store.statistics()

    assert (counted.commits, counted.batches, counted.refused, counted.streams) == (1, 2, 1, 1)


# What is found out.


def test_a_value_does_not_open_at_another_place() -> None:
    store = sealed_memory()
    rows = (Row(Table.MESSAGE, b"1", b"one"), Row(Table.MESSAGE, b"2", b"two"), Row(Table.RUN, b"1", b"run"))
    store.commit([Batch("a", 1, 0, head=b"head", rows=rows), Batch("b", 1, 0, head=b"other", rows=rows)])
    first, second = memory_of(store).committed[-1]
    one, two, run = (row.value for row in first.rows)
    twin = second.rows[0].value

    overwrite(store, first.stream, Row(Table.MESSAGE, b"1", two), Row(Table.MESSAGE, b"2", one))
    overwrite(store, first.stream, Row(Table.RUN, b"1", one), Row(Table.MESSAGE, b"3", run))
    overwrite(store, second.stream, Row(Table.MESSAGE, b"1", one))
    overwrite(store, first.stream, Row(Table.MESSAGE, b"4", twin), Row(Table.MESSAGE, b"5", first.head))

    assert store.scan("a", Table.MESSAGE) == store.scan("a", Table.RUN) == []
    assert store.scan("b", Table.MESSAGE) == [(b"2", b"two")]
    assert len(places(store)) == 7
    assert "row 31 in table MESSAGE of stream 'a'" in places(store)


def test_a_head_does_not_open_in_another_stream_or_as_a_row() -> None:
    store = sealed_memory()
    store.commit(
        [Batch("a", 1, 0, head=b"head", rows=(Row(Table.MESSAGE, b"", b"row"),)), Batch("b", 1, 0, head=b"other")]
    )
    first, second = memory_of(store).committed[-1]

    for head in (second.head, first.rows[0].value, b"", b"\0\1", first.head and first.head[:-1]):
        overwrite(store, first.stream, head=head)
        with pytest.raises(Corrupt, match=r"which is 'a', cannot be read"):
            store.load("a")


def test_a_guard_that_was_set_back_beneath_its_head_is_found_out() -> None:
    store = sealed_memory()
    for version in range(3):
        store.commit([Batch("a", 7, version, head=b"%d" % version)])
    newest = beneath(store)
    elsewhere = MemoryStore()
    elsewhere.commit(
        [Batch(KEYRING_STREAM, 0, 0, head=keyring_of(store)), Batch(newest.stream, 7, 0, head=newest.head)]
    )

    with pytest.raises(Corrupt, match="it was set back"):
        SealedStore(elsewhere, KEY).load("a")


def keyring_of(store: SealedStore) -> bytes:
    found = store.inner.load(KEYRING_STREAM)
    assert found is not None
    return found.head


def test_batches_without_a_head_keep_the_old_one_sound() -> None:
    store = sealed_memory()
    store.commit([Batch("a", 1, 0, head=b"kept")])

    for version in range(1, 5):
        store.commit([Batch("a", version, version)])

    found = store.load("a")
    assert found is not None
    assert (found.epoch, found.version, found.head) == (4, 5, b"kept")


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_rows_that_do_not_open_are_left_out_and_do_not_shorten_a_page(limit: int, *, newest_first: bool) -> None:
    store = sealed_memory()
    rows = tuple(Row(Table.MESSAGE, b"%d" % number, b"value") for number in range(8))
    store.commit([Batch("a", 1, 0, rows=rows)])
    stream = beneath(store).stream
    broken = {b"0", b"1", b"4", b"7"}
    overwrite(store, stream, *(Row(Table.MESSAGE, key, b"broken") for key in broken))
    whole = [b"2", b"3", b"5", b"6"]

    found = [key for key, _ in store.scan("a", Table.MESSAGE, limit=limit, newest_first=newest_first)]

    assert found == (whole[::-1] if newest_first else whole)[:limit]
    assert {where.split()[1] for where in places(store)} <= {key.hex() for key in broken}


def test_each_bit_of_a_sealed_value_counts() -> None:
    store = sealed_memory()
    store.commit([Batch("a", 1, 0, rows=(Row(Table.MESSAGE, b"1", b"value"),))])
    batch = beneath(store)
    value = batch.rows[0].value
    assert value is not None

    for bit in range(len(value) * 8):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        overwrite(store, batch.stream, Row(Table.MESSAGE, b"1", bytes(changed)))

        assert store.scan("a", Table.MESSAGE) == [], bit


def test_an_index_entry_that_does_not_open_is_left_out_and_reported() -> None:
    store = sealed_memory()
    store.commit([Batch("a", 1, 0, index_rows=(IndexRow(Index.TAG, b"red\0" + TIME),))])
    stream = beneath(store).stream
    inner = beneath(store).index_rows[0].value
    forged = tuple(IndexRow(Index.TAG, value) for value in (b"plain\0", b"", b"\x01", b"\x01\x02" + bytes(32), b"\x09"))
    found = store.inner.load(stream)
    assert found is not None
    store.inner.commit([Batch(stream, 1, found.version, index_rows=(*forged, IndexRow(Index.OWNER, inner)))])

    assert [hit.value for hit in store.scan_index(Index.TAG)] == [b"red\0" + TIME]
    assert store.scan_index(Index.OWNER) == []
    assert len(places(store)) == 6
    assert all(where.startswith("entry ") for where in places(store))


def test_hits_of_a_stream_whose_head_does_not_open_are_left_out_and_reported() -> None:
    inner = MemoryStore(keep_history=True)
    store = SealedStore(inner, KEY)
    entries = (IndexRow(Index.TAG, b"red\0" + TIME), IndexRow(Index.UPDATED, TIME))
    store.commit([Batch(name, 1, 0, index_rows=entries) for name in ("a", "b")])
    overwrite(store, inner.committed[-1][0].stream, head=b"broken")

    again = SealedStore(inner.reopened(), KEY)

    for index, prefix in ((Index.TAG, b"red\0"), (Index.TAG, b""), (Index.UPDATED, b"")):
        assert [hit.stream for hit in again.scan_index(index, prefix=prefix, limit=1)] == ["b"]
    assert len(places(again)) == 1


def test_streams_lists_true_names_in_their_order_and_leaves_out_what_does_not_open() -> None:
    inner = MemoryStore(keep_history=True)
    store = SealedStore(inner, KEY)
    store.commit([Batch(name, 1, 0) for name in ("b", "d", "a", "c")])
    overwrite(store, inner.committed[-1][0].stream, head=b"broken")

    again = SealedStore(inner.reopened(), KEY)
    before = again.streams(limit=2)
    again.commit([Batch("aa", 1, 0), Batch("d", 1, 1, erase=True)])

    assert before == ["a", "c"]
    assert again.streams() == ["a", "aa", "c", "d"]
    assert again.streams(after="aa", limit=1) == ["c"]
    assert len(places(again)) == 1


# Order and ranges, where they are not those of the store beneath.


def test_one_owner_is_found_without_reading_the_others() -> None:
    reads: list[bytes] = []

    class Watched(MemoryStore):
        def scan_index(
            self,
            index: Index,
            *,
            prefix: bytes = b"",
            after: bytes | None = None,
            limit: int | None = None,
            newest_first: bool = False,
        ) -> list[IndexHit]:
            hits = super().scan_index(index, prefix=prefix, after=after, limit=limit, newest_first=newest_first)
            reads.extend(hit.value for hit in hits)
            return hits

    store = SealedStore(Watched(), KEY)
    for number in range(50):
        owner = b"owner %d\0" % (number % 10)
        store.commit([Batch(f"s{number}", 1, 0, index_rows=(IndexRow(Index.OWNER, owner + bytes((number,))),))])
    reads.clear()

    hits = store.scan_index(Index.OWNER, prefix=b"owner 3\0", limit=3, newest_first=True)
    more = store.scan_index(Index.OWNER, prefix=b"owner 3\0", after=hits[-1].position, limit=3, newest_first=True)

    assert [hit.stream for hit in hits + more] == ["s43", "s33", "s23", "s13", "s3"]
    assert len(reads) == 5


def test_a_position_may_come_from_another_text() -> None:
    store = sealed_memory()
    names = [b"ann", b"bob", b"cid"]
    store.commit(
        [Batch(f"s-{name.decode()}", 1, 0, index_rows=(IndexRow(Index.TAG, name + b"\0" + TIME),)) for name in names]
    )
    middle = store.scan_index(Index.TAG, prefix=b"bob\0")[0].position

    for prefix, newest_first, expected in (
        (b"ann\0", False, []),
        (b"ann\0", True, ["s-ann"]),
        (b"bob\0", False, []),
        (b"bob\0", True, []),
        (b"cid\0", False, ["s-cid"]),
        (b"cid\0", True, []),
        (b"", False, ["s-cid"]),
        (b"", True, ["s-ann"]),
    ):
        hits = store.scan_index(Index.TAG, prefix=prefix, after=middle, newest_first=newest_first)
        assert [hit.stream for hit in hits] == expected, (prefix, newest_first)


def test_a_reminder_is_found_by_its_time_and_pages_go_on_within_one_time() -> None:
    store = sealed_memory()
    due = [TIME + b"name %d" % number for number in range(5)] + [(0).to_bytes(8, "big") + b"first", TIME]
    store.commit(
        [Batch(f"a{n}", 1, 0, index_rows=(IndexRow(Index.REMINDER_DUE, value),)) for n, value in enumerate(due)]
    )

    whole = store.scan_index(Index.REMINDER_DUE)
    pages: list[IndexHit] = []
    while page := store.scan_index(Index.REMINDER_DUE, after=pages[-1].position if pages else None, limit=2):
        pages += page

    assert pages == whole
    assert sorted(hit.value for hit in whole) == sorted(due)
    assert [hit.value[:8] for hit in whole] == sorted(value[:8] for value in due)
    assert [hit.value for hit in store.scan_index(Index.REMINDER_DUE, prefix=TIME + b"name 3", limit=1)] == [
        TIME + b"name 3"
    ]


# Which key opens what.


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_another_key_is_a_wrong_key_and_leaves_the_store_as_it_was(kind: str, tmp_path: Path) -> None:
    inner: MemoryStore | LmdbStore = MemoryStore() if kind == "memory" else LmdbStore(tmp_path / "store")
    store = SealedStore(inner, KEY)
    store.commit([Batch("a", 1, 0, head=b"head")])
    store.close()

    def reopened() -> MemoryStore | LmdbStore:
        return inner.reopened() if isinstance(inner, MemoryStore) else LmdbStore(tmp_path / "store")

    beneath_it = reopened()
    with pytest.raises(WrongKey, match="is sealed with the master key"):
        SealedStore(beneath_it, OTHER_KEY)
    with pytest.raises(StoreUnavailable, match="closed"):
        beneath_it.load("a")
    again = SealedStore(beneath_it.reopened() if isinstance(beneath_it, MemoryStore) else reopened(), KEY)

    found = again.load("a")
    assert found is not None
    assert found.head == b"head"
    again.close()


def test_a_store_with_content_is_not_sealed_afterwards() -> None:
    inner = MemoryStore()
    inner.commit([Batch("session:a", 1, 0, head=b"plain")])

    with pytest.raises(WrongKey, match="holds content that is not sealed"):
        SealedStore(inner, KEY)

    assert inner.reopened().load(KEYRING_STREAM) is None


def test_what_was_only_claimed_is_not_content() -> None:
    inner = MemoryStore()
    inner.claim()

    assert SealedStore(inner, KEY).claim() == 2


def test_a_key_that_cannot_be_one_closes_the_store_beneath() -> None:
    inner = MemoryStore()

    with pytest.raises(ValueError, match="32 bytes"):
        SealedStore(inner, "sesame")

    with pytest.raises(StoreUnavailable, match="closed"):
        inner.load("a")


# Without the extra.


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_without_its_package_a_sealed_store_says_what_to_install() -> None:
    program = """
import sys
sys.modules["cryptography"] = None
from callboard.store import MemoryStore, SealedStore, StoreUnavailable
inner = MemoryStore()
try:
    SealedStore(inner, "5e" * 32)
except ModuleNotFoundError as error:
    print(error)
try:
    inner.claim()
except StoreUnavailable as error:
    print(error)
"""

    assert python(program).splitlines() == [
        "a sealed store needs the package `cryptography`: pip install 'callboard[encryption]'",
        "the memory store is closed",
    ]


def test_a_plain_store_never_imports_the_package() -> None:
    program = """
import sys, tempfile, callboard
from callboard.store import SealedStore, open_store
open_store(tempfile.mkdtemp()).close()
print([name for name in sys.modules if name.startswith("cryptography")])
"""

    assert python(program) == "[]"
