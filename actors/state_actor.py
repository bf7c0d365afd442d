"""The actors that have the state of the scopes app and user: ("state", "app") and ("state", "user:<owner>").

A turn's deltas come here from its session's outbox (session_state.py), at least once each; a row in the same batch says
that they were applied, so that they are applied exactly once. What comes first is applied first: for a key, the last
one counts.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from ..runtime.actor import Actor, handles
from ..runtime.context import Context
from ..runtime.identity import ActorId
from ..store.contract import Row, Table
from ..store.errors import CallboardError
from .limits import METADATA_BYTES_MAX, check_metadata
from .state import StateDelta, applied
from .state_messages import Changed, ChangeScope, ForgetDelivery, ReadLatest, ReadScope, TakeDeltas
from .state_records import (
    OUTBOX_CODEC,
    STATE_HEAD_CODEC,
    STATE_KIND,
    TAKEN_CODEC,
    StateHead,
    TakenRecord,
    read_values,
    value_rows,
)

__all__ = ["OutOfOrder", "StateActor", "changed"]

_STATE_BYTES = 2000
"""An actor of a scope in memory beside its values (CPython 3.11, tracemalloc)."""


class OutOfOrder(CallboardError):
    """A delivery came before one that must be applied first. Not applied: its session sends both again."""


def changed(values: dict[str, Any], deltas: Iterable[StateDelta], what: str) -> Changed:
    """The values after a change from outside, which is refused where a turn's is not: it has somebody to tell."""
    for delta in deltas:
        present = values.get(delta.key, 0)
        if delta.op == "increment" and type(present) is not int and type(present) is not float:
            return Changed(values, f'{what}["{delta.key}"] is {present!r}: only a number can be incremented')
    result = applied(values, deltas)
    try:
        check_metadata(result, what=what)
    except ValueError as error:
        return Changed(values, str(error), too_large=True)
    return Changed(result)


class StateActor(Actor):
    """See the module's text. `visible` is what the last durable commit left."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.visible: dict[str, Any] = {}
        self._values = self.visible  # as staged
        self._taken: set[str] = set()
        self._head = StateHead(0, 0)

    def may_passivate(self) -> bool:
        """False while what is staged is not durable."""
        return self.visible is self._values

    def size_bytes(self) -> int:
        return _STATE_BYTES + (METADATA_BYTES_MAX // 8 if self._values else 0) + 150 * len(self._taken)

    def load(self, context: Context) -> None:
        if context.stored is None:
            return
        stream = str(self.id)
        self._head = STATE_HEAD_CODEC.decode(context.stored.head, where=f"head of {stream!r}")
        taken = context.store.scan(stream, Table.OUTBOX)
        self._taken = {key.decode() for key, _ in taken}
        if taken and context.stored_by_earlier_owner:
            self._forget_what_nobody_sends(taken, context)
        self._values = self.visible = read_values(context.store, stream)

    @handles(ReadScope, gated=False)
    def read(self, _message: ReadScope, _context: Context) -> dict[str, Any]:
        return self.visible

    @handles(ReadLatest)
    def read_latest(self, _message: ReadLatest, _context: Context) -> dict[str, Any]:
        return self._values

    @handles(ChangeScope)
    def change(self, message: ChangeScope, context: Context) -> Changed:
        """Somebody outside of a turn changes it."""
        reply = changed(self._values, message.deltas, f"{STATE_KIND}:{self.id.key}")
        if reply.refusal is None:
            self._apply(reply.values, message.deltas, (), context)
        return reply

    @handles(TakeDeltas, retryable=True)
    def take(self, message: TakeDeltas, context: Context) -> None:
        """What a turn has committed; nothing where it was applied before."""
        if message.id in self._taken:
            return
        if message.after and message.after not in self._taken:
            raise OutOfOrder(f"delivery {message.id!r} comes behind {message.after!r}, which is not here")
        self._taken.add(message.id)
        taken = Row(
            Table.OUTBOX, message.id.encode(), TAKEN_CODEC.encode(TakenRecord(str(context.sender), context.wall_ms()))
        )
        self._apply(applied(self._values, message.deltas), message.deltas, (taken,), context)

    @handles(ForgetDelivery)
    def forget(self, message: ForgetDelivery, context: Context) -> None:
        """The session has deleted it from its outbox, for good."""
        if message.id in self._taken:
            self._taken.discard(message.id)
            context.stage(rows=(Row(Table.OUTBOX, message.id.encode(), None),))

    def _forget_what_nobody_sends(self, taken: list[tuple[bytes, bytes]], context: Context) -> None:
        """Drop what an earlier process was not told to forget. Nothing of it is in a mailbox of this process: all that
        may come is in an outbox."""
        for key, value in taken:
            stream = TAKEN_CODEC.decode(value, where=f"delivery {key!r} of {str(self.id)!r}").stream
            rows = context.store.scan(stream, Table.OUTBOX)
            if all(OUTBOX_CODEC.decode(row, where=f"the outbox of {stream!r}").id.encode() != key for _, row in rows):
                self._taken.discard(key.decode())
                context.stage(rows=(Row(Table.OUTBOX, key, None),))

    def _apply(
        self, values: dict[str, Any], deltas: Iterable[StateDelta], rows: tuple[Row, ...], context: Context
    ) -> None:
        self._values = values
        self._head = StateHead(self._head.revision + 1, max(context.wall_ms(), self._head.updated_at_ms))
        context.stage(head=STATE_HEAD_CODEC.encode(self._head), rows=(*rows, *value_rows(values, deltas)))
        context.after_commit(partial(_show, self, values))


def _show(actor: StateActor, values: dict[str, Any]) -> None:
    """These values are durable."""
    actor.visible = values
