"""Searching stored messages: in one session, or in all that an owner or a tag has.

There is no index: messages are gone through, the latest first, in a worker thread and some at a time, so that neither
the event loop nor anybody who reads or writes waits for more than a fraction of a millisecond. What is looked through
is what is committed.
"""

import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import anyio.to_thread
import msgspec
from msgspec import Struct

from ..store.contract import Store
from ..store.errors import Corrupt
from .archive import WINDOW, Archive
from .search import SearchHit, SearchPage, Wanted
from .session_records import SessionHead

__all__ = ["Filters", "search_session", "search_sessions"]

PIECE_S = 0.05
"""So long the thread works in one go: a search that is cancelled ends as soon."""

_ADVICE = "pass page.cursor of the page before, unchanged, with the same words and filters"


class Filters(Struct, frozen=True):
    """Which sessions are looked through."""

    owner: str | None = None
    tag: str | None = None


class _At(Struct, frozen=True, array_like=True):
    """How far a search has come: in this session down to this place, and in the index to this position."""

    session_id: str
    before_seq: int
    position: bytes


_AT_DECODER = msgspec.msgpack.Decoder(_At)


@dataclass(slots=True)
class _Search:
    """A search under way. Its pieces run in worker threads, one after the other."""

    archive: Archive
    wanted: Wanted
    limit: int
    name: bytes
    at: _At | None = None
    hits: list[SearchHit] = field(default_factory=list[SearchHit])
    ended: bool = False

    @property
    def page(self) -> SearchPage:
        cursor = None if self.ended or self.at is None else _cursor(self.name, self.at)
        return SearchPage(self.hits, cursor)

    async def run(self, steps: Callable[[], Iterator[None]]) -> SearchPage:
        """Do the steps until there are as many hits as wanted."""
        going = steps()
        while not self.ended and len(self.hits) < self.limit:
            await anyio.to_thread.run_sync(partial(self._work, going))
        return self.page

    def _work(self, steps: Iterator[None]) -> None:
        until_s = time.monotonic() + PIECE_S
        for _ in steps:
            if len(self.hits) >= self.limit or time.monotonic() > until_s:
                return
        self.ended = True

    def in_session(self, head: SessionHead, before_seq: int, position: bytes = b"") -> Iterator[None]:
        """Go through the messages of one session before this place, and say after each window how far it came."""
        last = min(before_seq - 1, head.last_seq)
        while last > 0:
            first = max(1, last - WINDOW + 1)
            for message in reversed(self.archive.messages_between(head.id, first, last, removed=head.removed)):
                if self.wanted.matches(message):
                    self.hits.append(self.wanted.hit(head.id, message))
                    if len(self.hits) == self.limit:
                        self.at = _At(head.id, message.seq, position)
                        yield
            last = first - 1
            self.at = _At(head.id, first, position)
            yield


async def search_session(
    store: Store, session_id: str, wanted: Wanted, *, limit: int, cursor: str | None
) -> SearchPage:
    """See Session.search."""
    search = _Search(Archive(store), wanted, limit, wanted.name(session_id))
    before_seq = 2**63
    if cursor is not None:
        before_seq = _from_cursor(cursor, search.name).before_seq

    def steps() -> Iterator[None]:
        head = search.archive.head(session_id)
        if head is not None:
            yield from search.in_session(head, before_seq)

    return await search.run(steps)


async def search_sessions(
    store: Store, filters: Filters, wanted: Wanted, *, limit: int, cursor: str | None
) -> SearchPage:
    """See SessionManager.search."""
    archive = Archive(store)
    search = _Search(archive, wanted, limit, wanted.name("all", filters.owner, filters.tag))
    begun = _from_cursor(cursor, search.name) if cursor is not None else None
    if begun is not None:
        archive.check_position(begun.position, cursor or "", owner=filters.owner, tag=filters.tag)

    def steps() -> Iterator[None]:
        if begun is not None:
            search.at = begun
            head = _readable_head(archive, begun.session_id)
            if head is not None and _suits(head, filters):
                yield from search.in_session(head, begun.before_seq, begun.position)
        after = begun.position if begun is not None else None
        for position, head in archive.heads(owner=filters.owner, tag=filters.tag, after=after):
            if head is not None:
                search.at = _At(head.id, 1, position)
                yield from search.in_session(head, 2**63, position)
            yield

    return await search.run(steps)


def _readable_head(archive: Archive, session_id: str) -> SessionHead | None:
    try:
        return archive.head(session_id)
    except Corrupt as error:
        archive.damage.report(error.where, error.reason)
        return None


def _suits(head: SessionHead, filters: Filters) -> bool:
    return filters.owner in (None, head.owner) and (filters.tag is None or filters.tag in head.tags)


def _cursor(name: bytes, at: _At) -> str:
    return base64.urlsafe_b64encode(name + msgspec.msgpack.encode(at)).decode()


def _from_cursor(cursor: object, name: bytes) -> _At:
    """How far the search had come. TypeError, ValueError where it gave no such cursor."""
    if not isinstance(cursor, str):
        raise TypeError(f"cursor must be a string, not {type(cursor).__name__}: {_ADVICE}")
    try:
        data = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
        if data.startswith(name):
            return _AT_DECODER.decode(data[len(name) :])
    except (ValueError, msgspec.DecodeError):
        pass
    raise ValueError(f"{cursor[:80]!r} is no cursor of this search: {_ADVICE}")
