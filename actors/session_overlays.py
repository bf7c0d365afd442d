"""A session takes a summary that was made outside of it, unless its history has changed under it. See compaction.py."""

from ..runtime.actor import handles
from ..runtime.context import Context
from .seq_ranges import count_visible
from .session_messages import CommitOverlay
from .session_turns import TurnSession

__all__ = ["CompactedSession"]


class CompactedSession(TurnSession):
    """See the module's text."""

    @handles(CommitOverlay, retryable=True)
    def commit_overlay(self, message: CommitOverlay, context: Context) -> bool:
        """Let it stand for the beginning of history; False where that is not what it was any more."""
        head, overlay = self.ledger.head, message.overlay
        if head is None or head.created_at_ms != message.created_at_ms or overlay.last_seq > head.last_seq:
            return False
        if count_visible(head.removed, 1, overlay.last_seq) != overlay.message_count:
            return False
        present = self.overlay_of(head)
        if present == overlay:
            return True  # its answer was lost
        if (present.last_seq if present is not None else 0) != message.earlier_seq:
            return False
        self.ledger.put_overlay(overlay, at_ms=context.wall_ms())
        self.keep_overlay(overlay)
        self.stage(context)
        return True
