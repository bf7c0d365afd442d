"""The committer by itself in the rows of bench_store.py: a batch per turn, submitted as actors submit theirs.

Beside it, in the same process and at once, the least that a log on LMDB can be, with as many turns a commit as the
committer had in the mean of that very round.
"""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import anyio
from closed_loop import Caller, Round, closed_loop
from store_disk import LogOnLmdb
from store_load import Load, checkpoint_of_loop, figures_of
from system_process import Figures

from callboard.runtime.committer import Committer
from callboard.runtime.metrics import Metrics
from callboard.runtime.switch_interval import SWITCH_INTERVAL_S
from callboard.runtime.waking import current_backend
from callboard.store.contract import Batch, Row, Store, Table
from callboard.store.errors import StoreError
from callboard.store.lmdb_store import LmdbStore
from callboard.store.process_store import ProcessStore

__all__ = ["busy", "committers"]

PADDING = b"x" * 314
"""With the sixteen digits before it half of a turn's 660 bytes."""
BUSY_STEPS_S = {"busy": 0.001, "busy_short": 0.0001}
"""How long the busy task runs until it lets others run."""
BUSY_STORES: Mapping[str, Callable[[Path], Store]] = {"": LmdbStore, "_process": ProcessStore}


class Committing:
    """So many streams, and how far each has come."""

    def __init__(self, committer: Committer, streams: int) -> None:
        self.committer = committer
        self._backend = current_backend()
        self.versions = [0] * streams

    def caller(self, number: int) -> Caller:
        """Commits one turn to the stream of this number, and waits for its receipt."""
        stream, waker = f"session/{number}", self._backend.waker()
        errors: list[StoreError] = []

        def receipt(error: StoreError | None) -> None:
            if error is not None:
                errors.append(error)
            waker.wake()

        async def call() -> None:
            version = self.versions[number]
            rows = tuple(message_row(seq) for seq in (2 * version, 2 * version + 1))
            self.committer.submit(Batch(stream, 1, version, rows=rows), receipt)
            await waker.wait()
            if errors:
                raise errors[0]
            self.versions[number] = version + 1

        return call

    def check(self, folder: Path) -> dict[str, int]:
        """Open the store anew, and count what is not as its receipts said."""
        store = LmdbStore(folder)
        lost = wrong = 0
        for number, version in enumerate(self.versions):
            rows = store.scan(f"session/{number}", Table.MESSAGE)
            lost += max(2 * version - len(rows), 0)
            wrong += [key for key, _ in rows] != [seq.to_bytes(8, "big") for seq in range(len(rows))]
            wrong += any(value != message_row(seq).value for seq, (_, value) in enumerate(rows))
        store.close()
        return {"checked_messages": 2 * sum(self.versions), "lost": lost, "reordered": wrong}


def message_row(seq: int) -> Row:
    return Row(Table.MESSAGE, seq.to_bytes(8, "big"), b"%016d" % seq + PADDING)


@asynccontextmanager
async def serving(
    folder: Path, streams: int, open_store: Callable[[Path], Store] = LmdbStore
) -> AsyncGenerator[Committing]:
    """A committer on a new store, as a runtime has it."""
    store = open_store(folder)
    committer = Committer(
        store,
        current_backend(),
        Metrics(),
        run=lambda function: function(),
        switch_interval_s=SWITCH_INTERVAL_S,
    )
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(committer.serve)
            yield Committing(committer, streams)
            await committer.aclose()
            tasks.cancel_scope.cancel()
    finally:
        store.close()


async def committers(load: Load) -> Figures:
    """1 000 committers, then the raw log at the same size of commits."""
    with tempfile.TemporaryDirectory(dir=load.folder) as name:
        folder = Path(name)
        async with serving(folder / "ours", load.committers) as committing:
            callers = [committing.caller(number) for number in range(load.committers)]
            groups = committing.committer.groups
            done = await closed_loop(callers, seconds=load.seconds)
            # The first turn of each, which closed_loop does not count, is in the groups too.
            turns = len(done.latencies_s) + load.committers
            batch = turns / (committing.committer.groups - groups)
        (folder / "raw").mkdir()
        log = LogOnLmdb(folder / "raw")
        log_per_s = log.per_s(load.seconds / 2, turns=max(round(batch), 1))
        log.close()
        checked = committing.check(folder / "ours")
    return {**figures_of(done), "batch_turns": batch, "log_turns_per_s": log_per_s, **checked}


async def busy(load: Load) -> Figures:
    """100 committers on a loop that a task keeps busy with Python code; and the same with a writer process."""
    figures: Figures = {}
    checked: Counter[str] = Counter()
    for (name, step_s), (mode, open_store) in product(BUSY_STEPS_S.items(), BUSY_STORES.items()):
        with tempfile.TemporaryDirectory(dir=load.folder) as folder:
            done = Round()
            async with (
                serving(Path(folder), load.writers, open_store) as committing,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(burn, step_s, checkpoint_of_loop())
                callers = [committing.caller(number) for number in range(load.writers)]
                done = await closed_loop(callers, seconds=load.seconds / 2)
                tasks.cancel_scope.cancel()
            checked.update(committing.check(Path(folder)))
        figures |= {f"{name}{mode}_{figure}": value for figure, value in figures_of(done).items()}
    return figures | checked


async def burn(step_s: float, checkpoint: Callable[[], Awaitable[None]]) -> None:
    """Keep the loop busy for ever: so long, then once around, then again."""
    while True:
        until_s = time.perf_counter() + step_s
        while time.perf_counter() < until_s:
            statistics.fmean((1.0, 2.0, 3.0))
        await checkpoint()
