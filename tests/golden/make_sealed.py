"""Writes the golden sealed store of the present way of sealing: `python tests/golden/make_sealed.py sealed-N.json`.

Run it once with the code that a way was released with, then never again: every later callboard must open what it wrote.
The file has the master key, what lies in the store beneath, whatever store that is, and what the sealed store gave back
of it (bytes as base64).
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

from callboard.store import Batch, Index, IndexRow, MemoryStore, Row, SealedStore, Store, Table

MASTER_KEY = bytes(range(100, 132))
TIME = (1_700_000_000_000).to_bytes(8, "big")


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def contents(store: Store) -> dict[str, Any]:
    """All that a store gives back through its contract, save the positions of index entries."""
    streams: dict[str, Any] = {}
    for name in store.streams():
        head = store.load(name)
        assert head is not None
        streams[name] = {
            "epoch": head.epoch,
            "version": head.version,
            "head": encoded(head.head),
            "rows": [
                [int(table), encoded(key), encoded(value)] for table in Table for key, value in store.scan(name, table)
            ],
            "entries": [[int(row.index), encoded(row.value)] for row in store.entries(name)],
        }
    hits = [[int(index), encoded(hit.value), hit.stream] for index in Index for hit in store.scan_index(index)]
    return {"streams": streams, "hits": hits}


def filled() -> SealedStore:
    """A store with everything that is sealed or hidden, by two generations of keys."""
    store = SealedStore(MemoryStore(), MASTER_KEY)
    entries = (
        IndexRow(Index.UPDATED, TIME),
        IndexRow(Index.OWNER, b"ann\0" + TIME),
        IndexRow(Index.TAG, "grüße".encode() + b"\0" + TIME),
        IndexRow(Index.TAG, b"without a time"),
        IndexRow(Index.TAG, b"long " * 78),
        IndexRow(Index.OPEN_RUN, b"run_1"),
        IndexRow(Index.REMINDER_DUE, TIME + b"hourly"),
        IndexRow(Index.REMINDER_DUE, TIME + b"long " * 78),
    )
    rows = tuple(Row(table, b"key %d" % number, table.name.encode()) for table in Table for number in (1, 2))
    for name in ("session:user-1", "session:grüße", "counter:" + "x" * 390):
        assert store.commit([Batch(name, 1 << 32, 0, b"head of " + name.encode(), rows, entries)]) == [None]
    store.renew()
    newer = (
        Row(Table.MESSAGE, b"key 2", b"changed"),
        Row(Table.OUTCOME, b"", b""),
        Row(Table.REMINDER, b"\xff" * 64, b"x"),
    )
    assert store.commit([Batch("session:user-1", 1 << 32, 1, rows=newer), Batch("erased", 7, 0)]) == [None, None]
    assert store.commit([Batch("erased", 8, 1, erase=True)]) == [None]
    return store


def main(target: Path) -> None:
    store = filled()
    golden = {"master_key": MASTER_KEY.hex(), "beneath": contents(store.inner), "told": contents(store)}
    target.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
