"""What a disk may hold after the power failed: computed from a journal of all that was written to it.

A write is certain once a later sync of its file has succeeded, or at once through a descriptor with O_DSYNC. Until then
each sector of it may be there or not, whatever else is there: the kernel writes pages back as it likes. A new name, a
rename or an unlink is certain once its directory was synced, which is all that POSIX promises (ext4, XFS and Btrfs keep
more); before that, only the order among names is kept, as a journal does. A sync that failed makes nothing certain, not
even later: the kernel may have marked the pages clean and forgotten them.

Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014; Rebello et al., "Can Applications Recover
from fsync Failures?", USENIX ATC 2020.
"""

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

from fault_journal import Entry, Kind

__all__ = ["Disk", "Files"]

Files: TypeAlias = dict[str, bytes | None]
"""Contents by path below the root; None for a directory."""


@dataclass(slots=True)
class _Change:
    """Bytes at an offset, or, with None, a new length. `doubtful`: a sync of it failed."""

    offset: int
    data: bytes | None
    doubtful: bool = False

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
            return
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(self.data)] = self.data

    def sectors(self, sector_bytes: int) -> "list[_Change]":
        """The same in pieces, each in one sector of the file."""
        if self.data is None:
            return [self]
        ends = range(
            self.offset - self.offset % sector_bytes + sector_bytes, self.offset + len(self.data), sector_bytes
        )
        cuts = [self.offset, *ends, self.offset + len(self.data)]
        return [_Change(at, self.data[at - self.offset : end - self.offset]) for at, end in pairwise(cuts)]

    def without(self, later: "_Change") -> "list[_Change]":
        """What of it a later change leaves."""
        if self.data is None or later.data is None:
            return [self]
        begin, end = self.offset, self.offset + len(self.data)
        cut, cut_end = max(later.offset, begin), min(later.offset + len(later.data), end)
        if cut >= cut_end:
            return [self]
        spans = [(begin, cut), (cut_end, end)]
        return [_Change(at, self.data[at - begin : to - begin], self.doubtful) for at, to in spans if at < to]


@dataclass(slots=True, eq=False)
class _File:
    """`certain`: what is there in any case; `loose`: changes that may be, in their order. None: a directory."""

    certain: bytearray | None = field(default_factory=bytearray)
    loose: list[_Change] = field(default_factory=list[_Change])

    def sync(self) -> None:
        assert self.certain is not None
        doubtful: list[_Change] = []
        for change in self.loose:
            if change.doubtful:
                doubtful.append(change)
            else:
                change.apply(self.certain)
                doubtful = [piece for each in doubtful for piece in each.without(change)]
        self.loose = doubtful

    def content(self, changes: Iterable[_Change]) -> bytes | None:
        """What is certain, with these changes."""
        if self.certain is None:
            return None
        content = bytearray(self.certain)
        for change in changes:
            change.apply(content)
        return bytes(content)


class _Names(dict[str, _File]):
    def apply(self, kind: Kind, path: str, path2: str, file: _File | None) -> None:
        if file is not None and kind in (Kind.CREATE, Kind.MKDIR):
            self[path] = file
        elif kind == Kind.RENAME:
            for name in [name for name in self if name == path or name.startswith(f"{path}/")]:
                self[path2 + name[len(path) :]] = self.pop(name)
        elif kind == Kind.LINK and path in self:
            self[path2] = self[path]
        elif kind in (Kind.UNLINK, Kind.RMDIR):
            self.pop(path, None)

    def found(self) -> list[tuple[str, _File]]:
        """What has a way from the root."""
        return [(path, file) for path, file in self.items() if all(folder in self for folder in _folders(path))]


def _folders(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path


_NAMING = (Kind.CREATE, Kind.MKDIR, Kind.RENAME, Kind.LINK, Kind.UNLINK, Kind.RMDIR)


class Disk:
    """All files below `root`, after the entries that were given to `apply`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._names = _Names()
        self._certain_names = _Names()
        self._loose_names: list[tuple[Kind, str, str, _File | None]] = []

    def apply(self, entry: Entry) -> None:
        path, path2 = self._below(entry.path), self._below(entry.path2)
        if entry.error:
            if entry.kind in (Kind.FSYNC, Kind.FDATASYNC) and path in self._names:
                for change in self._names[path].loose:
                    change.doubtful = True
        elif entry.hit:
            pass  # the process was killed here; what a torn write left is not in the journal
        elif entry.kind in _NAMING:
            file = None
            if entry.kind in (Kind.CREATE, Kind.MKDIR):
                file = _File(bytearray() if entry.kind == Kind.CREATE else None)
            self._names.apply(entry.kind, path, path2, file)
            self._loose_names.append((entry.kind, path, path2, file))
        elif entry.kind in (Kind.FSYNC, Kind.FDATASYNC):
            self._sync(path)
        elif entry.kind == Kind.FTRUNCATE:
            self._names[path].loose.append(_Change(entry.offset, None))
        elif entry.kind.writes:
            self._write(self._names[path], entry)
        elif entry.point:
            raise NotImplementedError(entry.kind)

    def _write(self, file: _File, entry: Entry) -> None:
        assert file.certain is not None
        assert len(entry.data) == entry.length, "the journal was written without FAULTS_BYTES"
        change = _Change(entry.offset, entry.data)
        if entry.dsync:
            change.apply(file.certain)
            # What was written to the same place before comes before this: it cannot undo it.
            file.loose = [piece for each in file.loose for piece in each.without(change)]
        else:
            file.loose.append(change)

    def _sync(self, path: str) -> None:
        if path in self._names and self._names[path].certain is not None:
            self._names[path].sync()
            return
        left: list[tuple[Kind, str, str, _File | None]] = []
        for change in self._loose_names:
            if os.path.dirname(change[1]) == path:
                self._certain_names.apply(*change)
            else:
                left.append(change)
        self._loose_names = left

    def everything(self) -> Files:
        """As it would be had all been written: what the next process sees after a kill."""
        return {path: file.content(file.loose) for path, file in self._names.found()}

    def certain(self) -> Files:
        """What is there in any case, and nothing else."""
        return {path: file.content([]) for path, file in self._certain_names.found()}

    @property
    def all_certain(self) -> bool:
        """True where nothing that matters is loose; lock.mdb and callboard.lock are made anew by whoever opens."""
        return not any(file.loose for path, file in self._names.items() if path.endswith("data.mdb"))

    def some(self, chance: random.Random, *, sector_bytes: int) -> Files:
        """What is certain, and by chance some of the rest: names up to one of them, any sectors of any writes."""
        names = _Names(self._certain_names)
        for change in self._loose_names[: chance.randint(0, len(self._loose_names))]:
            names.apply(*change)
        kept = chance.choice([0.1, 0.5, 0.9])
        files: Files = {}
        for path, file in names.found():
            pieces = [piece for change in file.loose for piece in change.sectors(sector_bytes)]
            files[path] = file.content([piece for piece in pieces if chance.random() < kept])
        return files

    def _below(self, path: str) -> str:
        """The path from the root on, "" for the root itself, and for none."""
        return path.removeprefix(self._root).lstrip("/")
