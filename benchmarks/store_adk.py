"""Google ADK in the rows of bench_store.py: its DatabaseSessionService on SQLite, one event a message.

It commits each event, so a turn is two commits; it has no call for two. A session object is kept for each session, as
its runner keeps one. With 1 000 sessions, to make them would take longer than the rest of the row: it has 100.
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
services: Any = importlib.import_module("google.adk.sessions.database_session_service")
events: Any = importlib.import_module("google.adk.events.event")
types: Any = importlib.import_module("google.genai.types")
sqlalchemy: Any = importlib.import_module("sqlalchemy")

SESSIONS_MAX = 100
WHO = {"app_name": "bench", "user_id": "everybody"}


class Service:
    """The sessions of one file."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._sessions: dict[str, Any] = {}

    async def add(self, session: str, texts: Sequence[str]) -> None:
        if session not in self._sessions:
            self._sessions[session] = await self._service.create_session(**WHO, session_id=session)
        for place, text in enumerate(texts):
            role, author = ("model", "agent") if place % 2 else ("user", "user")
            content = types.Content(role=role, parts=[types.Part(text=text)])
            event = events.Event(author=author, invocation_id="one", content=content)
            await self._service.append_event(self._sessions[session], event)

    async def messages(self, session: str, *, limit: int | None = None) -> Sequence[Any]:
        config = {"config": {"num_recent_events": limit}} if limit is not None else {}
        return (await self._service.get_session(**WHO, session_id=session, **config)).events

    def text_of(self, message: Any) -> str:
        return message.content.parts[0].text


def be_durable(connection: Any, _record: object) -> None:
    cursor: sqlite3.Cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Conversations]:
    async with services.DatabaseSessionService(f"sqlite+aiosqlite:///{folder / 'events.db'}") as service:
        sqlalchemy.event.listen(service.db_engine.sync_engine, "connect", be_durable)
        await service.prepare_tables()
        yield Service(service)


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return ConversationRows(opened, sessions_max=SESSIONS_MAX).measures()
