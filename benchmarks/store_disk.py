"""What the disk is asked to do, and what it can do: bytes written and kept, flushes, LMDB's commits, slower flushes."""

import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb
from store_load import Load, Measure
from system_process import Figures

__all__ = ["LogOnLmdb", "compile_slow_flush", "filesystem_of", "measures", "stored_bytes", "written_bytes"]

TURN_BYTES = 660
KNOWN_BYTES = 16 << 20
PREALLOCATED_BYTES = 64 << 20
MAP_BYTES = 64 << 30
SLOW_FLUSH = Path(__file__).with_name("slow_flush.c")


def written_bytes() -> int:
    """What this process has had written to disks so far, in whole pages, by the kernel's count."""
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))


def stored_bytes(folder: Path) -> int:
    """What the files of a folder occupy on the disk; holes in them do not count."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def filesystem_of(folder: Path) -> str:
    """The type of the file system: on "tmpfs" there is no disk, and no figure of this benchmark means anything."""
    found = ("", "unknown")
    with open("/proc/self/mounts") as file:
        for line in file:
            _, point, kind, *_ = line.split()
            if folder.resolve().is_relative_to(point) and len(point) >= len(found[0]):
                found = (point, kind)
    return found[1]


def compile_slow_flush(folder: Path) -> Path | None:
    """The library that makes each flush a millisecond longer, see slow_flush.c; None where there is no compiler."""
    library = folder / "slow_flush.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SLOW_FLUSH), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


class LogOnLmdb:
    """The least that a log on LMDB can be: one put of all turns of a group under the next number, and the commit."""

    def __init__(self, folder: Path) -> None:
        self._environment: Any = lmdb.open(str(folder), map_size=MAP_BYTES)
        self._next = 0

    def append(self, turns: list[bytes]) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.put(struct.pack(">QQ", 1, self._next), b"".join(turns))
        self._next += 1

    def per_s(self, seconds: float, *, turns: int) -> float:
        """How many turns a second it takes if each commit has so many."""
        group = [os.urandom(TURN_BYTES) for _ in range(turns)]
        before = self._next
        until_s = (began_s := time.perf_counter()) + seconds
        while time.perf_counter() < until_s:
            self.append(group)
        return (self._next - before) * turns / (time.perf_counter() - began_s)

    def close(self) -> None:
        """Check that all is there."""
        with self._environment.begin() as transaction:
            assert transaction.stat()["entries"] == self._next, "LMDB lost a commit"
        self._environment.close()


async def limits(load: Load) -> Figures:
    """What the disk and LMDB give, with nothing around them; and whether the kernel's count of bytes can be believed.

    `counted_bytes` is how many bytes it says for each that was written and flushed.
    """
    with tempfile.TemporaryDirectory(dir=load.folder) as name:
        folder = Path(name)
        figures: Figures = {
            "fdatasync_growing_per_s": _flushes_per_s(folder / "growing", load.seconds / 4, allocated_bytes=0),
            "fdatasync_preallocated_per_s": _flushes_per_s(
                folder / "preallocated", load.seconds / 4, allocated_bytes=PREALLOCATED_BYTES
            ),
            "counted_bytes": _counted(folder / "known"),
        }
        for turns in (1, 10, 100, 1000):
            (folder / str(turns)).mkdir()
            log = LogOnLmdb(folder / str(turns))
            figures[f"lmdb_{turns}_a_commit_per_s"] = log.per_s(load.seconds / 4, turns=turns)
            log.close()
    return figures


async def one(load: Load) -> Figures:
    """One turn after the other, each with a commit of its own."""
    with tempfile.TemporaryDirectory(dir=load.folder) as name:
        log = LogOnLmdb(Path(name))
        log.per_s(load.seconds / 10, turns=1)
        figures = {"turns_per_s": log.per_s(load.seconds, turns=1)}
        log.close()
    return figures


def _flushes_per_s(path: Path, seconds: float, *, allocated_bytes: int) -> float:
    turn = os.urandom(TURN_BYTES)
    with path.open("wb", buffering=0) as file:
        if allocated_bytes:
            file.write(bytes(allocated_bytes))
            os.fsync(file.fileno())
        flushes = 0
        until_s = (began_s := time.perf_counter()) + seconds
        while time.perf_counter() < until_s:
            os.pwrite(file.fileno(), turn, flushes * TURN_BYTES)
            os.fdatasync(file.fileno())
            flushes += 1
        return flushes / (time.perf_counter() - began_s)


def _counted(path: Path) -> float:
    page = os.urandom(4096)
    before = written_bytes()
    with path.open("wb", buffering=0) as file:
        for _ in range(KNOWN_BYTES // len(page) // 16):
            for _ in range(16):
                file.write(page)
            os.fdatasync(file.fileno())
    return (written_bytes() - before) / KNOWN_BYTES


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return {"limits": limits, "one": one}
