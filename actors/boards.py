"""Who reads along: for each session with readers a board, and on it a feed for each reader.

What lasts is read from the store by each reader at its own pace; a board only tells that there is more. What does not
last is put into the feeds, as far as there is room: a feed that is full is emptied, and says how much it has dropped.
So nothing here ever waits for a reader, and a reader costs no more than its feed.

A feed is held by its reader alone: one that is dropped is off the board.
"""

from collections import deque
from weakref import WeakSet

from ..runtime.waking import Backend
from .reply import RunEvent
from .session_events import RunProgress

__all__ = ["FEED_MAX", "Board", "Boards", "Feed"]

FEED_MAX = 1024
"""What does not last waits for a slow reader up to here: some answers' worth of pieces, 100 KiB."""


class Feed:
    """What one reader is told of one session. For one task, in the runtime's event loop.

    Attributes:
        shown: the number of the latest event that lasts, as far as it is known here.
        progress: what does not last, in order; each has the number of what came before it.
        dropped, dropped_at: how much of that was dropped before the first of `progress`, and its latest number.
        deleted: the session is no more.
        closed: the runtime is.
    """

    __slots__ = (
        "__weakref__",
        "_waits",
        "_waker",
        "closed",
        "deleted",
        "dropped",
        "dropped_at",
        "progress",
        "shown",
        "wants_progress",
    )

    def __init__(self, backend: Backend, *, wants_progress: bool) -> None:
        self._waker = backend.waker()
        self._waits = False
        self.shown = 0
        self.wants_progress = wants_progress
        self.progress: deque[RunProgress] = deque()
        self.dropped = 0
        self.dropped_at = 0
        self.deleted = False
        self.closed = False

    def put(self, event: RunProgress) -> None:
        """Add this, or drop it together with all that waits where there is no room."""
        if len(self.progress) >= FEED_MAX:
            self.dropped += len(self.progress)
            self.dropped_at = self.progress[-1].number
            self.progress.clear()
        self.progress.append(event)

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waits:
            self._waker.wake()

    async def wait(self) -> None:
        """Return once there may be more. Cancellation: nothing is lost."""
        self._waits = True
        try:
            await self._waker.wait()
        finally:
            self._waits = False


class Board:
    """The readers of one session. `shown` is the number of the latest event that lasts and that everybody may see."""

    __slots__ = ("feeds", "shown")

    def __init__(self) -> None:
        self.feeds: WeakSet[Feed] = WeakSet()
        self.shown = 0

    @property
    def wants_progress(self) -> bool:
        """Whether a reader is there for what does not last."""
        return any(feed.wants_progress for feed in self.feeds)

    def show(self, number: int) -> None:
        """Everybody may see the events up to this number."""
        self.shown = max(self.shown, number)
        for feed in self.feeds:
            feed.shown = self.shown
            feed.wake()

    def put(self, run_id: str, agent: str, event: RunEvent) -> None:
        """This goes on in a run, behind all that everybody may see."""
        progress = RunProgress(self.shown, run_id, agent, event)
        for feed in self.feeds:
            if feed.wants_progress:
                feed.put(progress)
                feed.wake()

    def end(self, *, deleted: bool) -> None:
        """There is no more: the session was deleted, or the runtime has closed."""
        for feed in self.feeds:
            feed.deleted, feed.closed = feed.deleted or deleted, feed.closed or not deleted
            feed.wake()


class Boards:
    """The boards of a runtime, by session. False where nobody reads anything, which is all that most commits ask."""

    __slots__ = ("_boards", "_closed")

    def __init__(self) -> None:
        self._boards: dict[str, Board] = {}
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._boards)

    def find(self, session_id: str) -> Board | None:
        """The session's board; None where nobody reads it."""
        board = self._boards.get(session_id)
        if board is not None and not board.feeds:
            del self._boards[session_id]  # its readers have gone without a word
            return None
        return board

    def join(self, session_id: str, feed: Feed) -> None:
        """From now on this feed is told of the session."""
        self._boards.setdefault(session_id, Board()).feeds.add(feed)
        feed.closed = self._closed

    def leave(self, session_id: str, feed: Feed) -> None:
        """From now on it is not."""
        board = self._boards.get(session_id)
        if board is not None:
            board.feeds.discard(feed)
            self.find(session_id)

    def deleted(self, session_id: str) -> None:
        """The session is no more, nor are its readers; one that is made anew has others."""
        board = self._boards.pop(session_id, None)
        if board is not None:
            board.end(deleted=True)

    async def aclose(self) -> None:
        """The runtime closes: nobody waits any more."""
        self._closed = True
        for board in self._boards.values():
            board.end(deleted=False)
        self._boards.clear()
