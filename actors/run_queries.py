"""Finding runs by status, agent and time: in one session, or in all of a store, in pages. Sees what is committed.

    statuses that are wanted                 read from                          order
    open, failed, cancelled, interrupted     the indexes OPEN_RUN, RUN_STATUS   by their making, newest first
    completed or any; or in one session      sessions, the latest changed       session by session, in each by their
                                             first                              making, newest first

Nothing is written for the runs that are completed, which are nearly all: to look for them is to walk.

A walk may go far before it finds something. So it goes step by step, a record or an entry each, some 10 us.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeAlias, get_args

import msgspec
from msgspec import Struct

from ..store.contract import Index, IndexHit, Store
from ..store.errors import Corrupt
from .archive import Archive
from .cursors import Cursors
from .errors import UnknownRun
from .limits import check_agent_name
from .run_record import OPEN, RUN_STATUSES, RunRecord, RunStatus
from .session_records import session_id_of, status_value

__all__ = ["RunFilter", "RunPage", "RunWalk", "StatusFilter", "run_filter"]

StatusFilter: TypeAlias = RunStatus | Iterable[RunStatus] | None
"""One status, several, or None for all."""

_PIECE = 64
"""Records or index entries read at once: some hundred microseconds. Then others may go on."""

_SLACK_MS = 60_000
"""A run's id, which orders it, is made by its caller; its time of making by the session. They are this near."""

_CURSOR_ADVICE = "pass page.cursor of the page before, unchanged and with the same filters"


class RunFilter(Struct, frozen=True):
    """Which runs are wanted. `statuses` empty: of any status; `agent` None: of any."""

    statuses: frozenset[RunStatus] = frozenset()
    agent: str | None = None
    since_ms: int | None = None

    @property
    def takes_all(self) -> bool:
        """Whether every run is wanted."""
        return not self.statuses and self.agent is None and self.since_ms is None

    def takes(self, record: RunRecord) -> bool:
        """Whether this run is wanted."""
        return (
            (not self.statuses or record.status in self.statuses)
            and (self.agent is None or record.agent == self.agent)
            and (self.since_ms is None or record.created_at_ms >= self.since_ms)
        )

    def is_past(self, record: RunRecord) -> bool:
        """Whether all runs that were made before this one are too old."""
        return self.since_ms is not None and record.created_at_ms < self.since_ms - _SLACK_MS


def run_filter(status: StatusFilter, agent: str | None, since_ms: int | None) -> RunFilter:
    """The filter that a caller asks for.

    Raises:
        TypeError, ValueError: there is no such status, or something is of another type.
    """
    statuses: frozenset[RunStatus] = frozenset((status,) if isinstance(status, str) else status or ())
    unknown = [each for each in statuses if each not in RUN_STATUSES]
    if unknown:
        raise ValueError(f"there is no status {unknown[0]!r}: use some of {', '.join(get_args(RunStatus))}")
    if agent is not None and agent != "":  # runs made by hand may have none
        check_agent_name(agent)
    if since_ms is not None and type(since_ms) is not int:
        raise TypeError(f"since_ms is a whole number of milliseconds since 1970, not {since_ms!r}")
    return RunFilter(statuses, agent, since_ms)


class RunPage(Struct, frozen=True):
    """Some runs. `cursor` gets the next page; None where this is the last."""

    runs: list[RunRecord]
    cursor: str | None


class RunWalk:
    """One way through the runs that are wanted, from its beginning or from where another one stood.

    `session_id` None: of all sessions.

    Raises:
        TypeError, ValueError: the cursor is of another walk.
    """

    def __init__(self, store: Store, wanted: RunFilter, *, session_id: str | None, cursor: str | None) -> None:
        self._archive = Archive(store)
        self._wanted = wanted
        listed = (sorted(wanted.statuses), wanted.agent, wanted.since_ms, session_id)
        self._cursors = Cursors.of(repr(listed), what="this list", advice=_CURSOR_ADVICE)
        by_index = session_id is None and bool(wanted.statuses) and "completed" not in wanted.statuses
        walk = _ByIndex(store, wanted) if by_index else _BySession(store, self._archive, wanted, session_id)
        self._walk: _ByIndex | _BySession = walk
        if cursor is not None:
            self._go_to(cursor)

    def __iter__(self) -> Iterator[RunRecord | None]:
        """Step by step: a run that is wanted, or None for one that is not.

        Raises:
            StoreError: what is there cannot be read at all. A run alone that cannot is left out.
        """
        for found in self._walk.steps(self._archive):
            yield found if found is not None and self._wanted.takes(found) else None

    @property
    def cursor(self) -> str:
        """Where it stands now: behind the run that it gave last."""
        return self._cursors.to(msgspec.msgpack.encode(self._walk.place))

    def _go_to(self, cursor: object) -> None:
        place = self._cursors.place(cursor)
        try:
            self._walk.go_to(msgspec.msgpack.decode(place, type=list[bytes | None]))
        except (ValueError, msgspec.MsgspecError) as error:
            raise self._cursors.refusal(cursor) from error


class _Entries:
    """The entries of an index with one prefix, newest first. `position` is that of the last one that was taken."""

    def __init__(self, store: Store, index: Index, prefix: bytes) -> None:
        self._store = store
        self._index = index
        self._prefix = prefix
        self._hits: deque[IndexHit] = deque()
        self._at_end = False
        self._read_to: bytes | None = None
        self.position: bytes | None = None

    def go_to(self, position: bytes | None) -> None:
        """Go on behind this position. ValueError where the store has not given it."""
        self._store.scan_index(self._index, after=position, limit=0)
        self.position = self._read_to = position

    def next(self) -> IndexHit | None:
        """The next entry, which is not taken yet; None behind the last one."""
        if not self._hits and not self._at_end:
            hits = self._store.scan_index(
                self._index, prefix=self._prefix, after=self._read_to, limit=_PIECE, newest_first=True
            )
            self._at_end = len(hits) < _PIECE
            self._hits.extend(hits)
            if hits:
                self._read_to = hits[-1].position
        return self._hits[0] if self._hits else None

    def take(self) -> None:
        """The next entry is done with."""
        self.position = self._hits.popleft().position

    @property
    def next_run_id(self) -> str:
        """The run id of the next entry, with which its value ends; "" behind the last one."""
        hit = self.next()
        return "" if hit is None else hit.value[len(self._prefix) :].decode()


class _ByIndex:
    """Runs by the entries that say their status, of all of these indexes in one order."""

    def __init__(self, store: Store, wanted: RunFilter) -> None:
        self._wanted = wanted
        self._sources = [
            _Entries(store, Index.RUN_STATUS, status_value(status, "")) for status in sorted(wanted.statuses - OPEN)
        ]
        if wanted.statuses & OPEN:
            self._sources.append(_Entries(store, Index.OPEN_RUN, b""))

    @property
    def place(self) -> list[bytes | None]:
        return [source.position for source in self._sources]

    def go_to(self, place: list[bytes | None]) -> None:
        if len(place) != len(self._sources):
            raise ValueError("of other statuses")
        for source, position in zip(self._sources, place, strict=True):
            source.go_to(position)

    def steps(self, archive: Archive) -> Iterator[RunRecord | None]:
        while True:
            source = max(self._sources, key=lambda source: source.next_run_id)
            hit, run_id = source.next(), source.next_run_id
            if hit is None:
                return
            source.take()
            session_id = session_id_of(hit.stream)
            record = None if session_id is None else _readable_run(archive, session_id, run_id)
            if record is not None and self._wanted.is_past(record):
                return
            yield record


class _BySession:
    """Runs session by session; of one session alone where it is named."""

    def __init__(self, store: Store, archive: Archive, wanted: RunFilter, session_id: str | None) -> None:
        self._wanted = wanted
        self._archive = archive
        self._only = session_id
        self._sessions = _Entries(store, Index.UPDATED, b"")
        self._session_id: str | None = session_id
        self._before: str | None = None

    @property
    def place(self) -> list[bytes | None]:
        return [self._sessions.position, *(None if each is None else each.encode() for each in self._stands_in)]

    @property
    def _stands_in(self) -> tuple[str | None, str | None]:
        """The session, and the run there that it gave last."""
        return self._session_id, self._before

    def go_to(self, place: list[bytes | None]) -> None:
        position, *stands_in = place
        self._session_id, self._before = (None if each is None else each.decode() for each in stands_in)
        self._sessions.go_to(position)

    def steps(self, archive: Archive) -> Iterator[RunRecord | None]:
        if self._only is not None:
            yield from self._of_session(self._only)
            return
        while (hit := self._sessions.next()) is not None:
            updated_at_ms = int.from_bytes(hit.value, "big")
            if self._wanted.since_ms is not None and updated_at_ms < self._wanted.since_ms:
                return  # and so were all that follow
            session_id = session_id_of(hit.stream)
            if session_id != self._session_id:  # the one that the cursor stood in has changed since
                self._session_id, self._before = session_id, None
            if session_id is not None:
                yield from self._of_session(session_id)
            self._sessions.take()
            yield None

    def _of_session(self, session_id: str) -> Iterator[RunRecord | None]:
        while records := self._archive.runs(session_id, limit=_PIECE, before=self._before):
            for record in reversed(records):
                if self._wanted.is_past(record):
                    return
                self._before = record.id
                yield record


def _readable_run(archive: Archive, session_id: str, run_id: str) -> RunRecord | None:
    try:
        return archive.run(session_id, run_id)
    except UnknownRun:
        return None  # deleted since its entry was read
    except Corrupt as error:
        archive.damage.report(error.where, error.reason)  # one run must not hide the others
        return None
