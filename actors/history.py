"""The messages of one session, as far as its actor needs them in memory.

Nothing is read until somebody wants it: a session that is only appended to, or only read at its end, never loads its
past. What is staged but not durable is always kept, because the store does not have it yet.
"""

from collections.abc import Iterable, Sequence

from ..store.errors import Corrupt
from .archive import Archive
from .message import Message

__all__ = ["History"]

_MESSAGE_BYTES = 350
"""A message in memory beside its texts, its own strings included (CPython 3.11, tracemalloc)."""


class History:
    """Places count from 0 here: message `seq` stands at `seq - 1`.

    `durable_count` is how many messages the store has.

    Attributes:
        size_bytes: roughly what is held in memory.
    """

    __slots__ = ("_archive", "_durable_count", "_messages", "_session_id", "_tail", "size_bytes")

    def __init__(self, archive: Archive, session_id: str, *, durable_count: int) -> None:
        self._archive = archive
        self._session_id = session_id
        self._durable_count = durable_count
        self._messages: list[Message] | None = None
        self.size_bytes = 0
        self._tail: list[Message] = []  # behind durable_count, while the rest is not loaded

    def load(self) -> None:
        """Read what is not in memory yet, so that `whole` cannot fail.

        Raises:
            StoreError: it could not be read. Nothing changed.
        """
        if self._messages is None:
            stored = self._archive.messages(self._session_id, before_seq=self._durable_count + 1)
            if len(stored) != self._durable_count:
                reason = f"{self._durable_count} messages were stored and {len(stored)} are there"
                raise Corrupt(f"history of session {self._session_id!r}", reason)
            self.size_bytes += _size_bytes(stored)
            self._messages = stored + self._tail
            self._tail = []

    def whole(self) -> tuple[Message, ...]:
        """All messages, staged ones included; raises as `load`. Cost: loads them at the first call."""
        self.load()
        assert self._messages is not None
        return tuple(self._messages)

    def extend(self, staged: Sequence[Message]) -> None:
        """These were staged behind all others."""
        self.size_bytes += _size_bytes(staged)
        (self._tail if self._messages is None else self._messages).extend(staged)

    def durable(self, count: int) -> None:
        """The store now has the first `count` messages."""
        if self._messages is None:
            stored = self._tail[: count - self._durable_count]
            self.size_bytes -= _size_bytes(stored)
            del self._tail[: len(stored)]
        self._durable_count = count

    def read(self, start: int, end: int) -> list[Message]:
        """The messages from `start` up to `end`, all of them durable. Cost: that of what is read."""
        if start >= end:
            return []
        if self._messages is not None:
            return self._messages[start:end]
        return self._archive.messages(self._session_id, limit=end - start, before_seq=end + 1)


def _size_bytes(messages: Iterable[Message]) -> int:
    return sum(
        _MESSAGE_BYTES + len(message.text) + sum(len(call.arguments) for call in message.tool_calls)
        for message in messages
    )
