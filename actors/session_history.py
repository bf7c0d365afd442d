"""The half of the public handle that edits a session's history, and reads it by pages, by words, and as it ever was."""

import math
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from ..runtime.ref import Ref
from .archive import Archive
from .edit_messages import Edited, EditHistory
from .edit_record import Audit
from .errors import TooLarge
from .fork import read_fork
from .host import Runtime
from .ids import new_number
from .limits import (
    check_author,
    check_count,
    check_metadata,
    check_reason,
    check_run_id,
    check_seq,
    check_session_id,
    check_tags,
)
from .long_work import work_through
from .message import Message, Role
from .message_page import MessagePage, first_page, following_page, page_of
from .reentry import check_not_held, current_held_turns
from .search import SearchPage, Wanted
from .session_messages import OneStep
from .session_records import SessionDefaults
from .session_search import search_session

__all__ = ["PAGE_MAX", "SessionHistory"]

ReplyT = TypeVar("ReplyT")

PAGE_MAX = 1000


class SessionHistory:
    """See Session."""

    id: str
    runtime: Runtime
    defaults: SessionDefaults
    _ref: Ref

    # Editing --------------------------------------------------------------------------------------------------------

    async def pop(self, count: int = 1, *, by: str | None = None, reason: str = "") -> list[Message]:
        """Take the latest messages out of history; it waits for turns that were asked for before.

        They stay in the store: `audit()` has them, with who took them and why. So with all edits.

        Args:
            count: how many; all where there are fewer.
            by, reason: for the audit.

        Returns: what was taken, oldest first; [] where history is empty.

        Raises:
            TypeError, ValueError: no count from 1; a name or a reason that cannot be stored.
            TooLarge: 1 000 edits have left as many gaps in this history. Nothing was changed.
            CyclicAsk: called by a tool, within a turn of this session, or of one that this one's turn waits for.

        Cancellation: while it waits for its turn, nothing is taken.
        Cost: reads what it takes; where it has to wait for its turn, loads all of history.
        """
        edit = EditHistory(
            number=new_number(),
            kind="pop",
            count=check_count(count),
            by=check_author(by),
            reason=check_reason(reason),
        )
        return list((await self._edit(edit)).messages)

    async def rewind(
        self, to_seq: int | None = None, *, before_run: str | None = None, by: str | None = None, reason: str = ""
    ) -> int:
        """Take all messages behind one out of history; else like `pop`.

        Args:
            to_seq: the place (`message.seq`) of the last message to keep; 0 keeps none.
            before_run: instead: all from the first message that this run wrote. Where it wrote none, none is taken.
            by, reason: for the audit.

        Returns: how many were taken. Asked again, none.

        Raises:
            UnknownRun: the session has no run `before_run`.
            TypeError, ValueError, TooLarge, CyclicAsk: as `pop`.
        """
        if (to_seq is None) == (before_run is None):
            raise TypeError("rewind goes to a place or before a run: rewind(to_seq) or rewind(before_run=run_id)")
        edit = EditHistory(
            number=new_number(),
            kind="rewind",
            to_seq=check_seq(to_seq) if to_seq is not None else 0,
            run_id=check_run_id(before_run) if before_run is not None else None,
            by=check_author(by),
            reason=check_reason(reason),
        )
        return (await self._edit(edit)).count

    async def clear(self, *, by: str | None = None, reason: str = "") -> int:
        """Take all messages out of history; metadata, state and runs stay. Else like `pop`.

        Returns: how many were taken.
        """
        edit = EditHistory(number=new_number(), kind="clear", by=check_author(by), reason=check_reason(reason))
        return (await self._edit(edit)).count

    async def fork(
        self,
        new_id: str,
        *,
        at_seq: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
    ) -> Self:
        """Make a session that begins as this one is now: its messages, metadata, owner, tags, state and summary.

        It is one commit: nobody ever sees a part. The fork's messages have places of their own, from 1 without gaps;
        runs and audit stay with this session, and `head().forked_from` names it. A turn that runs is not waited for.
        State is that of now, whatever `at_seq` is. Messages that cannot be read are left out, as everywhere.

        Args:
            new_id: the fork's id, of which there is no session yet.
            at_seq: only the messages up to this place, itself included; None for all.
            metadata: keys to set in the fork's metadata, or to remove with None.
            tags: further ones, for the fork alone.

        Raises:
            SessionExists: there is a session `new_id` already.
            UnknownSession: there is no session to be forked.
            TypeError, ValueError, TooLarge: no id, no place, or metadata that cannot be stored.

        Cancellation: the fork was made or not, never a part of it.
        Cost: reads and writes all of it, in a worker thread; holds it in memory meanwhile.
        """
        checked_id = check_session_id(new_id)
        at = check_seq(at_seq) if at_seq is not None else None
        patch = check_metadata(metadata or {}, what="metadata")
        more = check_tags(tags)
        begin = await read_fork(self.runtime.store, self.id, checked_id, at_seq=at, patch=patch)
        if more:
            begin = replace(begin, head=replace(begin.head, tags=check_tags([*begin.head.tags, *more])))
        fork = self._of(checked_id)
        await fork._ref.ask(begin, timeout_s=math.inf)
        return fork

    # Reading --------------------------------------------------------------------------------------------------------

    async def audit(self) -> Audit:
        """All messages that were ever stored here, those that edits took out of history included, and the edits.

        Cost: reads all of it, in a worker thread.
        """
        audit = Audit([], [])
        await work_through(self.runtime.store, Archive(self.runtime.store).audit_steps(self.id, audit))
        return audit

    async def page(self, *, limit: int = 50, cursor: str | None = None, newest_first: bool = True) -> MessagePage:
        """Some messages, oldest first, with cursors to those before and behind them. Waits for no turn.

            page = await session.page(limit=20)                            # the latest
            page = await session.page(limit=20, cursor=page.older)         # those before, where page.older is not None

        Cursors stay good while others append and edit, and in later processes: no message comes twice, and none is left
        out but those that edits have taken out meanwhile.

        Args:
            limit: 1 to 1000.
            cursor: `older`, `newer` or `resume` of another page; None for the first page.
            newest_first: whether the first page is the end of history, or its beginning.

        Raises:
            TypeError, ValueError: a limit out of range, or a cursor that this session has not given.
        """
        check_count(limit, what="limit", maximum=PAGE_MAX)
        if cursor is None:
            read = first_page(limit, newest_first=newest_first)
        else:
            read = following_page(self.id, limit, cursor)
        return page_of(self.id, await self._ref.ask(read))

    async def search(
        self,
        text: str,
        *,
        role: Role | None = None,
        author: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> SearchPage:
        """The messages of this session in which all words of `text` occur, the latest first. Waits for no turn.

        Words are parted by spaces, and each may be a part of one in the message; letters count as the same whatever
        their case and form (NFKC). The text of messages is looked at, the arguments of tool calls are not. What edits
        have taken out of history is not found.

        Args:
            role, author: only messages of these.
            limit: 1 to 1000 hits.
            cursor: `page.cursor` of the page before, asked with the same words and filters.

        Raises:
            TypeError, ValueError: no words, a limit out of range, or a cursor of another search.

        Cost: goes through the messages, some 50 000 a second, in a worker thread.
        """
        check_count(limit, what="limit", maximum=PAGE_MAX)
        wanted = Wanted.of(text, role=role, author=author)
        return await search_session(self.runtime.store, self.id, wanted, limit=limit, cursor=cursor)

    def _of(self, session_id: str) -> Self:
        """The handle on another session of this runtime, with what this handle was given for its calls."""
        raise NotImplementedError

    # Inside ---------------------------------------------------------------------------------------------------------

    async def _edit(self, edit: EditHistory) -> Edited:
        edited = await self._in_turn(edit, "editing history")
        if edited.refusal is not None:
            raise TooLarge(edited.refusal)
        return edited

    def _in_turn(self, step: OneStep[ReplyT], action: str) -> Awaitable[ReplyT]:
        """Send what has to wait for its turn. CyclicAsk where it would wait for the caller's own."""
        # No deadline of its own: it waits for the turns before it, each of which has one.
        if not current_held_turns():  # no turn waits for this
            return self._ref.ask(step, timeout_s=math.inf)
        check_not_held(self.id, action)
        wait = self.runtime.turn_waits.wait(self.id)
        return wait.sent(lambda: self._ref.ask_nowait(step, timeout_s=math.inf), action).wait()
