"""OpenAI Agents SDK in the rows of bench_store.py: an SQLiteSession per session, all on one file, each object kept.

It opens a connection per session and thread of asyncio's pool, thousands of them: so it becomes faster from round to
round, which is why its sessions stay open between the rounds. WAL is what it sets itself; synchronous=FULL, which most
builds of SQLite have as their default, is set here, so that its answers are as durable as ours.
"""

import importlib
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from store_load import Conversations, Measure
from store_rows import ConversationRows

__all__ = ["measures"]

# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
agents: Any = importlib.import_module("agents")


class FullSession(agents.SQLiteSession):
    """Each connection is as durable as the others'."""

    configured = 0

    @staticmethod
    def _configure_connection(conn: sqlite3.Connection) -> None:
        agents.SQLiteSession._configure_connection(conn)
        conn.execute("PRAGMA synchronous=FULL")
        modes = [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert modes == ["wal", 2], f"SQLite is in the modes {modes}"
        FullSession.configured += 1


class OpenAISessions:
    """The sessions of one file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sessions: dict[str, Any] = {}

    async def add(self, session: str, texts: Sequence[str]) -> None:
        roles = ("user", "assistant")
        items = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
        await self._session(session).add_items(items)

    async def messages(self, session: str, *, limit: int | None = None) -> Sequence[Any]:
        return await self._session(session).get_items(limit=limit)

    def text_of(self, message: Any) -> str:
        return message["content"]

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = FullSession(name, self._file)
        return self._sessions[name]


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Conversations]:
    sessions = OpenAISessions(folder / "sessions.db")
    yield sessions
    sessions.close()
    assert FullSession.configured, "SQLiteSession no longer makes its connections durable where this expects it"


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return ConversationRows(opened).measures()
