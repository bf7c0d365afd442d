"""What is kept of an edit of a session's history: a row of its own, so that nothing that was said is ever rewritten."""

from typing import Literal, TypeAlias

from msgspec import Struct

from .message import Message
from .seq_ranges import Ranges, is_removed

__all__ = ["Audit", "EditKind", "EditRecord"]

EditKind: TypeAlias = Literal["pop", "rewind", "clear"]


class EditRecord(Struct, frozen=True, omit_defaults=True, tag="edit"):
    """One edit: which messages nobody sees since then. They stay in the store, `session.audit()` reads them.

    Attributes:
        number: the turn that the edit was; edits are in this order.
        kind: "pop" took the latest messages, "rewind" all behind a place, "clear" all.
        removed: the places that were visible until then, as ranges (first, last), both included, in order.
        at_ms: when, in milliseconds since 1970, UTC.
        revision: the session's, since which they are not visible.
        by: whom the caller named, or None.
        reason: what the caller gave, or "".
        run_id: for a rewind to where a run began: that run.
    """

    number: int
    kind: EditKind
    removed: Ranges
    at_ms: int
    revision: int
    by: str | None = None
    reason: str = ""
    run_id: str | None = None

    def has_removed(self, seq: int) -> bool:
        """True where this edit took away the message at this place."""
        return is_removed(self.removed, seq)


class Audit(Struct, frozen=True):
    """All that was ever said in a session, whatever was edited, and the edits; both oldest first."""

    messages: list[Message]
    edits: list[EditRecord]

    def removed_by(self, message: Message) -> EditRecord | None:
        """The edit that took this message out of history; None where it is still in it."""
        return next((edit for edit in self.edits if edit.has_removed(message.seq)), None)
