"""What a session gives of its history to those who look at it through a window: its ends, and the latest summary."""

import logging

from ..runtime.actor import handles
from ..runtime.context import Context
from ..runtime.identity import ActorId
from ..store.errors import StoreError
from .overlay import Overlay
from .seq_ranges import count_visible
from .session_messages import ReadExcerpt, ReadUncovered, Uncovered
from .session_reads import ReadableSession
from .session_records import SessionHead
from .window import Excerpt, ExcerptNeed

__all__ = ["WindowedSession"]

_log = logging.getLogger("callboard.session")


class WindowedSession(ReadableSession):
    """See the module's text."""

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self._overlays: dict[int, Overlay] = {}  # by `overlay_seq`: the visible one, and the staged one

    @handles(ReadExcerpt, gated=False)
    def read_excerpt(self, message: ReadExcerpt, context: Context) -> Excerpt:
        """As everybody sees it."""
        head, need = self.visible, message.need
        if head is None:
            return Excerpt()
        if need is None:
            return Excerpt(tuple(self.visible_history.read(1, head.last_seq)))
        self.visible_history.load_for(need)
        messages, gap_at, gap = self.visible_history.excerpt(need, staged=False)
        overlay = self.overlay_of(head) if need.overlay else None
        return Excerpt(tuple(messages), gap_at, gap, overlay, dict(head.window_cuts).get(need.window, 0))

    @handles(ReadUncovered, gated=False)
    def read_uncovered(self, message: ReadUncovered, context: Context) -> Uncovered:
        """As everybody sees it."""
        head = self.visible
        if head is None:
            return Uncovered((), None, 0, 0)
        overlay, last = self.overlay_of(head), min(message.last_seq, head.last_seq)
        first = overlay.last_seq + 1 if overlay is not None else 1
        messages = self.visible_history.read(first, last)
        return Uncovered(tuple(messages), overlay, count_visible(head.removed, 1, last), head.created_at_ms)

    def load_for(self, need: ExcerptNeed | None, context: Context) -> None:
        """Read what is not in memory yet, so that `granted_excerpt` finds it there. StoreError where that fails."""
        if need is None:
            self.history.load()
            return
        self.history.load_for(need)
        if need.overlay and self.ledger.head is not None:
            self.overlay_of(self.ledger.head)

    def granted_excerpt(self, need: ExcerptNeed | None, context: Context) -> Excerpt:
        """What a turn begins with; it cannot fail once `load_for` has not."""
        if need is None:
            return Excerpt(self.history.whole())
        try:
            self.load_for(need, context)  # the turns before may have taken out what was read then
        except StoreError as error:
            _log.error("a turn of session %r sees less of history than it could: %s", self.id.key, error)
        messages, gap_at, gap = self.history.excerpt(need, staged=True)
        head = self.ledger.head
        assert head is not None, "a turn begins in a session that is there"
        overlay = self.overlay_of(head) if need.overlay else None
        return Excerpt(tuple(messages), gap_at, gap, overlay, dict(head.window_cuts).get(need.window, 0))

    def overlay_of(self, head: SessionHead) -> Overlay | None:
        """The latest overlay; None where there is none, or edits have changed what it covers."""
        if not head.overlay_seq:
            return None
        overlay = self._overlays.get(head.overlay_seq)
        if overlay is None:
            overlay = self.archive.overlay(self.id.key, head.overlay_seq)
            if overlay is not None:
                self.keep_overlay(overlay)
        if overlay is None or count_visible(head.removed, 1, overlay.last_seq) != overlay.message_count:
            return None
        return overlay

    def keep_overlay(self, overlay: Overlay) -> None:
        """This is in the store, or on its way there."""
        self._overlays.pop(overlay.last_seq, None)
        self._overlays[overlay.last_seq] = overlay
        if len(self._overlays) > 2:
            del self._overlays[next(iter(self._overlays))]
