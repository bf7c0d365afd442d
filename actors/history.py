"""The messages of one session, as far as its actor needs them in memory.

Nothing is read until somebody wants it: a session that is only appended to, or only read at its end, never loads its
past. What is staged but not durable is always kept, because the store does not have it yet.

A message's place is its `seq`, not where it stands in a list: one that cannot be read leaves a hole.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter

from .archive import Archive
from .message import Message

__all__ = ["History"]

_MESSAGE_BYTES = 350
"""A message in memory beside its texts, its own strings included (CPython 3.11, tracemalloc)."""

_seq = attrgetter("seq")


class History:
    """`durable_count` is how many messages the store was given. Those that it cannot give back are left out.

    Attributes:
        size_bytes: roughly what is held in memory, beside what is staged.
    """

    __slots__ = ("_archive", "_durable_count", "_messages", "_session_id", "_staged", "size_bytes")

    def __init__(self, archive: Archive, session_id: str, *, durable_count: int) -> None:
        self._archive = archive
        self._session_id = session_id
        self._durable_count = durable_count
        self._messages: list[Message] | None = None  # all durable ones, once they were loaded
        self._staged: list[Message] = []
        self.size_bytes = 0

    def load(self) -> None:
        """Read what is not in memory yet, so that `whole` cannot fail.

        Raises:
            StoreError: it could not be read. Nothing changed.
        """
        if self._messages is None:
            stored = self._archive.messages(self._session_id, before_seq=self._durable_count + 1)
            if len(stored) != self._durable_count:
                self._archive.damage.report(
                    f"history of session {self._session_id!r}",
                    f"{self._durable_count} messages were stored, {len(stored)} can be read",
                )
            self._keep(stored)

    def whole(self) -> tuple[Message, ...]:
        """All messages, staged ones included; raises as `load`. Cost: loads them at the first call."""
        self.load()
        assert self._messages is not None
        return (*self._messages, *self._staged)

    def extend(self, staged: Sequence[Message]) -> None:
        """These were staged behind all others."""
        self._staged += staged

    def durable(self, count: int) -> None:
        """The store now has the first `count` messages."""
        if count == self._durable_count:
            return
        stored = self._staged[: count - self._durable_count]
        del self._staged[: count - self._durable_count]
        self._durable_count = count
        if self._messages is not None:
            self._keep(stored)

    def read(self, first: int, last: int) -> list[Message]:
        """The messages from place `first` to place `last`, both included, staged ones too.

        Raises:
            StoreError: they could not be read.

        Cost: that of what is read.
        """
        if first > last:
            return []
        messages = self._stored(first, min(last, self._durable_count))
        if last > self._durable_count:
            messages += [message for message in self._staged if first <= message.seq <= last]
        return messages

    def _stored(self, first: int, last: int) -> list[Message]:
        if first > last:
            return []
        if self._messages is None:
            stored = self._archive.messages(self._session_id, limit=last - first + 1, before_seq=last + 1)
            return stored if stored and stored[0].seq >= first else [each for each in stored if each.seq >= first]
        start = bisect_left(self._messages, first, key=_seq)
        return self._messages[start : bisect_right(self._messages, last, lo=start, key=_seq)]

    def _keep(self, stored: list[Message]) -> None:
        if self._messages is None:
            self._messages = []
        self._messages += stored
        self.size_bytes += _size_bytes(stored)


def _size_bytes(messages: Iterable[Message]) -> int:
    return sum(
        _MESSAGE_BYTES + len(message.text) + sum(len(call.arguments) for call in message.tool_calls)
        for message in messages
    )
