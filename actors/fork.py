"""What a session is when another is forked from it, read from the store.

It is read beside the loop and beside the session's actor, as of one committed head: places are never given twice and
messages never rewritten, so that what comes meanwhile is told by its place, and what is edited meanwhile is still
there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from ..store.contract import Row, Store
from ..store.errors import CallboardError
from .archive import Archive
from .edit_messages import BeginFork
from .errors import TooLarge, UnknownSession
from .ledger import message_id
from .limits import check_metadata
from .long_work import work_through
from .message import Message
from .overlay import Overlay
from .seq_ranges import count_visible
from .session_records import ForkOrigin, SessionHead, message_rows, stream_of
from .state_records import read_values

__all__ = ["read_fork"]

_TRIES_MAX = 20
"""How often head and state are read again that a turn has changed between the two reads, of some 20 us."""


async def read_fork(
    store: Store, session_id: str, new_id: str, *, at_seq: int | None, patch: Mapping[str, Any]
) -> BeginFork:
    """The beginning of the session `new_id`: this one up to a place, with a patch of its metadata. See Session.fork."""
    archive = Archive(store)
    head, state = _head_and_state(archive, store, session_id)
    reading = _Reading(archive, head, head.last_seq if at_seq is None else min(at_seq, head.last_seq))
    await work_through(store, reading.steps())
    now = archive.head(session_id)
    if now is None or now.created_at_ms != head.created_at_ms or now.revision < head.revision:
        raise UnknownSession(f"session {session_id!r} was deleted while it was forked")
    fork = SessionHead(
        id=new_id,
        created_at_ms=0,  # its actor's clock counts
        updated_at_ms=0,
        owner=head.owner,
        tags=head.tags,
        metadata=_patched(head.metadata, patch),
        last_seq=len(reading.messages),
        forked_from=ForkOrigin(session_id, reading.taken),
    )
    overlay: Overlay | None = None
    if len(reading.messages) == count_visible(head.removed, 1, reading.last):  # else places cannot be told any more
        overlay = _overlay_of(archive, head, reading.last)
        cuts = ((name, count_visible(head.removed, 1, cut - 1) + 1) for name, cut in head.window_cuts)
        fork = replace(fork, window_cuts=tuple((name, cut) for name, cut in cuts if cut <= fork.last_seq))
    return BeginFork(fork, tuple(reading.messages), tuple(reading.rows), state, overlay)


def _overlay_of(archive: Archive, head: SessionHead, last: int) -> Overlay | None:
    """The summary of the messages up to a place, as the fork numbers them; None where there is none that holds."""
    overlay = archive.overlay(head.id, head.overlay_seq) if head.overlay_seq else None
    if overlay is None:
        return None
    count = count_visible(head.removed, 1, overlay.last_seq)
    return replace(overlay, last_seq=count) if overlay.last_seq <= last and count == overlay.message_count else None


@dataclass(slots=True)
class _Reading:
    """The messages up to a place, numbered anew, with their rows; `taken` is the place that the last one had."""

    archive: Archive
    head: SessionHead
    last: int
    messages: list[Message] = field(default_factory=list[Message])
    rows: list[Row] = field(default_factory=list[Row])
    taken: int = 0

    def steps(self) -> Iterator[None]:
        for window in self.archive.windows(self.head.id, self.last, removed=self.head.removed):
            numbered = [
                replace(message, seq=seq, id=message_id(seq))
                for seq, message in enumerate(window, len(self.messages) + 1)
            ]
            self.taken = window[-1].seq
            self.messages += numbered
            self.rows += message_rows(numbered)
            yield


def _head_and_state(archive: Archive, store: Store, session_id: str) -> tuple[SessionHead, dict[str, Any]]:
    """The two as of one commit."""
    for _ in range(_TRIES_MAX):
        head = archive.head(session_id)
        if head is None:
            raise UnknownSession(f"there is no session {session_id!r} yet, so it cannot be forked")
        state = read_values(store, stream_of(session_id))
        if archive.head(session_id) == head:
            return head, state
    raise CallboardError(f"session {session_id!r} changes faster than it can be read: try again")


def _patched(metadata: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**metadata, **patch}
    try:
        return check_metadata({key: value for key, value in merged.items() if patch.get(key, value) is not None})
    except ValueError as error:
        raise TooLarge(str(error)) from error
