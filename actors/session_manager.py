"""Finding, making and deleting sessions."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from .archive import Archive, SessionPage
from .host import Runtime
from .limits import check_limit, check_owner, check_session_id, check_tag
from .session import Session
from .session_messages import CreateSession, ReadHead

__all__ = ["SessionManager"]

PAGE_MAX = 1000


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

    async def delete(self, id: str) -> bool:
        """Drop a session with all its content; False where there was none."""
        return await Session(self._runtime, id).delete()
