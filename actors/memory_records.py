"""What a memory keeps in the store, and what is found in it.

stream "memory:<name>"
  head                                    MemoryHead
  MEMORY   id                          -> MemoryRecord
  MEMORY   "=", 16 bytes of a hash     -> RememberedMark     how far a session has been taken in
"""

import hashlib
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from ..store.records import Codec
from .message import Role

__all__ = [
    "MEMORY_CODEC",
    "MEMORY_HEAD_CODEC",
    "MEMORY_KIND",
    "MemoryHead",
    "MemoryHit",
    "MemoryMode",
    "MemoryRecord",
    "MemoryRow",
    "MemorySource",
    "RememberedMark",
    "mark_key",
]

MEMORY_KIND = "memory"

MemoryMode: TypeAlias = Literal["text", "semantic", "both"]


class MemorySource(Struct, frozen=True, omit_defaults=True, gc=False):
    """Where a memory comes from: a session; for a message that `remember` took in also its place, role and author."""

    session_id: str
    seq: int = 0
    role: Role | None = None
    author: str | None = None


class MemoryRecord(Struct, frozen=True, omit_defaults=True, gc=False, tag="memory", kw_only=True):
    """One memory.

    Attributes:
        id: unique; ids sort by the time of their making.
        text: what is remembered.
        at_ms: when it was added, or said, in milliseconds since 1970, UTC.
        metadata: the caller's.
        owner: whose it is, or None.
        source: where it comes from, or None.
        vector: what it means to the memory's embedder, as `unit_vector` has it; b"" where there was none.
    """

    id: str
    text: str
    at_ms: int
    metadata: dict[str, Any] = {}
    owner: str | None = None
    source: MemorySource | None = None
    vector: bytes = b""


class MemoryHit(Struct, frozen=True):
    """A memory that was found, as in MemoryRecord.

    `score` is to be compared with those of the same search only: by text BM25, by meaning the cosine (-1 to 1), by both
    the sum of 1 / (60 + place) over the two lists.
    """

    score: float
    id: str
    text: str
    metadata: dict[str, Any]
    owner: str | None
    source: MemorySource | None
    at_ms: int


class RememberedMark(Struct, frozen=True, gc=False, tag="remembered"):
    """Up to which place a session's messages were taken in. `created_at_ms` tells it from an earlier one of its id."""

    session_id: str
    created_at_ms: int
    seq: int


class MemoryHead(Struct, frozen=True, omit_defaults=True, gc=False, tag="memories"):
    """How many memories there are, and which embedder made their vectors; "" and 0 while there is no vector."""

    count: int
    updated_at_ms: int
    embedder: str = ""
    dimensions: int = 0


MemoryRow: TypeAlias = MemoryRecord | RememberedMark

MEMORY_CODEC: Codec[MemoryRow] = Codec(MemoryRow)
MEMORY_HEAD_CODEC = Codec(MemoryHead)


def mark_key(session_id: str) -> bytes:
    """The key of a session's mark: its id is longer than keys may be."""
    return b"=" + hashlib.blake2b(session_id.encode(), digest_size=16).digest()
