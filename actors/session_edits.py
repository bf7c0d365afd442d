"""Editing history: the half of a session's actor that takes messages out of it, and begins one as a fork.

An edit is a turn of one step: it waits for the turns before it, and those behind it see what it left. It writes a row
of its own and puts the places that it took into the head; messages are never rewritten and no place is given twice. So
the raw log stays readable, and what a run wrote stays where its record says.

    history  1 2 3 4 5     pop(2)  ──►  1 2 3      append  ──►  1 2 3 6      rewind(2)  ──►  1 2
    removed  -                          (4, 5)                  (4, 5)                       (3, 6)

An edit may take a tool's result and leave its call, or the other way round: views are repaired, see conversation.py.
"""

from functools import partial

from ..runtime.actor import handles
from ..runtime.context import Context, Ticket
from .edit_messages import BeginFork, Edited, EditHistory, PageRead, ReadPage
from .edit_record import EditRecord
from .errors import SessionExists
from .message import Message
from .seq_ranges import Ranges, add_range, first_of_latest, last_of_earliest, visible_spans
from .session_records import SessionHead
from .session_state import StatefulSession
from .window import ExcerptNeed

__all__ = ["REMOVED_RANGES_MAX", "EditableSession"]

REMOVED_RANGES_MAX = 1_000
"""Gaps that edits may leave between messages: the list of them, some 8 KB, is written with every commit."""


class EditableSession(StatefulSession):
    """See the module's text."""

    @handles(EditHistory, retryable=True, on_cancel="cancel")
    def edit_history(self, message: EditHistory, context: Context) -> Ticket | Edited:
        """Take messages out of history, now or when the turns before it have ended."""
        # A store that cannot be read refuses here, not when the edit's turn has come.
        if message.kind == "pop" and self.turns.running is None:  # its turn is now: no more is needed than it takes
            self.history.load_for(_latest(message.count))
        elif message.kind == "pop" or message.run_id is not None:
            self.history.load()
        if message.run_id is not None:
            self._check_run(message.run_id)
        return self.in_turn(message, context, partial(self._edit, message))

    @handles(ReadPage, gated=False)
    def read_page(self, message: ReadPage, _context: Context) -> PageRead:
        head = self.visible
        last_seq, removed = (0, ()) if head is None else (head.last_seq, head.removed)
        if message.after_seq is not None:
            first = min(message.after_seq, last_seq) + 1
            last = last_of_earliest(removed, first, last_seq, message.limit)
        else:
            assert message.before_seq is not None
            last = max(0, min(message.before_seq - 1, last_seq))
            first = first_of_latest(removed, last, message.limit)
        return PageRead(
            self.visible_history.read(first, last),
            first,
            last,
            any(visible_spans(removed, 1, first - 1)),
            any(visible_spans(removed, last + 1, last_seq)),
        )

    @handles(BeginFork)
    def begin_fork(self, message: BeginFork, context: Context) -> SessionHead:
        """Be the fork, in one commit."""
        if self.ledger.head is not None:
            raise SessionExists(f"there is a session {self.id.key!r} already: fork to another id")
        head = self.ledger.begin(message.head, message.rows, at_ms=context.wall_ms())
        self.history.extend(message.messages)
        if message.state:
            self.copy_state(message.state, context)
        if message.overlay is not None:
            self.ledger.put_overlay(message.overlay, at_ms=context.wall_ms())
            self.keep_overlay(message.overlay)
        self.stage(context)
        return head

    def _check_run(self, run_id: str) -> None:
        """UnknownRun where the session never had a run of this id, nor was it forked from one that had."""
        if run_id in self.ledger.runs or run_id in self.ledger.ended:
            return
        if all(message.run_id != run_id for message in self.history.whole()):
            self.archive.run(self.id.key, run_id)

    def _edit(self, message: EditHistory, number: int, context: Context) -> Edited:
        head = self.ledger.head
        first = self._first_to_go(message, head) if head is not None else 1
        taken: Ranges = tuple(visible_spans(head.removed, first, head.last_seq)) if head is not None else ()
        if head is None or not taken:
            return Edited(0)
        if len(add_range(head.removed, taken[0][0], taken[-1][1])) > REMOVED_RANGES_MAX:
            return Edited(0, refusal=_too_many(self.id.key))
        popped: list[Message] = []
        if message.kind == "pop":
            latest, _, _ = self.history.excerpt(_latest(message.count), staged=True)
            popped = [each for each in latest if each.seq >= first]  # not others for those that cannot be read
        record = EditRecord(
            number=number,
            kind=message.kind,
            removed=taken,
            at_ms=context.wall_ms(),
            revision=0,  # the ledger knows it
            by=message.by,
            reason=message.reason,
            run_id=message.run_id,
        )
        self.ledger.edit(record)
        assert self.ledger.head is not None
        self.history.remove(self.ledger.head.removed)
        return Edited(sum(end - start + 1 for start, end in taken), tuple(popped))

    def _first_to_go(self, message: EditHistory, head: SessionHead) -> int:
        if message.kind == "pop":
            return first_of_latest(head.removed, head.last_seq, message.count)
        if message.run_id is None:
            return message.to_seq + 1
        wrote = (each.seq for each in self.history.whole() if each.run_id == message.run_id)
        return next(wrote, head.last_seq + 1)


def _latest(count: int) -> ExcerptNeed:
    return ExcerptNeed(first=0, messages=count, characters=None)


def _too_many(session_id: str) -> str:
    return (
        f"the history of session {session_id!r} has {REMOVED_RANGES_MAX} gaps that edits left, and takes no more: "
        "rewind further back, or go on with a fork, which has none"
    )
