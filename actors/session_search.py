"""Searching stored messages: in one session, or in all that an owner or a tag has.

There is no index: messages are gone through, the latest first, some at a time and beside the event loop (see
long_work.py), so that nobody waits for more than a fraction of a millisecond. What is looked through is what is
committed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from ..store.contract import Store
from ..store.errors import Corrupt
from .archive import WINDOW, Archive
from .cursors import Cursors
from .long_work import work_through
from .search import SearchHit, SearchPage, Wanted
from .session_records import SessionHead

__all__ = ["Filters", "search_session", "search_sessions"]

_BEHIND_ALL = 2**63


class Filters(Struct, frozen=True):
    """Which sessions are looked through."""

    owner: str | None = None
    tag: str | None = None

    def suit(self, head: SessionHead) -> bool:
        """True for a session that has this owner and this tag, as far as they are given."""
        return self.owner in (None, head.owner) and (self.tag is None or self.tag in head.tags)


class _At(Struct, frozen=True, array_like=True):
    """How far a search has come: in this session down to this place, which it has seen, and in the index to there."""

    session_id: str
    before_seq: int
    position: bytes


_AT_DECODER = msgspec.msgpack.Decoder(_At)


@dataclass(slots=True)
class _Search:
    """A search under way; its generators pause after each window of messages, and end where it has enough."""

    archive: Archive
    wanted: Wanted
    limit: int
    cursors: Cursors
    at: _At | None = None
    hits: list[SearchHit] = field(default_factory=list[SearchHit])

    @property
    def has_enough(self) -> bool:
        """True where there are as many hits as wanted."""
        return len(self.hits) >= self.limit

    @property
    def page(self) -> SearchPage:
        """What it has come to."""
        at = self.at if self.has_enough else None
        return SearchPage(self.hits, self.cursors.to(msgspec.msgpack.encode(at)) if at is not None else None)

    def begun(self, cursor: str) -> _At:
        """How far the search of this cursor had come. TypeError, ValueError where this gave no such cursor."""
        try:
            return _AT_DECODER.decode(self.cursors.place(cursor))
        except msgspec.DecodeError as error:
            raise self.cursors.refusal(cursor) from error

    def in_session(self, head: SessionHead, before_seq: int, position: bytes = b"") -> Iterator[None]:
        """Go through the messages of one session before this place."""
        last = min(before_seq - 1, head.last_seq)
        while last > 0:
            first = max(1, last - WINDOW + 1)
            for message in reversed(self.archive.messages_between(head.id, first, last, removed=head.removed)):
                if self.wanted.matches(message):
                    self.hits.append(self.wanted.hit(head.id, message))
                    self.at = _At(head.id, message.seq, position)
                    if self.has_enough:
                        return
            last = first - 1
            yield

    def in_sessions(self, filters: Filters, begun: _At | None) -> Iterator[None]:
        """Go through the sessions, behind where an earlier search had come to."""
        if begun is not None:
            head = _readable_head(self.archive, begun.session_id)
            if head is not None and filters.suit(head):
                yield from self.in_session(head, begun.before_seq, begun.position)
        after = begun.position if begun is not None else None
        for position, head in self.archive.heads(owner=filters.owner, tag=filters.tag, after=after):
            if self.has_enough:
                return
            # One that has changed since stands before the position now; what is new in it is not looked for.
            if head is not None:
                yield from self.in_session(head, _BEHIND_ALL, position)
            yield


async def search_session(
    store: Store, session_id: str, wanted: Wanted, *, limit: int, cursor: str | None
) -> SearchPage:
    """See Session.search."""
    search = _Search(Archive(store), wanted, limit, wanted.cursors(session_id))
    begun = search.begun(cursor) if cursor is not None else None
    head = search.archive.head(session_id)
    if head is not None:
        before_seq = begun.before_seq if begun is not None else _BEHIND_ALL
        await work_through(store, search.in_session(head, before_seq))
    return search.page


async def search_sessions(
    store: Store, filters: Filters, wanted: Wanted, *, limit: int, cursor: str | None
) -> SearchPage:
    """See SessionManager.search."""
    search = _Search(Archive(store), wanted, limit, wanted.cursors("all", filters.owner, filters.tag))
    begun: _At | None = None
    if cursor is not None:
        begun = search.begun(cursor)
        search.archive.check_position(begun.position, cursor, owner=filters.owner, tag=filters.tag)
    await work_through(store, search.in_sessions(filters, begun))
    return search.page


def _readable_head(archive: Archive, session_id: str) -> SessionHead | None:
    try:
        return archive.head(session_id)
    except Corrupt as error:
        archive.damage.report(error.where, error.reason)
        return None
