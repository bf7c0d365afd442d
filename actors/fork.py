"""What a session is when another is forked from it, read from the store.

It is read beside the loop and beside the session's actor, as of one committed head: places are never given twice and
messages never rewritten, so that what comes meanwhile is told by its place, and what is edited meanwhile is still
there.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from msgspec.structs import replace

from ..store.contract import Row, Store
from ..store.errors import CallboardError
from .archive import Archive
from .edit_messages import BeginFork
from .errors import TooLarge, UnknownSession
from .ledger import message_id
from .limits import check_metadata
from .message import Message
from .session_records import ROW_MESSAGES_MAX, ForkOrigin, SessionHead, message_rows, stream_of
from .state_records import read_values

__all__ = ["read_fork"]

_TRIES_MAX = 20
"""How often head and state are read again that a turn has changed between the two reads, of some 20 us."""


async def read_fork(
    store: Store, session_id: str, new_id: str, *, at_seq: int | None, patch: Mapping[str, Any]
) -> BeginFork:
    """The beginning of the session `new_id`: this one up to a place, with a patch of its metadata. See Session.fork."""
    return await anyio.to_thread.run_sync(partial(_read, store, session_id, new_id, at_seq=at_seq, patch=patch))


def _read(store: Store, session_id: str, new_id: str, *, at_seq: int | None, patch: Mapping[str, Any]) -> BeginFork:
    archive = Archive(store)
    head, state = _head_and_state(archive, store, session_id)
    last = head.last_seq if at_seq is None else min(at_seq, head.last_seq)
    messages: list[Message] = []
    rows: list[Row] = []
    taken = 0
    for window in archive.windows(session_id, last, removed=head.removed):
        taken = window[-1].seq
        numbered = [
            replace(message, seq=seq, id=message_id(seq)) for seq, message in enumerate(window, len(messages) + 1)
        ]
        messages += numbered
    for start in range(0, len(messages), ROW_MESSAGES_MAX):
        rows += message_rows(messages[start : start + ROW_MESSAGES_MAX])
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
        last_seq=len(messages),
        forked_from=ForkOrigin(session_id, taken),
    )
    return BeginFork(fork, tuple(messages), tuple(rows), state)


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
