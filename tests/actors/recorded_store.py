"""What a crash leaves: a store as it was at some moment, for the next process."""

from collections.abc import Sequence

from callboard.store import Batch, MemoryStore
from callboard.store.contract import Refusal


class Recorded(MemoryStore):
    """A store as another one is now, which its process may yet write to: what a crash at this moment leaves."""

    def __init__(self, left: "Recorded | None" = None) -> None:
        super().__init__()
        self.commits: list[Sequence[Batch]] = []
        self.claims = 0
        if left is not None:
            for _ in range(left.claims):
                self.claim()
            for batches in list(left.commits):
                self.commit(batches)

    def claim(self) -> int:
        self.claims += 1
        return super().claim()

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        self.commits.append(batches)
        return super().commit(batches)
