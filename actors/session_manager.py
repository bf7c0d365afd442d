"""Finding, making and deleting sessions."""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import anyio.lowlevel

from ..runtime.options import check_number
from .agent import Agent
from .archive import Archive, SessionPage
from .host import Runtime
from .limits import check_count, check_limit, check_owner, check_session_id, check_tag
from .message import Role
from .resuming import ResumedRuns, agents_by_name, resume_runs
from .retention import RETENTION_KIND, ExpireEvery, Expiry, Retention, check_policies, expire
from .run_queries import RunPage, RunWalk, StatusFilter, run_filter
from .run_record import RunRecord
from .search import SearchPage, Wanted
from .session import Session
from .session_messages import CreateSession, ReadHead
from .session_search import Filters, search_sessions

__all__ = ["SessionManager"]

PAGE_MAX = 1000

STEPS_AT_ONCE = 64
"""Records looked at before others may go on: about a millisecond."""


class SessionManager:
    """The sessions of a runtime. Errors as with Session."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def get_or_create(
        self,
        id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        owner: str | None = None,
        tags: Iterable[str] = (),
    ) -> Session:
        """The session of this id, made with these where there is none; then it is durable.

        Any number of first calls at once make one session, with what the first of them gave.
        """
        session = Session(self._runtime, id, metadata=metadata, owner=owner, tags=tags)
        await self._runtime.session_actor(id).ask(CreateSession(session.defaults))
        return session

    async def get(self, id: str) -> Session | None:
        """The session of this id, or None where there is none."""
        head = await self._runtime.session_actor(check_session_id(id)).ask(ReadHead())
        return Session(self._runtime, id) if head is not None else None

    async def list(
        self,
        *,
        owner: str | None = None,
        tag: str | None = None,
        updated_after: datetime | int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        """Sessions, the most recently changed first, without their content.

        Args:
            owner, tag: only those that have it.
            updated_after: only those changed later: a datetime with a time zone, or milliseconds since 1970, UTC.
            limit: 1 to 1000.
            cursor: `page.cursor` of the page before, with the same filters.

        Raises:
            ValueError: a naive datetime, a limit out of range, or a cursor that is none of ours.
        """
        check_limit(limit, maximum=PAGE_MAX)
        if isinstance(updated_after, datetime):
            if updated_after.tzinfo is None:
                raise ValueError("updated_after needs a time zone: datetime.now(timezone.utc), not datetime.now()")
            updated_after = int(updated_after.timestamp() * 1000)
        elif updated_after is not None and not isinstance(updated_after, int):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"updated_after must be a datetime or milliseconds since 1970, not {updated_after!r}")
        return Archive(self._runtime.store).sessions(
            owner=check_owner(owner), tag=check_tag(tag), updated_after_ms=updated_after, limit=limit, cursor=cursor
        )

    async def search(
        self,
        text: str,
        *,
        owner: str | None = None,
        tag: str | None = None,
        role: Role | None = None,
        author: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> SearchPage:
        """The messages in which all words of `text` occur: those of the session that changed last come first, and of
        each session the latest. Words, filters and errors as with `Session.search`.

        Args:
            owner, tag: only in sessions that have it.
            role, author: only messages of these.
            limit: 1 to 1000 hits.
            cursor: `page.cursor` of the page before, asked with the same words and filters. A session that changes
                meanwhile may be missed; no message comes twice.

        Cost: goes through the messages, some 50 000 a second, in a worker thread.
        """
        check_count(limit, what="limit", maximum=PAGE_MAX)
        wanted = Wanted.of(text, role=role, author=author)
        filters = Filters(check_owner(owner), check_tag(tag))
        return await search_sessions(self._runtime.store, filters, wanted, limit=limit, cursor=cursor)

    async def runs(
        self,
        *,
        status: StatusFilter = None,
        agent: str | None = None,
        session_id: str | None = None,
        since_ms: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Runs of all sessions as they are stored, newest first. What waits for a turn is in its session's `runs()`.

        Args:
            status: only those of this status, or of these. Without one, or with "completed" among them, runs come
                session by session, the most recently changed first, and in each newest first.
            agent: only those of agents of this name; "" for runs by hand that have none.
            session_id: only those of this session.
            since_ms: only those made at this time or later, in milliseconds since 1970, UTC.
            limit: 1 to 1000.
            cursor: `page.cursor` of the page before, with the same filters. A session that changes meanwhile may come
                again, or be missed in part, where runs come session by session.

        Raises:
            TypeError, ValueError: a filter is no good, or the cursor is none of ours.

        Cost: some 20 us a run given; where runs come session by session, also for each that is passed over.
        """
        check_limit(limit, maximum=PAGE_MAX)
        wanted = run_filter(status, agent, since_ms)
        only = None if session_id is None else check_session_id(session_id)
        walk = RunWalk(self._runtime.store, wanted, session_id=only, cursor=cursor)
        found: list[RunRecord] = []
        behind: str | None = None
        for step, record in enumerate(walk, 1):
            if step % STEPS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
            if record is None:
                continue
            if len(found) == limit:
                return RunPage(found, behind)
            found.append(record)
            behind = walk.cursor if len(found) == limit else None
        return RunPage(found, None)

    async def resume_interrupted(self, agents: Iterable[Agent[Any]], *, since_ms: int | None = None) -> ResumedRuns:
        """Resume all interrupted runs of these agents, in all sessions: after a crash, or when a program was closed.

        Those of one session go on one after the other, in the order in which they were made; sessions side by side.

        Args:
            agents: found by their names; a run of none of them is left as it is.
            since_ms: only runs made at this time or later, in milliseconds since 1970, UTC.

        Returns: the replies, and what the others raised instead, by run id: RunFailed, ApprovalRequired, Corrupt, ...
            A run that somebody else has resumed meanwhile is in neither.

        Raises:
            TypeError, ValueError: one is no agent, belongs to another runtime, or has the name of another.

        Cancellation: those that are under way are marked as cancelled, the others stay interrupted.
        """
        by_name = agents_by_name(agents, self._runtime)
        interrupted: list[RunRecord] = []
        cursor: str | None = None
        while True:
            page = await self.runs(status="interrupted", since_ms=since_ms, limit=PAGE_MAX, cursor=cursor)
            interrupted += [run for run in page.runs if run.agent in by_name and not run.manual]
            cursor = page.cursor
            if cursor is None:
                return await resume_runs(interrupted, by_name, self._runtime)

    async def delete(self, id: str) -> bool:
        """Drop a session with all its content; False where there was none."""
        return await Session(self._runtime, id).delete()

    async def expire(self, policies: Iterable[Retention], *, even_running: bool = False) -> Expiry:
        """Drop the sessions that have not changed for longer than the policies for their tags keep them.

        `await manager.expire([Retention(tag="trial", keep_days=30), Retention(tag=None, keep_days=365)])`. What happens
        to a session meanwhile spares it. So does a turn or a run that is under way, unless `even_running`: then its
        agent is told to stop, and what it sends is refused.

        Returns: how many were dropped, and which were spared or failed.

        Cancellation: some are dropped, the others are not; none half.
        """
        return await expire(self._runtime, policies, even_running=even_running)

    async def expire_every(self, policies: Iterable[Retention], *, period_s: float = 3600.0) -> None:
        """Do `expire` now and every `period_s` seconds, as long as the runtime is open; what runs is spared.

        Takes the place of what was asked for before; without policies it ends.

        Raises:
            TypeError, ValueError: as Retention; two policies for one class; the period is no number above 0.
        """
        checked = check_policies(policies)
        check_number("period_s", period_s)
        if not 0 < period_s < math.inf:
            raise ValueError(f"period_s is a finite number of seconds above 0, not {period_s}")
        await self._runtime.actor(RETENTION_KIND, "sessions").ask(ExpireEvery(checked, period_s))
