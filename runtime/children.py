"""Supervised tasks that actors spawn for work that takes long: an agent's run, for instance.

A child never holds up its actor's mailbox, and no exception of it reaches another task: however it ends, its actor gets
one ChildEnded. Children of an activation that was dropped are cancelled and nobody's any more: the next one may use
their tags again while they are still ending, and hears nothing of them.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup

from .errors import Failed
from .guard import run_guarded
from .identity import ActorId
from .signals import ChildEnded

__all__ = ["Children"]


class Children:
    """The live children of all actors, by (owner, tag)."""

    def __init__(
        self,
        tasks: TaskGroup,
        *,
        enter: Callable[[tuple[ActorId, ...]], None],
        signal: Callable[[ActorId, ChildEnded], None],
        ended: Callable[[], None],
    ) -> None:
        self._tasks = tasks
        self._enter = enter
        self._signal = signal
        self._ended = ended
        self._scopes: dict[ActorId, dict[Any, anyio.CancelScope]] = {}  # no inner dict is empty
        self._disowned: set[anyio.CancelScope] = set()
        self._cutting: Callable[[str], None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._scopes.values())) + len(self._disowned)

    def has(self, owner: ActorId) -> bool:
        """True where the owner has a child that has not ended."""
        return owner in self._scopes

    def tags(self, owner: ActorId) -> list[Any]:
        """The tags of the owner's children that have not ended."""
        return list(self._scopes.get(owner, ()))

    def spawn(self, owner: ActorId, tag: Any, work: Callable[[], Awaitable[Any]]) -> None:
        """Start `work`.

        Raises:
            ValueError: a child of this tag has not ended yet.
        """
        own = self._scopes.setdefault(owner, {})
        if tag in own:
            raise ValueError(f"{owner} has a child {tag!r} that has not ended; wait for its ChildEnded")
        scope = own[tag] = anyio.CancelScope()
        if self._cutting is not None:
            scope.cancel()
            self._cutting(f"{owner}: {tag}")
        self._tasks.start_soon(self._run, owner, tag, work, scope)

    def cancel(self, owner: ActorId, tag: Any) -> bool:
        """Cancel one child; False where it has ended, or never was."""
        scope = self._scopes.get(owner, {}).get(tag)
        if scope is None:
            return False
        scope.cancel()
        return True

    def disown(self, owner: ActorId) -> None:
        """Cancel the children of an activation that is no more."""
        for scope in self._scopes.pop(owner, {}).values():
            scope.cancel()
            self._disowned.add(scope)

    def cut(self, note: Callable[[str], None]) -> None:
        """Cancel all children, and from now on each new one as it starts; `note` gets the name of each."""
        self._cutting = note
        for scope in self._disowned:
            scope.cancel()
        for owner, own in self._scopes.items():
            for tag, scope in own.items():
                scope.cancel()
                note(f"{owner}: {tag}")

    async def _run(
        self, owner: ActorId, tag: Any, work: Callable[[], Awaitable[Any]], scope: anyio.CancelScope
    ) -> None:
        self._enter(())  # inside of the runtime, and nobody's mailbox waits for it
        outcome = await run_guarded(_begun(work), scope=scope, host=self._tasks.cancel_scope)
        error: BaseException | None = outcome.error
        if outcome.cancelled:
            error = Failed(f"the work {tag!r} of {owner} was cancelled")
        if scope in self._disowned:
            self._disowned.remove(scope)
        else:
            own = self._scopes[owner]
            del own[tag]
            if not own:
                del self._scopes[owner]
            self._signal(owner, ChildEnded(tag=tag, value=outcome.value, error=error))
        self._ended()


async def _begun(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()  # also an error that comes before the first await is the child's
