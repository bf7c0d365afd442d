"""Which batches the next transaction takes, of all that wait. Pure.

In order of arrival, as long as one transaction takes all. Where it does not, each stream gets its turn: one that stages
much, or large batches, must not make the others wait for all of it. So the streams that a transaction had no room for
come first in the next one. The batches of one stream never change their order.
"""

from collections import Counter, deque
from collections.abc import Callable
from itertools import islice

from ..store.batch import Batch
from ..store.errors import StoreError

__all__ = ["GROUP_BATCHES_MAX", "GROUP_BYTES_MAX", "Entry", "Gathering", "Receipt"]

GROUP_BATCHES_MAX = 1024
"""The store encodes a group in one piece, which holds the GIL: 0.2 ms for so many."""
GROUP_BYTES_MAX = 4 * 1024 * 1024
"""About 1 ms of copying, held against the event loop likewise. A larger batch goes alone."""
WINDOW = 4 * GROUP_BATCHES_MAX
"""How far a transaction looks for streams whose turn it is."""

Receipt = Callable[[StoreError | None], None]
"""Called on the event loop with None where the batch is durable, else with what became of it."""

Entry = tuple[Batch, Receipt, float | None]
"""A batch, its receipt, and when it was staged, where that is measured."""


def _size_bytes(batch: Batch) -> int:
    """Roughly what a batch takes in the log."""
    size = len(batch.head) if batch.head is not None else 0
    for row in batch.rows:
        if row.value is not None:
            size += len(row.value)
    return size


class Gathering:
    """Batches that wait. Only the committer's thread uses it."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: deque[Entry] = deque()

    def fill(self, group: list[Entry]) -> None:
        """Move what the next transaction takes to `group`; something, where anything waits."""
        if not self._take(self.waiting, group):
            return
        self.waiting.extendleft(reversed(group))
        group.clear()
        streams: dict[str, deque[Entry]] = {}
        for entry in islice(self.waiting, WINDOW):
            streams.setdefault(entry[0].stream, deque()).append(entry)
        turns: deque[Entry] = deque()
        while streams:
            for name in list(streams):
                turns.append(streams[name].popleft())
                if not streams[name]:
                    del streams[name]
        try:
            self._take(turns, group)
        except BaseException:
            group.clear()  # they still wait
            raise
        self._take_out(Counter(batch.stream for batch, _, _ in group))

    def _take_out(self, taken: Counter[str]) -> None:
        """Of each stream as many are gone; those of streams that had none come to the front."""
        passed_over: list[Entry] = []
        served: list[Entry] = []
        for entry in islice(self.waiting, WINDOW):
            stream = entry[0].stream
            if stream not in taken:
                passed_over.append(entry)
            elif taken[stream] > 0:
                taken[stream] -= 1
            else:
                served.append(entry)
        for _ in range(min(WINDOW, len(self.waiting))):
            self.waiting.popleft()
        self.waiting.extendleft(reversed(served))
        self.waiting.extendleft(reversed(passed_over))

    @staticmethod
    def _take(entries: deque[Entry], group: list[Entry]) -> bool:
        """Move entries to `group` up to its bounds; True where some did not fit."""
        size = 0
        while entries and len(group) < GROUP_BATCHES_MAX:
            group.append(entries.popleft())  # first of all: what is in the group gets an answer
            size += _size_bytes(group[-1][0])
            if size > GROUP_BYTES_MAX and len(group) > 1:
                entries.appendleft(group.pop())
                break
        return bool(entries)
