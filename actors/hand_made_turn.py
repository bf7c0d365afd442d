"""A turn that the user's own code holds, instead of an agent: what it adds becomes history together, or not at all."""

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import anyio

from ..runtime.options import check_number
from ..store.errors import CallboardError
from .conversation import as_chat_dict, as_message, as_messages, repair
from .errors import StaleTurn
from .host import Runtime
from .ids import new_id
from .ledger import RunEnd
from .limits import reason_of
from .message import Message, Part, Role
from .persistence import persist
from .reentry import HeldTurn, check_not_held, current_held_turns, hold
from .run_record import RunRecord, RunStatus
from .session_messages import BeginTurn, CancelTurn, CloseTurn, Grant
from .session_records import SessionDefaults

__all__ = ["HandMadeTurn"]


class HandMadeTurn:
    """The exclusive right to extend one conversation, for as long as its block goes on: `async with session.turn()`.

    Nobody else's turn runs meanwhile, on this session. What was added is stored when the block is left, in one commit
    with the run record of the turn, and durable then. A block that raises adds nothing: its run is marked as failed, or
    as cancelled.

    Attributes (within the block):
        number: the turn's number.
        run_id: the run that it is recorded as.
        messages: history as it was when the turn began, oldest first.
        metadata: the session's metadata then.

    Raises:
        (on entering) CyclicAsk: within a turn of this session, or of one that waits for this one. Rejected: no turn.
        (on leaving) StaleTurn: the turn was stopped, by `cancel_run` or a newer input, or the session was deleted;
            nothing was added. TimeoutError: the block took longer than `timeout_s`; nothing was added. Failed: nothing
            was added. Unknown: it may have been.

    Cancellation: while it waits for the turn: it gives up its place. In the block: nothing is added. While it is being
        stored: that is not interrupted.
    """

    def __init__(self, runtime: Runtime, session_id: str, defaults: SessionDefaults, *, timeout_s: float) -> None:
        check_number("timeout_s", timeout_s)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s}")
        self._runtime = runtime
        self._session = runtime.session_actor(session_id)
        self._session_id = session_id
        self._defaults = defaults
        self._timeout_s = timeout_s
        self._grant: Grant | None = None
        self._added: list[Message] = []
        self.run_id: str = ""

    @property
    def number(self) -> int:
        return self._granted().turn

    @property
    def messages(self) -> tuple[Message, ...]:
        return self._granted().excerpt.messages

    @property
    def metadata(self) -> dict[str, Any]:
        return self._granted().metadata

    def messages_for_llm(self) -> list[dict[str, Any]]:
        """History and what was added, in the API's own form, fit to be sent."""
        return [as_chat_dict(message) for message in repair([*self.messages, *self._added]).messages]

    def add(self, role: Role, content: str | list[Part], *, author: str | None = None) -> Message:
        """Let the turn add this message; it has its place and id once it is stored.

        Raises:
            ValueError, TypeError: as with `Session.add_message`.
        """
        message = as_message({"role": role, "content": content}, author=author)
        self._granted()
        self._added.append(message)
        return message

    def add_messages(self, messages: Iterable[Message | Mapping[str, Any]]) -> None:
        """Let the turn add these, in their order; for tool calls with their results, say."""
        checked = as_messages(messages)
        self._granted()
        self._added += checked

    async def __aenter__(self) -> Self:
        if self.run_id:
            raise RuntimeError("a turn is entered once: call session.turn() again for another")
        action = "a turn made by hand"
        check_not_held(self._session_id, action)
        self.run_id = new_id("run", time.time_ns() // 1_000_000)
        record = RunRecord(id=self.run_id, session_id=self._session_id, created_at_ms=self._runtime.wall_ms())
        begin = BeginTurn(record, "queue", self._defaults)
        within = current_held_turns()
        wait = self._runtime.turn_waits.wait(self._session_id)
        try:
            pending = wait.sent(lambda: self._session.ask_nowait(begin, timeout_s=math.inf), action)
            granted = await pending.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):  # it may have been granted without our hearing of it
                await self._give_up()
            raise
        assert isinstance(granted, Grant), "neither merged, nor with a key"
        self._grant = granted
        self._held: HeldTurn = hold(self._session_id, within=within)
        self._scope = anyio.move_on_after(self._timeout_s)
        self._scope.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        swallowed = self._scope.__exit__(kind, error, trace)
        self._held.end()
        late = self._scope.cancelled_caught
        cut_off = isinstance(error, anyio.get_cancelled_exc_class())
        reason = reason_of(error) if error is not None else ""
        if cut_off:
            reason = f"it took longer than its {self._timeout_s:g} s" if late else "its block was cancelled"
        with anyio.CancelScope(shield=True):
            if error is None:
                await self._complete()
            else:
                await self._fail("cancelled" if cut_off and not late else "failed", reason)
        if late:
            raise TimeoutError(f"the turn {self.run_id!r} {reason}: see session.turn(timeout_s=)")
        return swallowed

    async def _complete(self) -> None:
        try:
            await self._close("completed", None, self._added)
        except StaleTurn:
            raise
        except CallboardError:
            await self._give_up()
            raise

    async def _fail(self, status: RunStatus, reason: str) -> None:
        try:
            await self._close(status, reason, [])
        except StaleTurn:
            pass  # it was ended by others: there is nothing left to mark
        except CallboardError:
            await self._give_up()

    async def _close(self, status: RunStatus, reason: str | None, messages: list[Message]) -> None:
        close = CloseTurn(self.run_id, self._granted().turn, RunEnd(status, reason), tuple(messages))
        await persist(lambda: self._session.ask(close))
        self._grant = None

    async def _give_up(self) -> None:
        """End the turn, if there is one. Where the store takes nothing it stays, for `cancel_run` or the next start."""
        with suppress(CallboardError):  # what has led here is raised
            await persist(lambda: self._session.ask(CancelTurn(self.run_id, "the block was left")))

    def _granted(self) -> Grant:
        if self._grant is None:
            raise RuntimeError("a turn is held within its block only: async with session.turn() as turn")
        return self._grant
