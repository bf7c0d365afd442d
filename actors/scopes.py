"""The public handles on state, for code outside of turns: of the app, of a user, and of a session.

    app = AppState(runtime)
    await app.update({"prices": {"tea": 3}, "motd": None})      # sets prices, removes motd
    await app.increment("visits")

What they change is applied at once (that of a session: in a turn of its own), and seen by turns that begin afterwards.
"""

import math
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .errors import TooLarge
from .host import Runtime
from .ids import new_number
from .limits import check_owner, check_state_key
from .reentry import check_not_held, current_held_turns
from .session_messages import ReadHead
from .session_records import copy_metadata
from .state import StateDelta, StateScope, check_amount, check_state_patch, patch_deltas
from .state_messages import Changed, ChangeScope, ChangeSessionState, ReadLatest, ReadSessionState
from .state_records import APP, STATE_KIND, user_key

if TYPE_CHECKING:
    from .session import Session

__all__ = ["AppState", "SessionState", "State", "UserState"]


class _Door(Protocol):
    """Where a scope is kept."""

    scope: StateScope

    def read(self) -> Awaitable[dict[str, Any]]: ...

    def change(self, deltas: tuple[StateDelta, ...]) -> Awaitable[Changed]: ...


class State:
    """One scope of state: a JSON object of at most 64 KiB, whose keys have 1 to 64 bytes. It holds nothing itself."""

    def __init__(self, door: _Door) -> None:
        self._door = door

    async def get(self) -> dict[str, Any]:
        """All of it as committed, a copy. Waits for no turn.

        What a turn changed is in it from the turn's reply on. That of app and user is delivered behind the turn's
        commit: where that fails, it comes some moments later.
        """
        return copy_metadata(await self._door.read())

    async def update(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Set these keys and remove those whose value is None; all of it as it is then, durable.

        Raises:
            TypeError, ValueError: a value is not JSON, or a key is none that state has.
            TooLarge: the whole would be larger than 64 KiB.
            ValueError: of a session without an owner, a user's.
            CyclicAsk: of a session, called by a tool within a turn of it: the tool has `context.session_state`.
            Nothing was changed, in all cases.
        """
        return copy_metadata(await self._change(patch_deltas(self._door.scope, check_state_patch(patch))))

    async def increment(self, key: str, amount: float = 1) -> float:
        """Add to a number, 0 where there is none yet; the sum, durable. Whatever others do meanwhile, it counts.

        Raises:
            TypeError: the value is no number.
            and all that `update` raises.
        """
        key = check_state_key(key)
        values = await self._change((StateDelta(self._door.scope, key, "increment", check_amount(amount)),))
        total: float = values[key]
        return total

    async def clear(self) -> None:
        """Remove all keys that are there now. Raises as `update`."""
        present = await self._door.read()
        await self._change(tuple(StateDelta(self._door.scope, key, "remove") for key in present))

    async def _change(self, deltas: tuple[StateDelta, ...]) -> dict[str, Any]:
        changed = await self._door.change(deltas)
        if changed.refusal is None:
            return changed.values
        raise TooLarge(changed.refusal) if changed.too_large else TypeError(changed.refusal)


class AppState(State):
    """What all sessions of a store share."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(_Actor(_checked(runtime, "AppState(runtime)"), "app", APP))


class UserState(State):
    """What all sessions of one owner share."""

    def __init__(self, runtime: Runtime, owner: str) -> None:
        checked = check_owner(owner)
        if checked is None:
            raise TypeError("a user's state is that of an owner: UserState(runtime, owner)")
        super().__init__(_Actor(_checked(runtime, "UserState(runtime, owner)"), "user", user_key(checked)))


class SessionState(State):
    """What the turns of one session keep for each other. It goes when the session is deleted."""

    def __init__(self, session: "Session") -> None:
        super().__init__(_Own(session))


class OwnerState(State):
    """The user's state, of whoever is a session's owner."""

    def __init__(self, session: "Session") -> None:
        super().__init__(_Owner(session))


class _Actor:
    """A scope that has an actor of its own."""

    def __init__(self, runtime: Runtime, scope: StateScope, key: str) -> None:
        self.scope: StateScope = scope
        self._ref = runtime.actor(STATE_KIND, key)

    async def read(self) -> dict[str, Any]:
        return await self._ref.ask(ReadLatest())

    async def change(self, deltas: tuple[StateDelta, ...]) -> Changed:
        return await self._ref.ask(ChangeScope(deltas))


class _Own:
    """The scope of a session itself."""

    scope: StateScope = "session"

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._ref = session.runtime.session_actor(session.id)

    async def read(self) -> dict[str, Any]:
        return await self._ref.ask(ReadSessionState())

    async def change(self, deltas: tuple[StateDelta, ...]) -> Changed:
        session, action = self._session, "changing the session's state"
        message = ChangeSessionState(new_number(), deltas, session.defaults)
        # No deadline of its own: it waits for the turns before it, each of which has one.
        if not current_held_turns():
            return await self._ref.ask(message, timeout_s=math.inf)
        check_not_held(session.id, action)
        wait = session.runtime.turn_waits.wait(session.id)
        return await wait.sent(lambda: self._ref.ask_nowait(message, timeout_s=math.inf), action).wait()


class _Owner:
    """The scope of a session's owner, who is looked up each time: the session may not be there yet."""

    scope: StateScope = "user"

    def __init__(self, session: "Session") -> None:
        self._session = session

    async def read(self) -> dict[str, Any]:
        return await (await self._actor()).read()

    async def change(self, deltas: tuple[StateDelta, ...]) -> Changed:
        return await (await self._actor()).change(deltas)

    async def _actor(self) -> _Actor:
        session = self._session
        head = await session.runtime.session_actor(session.id).ask(ReadHead())
        owner = session.defaults.owner if head is None else head.owner
        if owner is None:
            raise ValueError(f"session {session.id!r} has no owner, whose state this would be: Session(..., owner=...)")
        return _Actor(session.runtime, "user", user_key(owner))


def _checked(runtime: object, usage: str) -> Runtime:
    if not isinstance(runtime, Runtime):
        raise TypeError(f"state needs a Runtime first, not {runtime!r}: {usage}")
    return runtime
