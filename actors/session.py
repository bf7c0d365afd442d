"""The public handle on one conversation. It holds no state: any number of handles may speak of one session."""

import math
import time
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Self

from msgspec.structs import replace

from ..runtime.options import check_number
from ..runtime.ref import ASK_TIMEOUT_S, Ref
from .conversation import as_message, as_messages
from .errors import UnknownSession
from .event_stream import EventStream
from .hand_made_turn import HandMadeTurn
from .host import Runtime
from .ids import new_id, new_number
from .limits import (
    check_agent_name,
    check_limit,
    check_metadata,
    check_owner,
    check_run_id,
    check_session_id,
    check_tags,
)
from .message import Message, Part, Role
from .run import Run
from .run_queries import StatusFilter, run_filter
from .run_record import RunRecord, SpanRecord
from .scopes import OwnerState, SessionState
from .session_history import SessionHistory
from .session_messages import (
    WHENS,
    Append,
    CancelRun,
    CreateRun,
    DeleteSession,
    PatchMetadata,
    ReadHead,
    ReadMessages,
    ReadRun,
    ReadRuns,
    ReadSpans,
    When,
)
from .session_records import SessionDefaults, SessionHead, copy_metadata
from .session_views import SessionViews
from .turns import Overlap, check_overlap
from .window import Strategy, Window, check_strategy

__all__ = ["Session"]


class Session(SessionHistory, SessionViews):
    """One conversation, shared by any number of agents and callers. Made in the store by the first write.

    Args:
        runtime: an open Runtime.
        id: 1 to 200 bytes; the same id is the same session, in this process and every later one.
        metadata, owner, tags: for a session that does not exist yet; an existing one keeps what it has.
        overlap: what happens, with chats through this handle, where a turn runs already: see `Agent.chat`.
        debounce_s: seconds without another input that "debounce" waits for, ten times that at most.
        max_messages, max_tokens: how much of history the models of chats through this handle see; all is kept. See
            Window, which an Agent may have of its own.
        strategy: which part of it they see: "recent", "head_and_tail" or "summary".

    Raises:
        TypeError, ValueError: an argument is no good; the message says what would be.
        Stopping: the runtime is not open.

    All writes are durable when they return, and in the order in which they were called. A call that raises Rejected or
    Failed has stored nothing; Unknown may have.
    """

    def __init__(
        self,
        runtime: Runtime,
        id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        owner: str | None = None,
        tags: Iterable[str] = (),
        overlap: Overlap = "queue",
        debounce_s: float = 0.5,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        strategy: Strategy = "recent",
    ) -> None:
        if not isinstance(runtime, Runtime):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a Session needs a Runtime first, not {runtime!r}: Session(runtime, {id!r})")
        self.id: str = check_session_id(id)
        self.runtime = runtime
        self.defaults: SessionDefaults = SessionDefaults(
            check_owner(owner), check_tags(tags), check_metadata(metadata or {})
        )
        self.overlap: Overlap = check_overlap(overlap)
        check_number("debounce_s", debounce_s)
        if not 0 < debounce_s < math.inf:
            raise ValueError(f"debounce_s must be a finite number of seconds above 0, not {debounce_s}")
        self.debounce_s: float = debounce_s
        self.window: Window | None = None
        if max_messages is not None or max_tokens is not None:
            self.window = Window(max_messages=max_messages, max_tokens=max_tokens, strategy=strategy)
        elif check_strategy(strategy) != "recent":
            raise ValueError(f"strategy={strategy!r} needs max_messages= or max_tokens=: without one all is shown")
        self._ref: Ref = runtime.session_actor(id)

    def __repr__(self) -> str:
        return f"<Session {self.id!r}>"

    # Messages -------------------------------------------------------------------------------------------------------

    async def add_message(self, role: Role, content: str | list[Part], *, author: str | None = None) -> Message:
        """Put one message at the end of history; it waits for turns that were asked for before.

        Returns: the message as stored, with its place and id.

        Raises:
            ValueError, TypeError: unknown role, no content, or larger than 4 MiB.
            CyclicAsk: called by a tool, within a turn of this session, or of one that this one's turn waits for.

        Cancellation: while it waits for its turn, it is not stored.
        """
        message = as_message({"role": role, "content": content}, author=author)
        return (await self._append([message]))[0]

    async def add_messages(self, messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
        """Put messages at the end of history, all or none, with nothing between them; else like `add_message`."""
        checked = as_messages(messages)
        return await self._append(checked) if checked else []

    async def messages(self, *, limit: int | None = None, before_seq: int | None = None) -> list[Message]:
        """The latest messages, or those before a place; oldest first, at most `limit`. Waits for no turn."""
        check_limit(limit)
        if before_seq is not None and type(before_seq) is not int:
            raise TypeError(f"before_seq must be a message's seq, a whole number, not {before_seq!r}")
        return await self._ref.ask(ReadMessages(limit, before_seq))

    async def message_count(self) -> int:
        """How many messages history has."""
        head = await self._ref.ask(ReadHead())
        return head.message_count if head is not None else 0

    # Events ---------------------------------------------------------------------------------------------------------

    def events(self, *, after: int | None = None, progress: bool = True) -> EventStream:
        """What happens here, as it happens: `async for event in session.events(): ...`. See session_events.py.

        Args:
            after: the number of the event to go on behind, of whatever reader in whatever process; 0 for all there ever
                was; None for what comes from now on.
            progress: whether RunProgress is wanted, which does not last: pieces of answers, results of tools. Models
                then stream their answers.

        What lasts comes once and in order, however slow the reader is, and without holding anybody up. Use `async with`
        to join before the first event is asked for; let go of it to leave.

        Raises:
            TypeError, ValueError: `after` is no number of an event.
        """
        if after is not None and (type(after) is not int or after < 0):
            raise ValueError(f"after must be the number of an event, 0 or None, not {after!r}")
        return EventStream(self.id, self._ref, self.runtime.boards, after=after, progress=progress)

    # Runs -----------------------------------------------------------------------------------------------------------

    async def create_run(self, *, agent: str = "", model: str = "") -> Run:
        """A run that you drive by hand; it is "queued" until `start`."""
        if agent:
            check_agent_name(agent)
        if model:
            check_agent_name(model, what="model")
        record = RunRecord(
            id=new_id("run", time.time_ns() // 1_000_000),
            session_id=self.id,
            created_at_ms=0,  # the session's clock counts
            agent=agent,
            model=model,
            manual=True,
        )
        return Run(self._ref, await self._ref.ask(CreateRun(record, self.defaults)))

    async def runs(
        self,
        *,
        status: StatusFilter = None,
        agent: str | None = None,
        since_ms: int | None = None,
        limit: int | None = None,
    ) -> list[RunRecord]:
        """The latest runs, those that wait for their turn included; oldest first, at most `limit`.

        Args:
            status: only those of this status, or of these: "failed", or ["running", "waiting"].
            agent: only those of agents of this name; "" for runs by hand that have none.
            since_ms: only those made at this time or later, in milliseconds since 1970, UTC.
            limit: the most to give.

        Cost: without a filter that of what is given; with one, of all runs that are newer than the oldest one given.
        """
        check_limit(limit)
        return await self._ref.ask(ReadRuns(limit, run_filter(status, agent, since_ms)))

    async def run(self, run_id: str) -> RunRecord:
        """One run.

        Raises:
            UnknownRun: there is none of this id.
        """
        return await self._ref.ask(ReadRun(check_run_id(run_id)))

    async def cancel_run(
        self, run_id: str, *, reason: str = "cancelled by hand", when: When = "now", keep_partial: bool = False
    ) -> bool:
        """End a run that is queued, runs, or waits for an approval; True where it was open, and has ended.

        Its caller, where one waits, gets RunFailed with the reason.

        Args:
            run_id: the run.
            reason: stands in its record.
            when: "now" cuts off the model call, or tool calls, that it is at; "after_step" lets these end, and no
                further model call follows; "after_turn" waits until it has ended by itself, and only keeps a failed
                attempt from being repeated. One that is queued never begins, whatever this says.
            keep_partial: history keeps what it has written so far: the input, whole steps, results in the place of tool
                calls that were cut off, and of a streamed answer what was heard, marked `interrupted`. Else, and of a
                run that waits for an approval, which has no turn, history is as before.

        Raises:
            UnknownRun: there is none of this id.
            Unknown: a tool of it would not be cut off for 30 s; it ends when that does.
        """
        if not isinstance(reason, str) or not reason:  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise ValueError(f"a run is cancelled with a reason, not {reason!r}")
        if when not in WHENS:
            raise ValueError(f"when= is one of {', '.join(WHENS)}, not {when!r}")
        cancel = CancelRun(check_run_id(run_id), reason, when, bool(keep_partial))
        return await self._ref.ask(cancel, timeout_s=ASK_TIMEOUT_S if when == "now" else math.inf)

    def turn(self, *, timeout_s: float = 600.0) -> HandMadeTurn:
        """A turn of your own: `async with session.turn() as turn: turn.add("user", "...")`. See HandMadeTurn."""
        return HandMadeTurn(self.runtime, self.id, self.defaults, timeout_s=timeout_s)

    async def spans(self, run_id: str) -> list[SpanRecord]:
        """What ran inside a run that has ended or paused, or that is made by hand, in the order of their starts."""
        return await self._ref.ask(ReadSpans(check_run_id(run_id)))

    # The session itself ---------------------------------------------------------------------------------------------

    async def head(self) -> SessionHead:
        """All about the session but its content.

        Raises:
            UnknownSession: nothing was written to it yet, or it was deleted.
        """
        head = await self._ref.ask(ReadHead())
        if head is None:
            raise UnknownSession(f"there is no session {self.id!r} yet: its first message makes it")
        return replace(head, metadata=copy_metadata(head.metadata))

    async def metadata(self) -> dict[str, Any]:
        """The metadata; before the first write, what the session will be made with."""
        head = await self._ref.ask(ReadHead())
        return copy_metadata(head.metadata if head is not None else self.defaults.metadata)

    async def update_metadata(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Set these keys and remove those whose value is None; the new metadata. Waits for no turn.

        Raises:
            TypeError, ValueError: a value is not JSON.
            TooLarge: the whole would be larger than 64 KiB. Nothing was changed.
        """
        return copy_metadata(await self._ref.ask(PatchMetadata(check_metadata(patch, what="patch"), self.defaults)))

    @property
    def state(self) -> SessionState:
        """What the session's turns keep for each other: `context.session_state` in tools."""
        return SessionState(self)

    @property
    def user_state(self) -> OwnerState:
        """What all sessions of the same owner share: `context.user_state` in tools."""
        return OwnerState(self)

    async def delete(self) -> bool:
        """Drop the session with all its content, at once; False where there was none.

        A turn that runs is refused when it ends, those that wait fail with UnknownSession.
        """
        return await self._ref.ask(DeleteSession())

    def _of(self, session_id: str) -> Self:
        other = type(self)(self.runtime, session_id, overlap=self.overlap, debounce_s=self.debounce_s)
        other.window = self.window
        return other

    def _append(self, messages: list[Message]) -> Awaitable[list[Message]]:
        return self._in_turn(Append(new_number(), tuple(messages), self.defaults), "adding a message")
