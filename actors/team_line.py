"""Chats of teams on one session stand in line, in the order in which they came: one ends before the next one begins.

A chat of a team is several turns. Turns of another chat between them would give its agents a conversation of which they
know only a half. Turns of single agents, and messages that are added, may come between: they are for all to see.

Who waits here waits for turns of the session, and is seen so by reentry.py, which refuses circles.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio

from .host import Runtime
from .reentry import check_not_held
from .session import Session

__all__ = ["in_line"]


class _Line:
    """The line of one session, as long as anybody stands in it."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = anyio.Lock()


_lines: WeakKeyDictionary[Runtime, WeakValueDictionary[str, _Line]] = WeakKeyDictionary()


@asynccontextmanager
async def in_line(session: Session) -> AsyncGenerator[None, None]:
    """Wait until the chats of teams that came before have ended; those that come later wait for this one.

    Raises:
        CyclicAsk: from within a turn of this session, or of one for whose end a chat on it waits. Nothing has begun.

    Cancellation: while it waits, nothing has begun.
    """
    check_not_held(session.id, "the chat of a team")
    lines = _lines.setdefault(session.runtime, WeakValueDictionary())
    line = lines.setdefault(session.id, _Line())
    wait = session.runtime.turn_waits.wait(session.id)
    wait.begin("the chat of a team")
    try:
        await line.lock.acquire()
    finally:
        wait.end()
    try:
        yield
    finally:
        line.lock.release()
