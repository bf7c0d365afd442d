"""Rows that lie together on disk as one value. Pure.

    00 msgpack [key, value, key, value, ...]     a chunk of rows in the order of their keys
    01 hash key                                  one row whose value is large, and kept apart under its hash (32 bytes)

One record a row would cost a call of LMDB's for each row that is read or written, and each call gives up the GIL. A
chunk of about 12 KB is three pages, with little lost in the last.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec

from .errors import Corrupt
from .framing import frame, unframe

__all__ = ["CHUNK_BYTES", "HASH_BYTES", "LargeValue", "Stored", "decode_chunk", "encode_chunks"]

CHUNK_BYTES = 3 * 4096 - 64
"""A chunk is closed before it would be larger: three pages, less LMDB's page header and ours."""
HASH_BYTES = 32
_ROW_OVERHEAD_BYTES = 6

_ROWS, _LARGE = b"\x00", b"\x01"

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[bytes]] = msgspec.msgpack.Decoder(list[bytes])


class LargeValue(msgspec.Struct, frozen=True):
    """Stands for a value that is kept apart, under its hash."""

    hash: bytes


Stored = tuple[bytes, bytes | LargeValue]
"""A row's key and value."""


def decode_chunk(value: bytes, *, where: str) -> list[Stored]:
    """The rows of a chunk, in the order of their keys.

    Raises:
        Corrupt: it cannot be read; `where` names it.
    """
    content = unframe(value, where=where)
    kind, rest = bytes(content[:1]), content[1:]
    if kind == _LARGE and len(rest) >= HASH_BYTES:
        return [(bytes(rest[HASH_BYTES:]), LargeValue(bytes(rest[:HASH_BYTES])))]
    if kind != _ROWS:
        raise Corrupt(where, "it is neither rows nor a large row")
    try:
        flat = iter(_decoder.decode(rest))
        return list(zip(flat, flat, strict=True))
    except (msgspec.DecodeError, ValueError) as error:
        raise Corrupt(where, str(error)) from error


def encode_chunks(rows: Iterable[Stored]) -> list[tuple[bytes, bytes]]:
    """The rows as chunks: the key of the first row of each, and its value. Rows come in the order of their keys."""
    chunks: list[tuple[bytes, bytes]] = []
    gathered: list[tuple[bytes, bytes]] = []
    size_bytes = 0
    for key, value in rows:
        if isinstance(value, LargeValue):
            _close(gathered, chunks)
            chunks.append((key, frame(_LARGE + value.hash + key)))
            gathered, size_bytes = [], 0
            continue
        row_bytes = len(key) + len(value) + _ROW_OVERHEAD_BYTES
        if gathered and size_bytes + row_bytes > CHUNK_BYTES:
            _close(gathered, chunks)
            gathered, size_bytes = [], 0
        gathered.append((key, value))
        size_bytes += row_bytes
    _close(gathered, chunks)
    return chunks


def _close(gathered: Sequence[tuple[bytes, bytes]], chunks: list[tuple[bytes, bytes]]) -> None:
    if gathered:
        chunks.append((gathered[0][0], frame(_ROWS + _encoder.encode(list(chain.from_iterable(gathered))))))
