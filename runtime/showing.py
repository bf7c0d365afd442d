"""The part of a Runtime that shows it: figures, a picture, the last messages, and who is told of what is rare.

Looking changes nothing, and is possible at any time: before the runtime is entered, and when it has closed.
"""

from collections.abc import Callable
from functools import partial

from .dump import ACTORS_SHOWN_MAX, Dump, dump
from .identity import ActorId
from .introspect import ActorStatistics, Inspection, RuntimeStatistics, TraceRecord
from .observing import Observable, Observer

__all__ = ["Showing"]


class Showing:
    """What `Runtime` derives from."""

    def __init__(self, inspection: Inspection, events: Observable) -> None:
        self._inspection = inspection
        self._events = events

    def inspect(self, kind: str, key: str) -> ActorStatistics:
        """The figures of one actor, without waking it; its state is "absent" where it was never used.

        Raises:
            UnknownActor, TypeError, ValueError: as `actor`.
        """
        return self._inspection.actor(self._inspection.registry.check(kind, key), waits=self.waits())

    def statistics(self) -> RuntimeStatistics:
        """The figures of the whole. Cost: one look at each actor, some 50 ms for 100 000."""
        return self._inspection.runtime()

    def waits(self) -> list[tuple[ActorId, ActorId]]:
        """Who waits for an answer of whom, among actors: each pair once, by when the first one began to wait."""
        return self._inspection.waits()

    def dump(self, *, actors_max: int = ACTORS_SHOWN_MAX) -> Dump:
        """A picture of all that goes on, for people: `print(runtime.dump())`. At most so many actors are shown.

        Cost: some 100 ms for 100 000 actors.
        """
        return dump(self._inspection, waits=self.waits(), actors_max=actors_max)

    def trace(self, limit: int | None = None) -> tuple[TraceRecord, ...]:
        """The last messages that reached a handler, oldest first: at most 1024, or `limit`."""
        return self._inspection.trace(limit)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell `observer` what happens rarely: crashes, restarts, activations, commits; see observing.py.

        Cost: nothing for a message that is handled in place and commits nothing. With an observer, some microseconds
        for each activation, passivation and commit, and what `note` itself takes.

        Returns: a function that ends it.
        """
        self._events.add(observer)
        return partial(self._events.remove, observer)
