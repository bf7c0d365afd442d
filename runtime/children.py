"""Supervised tasks that actors spawn for work that takes long: an agent's run, for instance.

A child never holds up its actor's mailbox, and no exception of it reaches another task: however it ends, its actor gets
one ChildEnded.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup

from .envelope import current_chain
from .errors import Failed
from .identity import ActorId
from .signals import ChildEnded

__all__ = ["Children"]


class Children:
    """The live children of all actors, by (owner, tag)."""

    def __init__(
        self, tasks: TaskGroup, signal: Callable[[ActorId, ChildEnded], None], ended: Callable[[], None]
    ) -> None:
        self._tasks = tasks
        self._signal = signal
        self._ended = ended
        self._scopes: dict[tuple[ActorId, Any], anyio.CancelScope] = {}

    def __len__(self) -> int:
        return len(self._scopes)

    def spawn(self, owner: ActorId, tag: Any, work: Callable[[], Awaitable[Any]]) -> None:
        """Start `work`; `tag` is the owner's name for it and not in use."""
        assert (owner, tag) not in self._scopes, f"{owner} has a child {tag!r} already"
        scope = self._scopes[owner, tag] = anyio.CancelScope()
        self._tasks.start_soon(self._run, owner, tag, work, scope)

    def cancel(self, owner: ActorId, tag: Any) -> bool:
        """Cancel one child; False where it has ended, or never was."""
        scope = self._scopes.get((owner, tag))
        if scope is None:
            return False
        scope.cancel()
        return True

    def cancel_all(self, owner: ActorId | None = None) -> list[str]:
        """Cancel all children, or those of one owner; returns their names, for people."""
        cancelled: list[str] = []
        for (of, tag), scope in list(self._scopes.items()):
            if owner is None or of == owner:
                scope.cancel()
                cancelled.append(f"{of}: {tag}")
        return cancelled

    async def _run(
        self, owner: ActorId, tag: Any, work: Callable[[], Awaitable[Any]], scope: anyio.CancelScope
    ) -> None:
        current_chain.set(())  # inside of the runtime, and nobody's mailbox waits for it
        value: Any = None
        error: BaseException | None = None
        with scope:
            try:
                value = await work()
            except Exception as raised:  # noqa: BLE001 - a child's guard: its crash is its owner's to judge
                error = raised
        if scope.cancelled_caught:
            error = Failed(f"the work {tag!r} of {owner} was cancelled")
        del self._scopes[owner, tag]
        self._signal(owner, ChildEnded(tag=tag, value=value, error=error))
        self._ended()
