"""Seals again, under the newest generation of keys, what older ones have sealed: stream by stream.

Each step is an ordinary batch, conditional on the version of what it rewrites. A process that is killed anywhere leaves
a store that opens, and going on is running it again: it reads all and writes what is left. The older generations stay
in the keyring, 40 bytes each, so that a record that was out of sight, in a copy that is restored, say, still opens.
"""

from collections.abc import Callable

from .batch import Batch, Table
from .contract import Head, Store
from .sealed_store import KEYRING_STREAM
from .sealing import Sealing

__all__ = ["ROWS_PER_BATCH", "Resealing"]

ROWS_PER_BATCH = 256
"""So that a stream of any length is rewritten within little memory."""
_STREAMS_PER_READ = 256


class Resealing:
    """Seals the streams of one store again.

    Args:
        inner: the store beneath.
        commit: commits one batch to it, and raises what it is refused with.
    """

    def __init__(self, inner: Store, sealing: Sealing, *, commit: Callable[[Batch], None]) -> None:
        self._inner = inner
        self._sealing = sealing
        self._commit = commit

    def run(self, progress: Callable[[int], None] | None) -> int:
        """No value that opens is sealed with an older generation afterwards; gives how many streams had any."""
        looked = changed = 0
        after = ""
        while names := self._inner.streams(after=after, limit=_STREAMS_PER_READ):
            after = names[-1]
            for stream in names:
                if stream == KEYRING_STREAM:
                    continue
                changed += self._rewrite(stream)
                looked += 1
                if progress is not None:
                    progress(looked)
        return changed

    def _rewrite(self, stream: str) -> bool:
        found = self._inner.load(stream)
        assert found is not None, "what is listed was written"
        version = found.version
        for table in Table:
            start = b""
            while rows := self._inner.scan(stream, table, start=start, limit=ROWS_PER_BATCH):
                start = rows[-1][0] + b"\0"
                old = [(key, sealed) for key, sealed in rows if self._sealing.is_old(sealed)]
                fresh = [row for pair in old if (row := self._sealing.resealed_row(stream, table, *pair)) is not None]
                if fresh:
                    self._commit(Batch(stream, found.epoch, version, rows=tuple(fresh)))
                    version += 1
        if self._sealing.is_old(found.head):
            head = self._sealing.resealed_head(stream, Head(found.epoch, version, found.head))
            if head is not None:
                self._commit(Batch(stream, found.epoch, version, head=head))
                version += 1
        return version > found.version
