"""callboard in the rows of bench_store.py: what a user would write, with everything on that is on by default.

The store is LMDB with durability "sync", save where a figure's name says otherwise.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from closed_loop import Caller
from messaging_load import alternating_us
from store_committing import busy, committers
from store_load import Conversations, Load, Measure
from store_rows import ConversationRows
from store_ticker import ticker
from system_process import Figures

from callboard import Message, Runtime, Session

__all__ = ["measures", "opened"]

SHORT_SESSIONS = 100
"""So many share the appends at 10 messages, so that each stays near that length."""
MIDDLE_SESSIONS = 10


class OurSessions:
    """The sessions of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._sessions: dict[str, Session] = {}

    async def add(self, session: str, texts: Sequence[str]) -> None:
        roles = ("user", "assistant")
        messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
        await self._session(session).add_messages(messages)

    async def messages(self, session: str, *, limit: int | None = None) -> Sequence[Message]:
        return await self._session(session).messages(limit=limit)

    def text_of(self, message: Any) -> str:
        return message.content

    def _session(self, name: str) -> Session:
        if name not in self._sessions:
            self._sessions[name] = Session(self._runtime, name)
        return self._sessions[name]


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Conversations]:
    async with Runtime(folder / "sessions.lmdb") as runtime:
        yield OurSessions(runtime)


@asynccontextmanager
async def opened_with_writer_process(folder: Path) -> AsyncGenerator[Conversations]:
    async with Runtime(folder / "sessions.lmdb", writer="process") as runtime:
        yield OurSessions(runtime)


@asynccontextmanager
async def opened_in_memory(_folder: Path) -> AsyncGenerator[Conversations]:
    async with Runtime.in_memory() as runtime:
        yield OurSessions(runtime)


async def append(rows: ConversationRows, load: Load) -> Figures:
    """One append to a history of 10, 1 000 and 100 000 messages."""
    short = {f"short-{number}": 5 for number in range(SHORT_SESSIONS)}
    middle = {f"middle-{number}": 500 for number in range(MIDDLE_SESSIONS)}
    long = {"long": load.long // 2}
    if await rows.begin("append", load):
        await rows.make_ready(load, {**short, **middle, **long})

    async def appends(caller: Caller, times: int) -> None:
        for _ in range(times):
            await caller()

    histories = {"append_10_us": short, "append_1000_us": middle, "append_100000_us": long}
    callers = {name: rows.book.caller(rows.conversations, 0, list(sessions)) for name, sessions in histories.items()}
    return await alternating_us(load.seconds, {name: partial(appends, caller) for name, caller in callers.items()})


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    rows = ConversationRows(opened, turn_by_turn=True)
    openers = {"lmdb": opened, "process": opened_with_writer_process, "memory": opened_in_memory}
    return {
        **rows.measures(),
        "append": partial(append, rows),
        "ticker": partial(ticker, openers),
        "committers": committers,
        "busy": busy,
    }
