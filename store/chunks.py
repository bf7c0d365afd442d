"""Rows that lie together on disk as one value. Pure.

    00 size:u8 last key, msgpack [key, value, key, value, ...]   a chunk of rows in the order of their keys
    01 size:u8 key, hash:32                                      one row whose value is large, and kept apart

One record a row would cost a call of LMDB's for each row that is read or written, and each call gives up the GIL. A
chunk of about 12 KB is three pages, with little lost in the last.
"""

from collections.abc import Sequence
from itertools import chain

import msgspec

from .errors import Corrupt
from .framing import FRAME_BYTES, frame, unframe

__all__ = ["CHUNK_BYTES", "LargeValue", "Stored", "decode_chunk", "encode_chunks", "last_key"]

CHUNK_BYTES = 3 * 4096 - 128
"""A chunk is closed before it would be larger: three pages, less LMDB's page header and ours."""
_ROW_OVERHEAD_BYTES = 6

_ROWS, _LARGE = 0, 1

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[bytes]] = msgspec.msgpack.Decoder(list[bytes])


class LargeValue(msgspec.Struct, frozen=True):
    """Stands for a value that is kept apart, under its hash."""

    hash: bytes


Stored = tuple[bytes, bytes | LargeValue]
"""A row's key and value."""


def last_key(value: bytes) -> bytes | None:
    """The key of a chunk's last row, without reading the rest; None where that cannot be told."""
    at = FRAME_BYTES + 2
    return value[at : at + value[at - 1]] if len(value) > at else None


def decode_chunk(value: bytes, *, where: str) -> list[Stored]:
    """The rows of a chunk, in the order of their keys.

    Raises:
        Corrupt: it cannot be read; `where` names it.
    """
    content = unframe(value, where=where)
    if len(content) < 2 or content[0] not in (_ROWS, _LARGE):
        raise Corrupt(where, "it is neither rows nor a large row")
    key, rest = bytes(content[2 : 2 + content[1]]), content[2 + content[1] :]
    if content[0] == _LARGE:
        return [(key, LargeValue(bytes(rest)))]
    try:
        flat = iter(_decoder.decode(rest))
        return list(zip(flat, flat, strict=True))
    except (msgspec.DecodeError, ValueError) as error:
        raise Corrupt(where, str(error)) from error


def encode_chunks(rows: Sequence[Stored]) -> list[tuple[bytes, bytes]]:
    """The rows as chunks: the key of the first row of each, and its value. Rows come in the order of their keys."""
    chunks: list[tuple[bytes, bytes]] = []
    first = size_bytes = 0
    for place, (key, value) in enumerate(rows):
        if isinstance(value, LargeValue):
            _close(rows[first:place], chunks)
            chunks.append((key, frame(bytes((_LARGE, len(key))) + key + value.hash)))
            first, size_bytes = place + 1, 0
            continue
        row_bytes = len(key) + len(value) + _ROW_OVERHEAD_BYTES
        if size_bytes and size_bytes + row_bytes > CHUNK_BYTES:
            _close(rows[first:place], chunks)
            first, size_bytes = place, 0
        size_bytes += row_bytes
    _close(rows[first:], chunks)
    return chunks


def _close(rows: Sequence[Stored], chunks: list[tuple[bytes, bytes]]) -> None:
    if rows:
        last = rows[-1][0]
        value = _encoder.encode(list(chain.from_iterable(rows)))
        chunks.append((rows[0][0], frame(bytes((_ROWS, len(last))) + last + value)))
