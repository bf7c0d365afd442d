"""The messages of one session, as far as its actor needs them in memory.

Nothing is read until somebody wants it: a session that is only appended to, or only read at its end, never loads its
past, and one whose model sees it through a window loads what the window may show. What is staged but not durable is
always kept, because the store does not have it yet.

A message's place is its `seq`, not where it stands in a list: one that cannot be read leaves a hole, and so does an
edit. What an edit removes is given to no turn from then on, and to no reader once the edit is durable.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter

from .archive import Archive
from .message import Message
from .seq_ranges import Ranges, count_visible, first_of_latest, last_of_earliest, visible_messages
from .session_records import SessionHead
from .window import ExcerptNeed

__all__ = ["History", "history_of"]

_MESSAGE_BYTES = 350
"""A message in memory beside its texts, its own strings included (CPython 3.11, tracemalloc)."""

_LOADED_AT_FIRST = 64
"""Messages, where it is not known yet how many have the characters that are needed."""
_BEGINNING_MAX = 64
"""The most first messages that a window shows (window.py)."""
_CHARACTERS_MIN = 32
"""What a message counts beside its own: it is four tokens and more."""

_seq = attrgetter("seq")


class History:
    """`durable_count` is how many messages the store was given, the place of the last one; `removed` are the places
    that edits have taken out of them. Messages that the store cannot give back are left out.

    Attributes:
        size_bytes: roughly what is held in memory, beside what is staged.
    """

    __slots__ = (
        "_archive", "_beginning", "_durable_count", "_loaded_from", "_messages", "_removed", "_removed_durably",
        "_session_id", "_staged", "size_bytes",
    )  # fmt: skip

    def __init__(self, archive: Archive, session_id: str, *, durable_count: int, removed: Ranges = ()) -> None:
        self._archive = archive
        self._session_id = session_id
        self._durable_count = durable_count
        self._removed = self._removed_durably = removed
        self._messages: list[Message] | None = None  # what readers see from this place on, once it was loaded
        self._loaded_from = 1
        self._beginning: list[Message] | None = None  # the first ones, where not all are loaded
        self._staged: list[Message] = []
        self.size_bytes = 0

    def load(self) -> None:
        """Read what is not in memory yet, so that `whole` cannot fail.

        Raises:
            StoreError: it could not be read. Nothing changed.
        """
        self._load_from(1)

    def load_for(self, need: ExcerptNeed) -> None:
        """Read what is not in memory yet, so that `excerpt` has what it needs. Raises as `load`.

        Cost: that of what is read; once it is in memory, that of looking at as many messages as are needed.
        """
        count = _LOADED_AT_FIRST if need.messages is None else need.messages
        while self._messages is None or self._loaded_from > 1:
            if self._messages is not None:
                left = visible_messages(self._messages, self._removed)
                needed = self._latest_count(left, (), need)
                if needed == need.messages or needed < len(left):
                    break
            first = first_of_latest(self._removed, self._durable_count, count)
            self._load_from(first if count_visible(self._removed, 1, first - 1) else 1)
            count *= 2
        if self._loaded_from > 1 and self._beginning is None:
            last = last_of_earliest(self._removed_durably, 1, self._loaded_from - 1, _BEGINNING_MAX)
            removed = self._removed_durably
            self._beginning = self._archive.messages_between(self._session_id, 1, last, removed=removed)

    def excerpt(self, need: ExcerptNeed, *, staged: bool) -> tuple[list[Message], int, int]:
        """The first and the latest messages that are in memory, how many of them are first ones, and how many are
        missing between; `staged` ones included or not. Behind `load_for`; it cannot fail.

        Cost: that of what it gives.
        """
        latest, added, removed = self._messages or [], self._staged, self._removed
        if not staged:
            added, removed = [], self._removed_durably
        if removed is not self._removed_durably:
            latest, added = visible_messages(latest, removed), visible_messages(added, removed)
        count = self._latest_count(latest, added, need)
        shown = [*latest[max(0, len(latest) + len(added) - count) :], *added[max(0, len(added) - count) :]]
        if len(shown) == len(latest) + len(added) and self._loaded_from == 1:
            return shown, 0, 0
        first = shown[0].seq if shown else self._durable_count + 1
        # The first ones may be those that are loaded, or only staged.
        # What was read of the beginning may have been loaded since, with more of what comes behind it.
        unread = [message for message in self._beginning or () if message.seq < self._loaded_from]
        earlier = visible_messages(unread, removed)
        beginning = [*earlier[: need.first], *latest[: need.first], *added[: need.first]][: need.first]
        beginning = [message for message in beginning if message.seq < first]
        if self._loaded_from == 1:
            total = len(latest) + len(added)
        else:
            total = count_visible(removed, 1, first - 1) + len(shown)
        return [*beginning, *shown], len(beginning), total - len(beginning) - len(shown)

    def _latest_count(self, latest: Sequence[Message], added: Sequence[Message], need: ExcerptNeed) -> int:
        """How many of the latest are needed; all there are, where that is not enough."""
        there = len(latest) + len(added)
        if need.characters is None:
            assert need.messages is not None, "a need has a bound"
            return min(need.messages, there)
        count_max = there if need.messages is None else min(need.messages, there)
        count = characters = 0
        for message in chain(reversed(added), reversed(latest)):
            if count == count_max or characters >= need.characters:
                break
            count += 1
            characters += _CHARACTERS_MIN + len(message.text) + sum(len(call.arguments) for call in message.tool_calls)
        return count

    def _load_from(self, first: int) -> None:
        """Read what is not in memory from this place on."""
        if self._messages is not None and first >= self._loaded_from:
            return
        removed = self._removed_durably
        last = self._durable_count if self._messages is None else self._loaded_from - 1
        stored = self._archive.messages_between(self._session_id, first, last, removed=removed)
        count = count_visible(removed, first, last)
        if len(stored) != count:
            self._archive.damage.report(
                f"history of session {self._session_id!r}",
                f"{count} messages were stored, {len(stored)} can be read",
            )
        self._messages = [*stored, *(self._messages or ())]
        self.size_bytes += _size_bytes(stored)
        self._loaded_from = first

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
            self._beginning = None

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
        if self._messages is None or first < self._loaded_from:
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
