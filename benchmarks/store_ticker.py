"""How long commits keep the event loop from going on, told apart from what the load itself and the machine take.

A ticker is always ready to run, so the loop never sleeps. Between two of its ticks the loop's thread was running (what
the load takes in Python), or it was ready but had no core (another process had it; the kernel counts that), or it was
blocked: it waited for the interpreter's lock, which the committing thread held, or for a call into the store. Only that
last part is what commits cost the loop. The same load on a store in memory, which has no other thread, shows what of it
is the machine's: pages that have to be found, interrupts, the time that a hypervisor takes.
"""

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from closed_loop import Caller, Round, closed_loop
from store_load import Book, Conversations, Load, checkpoint_of_loop
from store_rows import Opener
from system_process import Figures

__all__ = ["ticker"]


@dataclass(slots=True)
class Ticks:
    """What lay between each two ticks, in seconds."""

    gaps_s: list[float] = field(default_factory=lambda: list[float]())
    blocked_s: list[float] = field(default_factory=lambda: list[float]())

    async def run(self) -> None:
        """Tick until cancelled."""
        checkpoint = checkpoint_of_loop()
        statistics = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        wall_s, had_s = time.perf_counter(), self._had_s(statistics)
        try:
            while True:
                await checkpoint()
                now_s, now_had_s = time.perf_counter(), self._had_s(statistics)
                self.gaps_s.append(now_s - wall_s)
                self.blocked_s.append(now_s - wall_s - (now_had_s - had_s))
                wall_s, had_s = now_s, now_had_s
        finally:
            os.close(statistics)

    @staticmethod
    def _had_s(statistics: int) -> float:
        """What this thread has had of cores, or of queues for one."""
        ran_s = time.thread_time()
        _, queued_ns, _ = os.pread(statistics, 100, 0).split()
        return ran_s + int(queued_ns) / 1e9

    def figures(self, name: str) -> Figures:
        blocked_s = sorted(self.blocked_s)
        return {
            f"{name}_blocked_max_ms": max(blocked_s[-1], 0.0) * 1e3,
            f"{name}_blocked_p999_ms": max(blocked_s[len(blocked_s) * 999 // 1000], 0.0) * 1e3,
            f"{name}_tick_max_ms": max(self.gaps_s) * 1e3,
        }


async def ticker(openers: Mapping[str, Opener], load: Load) -> Figures:
    """100 writers on 1 000 sessions beside a ticker, on each of the stores."""
    figures: Figures = {}
    for name, opener in openers.items():
        with tempfile.TemporaryDirectory(dir=load.folder) as folder:
            async with opener(Path(folder)) as conversations:
                ticks, done = Ticks(), Round()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ticks.run)
                    done = await closed_loop(writers(conversations, load), seconds=load.seconds)
                    tasks.cancel_scope.cancel()
                figures |= ticks.figures(name) | {f"{name}_turns_per_s": done.per_s}
    return figures


def writers(conversations: Conversations, load: Load) -> list[Caller]:
    """They let others run after each turn: a store in memory answers without any wait, and nobody else would."""
    book, checkpoint = Book(), checkpoint_of_loop()
    each = load.sessions // load.writers

    def polite(caller: Caller) -> Caller:
        async def call() -> None:
            await caller()
            await checkpoint()

        return call

    return [
        polite(book.caller(conversations, writer, [f"session-{writer}-{number}" for number in range(each)]))
        for writer in range(load.writers)
    ]
