"""The output gate: what depends on a commit goes out after it, in order, or not at all. Pure.

Each batch that is on its way to the disk has a Pending with the outputs that wait for it: replies, messages, calls.
Commits come back in the order in which they were given, so the gate is a queue. An output that stages nothing itself
still waits for the newest batch, because it may show what that batch wrote.

Source: S. Li et al., "output commit" in rollback recovery (Elnozahy et al., ACM Computing Surveys 34(3), 2002, 2.4).
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from msgspec import Struct

from ..store.errors import StoreError
from .envelope import Delivery
from .errors import Failed, Unknown

__all__ = ["Gate", "HeldCall", "HeldReply", "Output", "commit_failure", "release_all"]

_log = logging.getLogger("callboard.gate")


class Output(Protocol):
    """Something that a handler wants to go out."""

    def release(self) -> None:
        """What it depends on is durable."""
        ...

    def refuse(self, error: StoreError) -> None:
        """What it depends on was not stored, or nobody can tell."""
        ...


class HeldReply(Struct, eq=False):
    """An answer, or an error as the answer. `begun_before`: an earlier handler may have stored some of the request."""

    delivery: Delivery
    value: Any
    error: BaseException | None
    begun_before: bool = False

    def release(self) -> None:
        self.delivery.settle(self.value, self.error)

    def refuse(self, error: StoreError) -> None:
        self.delivery.settle(None, commit_failure(error, begun_before=self.begun_before))


class HeldCall(Struct, eq=False):
    """A message to be sent or a call to be made; dropped where its commit failed."""

    action: Callable[[], None]

    def release(self) -> None:
        self.action()

    def refuse(self, error: StoreError) -> None:
        pass


def release_all(outputs: Iterable[Output]) -> None:
    """Let these go, in order. One that raises is a fault in an actor, and must not keep back what others wait for."""
    for output in outputs:
        try:
            output.release()
        except Exception:  # noqa: BLE001 - a guard: it was committed and released, so nobody can be told but the log
            _log.exception("what an actor wanted done after its commit raised")


def commit_failure(error: StoreError, *, begun_before: bool = False) -> Failed | Unknown:
    """What a caller whose reply hung on a failed commit is told: Failed, or Unknown where it may have been stored.

    With `begun_before` this commit was not the request's first: what came before it is stored, whatever became of this.
    """
    failure: Failed | Unknown
    if error.uncertain or begun_before:
        failure = Unknown(f"the request may have been stored: {error}")
    else:
        failure = Failed(f"nothing of the request was stored: {error}")
    failure.__cause__ = error
    return failure


class Gate(Struct, eq=False):
    """The outputs of one actor that wait for its commits in flight. A Struct, as one is made for each lone commit."""

    _pending: list[list[Output]] = []  # a few at most, so a list, which is a tenth of a deque

    def __len__(self) -> int:
        """How many batches are in flight."""
        return len(self._pending)

    def close_behind(self, outputs: list[Output]) -> None:
        """A batch was given to the committer: hold these until it comes back."""
        self._pending.append(outputs)

    def hold(self, outputs: list[Output]) -> bool:
        """Hold these until the newest batch comes back; False where none is in flight: they may go at once."""
        if not self._pending:
            return False
        self._pending[-1].extend(outputs)
        return True

    def committed(self, error: StoreError | None) -> bool:
        """The oldest batch came back: let its outputs go, or refuse them. False where that was the last in flight."""
        outputs = self._pending.pop(0)
        if error is None:
            release_all(outputs)
        else:
            for output in outputs:
                output.refuse(error)
        return bool(self._pending)
