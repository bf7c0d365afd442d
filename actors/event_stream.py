"""One reader of a session's events, at its own pace: see `Session.events`.

What lasts is pulled from the session's actor, a page at a time, whenever its board says that there is more; what does
not last waits in the feed, each with the number of what came before it. Both are merged by their numbers.

A page is asked for after the feed was joined, and a piece of an answer is put into the feed before what comes behind it
can be seen: so the order of the numbers is the order in which things happened.
"""

from collections import deque
from types import TracebackType
from typing import Self

from ..runtime.errors import Stopping
from ..runtime.ref import Ref
from ..runtime.waking import current_backend
from .boards import Boards, Feed
from .event_log import EventPage
from .session_events import EventsDropped, SessionDeleted, SessionEvent, StoredSessionEvent
from .session_messages import ReadEvents

__all__ = ["EventStream"]

BURST_MAX = 32
"""Events that a reader takes before others get the event loop, as in event_queue.py."""


class EventStream:
    """The events of one session for one task; see `Session.events`.

    `async with` joins at once, and leaves at the end; `async for` alone joins when the first event is asked for.

    Attributes:
        number: that of the latest event that was given out: what to go on behind.
    """

    def __init__(self, session_id: str, session: Ref, boards: Boards, *, after: int | None, progress: bool) -> None:
        self._session_id = session_id
        self._session = session
        self._boards = boards
        self._after = after
        self._wants_progress = progress
        self._feed: Feed | None = None
        self._page: deque[StoredSessionEvent] = deque()
        self._pulled = 0  # the number through which the page, and those before it, have all
        self._burst = 0
        self._ended = False
        self.number: int = 0 if after is None else after

    async def __aenter__(self) -> Self:
        await self._join()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionEvent:
        """The next event.

        Raises:
            StopAsyncIteration: the session was deleted, or this was closed.
            ValueError: the session has fewer events than `after`.
            Stopping: the runtime closed.
            StoreError: the store cannot be read; this stream goes on where it was when it is asked again.

        Cancellation: no event is lost.
        """
        if self._ended:
            raise StopAsyncIteration
        feed = self._feed if self._feed is not None else await self._join()
        while True:
            if self._burst == BURST_MAX:
                self._burst = 0
                await current_backend().checkpoint()
            event = self._take(feed)
            if event is not None:
                self._burst += 1
                self.number = event.number
                return event
            if feed.closed:
                raise Stopping("the runtime closed while its events were read")
            if feed.shown > self._pulled:
                await self._pull(feed, self._pulled)
            else:
                self._burst = 0
                await feed.wait()

    async def aclose(self) -> None:
        """Read no more. Calling it again does nothing."""
        self._ended = True
        if self._feed is not None:
            self._boards.leave(self._session_id, self._feed)

    async def _join(self) -> Feed:
        if self._ended:
            raise RuntimeError("this stream was closed: session.events(after=number) gives another")
        feed = Feed(current_backend(), wants_progress=self._wants_progress)
        self._boards.join(self._session_id, feed)
        last = await self._pull(feed, self._after)
        if self._after is not None and self._after > last:
            raise ValueError(
                f"session {self._session_id!r} has {last} events, so there is none behind after={self._after}: if it "
                "was deleted and made anew, begin with after=0"
            )
        feed.progress.clear()  # before this nobody knew behind what it happened
        if self._after is None:
            self.number = last
        self._feed = feed
        return feed

    async def _pull(self, feed: Feed, after: int | None) -> int:
        """Get the next page; the number of the latest event there is."""
        page: EventPage = await self._session.ask(ReadEvents(after))
        self._page.extend(page.events)
        self._pulled = page.upto
        board = self._boards.find(self._session_id)
        if board is not None and page.last > board.shown:
            board.show(page.last)
        return page.last

    def _take(self, feed: Feed) -> SessionEvent | None:
        """The next event that is here already, in the order of their numbers."""
        page = self._page
        # Whatever has this number or a smaller one is not behind an event that is still to be given out.
        bound = page[0].number - 1 if page else self._pulled
        if feed.dropped and (feed.dropped_at <= bound or feed.deleted):
            dropped, feed.dropped = feed.dropped, 0
            return EventsDropped(feed.dropped_at, dropped)
        if feed.progress and feed.progress[0].number <= bound:
            return feed.progress.popleft()
        if page:
            return page.popleft()
        if not feed.deleted:
            return None
        if feed.progress:
            return feed.progress.popleft()
        self._ended = True
        return SessionDeleted(self.number)
