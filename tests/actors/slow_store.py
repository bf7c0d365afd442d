"""A store that is as slow as a test wants it to be."""

import threading
from collections.abc import Sequence

import anyio.to_thread

from callboard.store import Batch, MemoryStore
from callboard.store.contract import Refusal


class SlowStore(MemoryStore):
    """Commits on the runtime's thread, as a disk does; while `held`, each waits for a `let` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self._permits = threading.Semaphore(0)
        self._waiting = threading.Semaphore(0)

    @property
    def inline(self) -> bool:
        return False

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        if self.held:
            self._waiting.release()
            assert self._permits.acquire(timeout=20)
        return super().commit(batches)

    async def wait_for_commit(self) -> None:
        """Return when a commit has come and waits."""
        assert await anyio.to_thread.run_sync(lambda: self._waiting.acquire(timeout=20))

    def let(self, commits: int = 1) -> None:
        self._permits.release(commits)

    def let_all(self) -> None:
        self.held = False
        self._permits.release(1_000)
