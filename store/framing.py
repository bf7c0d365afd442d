"""How every value of the store lies on disk: a version byte, a checksum, the content.

    version:u8 crc32:u32 (little-endian, of the content) content

LMDB has no checksums of its own: a bit that rots in its file is handed out as it is. With this frame it is found when
it is read, and never taken for state. The version is there for a reader of several; a store with a frame
that we do not know has a newer format number, and is refused as a whole (lmdb_directory.py).
"""

import struct
import zlib

import msgspec

from .errors import Corrupt

__all__ = ["FRAME_BYTES", "FRAME_VERSION", "frame", "frame_encoded", "unframe"]

FRAME_VERSION = 1
_HEADER = struct.Struct("<BI")
FRAME_BYTES = _HEADER.size


def frame(content: bytes) -> bytes:
    """The content with its header. Cost: about 0.3 ns a byte."""
    return _HEADER.pack(FRAME_VERSION, zlib.crc32(content)) + content


def frame_encoded(encoder: msgspec.msgpack.Encoder, content: object) -> bytearray:
    """`frame` of what the encoder makes of `content`, without a copy of it. Cost: that of encoding; the GIL is held."""
    value = bytearray(FRAME_BYTES)
    encoder.encode_into(content, value, FRAME_BYTES)
    _HEADER.pack_into(value, 0, FRAME_VERSION, zlib.crc32(memoryview(value)[FRAME_BYTES:]))
    return value


def unframe(value: bytes, *, where: str) -> memoryview:
    """The content of a stored value; `where` names it for people.

    Raises:
        Corrupt: it is not as it was written.
    """
    if len(value) < FRAME_BYTES:
        raise Corrupt(where, f"it has {len(value)} bytes, and its header alone has {FRAME_BYTES}")
    version, checksum = _HEADER.unpack_from(value)
    content = memoryview(value)[FRAME_BYTES:]
    if version != FRAME_VERSION:
        raise Corrupt(where, f"its version byte is {version}")
    if zlib.crc32(content) != checksum:
        raise Corrupt(where, "its bytes are not those that were written (checksum)")
    return content
