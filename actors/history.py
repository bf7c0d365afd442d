"""The messages of one session, as far as its actor needs them in memory.

Nothing is read until somebody wants it: a session that is only appended to, or only read at its end, never loads its
past. What is staged but not durable is always kept, because the store does not have it yet.

A message's place is its `seq`, not where it stands in a list: one that cannot be read leaves a hole, and so does an
edit. What an edit removes is given to no turn from then on, and to no reader once the edit is durable.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter

from .archive import Archive
from .message import Message
from .seq_ranges import Ranges, count_visible, visible_messages
from .session_records import SessionHead

__all__ = ["History", "history_of"]

_MESSAGE_BYTES = 350
"""A message in memory beside its texts, its own strings included (CPython 3.11, tracemalloc)."""

_seq = attrgetter("seq")


class History:
    """`durable_count` is how many messages the store was given, the place of the last one; `removed` are the places
    that edits have taken out of them. Messages that the store cannot give back are left out.

    Attributes:
        size_bytes: roughly what is held in memory, beside what is staged.
    """

    __slots__ = (
        "_archive", "_durable_count", "_messages", "_removed", "_removed_durably", "_session_id", "_staged",
        "size_bytes",
    )  # fmt: skip

    def __init__(self, archive: Archive, session_id: str, *, durable_count: int, removed: Ranges = ()) -> None:
        self._archive = archive
        self._session_id = session_id
        self._durable_count = durable_count
        self._removed = self._removed_durably = removed
        self._messages: list[Message] | None = None  # all that readers see, once they were loaded
        self._staged: list[Message] = []
        self.size_bytes = 0

    def load(self) -> None:
        """Read what is not in memory yet, so that `whole` cannot fail.

        Raises:
            StoreError: it could not be read. Nothing changed.
        """
        if self._messages is None:
            removed, last = self._removed_durably, self._durable_count
            stored = self._archive.messages_between(self._session_id, 1, last, removed=removed)
            count = count_visible(removed, 1, last)
            if len(stored) != count:
                self._archive.damage.report(
                    f"history of session {self._session_id!r}",
                    f"{count} messages were stored, {len(stored)} can be read",
                )
            self._keep(stored)

    def whole(self) -> tuple[Message, ...]:
        """All messages, staged ones included, as edits have left them; raises as `load`.

        Cost: loads them at the first call.
        """
        self.load()
        assert self._messages is not None
        if self._removed is self._removed_durably:
            return (*self._messages, *self._staged)
        return tuple(visible_messages([*self._messages, *self._staged], self._removed))

    def extend(self, staged: Sequence[Message]) -> None:
        """These were staged behind all others."""
        self._staged += staged

    def remove(self, removed: Ranges) -> None:
        """An edit was staged: these are all the places that edits have taken out."""
        self._removed = removed

    def durable(self, count: int, removed: Ranges = ()) -> None:
        """The store now has the first `count` messages, without those at the places `removed`."""
        if count != self._durable_count:
            stored = self._staged[: count - self._durable_count]
            del self._staged[: count - self._durable_count]
            self._durable_count = count
            if self._messages is not None:
                self._keep(stored)
        if removed is not self._removed_durably:
            self._removed_durably = removed
            if self._messages is not None:
                kept, self._messages, self.size_bytes = visible_messages(self._messages, removed), None, 0
                self._keep(kept)

    def read(self, first: int, last: int) -> list[Message]:
        """The messages from place `first` to place `last`, both included, staged ones too; those that edits have
        durably removed are left out.

        Raises:
            StoreError: they could not be read.

        Cost: that of what is read.
        """
        return self._with_staged(self._stored(first, min(last, self._durable_count)), first, last)

    def read_removed_too(self, first: int, last: int) -> list[Message]:
        """As `read`, with what edits have removed."""
        durable = self._archive.messages_between(self._session_id, first, min(last, self._durable_count), removed=())
        return self._with_staged(durable, first, last)

    def _with_staged(self, messages: list[Message], first: int, last: int) -> list[Message]:
        if last > self._durable_count:
            messages += [message for message in self._staged if first <= message.seq <= last]
        return messages

    def _stored(self, first: int, last: int) -> list[Message]:
        if first > last:
            return []
        if self._messages is None:
            return self._archive.messages_between(self._session_id, first, last, removed=self._removed_durably)
        start = bisect_left(self._messages, first, key=_seq)
        return self._messages[start : bisect_right(self._messages, last, lo=start, key=_seq)]

    def _keep(self, stored: list[Message]) -> None:
        if self._messages is None:
            self._messages = []
        self._messages += stored
        self.size_bytes += _size_bytes(stored)


def history_of(archive: Archive, session_id: str, head: SessionHead | None) -> History:
    """The history of a session whose head the store has; an empty one where there is none."""
    if head is None:
        return History(archive, session_id, durable_count=0)
    return History(archive, session_id, durable_count=head.last_seq, removed=head.removed)


def _size_bytes(messages: Iterable[Message]) -> int:
    return sum(
        _MESSAGE_BYTES + len(message.text) + sum(len(call.arguments) for call in message.tool_calls)
        for message in messages
    )
