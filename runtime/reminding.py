"""The reminders of one activation: how it sets and forgets them, and how its handler acknowledges them.

What an activation has staged is newer than what is in flight to the store, and that is newer than what is read there.
So each look at a reminder goes through the three in this order.
"""

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from .reminder_records import (
    ReminderChanges,
    ReminderRecord,
    check_reminder_name,
    new_reminder,
    read_reminder,
    reminder_rows,
)
from .signals import Reminder

if TYPE_CHECKING:
    from .actor import Handler
    from .context import Context, Host

__all__ = ["Reminding", "acknowledging"]


class Reminding:
    """See the module's text. Made when a context first needs it."""

    __slots__ = ("_context", "_host", "_in_flight")

    def __init__(self, host: "Host", context: "Context") -> None:
        self._host = host
        self._context = context
        self._in_flight = ReminderChanges()

    def set(self, name: str, *, at_ms: int | None, after_s: float | None, every_s: float | None) -> None:
        """See `Context.remind`."""
        context, host = self._context, self._host
        host.check_durable(context.id)
        context.check_hears(Reminder, "its reminder")
        record = new_reminder(name, now_ms=context.wall_ms(), at_ms=at_ms, after_s=after_s, every_s=every_s)
        self._change(name, self._find(name), record)
        context.after_commit(lambda: host.reminder_stored(context.id, record))

    def forget(self, name: str) -> bool:
        """See `Context.forget_reminder`."""
        check_reminder_name(name)
        old = self._find(name)
        if old is not None:
            self._change(name, old, None)
        return old is not None

    def stands(self, reminder: Reminder) -> bool:
        """False for one that was forgotten, set anew, erased or handled since its signal was queued."""
        record = self._find(reminder.name)
        return record is not None and record.due_ms == reminder.due_ms

    def acknowledge(self, reminder: Reminder) -> None:
        """The handler of one that stood has ended well: have it moved on, unless the handler itself has changed it."""
        staged = self._context.staged
        if staged is not None and (staged.erase or reminder.name in staged.reminders):
            return
        record = self._find(reminder.name)
        assert record is not None, "it stood when its handler began, and nobody else could change it"
        self._change(reminder.name, record, record.moved_on(reminder.missed))

    def given(self, version: int, changed: dict[str, ReminderRecord | None], *, erase: bool) -> None:
        """What a handler staged is on its way; not to be read in the store until it is durable."""
        self._in_flight.given(version, changed, erase=erase)
        self._context.after_commit(lambda: self._in_flight.stored(version, changed))

    def _find(self, name: str) -> ReminderRecord | None:
        staged = self._context.staged
        if staged is not None and name in staged.reminders:
            return staged.reminders[name]
        if self._in_flight.knows(name):
            return self._in_flight.find(name)
        return read_reminder(self._context.store, str(self._context.id), name)

    def _change(self, name: str, old: ReminderRecord | None, new: ReminderRecord | None) -> None:
        rows, index_rows = reminder_rows(name, old, new)
        self._context.stage(rows=rows, index_rows=index_rows)
        staged = self._context.staged
        assert staged is not None
        staged.reminders[name] = new


def acknowledging(handler: "Handler") -> "Handler":
    """A handler of Reminder that is called only for one that stands, and has it moved on in the batch that it stages.

    Always gated: the batch that says that a reminder stands no more may fail, and then it does.
    """
    function = handler.function

    def handle(actor: Any, reminder: Reminder, context: "Context") -> Any:
        if not context.reminding.stands(reminder):
            return None
        result = function(actor, reminder, context)
        context.reminding.acknowledge(reminder)
        return result

    async def handle_async(actor: Any, reminder: Reminder, context: "Context") -> Any:
        if not context.reminding.stands(reminder):
            return None
        result = await function(actor, reminder, context)
        context.reminding.acknowledge(reminder)
        return result

    return replace(handler, function=handle_async if handler.is_async else handle, gated=True)
