"""Pages of a history, and the cursors between them. Pure.

A cursor is a place in one session and a direction: "before 17", "behind 16". Places are given once, so it stays good
while others append and after edits: what is there is given once, what an edit removed is not given.
"""

from msgspec import Struct

from .cursors import Cursors
from .edit_messages import PageRead, ReadPage
from .message import Message

__all__ = ["MessagePage", "first_page", "following_page", "page_of"]

_ADVICE = "pass page.older, page.newer or page.resume of a page of this session, unchanged"
_BEFORE, _BEHIND = b"<", b">"
_LAST_PLACE = 2**63 - 1


class MessagePage(Struct, frozen=True):
    """Some messages of a history, oldest first.

    Attributes:
        messages: at most as many as were asked for; fewer where some cannot be read.
        older: the cursor of the page before this one; None where history begins here.
        newer: that of the page behind this one; None where there is nothing now.
        resume: the same, and always there: for who comes back later.
    """

    messages: list[Message]
    older: str | None
    newer: str | None
    resume: str


def first_page(limit: int, *, newest_first: bool) -> ReadPage:
    """The page at the end of history, or at its beginning."""
    return ReadPage(limit, before_seq=_LAST_PLACE) if newest_first else ReadPage(limit, after_seq=0)


def following_page(session_id: str, limit: int, cursor: object) -> ReadPage:
    """The page that a cursor leads to.

    Raises:
        TypeError, ValueError: this session has given no such cursor.
    """
    cursors = _cursors(session_id)
    found = cursors.place(cursor)
    direction, place = found[:1], found[1:]
    if direction not in (_BEFORE, _BEHIND) or len(place) != 8 or place[0] > 0x7F:
        raise cursors.refusal(cursor)
    seq = int.from_bytes(place, "big")
    return ReadPage(limit, before_seq=seq) if direction == _BEFORE else ReadPage(limit, after_seq=seq)


def page_of(session_id: str, read: PageRead) -> MessagePage:
    """What was read, with its cursors."""
    cursors = _cursors(session_id)
    older = cursors.to(_BEFORE + read.first.to_bytes(8, "big"))
    newer = cursors.to(_BEHIND + read.last.to_bytes(8, "big"))
    return MessagePage(read.messages, older if read.more_before else None, newer if read.more_behind else None, newer)


def _cursors(session_id: str) -> Cursors:
    return Cursors.of(session_id, what=f"session {session_id!r}", advice=_ADVICE)
