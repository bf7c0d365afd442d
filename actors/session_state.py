"""State that a session's turns change: its own in the turn's commit, that of app and user through an outbox.

    CloseTurn ──► one batch: messages, run, STATE rows of the session, OUTBOX rows
                     └──► durable ──► TakeDeltas to ("state", target) ──► applied there, and noted, in one batch
                                          └──► durable ──► the OUTBOX row is deleted ──► durable ──► ForgetDelivery

Whatever crashes, and wherever: what is in the outbox is sent again when the session is loaded, and its target knows
which deliveries it has. So a delta whose turn is committed is applied exactly once, and no other ever. An outbox
outlives the delete of its session. Sessions that have one are loaded when a process starts (Index.OUTBOX_DUE).

In one session, deliveries are applied in the order of turns. Among sessions they are in the order of their commits, as
long as none fails on its way.
"""

import random
from functools import partial
from typing import Any

from msgspec import Struct

from ..runtime.actor import handles
from ..runtime.budget import Backoff
from ..runtime.context import Context, Ticket
from ..runtime.identity import ActorId
from ..runtime.signals import Answered
from ..store.contract import Row, Table
from .outbox import Outbox
from .session_messages import CloseTurn
from .session_turns import TurnSession
from .state import StateDelta, StateScope, applied
from .state_actor import changed
from .state_messages import (
    Changed,
    ChangeSessionState,
    ForgetDelivery,
    ReadSessionState,
    ReadTurnState,
    TakeDeltas,
    TurnStateView,
    WaitOutbox,
)
from .state_records import (
    APP,
    OUTBOX_CODEC,
    STATE_KIND,
    OutboxRecord,
    outbox_due,
    read_values,
    user_key,
    value_rows,
)

__all__ = ["StatefulSession"]

_PAUSES = Backoff(first_s=0.05, max_s=5.0)
"""Between two attempts to deliver, to a target that does not take it."""


class _Sent(Struct, frozen=True):
    """The tag of a TakeDeltas, with the epoch of the activation that sent it."""

    target: str
    id: str
    epoch: int


class _SendAgain(Struct, frozen=True):
    """The tag of a pause."""

    target: str


class StatefulSession(TurnSession):
    """See the module's text. `outbox` is what app and user have not confirmed yet."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.outbox = Outbox()
        self.visible_state: dict[str, Any] | None = None  # read when somebody asks
        self._state: dict[str, Any] | None = None  # the same, as staged
        self._waiting: list[tuple[Ticket, bool]] = []  # for an empty outbox; True: the turn's view is wanted

    # Reading --------------------------------------------------------------------------------------------------------

    @handles(ReadSessionState, gated=False)
    def read_session_state(self, _message: ReadSessionState, context: Context) -> dict[str, Any]:
        self._present_state(context)
        assert self.visible_state is not None
        return self.visible_state

    @handles(ReadTurnState, gated=False, retryable=True)
    def read_turn_state(self, _message: ReadTurnState, context: Context) -> TurnStateView | Ticket:
        """As the turn begins. It sees what earlier turns of the session did to app and user, so it waits for that."""
        self._present_state(context)
        return self._once_delivered(context, view=True) if self.outbox else self._view()

    @handles(WaitOutbox, retryable=True)
    def wait_outbox(self, _message: WaitOutbox, context: Context) -> Ticket | None:
        """Nothing is on its way any more."""
        return self._once_delivered(context, view=False) if self.outbox else None

    # Changing -------------------------------------------------------------------------------------------------------

    @handles(ChangeSessionState, retryable=True, on_cancel="cancel")
    def change_session_state(self, message: ChangeSessionState, context: Context) -> Ticket | Changed:
        """Change the session's own scope, now or when the turns before it have ended."""
        self._present_state(context)
        return self.in_turn(message, context, partial(self._change_state, message))

    def keep_state(self, message: CloseTurn, context: Context) -> None:
        """What the turn that ends has changed becomes rows, and deliveries. StoreError: nothing has changed yet."""
        if not message.state:
            return
        present = self._present_state(context)
        by_scope: dict[StateScope, list[StateDelta]] = {}
        for delta in message.state:
            by_scope.setdefault(delta.scope, []).append(delta)
        own = by_scope.get("session", [])
        if own:
            self._set_state(applied(present, own), own, context)
        head = self.ledger.head
        assert head is not None, "a turn has a session"
        if "app" in by_scope:
            self._deliver(OutboxRecord(message.run_id, APP, tuple(by_scope["app"])), context)
        if "user" in by_scope and head.owner is not None:
            self._deliver(OutboxRecord(message.run_id, user_key(head.owner), tuple(by_scope["user"])), context)

    def copy_state(self, values: dict[str, Any], context: Context) -> None:
        """Give the session's own scope these values, in the present batch: for a fork."""
        self._set_state(values, [StateDelta("session", key, "set", value) for key, value in values.items()], context)

    def erase_state(self, context: Context) -> None:
        """The session was erased, in the present batch. What its turns did to app and user stays on its way."""
        self._set_state({}, [], context)
        if self.outbox:
            self.ledger.put(self.outbox.rows(), [outbox_due(present=True)])

    # Delivering -----------------------------------------------------------------------------------------------------

    def load_outbox(self, context: Context) -> None:
        """Send again what an earlier activation may not have delivered."""
        if context.stored is None:
            return
        stored = context.store.scan(str(self.id), Table.OUTBOX)
        if stored:
            where = f"the outbox of session {self.id.key!r}"
            records = [(int.from_bytes(key, "big"), OUTBOX_CODEC.decode(value, where=where)) for key, value in stored]
            self.outbox = Outbox(records)
            for target in self.outbox.targets:
                self._send(target, context)

    @handles(Answered)
    def answered(self, signal: Answered, context: Context) -> None:
        """A delivery was applied, or failed."""
        tag = signal.tag
        if not isinstance(tag, _Sent):
            return
        if signal.error is None:
            row = self.outbox.delivered(tag.target, tag.id)
            if row is not None:
                self.ledger.put([row], [] if self.outbox else [outbox_due(present=False)])
                self.stage(context)
                context.tell(ActorId(STATE_KIND, tag.target), ForgetDelivery(tag.id))
        elif tag.epoch == context.epoch:  # else this activation has sent it again
            self.outbox.failed(tag.target, tag.id)
        failures = self.outbox.pause_due(tag.target)
        if failures:
            context.after(_PAUSES.delay_s(failures, random.random()), _SendAgain(tag.target))
        if not self.outbox:
            waiting, self._waiting = self._waiting, []
            for ticket, view in waiting:
                ticket.reply(self._view() if view else None)

    def time_is_over(self, tag: Any, context: Context) -> None:
        """A pause is over: send again what failed, and what came behind it."""
        if isinstance(tag, _SendAgain):
            self.outbox.pause_over(tag.target)
            self._send(tag.target, context)
        else:
            super().time_is_over(tag, context)

    # Inside ---------------------------------------------------------------------------------------------------------

    def _present_state(self, context: Context) -> dict[str, Any]:
        """The session's own scope as staged. It is read before anything of it is staged: what is stored is current."""
        if self._state is None:
            self._state = self.visible_state = read_values(context.store, str(self.id)) if context.stored else {}
        return self._state

    def _view(self) -> TurnStateView:
        assert self._state is not None
        head = self.ledger.head
        return TurnStateView(self._state, head.owner if head is not None else None)

    def _change_state(self, message: ChangeSessionState, number: int, context: Context) -> Changed:
        assert self._state is not None
        reply = changed(self._state, message.deltas, "the session's state")
        if reply.refusal is None:
            at_ms = context.wall_ms()
            self.ledger.ensure(message.defaults, at_ms=at_ms)
            self.ledger.append((), at_ms=at_ms, turn=number)
            self._set_state(reply.values, message.deltas, context)
        return reply

    def _set_state(
        self, values: dict[str, Any], deltas: list[StateDelta] | tuple[StateDelta, ...], context: Context
    ) -> None:
        self._state = values
        self.ledger.put(value_rows(values, deltas))
        context.after_commit(partial(_show_state, self, values))

    def _deliver(self, record: OutboxRecord, context: Context) -> None:
        index = [] if self.outbox else [outbox_due(present=True)]
        rows: list[Row] = [self.outbox.put(record)]
        self.ledger.put(rows, index)
        self._send(record.target, context)

    def _send(self, target: str, context: Context) -> None:
        for sending in self.outbox.send(target):
            record = sending.record
            message = TakeDeltas(record.id, sending.after, record.deltas)
            context.request(ActorId(STATE_KIND, target), message, tag=_Sent(target, record.id, context.epoch))

    def _once_delivered(self, context: Context, *, view: bool) -> Ticket:
        ticket = context.defer()
        self._waiting.append((ticket, view))
        return ticket


def _show_state(actor: StatefulSession, values: dict[str, Any]) -> None:
    """These values are durable: everybody sees them from now on."""
    actor.visible_state = values
