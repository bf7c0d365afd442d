"""How long sessions are kept, by class, and who goes through them.

A session's class is its tag. Of the policies for its tags, the one that keeps it longest counts; a policy without a tag
is for the sessions to which no other applies. Without one, those are kept for ever.

Expiring is a delete that its actor does: `ExpireSession` names the moment before which the last change must lie, and
the actor, which sees every change first, decides. So what happens between the look at the index and the delete spares
the session, a turn that runs spares it too, and the stream keeps its epoch and version: no late write revives it.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from msgspec import Struct

from ..runtime.actor import Actor, handles
from ..runtime.context import Context
from ..runtime.envelope import Request
from ..runtime.identity import ActorId
from ..runtime.ref import Ref
from ..runtime.signals import ChildEnded, Tick
from ..store.contract import Index, Store
from ..store.errors import CallboardError
from .archive import Archive
from .limits import check_tag
from .session_messages import ExpireSession
from .session_records import SessionHead, index_prefix, session_id_of

__all__ = [
    "DAY_MS",
    "RETENTION_KIND",
    "ExpireEvery",
    "Expiry",
    "Retention",
    "RetentionActor",
    "check_policies",
    "expire",
    "expired_pages",
]

_log = logging.getLogger("callboard.retention")

DAY_MS = 86_400_000
KEEP_DAYS_MAX = 36_525 * 10
"""A thousand years: whoever wants for ever leaves the policy out."""

PAGE = 64
"""Index entries and heads read before the event loop goes round: about a millisecond."""
AT_ONCE = 32
"""Sessions that are deleted side by side: enough to share each commit, few enough to leave room for others."""

RETENTION_KIND = "retention"


class Retention(Struct, frozen=True):
    """Keep sessions of a class for so many days after their last change, of whatever kind.

    Args:
        tag: the class; None for all sessions to which no other policy applies.
        keep_days: from 0, in parts too; 0 expires whatever does not run.

    Raises:
        TypeError, ValueError: the tag or the number cannot be.
    """

    tag: str | None
    keep_days: float

    def __post_init__(self) -> None:
        check_tag(self.tag)
        if isinstance(self.keep_days, bool) or not isinstance(self.keep_days, int | float):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"keep_days is a number of days, not {self.keep_days!r}")
        if not 0 <= self.keep_days <= KEEP_DAYS_MAX:
            raise ValueError(f"keep_days is from 0 to {KEEP_DAYS_MAX}, not {self.keep_days}")

    @property
    def keep_ms(self) -> int:
        """The same in milliseconds."""
        return round(self.keep_days * DAY_MS)


class Expiry(Struct):
    """What `expire` did.

    Attributes:
        deleted: how many sessions it dropped.
        running: the ids of those that it spared, as a turn or a run of theirs is under way.
        failed: the ids of those that it could not delete, with the reasons.
    """

    deleted: int = 0
    running: list[str] = []
    failed: dict[str, str] = {}


def check_policies(policies: Iterable[Retention]) -> tuple[Retention, ...]:
    """The policies. TypeError, ValueError where one is none, or two are for the same class."""
    given = tuple(policies)
    for policy in given:
        if not isinstance(policy, Retention):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a policy is a Retention(tag=..., keep_days=...), not {policy!r}")
    tags = [policy.tag for policy in given]
    for tag in tags:
        if tags.count(tag) > 1:
            raise ValueError(f"there is one policy for a class, and two for {tag!r}")
    return given


def expired_pages(store: Store, policies: Iterable[Retention], *, now_ms: int) -> Iterator[list[tuple[str, int]]]:
    """The ids of sessions that have expired, each with the moment before which it must have changed last, in pages.

    Lazy, and sessions may be deleted meanwhile. A page may be empty: those that were looked at are kept.

    Cost: an index step and a head for each session that is old enough for one of its policies.
    """
    given = check_policies(policies)
    archive = Archive(store)
    for policy in given:
        index, prefix = (Index.UPDATED, b"") if policy.tag is None else (Index.TAG, index_prefix(policy.tag))
        before_ms = now_ms - policy.keep_ms
        after: bytes | None = None
        while hits := store.scan_index(index, prefix=prefix, after=after, limit=PAGE):
            after = hits[-1].position
            old = [hit.stream for hit in hits if int.from_bytes(hit.value[-8:], "big") < before_ms]
            heads = (_readable_head(archive, stream) for stream in old)
            yield [(head.id, before_ms) for head in heads if head is not None and _deciding(head, given) is policy]
            if len(old) < len(hits):
                break


def _readable_head(archive: Archive, stream: str) -> SessionHead | None:
    session_id = session_id_of(stream)
    try:
        return archive.head(session_id) if session_id is not None else None
    except CallboardError as error:
        _log.warning("not expired, as it cannot be read: %s", error)
        return None


def _deciding(head: SessionHead, policies: Iterable[Retention]) -> Retention | None:
    matching = [policy for policy in policies if policy.tag in head.tags]
    if matching:
        return max(matching, key=lambda policy: policy.keep_days)
    return next((policy for policy in policies if policy.tag is None), None)


class Sessions(Protocol):
    """What expiring needs of a runtime."""

    @property
    def store(self) -> Store: ...

    def session_actor(self, session_id: str) -> Ref: ...

    def wall_ms(self) -> int: ...


async def expire(runtime: Sessions, policies: Iterable[Retention], *, even_running: bool = False) -> Expiry:
    """Delete what has expired, through the sessions' actors; see SessionManager.expire."""
    expiry = Expiry()
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def drop(session_id: str, before_ms: int) -> None:
        async with limiter:
            try:
                became = await runtime.session_actor(session_id).ask(ExpireSession(before_ms, even_running))
            except CallboardError as error:
                expiry.failed[session_id] = str(error)
                return
        expiry.deleted += became == "deleted"
        if became == "running":
            expiry.running.append(session_id)

    for page in expired_pages(runtime.store, policies, now_ms=runtime.wall_ms()):
        async with anyio.create_task_group() as tasks:
            for session_id, before_ms in page:
                tasks.start_soon(drop, session_id, before_ms)
        await anyio.lowlevel.checkpoint()
    return expiry


class ExpireEvery(Request[None], frozen=True):
    """Expire now, and again every so many seconds; no policies: no more."""

    policies: tuple[Retention, ...]
    period_s: float


class RetentionActor(Actor):
    """Expires sessions again and again. A sweep that lasts longer than the period is not doubled."""

    def __init__(self, id: ActorId, sweep: Callable[[tuple[Retention, ...]], Awaitable[Expiry]]) -> None:
        super().__init__(id)
        self._sweep = sweep
        self._policies: tuple[Retention, ...] = ()
        self._sweeping = False

    @handles(ExpireEvery)
    def start(self, message: ExpireEvery, context: Context) -> None:
        """Take these policies from now on."""
        self._policies = message.policies
        if message.policies:
            context.every(message.period_s, tag="sweep")
            self._begin(context)
        else:
            context.cancel_timer("sweep")

    @handles(Tick)
    def due(self, _message: Tick, context: Context) -> None:
        """The period is over."""
        self._begin(context)

    @handles(ChildEnded)
    def ended(self, message: ChildEnded, _context: Context) -> None:
        """Say what came of a sweep."""
        self._sweeping = False
        expiry: Any = message.value
        if message.error is not None:
            _log.warning("sessions could not be expired, it is tried again: %r", message.error)
        elif expiry.deleted or expiry.failed:
            _log.info("%d sessions expired, %d could not be deleted", expiry.deleted, len(expiry.failed))

    def _begin(self, context: Context) -> None:
        if not self._sweeping:
            self._sweeping = True
            context.spawn(partial(self._sweep, self._policies), tag="sweep")
