"""Going through much that is stored without holding up the event loop.

The work is an iterator that pauses after each short step. It runs in a worker thread, some of it at a time. On a store
that waits for no device it runs here with a checkpoint after each step: a thread would gain nothing, and where time is
virtual no clock jumps under it.
"""

import time
from collections.abc import Iterator

import anyio.lowlevel
import anyio.to_thread

from ..store.contract import Store

__all__ = ["PIECE_S", "work_through"]

PIECE_S = 0.05
"""So long a thread works in one go: who cancels waits no longer than this."""


async def work_through(store: Store, steps: Iterator[None]) -> None:
    """Do all the steps; what they come to is theirs to keep.

    Cancellation: some are done, the others never begin.
    """
    if store.inline:
        for _ in steps:
            await anyio.lowlevel.checkpoint()
        return
    while await anyio.to_thread.run_sync(_piece, steps):
        pass


def _piece(steps: Iterator[None]) -> bool:
    """Do some steps; False where they have come to their end."""
    until_s = time.monotonic() + PIECE_S
    for _ in steps:  # noqa: SIM110 - any() would say nothing of the time
        if time.monotonic() > until_s:
            return True
    return False
