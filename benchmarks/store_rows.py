"""The rows of bench_store.py that every system of conversations has.

What a row has opened stays open between its rounds, so that later ones find connections, caches and sessions warm. At
its end all is closed, opened again and read: what does not stand in the file as it was acknowledged is counted.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio
from closed_loop import closed_loop, fdatasync_s
from messaging_load import alternating_us
from store_disk import stored_bytes, written_bytes
from store_load import Book, Conversations, Load, Measure, figures_of
from system_process import Figures

__all__ = ["ConversationRows", "Opener"]

Opener: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Conversations]]
"""Opens a system's conversations in a folder, which may hold some already."""

AGENTS = 20
COLD_TURNS = 50
LAST = 50
LAST_TURNS = 5_000
IMPORT_TURNS = 50


class ConversationRows:
    """A system's rows, one after the other.

    Args:
        opener: of the system.
        sessions_max: for one that takes very long to make "1 000 sessions".
        turn_by_turn: whether histories are made ready as they come about, by a call a turn. Where a turn is stored the
            same way whether it comes alone or not, that would only take longer.
    """

    def __init__(self, opener: Opener, *, sessions_max: int | None = None, turn_by_turn: bool = False) -> None:
        self._opener = opener
        self._sessions_max = sessions_max
        self._turns_at_once = 1 if turn_by_turn else IMPORT_TURNS
        self._row = ""
        self._stack = AsyncExitStack()
        self._folder = Path()
        self._written_bytes = 0
        self.conversations: Conversations
        self.book = Book()

    def measures(self) -> Mapping[str, Measure]:
        return {
            "writers": self.writers,
            "slow": self.slow,
            "one": self.one,
            "agents": self.agents,
            "cold": self.cold,
            "last": self.last,
            "end": self.end,
        }

    async def slow(self, load: Load) -> Figures:
        """The same as `writers`, in a process whose flushes take a millisecond longer."""
        flush_ms = statistics.median(fdatasync_s(Path(load.folder) / f"flush-{os.getpid()}", times=20)) * 1e3
        assert flush_ms > 1.0, f"a flush takes {flush_ms:.2f} ms: slow_flush.c is not at work in this process"
        return await self.writers(load) | {"flush_ms": flush_ms}

    async def writers(self, load: Load) -> Figures:
        """100 writers, each of which has ten of 1 000 sessions for itself."""
        each = min(load.sessions, self._sessions_max or load.sessions) // load.writers
        new = await self.begin("writers", load)
        sessions = [[f"session-{writer}-{number}" for number in range(each)] for writer in range(load.writers)]
        callers = [self.book.caller(self.conversations, writer, own) for writer, own in enumerate(sessions)]
        if new:
            await together(callers, times=each)
        return figures_of(await closed_loop(callers, seconds=load.seconds))

    async def one(self, load: Load) -> Figures:
        """One session, one turn after the other."""
        await self.begin("one", load)
        caller = self.book.caller(self.conversations, 0, ["the-one"])
        return figures_of(await closed_loop([caller], seconds=load.seconds))

    async def agents(self, load: Load) -> Figures:
        """20 agents on one session."""
        await self.begin("agents", load)
        callers = [self.book.caller(self.conversations, agent, ["shared"]) for agent in range(AGENTS)]
        return figures_of(await closed_loop(callers, seconds=load.seconds))

    async def cold(self, load: Load) -> Figures:
        """All messages of each of 1 000 sessions of 100, none of which was looked at since the store was opened."""
        sessions = [f"session-{number}" for number in range(load.sessions)]
        if await self.begin("cold", load):
            await self.make_ready(load, dict.fromkeys(sessions, COLD_TURNS))
        began_s = time.perf_counter()
        await self._reopen()
        open_s = time.perf_counter() - began_s
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for session in sessions:
            messages = await self.conversations.messages(session)
            assert len(messages) == 2 * COLD_TURNS, f"{session} has {len(messages)} messages"
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        await self._reopen()
        return {
            "reopen_ms": open_s * 1e3,
            "cold_us": took_s / len(sessions) * 1e6,
            "cold_cpu_us": cpu_s / len(sessions) * 1e6,
            "cold_together_us": await self._read_together(sessions, readers=load.writers),
        }

    async def last(self, load: Load) -> Figures:
        """The last 50 of 10 000 messages, and of 100."""
        if await self.begin("last", load):
            await self.make_ready(load, {"long": LAST_TURNS, "short": LAST})

        async def read(session: str, times: int) -> None:
            for _ in range(times):
                messages = await self.conversations.messages(session, limit=LAST)
                assert len(messages) == LAST, f"{session} gave {len(messages)} messages"

        ways = {"last_50_us": partial(read, "long"), "last_50_of_100_us": partial(read, "short")}
        return await alternating_us(load.seconds / 2, ways)

    async def end(self, load: Load) -> Figures:
        """Close, and look what there is: bytes by turn and by message, and whether all is as it was acknowledged."""
        if not self._row:
            return {}
        await self._stack.aclose()
        turns = sum(sum(each.values()) for each in self.book.turns.values())
        figures = {
            "written_bytes": (written_bytes() - self._written_bytes) / turns,
            "stored_message_bytes": stored_bytes(self._folder) / turns / 2,
        }
        async with self._opener(self._folder) as conversations:
            figures |= await self.book.compare(conversations)
        shutil.rmtree(self._folder)
        self._row = ""
        return figures

    async def begin(self, row: str, load: Load) -> bool:
        """Open what the row works on; False where an earlier round of it has done so."""
        if self._row == row:
            return False
        await self.end(load)
        self._row, self.book = row, Book()
        self._folder = Path(tempfile.mkdtemp(dir=load.folder))
        self._written_bytes = written_bytes()
        await self._open()
        return True

    async def make_ready(self, load: Load, turns_of: Mapping[str, int]) -> None:
        """Give each session so many turns more. A long history has many writers, so that they share commits."""
        works: list[Callable[[], Awaitable[None]]] = []
        for session, turns in turns_of.items():
            writers = AGENTS if turns > COLD_TURNS else 1
            works += [partial(self._fill, session, writer, turns // writers) for writer in range(writers)]
        for first in range(0, len(works), load.writers):
            await together(works[first : first + load.writers], times=1)

    async def _fill(self, session: str, writer: int, turns: int) -> None:
        while turns > 0:
            at_once = min(turns, self._turns_at_once)
            await self.book.fill(self.conversations, session, writer=writer, turns=at_once)
            turns -= at_once

    async def _open(self) -> None:
        self._stack = AsyncExitStack()
        self.conversations = await self._stack.enter_async_context(self._opener(self._folder))

    async def _reopen(self) -> None:
        await self._stack.aclose()
        await self._open()

    async def _read_together(self, sessions: Sequence[str], *, readers: int) -> float:
        async def read(own: Sequence[str]) -> None:
            for session in own:
                await self.conversations.messages(session)

        began_s = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for reader in range(readers):
                tasks.start_soon(read, sessions[reader::readers])
        return (time.perf_counter() - began_s) / len(sessions) * 1e6


async def together(callers: Sequence[Callable[[], Awaitable[None]]], *, times: int) -> None:
    """Let each of them call so many times, in a task of its own."""

    async def work(caller: Callable[[], Awaitable[None]]) -> None:
        for _ in range(times):
            await caller()

    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(work, caller)
