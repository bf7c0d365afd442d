"""What an earlier callboard sealed opens with this one. tests/golden/make_sealed.py says how the files were made."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from callboard.store import Batch, Index, IndexRow, MemoryStore, Row, SealedStore, Store, Table

FILES = sorted((Path(__file__).resolve().parent.parent / "golden").glob("sealed-*.json"))


def beneath(told: dict[str, Any]) -> MemoryStore:
    """A store with what the golden file has of the store beneath."""
    store = MemoryStore()
    for name, stream in told["streams"].items():
        epoch, version = stream["epoch"], stream["version"]
        for earlier in range(version - 1):
            store.commit([Batch(name, epoch, earlier)])
        rows = tuple(Row(Table(number), decoded(key), decoded(value)) for number, key, value in stream["rows"])
        entries = tuple(IndexRow(Index(number), decoded(value)) for number, value in stream["entries"])
        assert store.commit([Batch(name, epoch, version - 1, decoded(stream["head"]), rows, entries)]) == [None]
    return store


def contents(store: Store) -> dict[str, Any]:
    """All that the store gives back, as the golden file has it."""
    streams: dict[str, Any] = {}
    for name in store.streams():
        head = store.load(name)
        assert head is not None
        rows = [(int(table), key, value) for table in Table for key, value in store.scan(name, table)]
        streams[name] = {
            "epoch": head.epoch,
            "version": head.version,
            "head": encoded(head.head),
            "rows": [[number, encoded(key), encoded(value)] for number, key, value in rows],
            "entries": [[int(row.index), encoded(row.value)] for row in store.entries(name)],
        }
    hits = [[int(index), encoded(hit.value), hit.stream] for index in Index for hit in store.scan_index(index)]
    return {"streams": streams, "hits": hits}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def in_any_order(told: dict[str, Any]) -> dict[str, Any]:
    """Entries of one value come in the order of stream numbers, which this store has given anew."""
    return {**told, "hits": sorted(told["hits"])}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_earlier_sealed_store_gives_back_what_it_gave_then(file: Path) -> None:
    golden = json.loads(file.read_text())

    store = SealedStore(beneath(golden["beneath"]), golden["master_key"])

    assert in_any_order(contents(store)) == in_any_order(golden["told"])
    assert store.damage.list() == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_earlier_sealed_store_is_written_on_and_rewritten(file: Path) -> None:
    golden = json.loads(file.read_text())
    store = SealedStore(beneath(golden["beneath"]), golden["master_key"])
    name = "session:user-1"
    version = golden["told"]["streams"][name]["version"]

    store.renew()
    removed = IndexRow(Index.OWNER, b"ann\0" + (1_700_000_000_000).to_bytes(8, "big"), present=False)
    gone = Row(Table.OUTCOME, b"key 1", None)
    assert store.commit([Batch(name, 1 << 32, version, rows=(gone,), index_rows=(removed,))]) == [None]
    store.rewrite()

    assert [hit.stream for hit in store.scan_index(Index.OWNER, prefix=b"ann\0")] != []
    assert name not in [hit.stream for hit in store.scan_index(Index.OWNER, prefix=b"ann\0")]
    assert store.scan(name, Table.OUTCOME) == [(b"", b""), (b"key 2", b"OUTCOME")]


def test_each_way_of_sealing_has_its_golden_file() -> None:
    assert [file.stem for file in FILES] == ["sealed-1"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_golden_file_has_nothing_readable_beneath(file: Path) -> None:
    streams = json.loads(file.read_text())["beneath"]["streams"]
    texts = [stream["head"] for stream in streams.values()]
    texts += [text for stream in streams.values() for row in stream["rows"] for text in row[1:]]
    texts += [row[1] for stream in streams.values() for row in stream["entries"]]
    everything = "".join(streams).encode() + b"".join(map(decoded, texts))

    words = (b"session", b"counter", b"user-1", b"ann\0", b"head of", b"long ", b"hourly", b"without", b"MESSAGE")
    assert [word for word in words if word in everything] == []
    assert len(everything) > 5000
