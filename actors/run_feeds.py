"""The events of runs that are under way, for whoever listens: the caller that streams, and those that join it later.

A feed is opened by the first listener of a run, and keeps what it was told until the run has ended; so one that comes
later hears it all from there on. A run that nobody listens to has none, and its model need not stream.
"""

from collections.abc import Callable

from .event_queue import EventQueue
from .reply import RunEvent

__all__ = ["RunFeeds"]


class _Feed:
    """The events of one run so far, and the queues of those who listen; True for one that ends with the run."""

    __slots__ = ("events", "listeners")

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self.listeners: dict[EventQueue, bool] = {}

    def put(self, event: RunEvent) -> None:
        self.events.append(event)
        for listener in self.listeners:
            listener.put(event)


class RunFeeds:
    """The feeds of one runtime, by run id."""

    __slots__ = ("_feeds", "_listens_to")

    def __init__(self) -> None:
        self._feeds: dict[str, _Feed] = {}
        self._listens_to: dict[EventQueue, str] = {}

    def __len__(self) -> int:
        """How many runs are listened to."""
        return len(self._feeds)

    def get(self, run_id: str) -> Callable[[RunEvent], None] | None:
        """What takes the events of this run; None where nobody listens."""
        feed = self._feeds.get(run_id)
        return feed.put if feed is not None else None

    def listen(self, run_id: str, queue: EventQueue, *, ends: bool = False) -> None:
        """Let the queue have the events of this run, from the first that anybody has heard on. `ends`: when the run
        does; one that does not may go on to hear another run, see `follow`."""
        feed = self._feeds.setdefault(run_id, _Feed())
        for event in feed.events:
            queue.put(event)
        feed.listeners[queue] = ends
        self._listens_to[queue] = run_id

    def leave(self, queue: EventQueue) -> None:
        """The queue wants no more. A feed to which nobody listens any more is closed."""
        run_id = self._listens_to.pop(queue, None)
        feed = self._feeds.get(run_id) if run_id is not None else None
        if run_id is None or feed is None:
            return
        feed.listeners.pop(queue, None)
        if not feed.listeners:
            del self._feeds[run_id]

    def follow(self, run_id: str, into: str) -> None:
        """This run became part of another: those who listen to it hear the other's events from now on."""
        feed = self._feeds.pop(run_id, None)
        for queue, ends in feed.listeners.items() if feed is not None else ():
            self.listen(into, queue, ends=ends)

    def close(self, run_id: str) -> None:
        """The run has ended, or waits: those who end with it have all. Others are heard of again, or leave."""
        feed = self._feeds.get(run_id)
        if feed is None:
            return
        feed.events.clear()
        for queue in [queue for queue, ends in feed.listeners.items() if ends]:
            self.leave(queue)
            queue.end()
