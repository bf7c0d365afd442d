"""State on disk: bytes, keys and transactions. Nothing here knows what an actor or a message is, and nothing is async.

contract                 what every store promises: begin here
├─ lmdb_store            on disk, the default ── lmdb_directory (its door), staging (one commit), keys (every byte)
├─ memory_store          the same promises in memory, with faults for tests
└─ sealed_store          over any of them: what lies beneath cannot be read without a master key
opening                  a directory as its owner has it: plain or sealed
records                  values: a version byte and a msgspec Struct
errors                   the root of all of callboard's errors
"""

from .contract import Batch, Durability, Head, Index, IndexHit, IndexRow, Row, Store, StoreStatistics, Table
from .errors import (
    CallboardError,
    Conflict,
    Corrupt,
    Fenced,
    NewerFormat,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    WrongKey,
)
from .lmdb_store import LmdbStore
from .memory_store import MemoryStore
from .opening import open_store
from .records import Codec
from .sealed_store import SealedStore

__all__ = [
    "Batch",
    "CallboardError",
    "Codec",
    "Conflict",
    "Corrupt",
    "Durability",
    "Fenced",
    "Head",
    "Index",
    "IndexHit",
    "IndexRow",
    "LmdbStore",
    "MemoryStore",
    "NewerFormat",
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
