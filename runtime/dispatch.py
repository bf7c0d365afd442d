"""The run queue: who has work is stepped by whoever finds the queue idle.

Most handlers are plain functions and need no task. A message that makes an actor runnable puts it here, and the sender
itself runs the queue dry, at once, up to a budget; then a task of the runtime goes on, so that the loop stays fair.
What a handler sends is queued, never nested, hence handlers do not re-enter and the stack stays flat. The same holds
for everything else that touches actors, such as a commit that comes back: `run(first)` does it with the queue held, or
an actor could handle a message half-way through the release of its replies.

An ask whose reply waits for nothing is thus answered without one task switch (FACTS.md, "Messaging": 0.23 us against
8.4 us for a parked task).
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from .cell import Cell
from .waking import Backend

__all__ = ["BUDGET_STEPS", "Dispatcher"]

BUDGET_STEPS = 256
"""Steps that one sender may run in place: at a few us each well under a millisecond of somebody else's work."""


class Dispatcher:
    """Cells that have work, in the order in which they got it. Each step handles one message of one cell.

    Attributes:
        running: True while somebody runs the queue, or handles a message in place (see PostOffice).
        queue: the cells that have work.
        rested: called whenever the queue was run; None where nobody wants to know.
    """

    def __init__(self, backend: Backend, step: Callable[[Cell], None]) -> None:
        self._backend = backend
        self._step = step
        self.rested: Callable[[], None] | None = None
        self.queue: deque[Cell] = deque()
        self._waker = backend.waker()
        self.running = False

    @property
    def idle(self) -> bool:
        return not self.queue and not self.running

    def ready(self, cell: Cell) -> None:
        """Queue the cell if it has work and is not queued."""
        if not cell.runnable_queued and cell.runnable:
            cell.runnable_queued = True
            self.queue.append(cell)

    def run(self, first: Callable[..., None] | None = None, *args: Any) -> None:
        """Do `first(*args)`, then run the queue dry, or until the budget is spent. Where it runs, do only `first`."""
        if self.running:
            if first is not None:
                first(*args)
            return
        self.running = True
        try:
            if first is not None:
                first(*args)
            steps = BUDGET_STEPS
            queue = self.queue
            while queue and steps:
                cell = queue.popleft()
                cell.runnable_queued = False
                steps -= 1
                try:
                    self._step(cell)
                finally:  # a KeyboardInterrupt in one handler must not strand the messages behind it
                    self.ready(cell)
        finally:
            self.running = False
            if self.queue:
                self._waker.wake()
            if self.rested is not None:
                self.rested()

    async def serve(self) -> None:
        """Go on where senders had to stop, for ever. One task of the runtime runs this."""
        while True:
            await self._waker.wait()
            self.run()
            await self._backend.checkpoint()
