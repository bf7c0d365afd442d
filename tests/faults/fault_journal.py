"""The journal of one life of a store: each point as interpose.c wrote it, and between them what the program noted."""

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import msgspec

from callboard.store import Batch

__all__ = ["Entry", "Kind", "Note", "Notebook", "read_journal"]

_HEAD = struct.Struct("<IHHQQQQiHHI")
_MAGIC = 0xFA17FA17


class Kind(IntEnum):
    """As in interpose.c."""

    NOTE = 0
    WRITE = 1
    PWRITE = 2
    WRITEV = 3
    PWRITEV = 4
    FSYNC = 5
    FDATASYNC = 6
    MSYNC = 7
    SYNC_FILE_RANGE = 8
    RENAME = 9
    UNLINK = 10
    MKDIR = 11
    RMDIR = 12
    CREATE = 13
    FTRUNCATE = 14
    FALLOCATE = 15
    SENDFILE = 16
    COPY_FILE_RANGE = 17
    LINK = 18

    @property
    def writes(self) -> bool:
        return Kind.WRITE <= self <= Kind.PWRITEV

    @property
    def takes_room(self) -> bool:
        return self.writes or self in (Kind.CREATE, Kind.MKDIR, Kind.FALLOCATE)


class Note(msgspec.Struct, omit_defaults=True):
    """What the program says it is about to do, or what came of it.

    Attributes:
        what: "step" (a new step of the scenario, `text`), "try" (a commit of `batches`), "done" (its `answers`, one a
            batch, "" for accepted), "claimed" (`number`), "opened", "seen" (`dump`: the digest of all that the open
            store shows), "raised" (a store's error: `text`, `error`, `uncertain`), "called" (`answers`: the methods
            used).
    """

    what: str
    text: str = ""
    batches: list[Batch] = []
    answers: list[str] = []
    number: int = 0
    dump: bytes = b""
    error: str = ""
    uncertain: bool = False


class Entry(msgspec.Struct):
    """One point, or with `note` what the program noted. `hit`: here the plan struck."""

    kind: Kind
    point: int = 0
    inode: int = 0
    offset: int = 0
    length: int = 0
    error: int = 0
    hit: bool = False
    dsync: bool = False
    path: str = ""
    path2: str = ""
    data: bytes = b""
    note: Note | None = None

    @property
    def name(self) -> str:
        """Of its kind, for tables: "pwrite", "pwrite+dsync"."""
        return self.kind.name.lower() + "+dsync" * self.dsync


class Notebook:
    """Where the program notes; a note is in the journal when `write` returns, whatever becomes of the process."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, note: Note) -> None:
        data = msgspec.msgpack.encode(note)
        os.write(self._fd, _HEAD.pack(_MAGIC, Kind.NOTE, 0, 0, 0, 0, 0, 0, 0, 0, len(data)) + data)


def read_journal(path: Path) -> list[Entry]:
    return list(_entries(path.read_bytes())) if path.exists() else []


def _entries(data: bytes) -> Iterator[Entry]:
    place = 0
    while place < len(data):
        magic, kind, flags, point, inode, offset, length, error, *sizes = _HEAD.unpack_from(data, place)
        assert magic == _MAGIC
        place += _HEAD.size
        parts: list[bytes] = []
        for size in sizes:
            parts.append(data[place : place + size])
            place += size
        path, path2, content = parts
        if kind == Kind.NOTE:
            yield Entry(Kind.NOTE, note=msgspec.msgpack.decode(content, type=Note))
            continue
        yield Entry(
            kind=Kind(kind),
            point=point,
            inode=inode,
            offset=offset,
            length=length,
            error=error,
            hit=bool(flags & 2),
            dsync=bool(flags & 1),
            path=os.fsdecode(path),
            path2=os.fsdecode(path2),
            data=content,
        )
