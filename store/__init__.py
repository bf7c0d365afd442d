"""State on disk: bytes, keys and transactions. Nothing here knows what an actor or a message is, and nothing is async.

contract                 what every store promises: begin here ── batch (what is written), damage (what cannot be read)
├─ lmdb_store            on disk, the default
│  ├─ log                what commits have put into the log, in memory ── overlay, index_overlay (laid over the rows)
│  ├─ segments, rows     how both lie on disk ── chunks, entries, guards, framing, numbers, keys (every byte)
│  ├─ checkpoint         from the one to the other
│  ├─ lmdb_environment   transactions ── lmdb_directory (the door), writer_lock, lmdb_file (is it all there)
│  └─ lmdb_check, lmdb_copy, migration   looking after it: check and repair, backup and compact, older formats
├─ process_store         the same, with its writer in a process of its own ── writer_process
├─ memory_store          the same promises in memory, with faults for tests
└─ sealed_store          over any of them: what lies beneath cannot be read without a master key ── master_key, keyring,
                         pseudonyms, sealing, sealed_rows, sealed_index, resealing
opening                  a directory as its owner has it: plain or sealed
records                  values: a version byte and a msgspec Struct
errors                   the root of all of callboard's errors
"""

from .contract import Batch, Durability, Head, Index, IndexHit, IndexRow, Refusal, Row, Store, StoreStatistics, Table
from .damage import Damage, DamageLog
from .errors import (
    CallboardError,
    Conflict,
    Corrupt,
    Fenced,
    NewerFormat,
    OlderFormat,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    WrongKey,
)
from .lmdb_store import LmdbStore
from .memory_store import MemoryStore
from .opening import open_store
from .process_store import ProcessStore
from .records import Codec
from .sealed_store import SealedStore

__all__ = [
    "Batch",
    "CallboardError",
    "Codec",
    "Conflict",
    "Corrupt",
    "Damage",
    "DamageLog",
    "Durability",
    "Fenced",
    "Head",
    "Index",
    "IndexHit",
    "IndexRow",
    "LmdbStore",
    "MemoryStore",
    "NewerFormat",
    "OlderFormat",
    "ProcessStore",
    "Refusal",
    "Row",
    "SealedStore",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "StoreStatistics",
    "StoreUnavailable",
    "Table",
    "WrongKey",
    "open_store",
]
