"""Raw SQLite in the rows of bench_store.py: WAL, synchronous=FULL, a commit per turn, and nothing around it.

One thread owns the connection, which is faster than a lock that many threads fight for. One callback a turn brings its
answer to the event loop.
"""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from store_load import Conversations, Measure
from store_rows import ConversationRows

__all__ = ["measures"]

Turn: TypeAlias = tuple[list[tuple[str, str]], "asyncio.Future[None]"]


class Table:
    """One table of messages, and the thread that writes it."""

    def __init__(self, file: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE IF NOT EXISTS said (id INTEGER PRIMARY KEY, session TEXT, text TEXT)")
        self._connection.execute("CREATE INDEX IF NOT EXISTS of_session ON said (session, id)")
        self._queue: deque[Turn] = deque()
        self._wanted = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    async def add(self, session: str, texts: Sequence[str]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(([(session, text) for text in texts], done))
        self._wanted.release()
        await done

    async def messages(self, session: str, *, limit: int | None = None) -> Sequence[Any]:
        rows = self._connection.execute(
            "SELECT text FROM said WHERE session = ? ORDER BY id DESC LIMIT ?",
            (session, -1 if limit is None else limit),
        )
        return rows.fetchall()[::-1]

    def text_of(self, message: Any) -> str:
        return message[0]

    def close(self) -> None:
        self._wanted.release()
        self._thread.join()
        self._connection.close()

    def _work(self) -> None:
        execute = self._connection.execute
        while True:
            self._wanted.acquire()
            if not self._queue:
                return
            rows, done = self._queue.popleft()
            execute("BEGIN")
            for row in rows:
                execute("INSERT INTO said (session, text) VALUES (?, ?)", row)
            execute("COMMIT")
            self._loop.call_soon_threadsafe(done.set_result, None)


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Conversations]:
    table = Table(folder / "said.db")
    yield table
    table.close()


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return ConversationRows(opened).measures()
