"""Whether LMDB's file is all there: read as plain bytes, before LMDB maps it.

The kernel kills a process (SIGBUS) that touches a mapped page past the end of the file, so a file that was cut off must
be refused before LMDB opens it: no error can be caught afterwards.

    page 0, 1    meta      the newer one holds: the roots, the last page's number, the transaction's number
    page 2...    branch    children        leaf    keys and values        overflow    a value larger than a page

The file ends behind the last page, nearly always. LMDB does not write a page that a commit took and gave back, so that
a commit which erases much may leave the last page out: measured in 9 of 22 000 random commits, one page each. Such a
page stands in the list of the free ones, which is never read before it is written. So a short file is sound exactly
where LMDB's own list says that every page missing is free.

Source: lmdb.h and mdb.c of LMDB 0.9 (data version 1); 1.0 (data version 3) has 8 bytes more before each page.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from .errors import Corrupt

__all__ = ["check_whole"]

_MAGIC = 0xBEEFC0DE
_META_PAGE = 0x08
_BRANCH, _LEAF = 0x01, 0x02
_NODE_LARGE = 0x01
_NO_PAGE = 2**64 - 1

_PAGE_SIZES = [1 << bits for bits in range(9, 17)]

_TRIES_MAX = 100
"""A writer may reuse pages of the list while it is read; then it has written a newer meta page too."""

_META = struct.Struct("=II16x I2xH32xQ 48x QQ")
"""Magic, version; the list of free pages: page size, depth, root; last page, transaction."""
_NODE = struct.Struct("=HHHH")


class _Meta(Struct, frozen=True):
    page_bytes: int
    depth: int
    free_root: int
    last_page: int
    transaction: int
    header_bytes: int


class _Damaged(Exception):
    """What is read here cannot be; the message says what."""


def check_whole(directory: Path) -> None:
    """Return where every page in use of `directory`'s data.mdb is in the file, or there is no such file.

    What is not LMDB's at all is left for LMDB to refuse, which it does before it maps the file.

    Raises:
        Corrupt: the file is empty, or was cut off; it is as it was.
        OSError: it cannot be read.

    Cost: two short reads; where pages are missing, one more for each page of the list.
    """
    try:
        fd = os.open(directory / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    where = f"file of the store {str(directory)!r}"
    try:
        if not os.fstat(fd).st_size:
            advice = "restore the directory from a copy, or remove it if nothing was stored there yet"
            raise Corrupt(where, f"it is empty (0 bytes of data.mdb are left); {advice}")
        _check_pages(fd)
    except _Damaged as error:
        raise Corrupt(where, f"it was cut off: {error}; restore the directory from a copy") from error
    finally:
        os.close(fd)


def _check_pages(fd: int) -> None:
    for _ in range(_TRIES_MAX):
        meta = _newest_meta(fd)
        if meta is None:
            return
        size_bytes = os.fstat(fd).st_size  # asked after the meta page: while a writer is at work the file only grows
        missing = range(size_bytes // meta.page_bytes, meta.last_page + 1)
        if not missing or _all_free(fd, meta, missing):
            return
        if _newest_meta(fd) == meta:
            raise _Damaged(f"{size_bytes} bytes are left of {(meta.last_page + 1) * meta.page_bytes}")
    raise _Damaged("and it changes faster than it can be read")


def _all_free(fd: int, meta: _Meta, missing: range) -> bool:
    try:
        return len(missing) == len({number for number in _free_pages(fd, meta) if number in missing})
    except (_Damaged, struct.error):
        return False  # the list is itself cut off, or was written anew while it was read


def _newest_meta(fd: int) -> _Meta | None:
    """The meta page that LMDB will choose; None where the file is not LMDB's."""
    first = _read_meta(fd, 0)
    if first is None:
        return None
    second = _read_meta(fd, first.page_bytes)
    if second is None:
        size_bytes = os.fstat(fd).st_size
        if size_bytes < 2 * first.page_bytes:
            raise _Damaged(f"{size_bytes} bytes are left, and its head alone has {2 * first.page_bytes}")
        return None
    return max(first, second, key=lambda meta: meta.transaction)


def _read_meta(fd: int, offset: int) -> _Meta | None:
    for header_bytes, version in ((16, 1), (24, 3)):
        data = os.pread(fd, header_bytes + _META.size, offset)
        if len(data) < header_bytes + _META.size:
            continue
        magic, found, page_bytes, depth, root, last_page, transaction = _META.unpack_from(data, header_bytes)
        if (
            magic == _MAGIC
            and found == version
            and _flags(data, header_bytes) & _META_PAGE
            and page_bytes in _PAGE_SIZES
        ):
            return _Meta(page_bytes, depth, root, last_page, transaction, header_bytes)
    return None


def _free_pages(fd: int, meta: _Meta) -> Iterator[int]:
    """The numbers in LMDB's list of free pages. _Damaged where the list itself is not all there."""
    level = [meta.free_root] if meta.free_root != _NO_PAGE else []
    for height in range(meta.depth, 0, -1):
        below: list[int] = []
        for number in level:
            page = _read_page(fd, meta, number)
            if not _flags(page, meta.header_bytes) & (_LEAF if height == 1 else _BRANCH):
                raise _Damaged(f"page {number} is not what its place says")
            for offset in _node_offsets(page, meta.header_bytes):
                low, high, flags, key_bytes = _NODE.unpack_from(page, offset)
                if height > 1:
                    below.append(low | high << 16 | flags << 32)
                else:
                    yield from _numbers_at(fd, meta, page, offset + _NODE.size + key_bytes, large=flags & _NODE_LARGE)
        if len(below) > meta.last_page:
            raise _Damaged("its list of free pages goes in circles")
        level = below


def _numbers_at(fd: int, meta: _Meta, page: bytes, offset: int, *, large: int) -> tuple[int, ...]:
    """One value of the list: a count and as many numbers; a large one has pages of its own."""
    if not large:
        (count,) = struct.unpack_from("=Q", page, offset)
        return struct.unpack_from(f"={count}Q", page, offset + 8) if count <= len(page) // 8 else ()
    (number,) = struct.unpack_from("=Q", page, offset)
    (count,) = struct.unpack_from("=Q", _read_page(fd, meta, number), meta.header_bytes)
    if count * 8 > os.fstat(fd).st_size:
        raise _Damaged(f"page {number} lists more pages than there are")
    data = os.pread(fd, count * 8, number * meta.page_bytes + meta.header_bytes + 8)
    return struct.unpack(f"={count}Q", data)


def _read_page(fd: int, meta: _Meta, number: int) -> bytes:
    if (number + 1) * meta.page_bytes > os.fstat(fd).st_size:
        raise _Damaged(f"page {number} is missing")
    return os.pread(fd, meta.page_bytes, number * meta.page_bytes)


def _flags(page: bytes, header_bytes: int) -> int:
    return int(struct.unpack_from("=H", page, header_bytes - 6)[0])


def _node_offsets(page: bytes, header_bytes: int) -> tuple[int, ...]:
    base = 0 if header_bytes == 16 else header_bytes  # 1.0 counts from the end of the header
    (lower,) = struct.unpack_from("=H", page, header_bytes - 4)
    count = (lower - (header_bytes - base)) // 2
    return tuple(offset + base for offset in struct.unpack_from(f"={max(count, 0)}H", page, header_bytes))
