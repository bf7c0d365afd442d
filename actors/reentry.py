"""Refuses a wait that could never end: one that leads from a turn, however far around, back to the turn itself.

The kernel sees cycles of asks between actors; a turn is held by a run, which is no actor, so it is guarded here. What a
run does, and the runs that its tools start, know the turns that wait for them. So a turn that waits for the next turn
of its own session is refused at once.

Turns of different chains may wait for each other, too: one of session A for the next turn of B, while one of B waits
for A. For that, the waits of all turns of a runtime are in one graph, with sessions as nodes: from each turn that waits
for what goes on in a task, to the session whose turn the task asks for, as long as it is not granted. Once it is, the
run that has it knows those turns, and they wait for whatever it waits for. A wait that would close a circle is refused
to the one that comes last, whose tool may do without.

A turn that is over waits for nobody, whatever a task that it left behind still does.
"""

import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ..runtime.errors import CyclicAsk
from ..runtime.ref import PendingReply
from ..runtime.wait_graph import WaitGraph

__all__ = ["HeldTurn", "TurnWait", "TurnWaits", "check_not_held", "current_held_turns", "hold"]

ReplyT = TypeVar("ReplyT")


@dataclass(slots=True, eq=False)
class HeldTurn:
    """A turn of a session (None: of no session) as long as its run goes on; `waits` are those that hold it up."""

    session_id: str | None
    over: bool = False
    waits: "set[TurnWait]" = field(default_factory=lambda: set["TurnWait"]())

    def end(self) -> None:
        """Its run is over."""
        self.over = True
        for wait in list(self.waits):
            wait.drop(self)


class TurnWaits:
    """Which turns wait for a turn of which other session, in one runtime."""

    def __init__(self) -> None:
        self.graph: WaitGraph[str] = WaitGraph()

    def __len__(self) -> int:
        return len(self.graph)

    def edges(self) -> list[tuple[str, str]]:
        """(session whose turn waits, session for whose turn), each pair once."""
        return self.graph.edges()

    def wait(self, session_id: str) -> "TurnWait":
        """What this task, and the turns that wait for it, may be about to wait for: a turn of this session."""
        return TurnWait(self.graph, session_id, current_held_turns())


class TurnWait:
    """One wait of a task for a turn of a session, from `begin`, when it asks for the turn, to `end`, when it has it.

    Both may be called again, which does nothing.
    """

    __slots__ = ("_graph", "_held", "_session_id", "_waiters")

    def __init__(self, graph: WaitGraph[str], session_id: str, held: tuple[HeldTurn, ...]) -> None:
        self._graph = graph
        self._session_id = session_id
        self._held = held
        self._waiters: dict[HeldTurn, str] = {}

    def begin(self, action: str) -> None:
        """From now on the turns that are held here wait.

        Raises:
            CyclicAsk: `action`, which is what waits, would wait for itself. Nothing has begun.
        """
        waiters = {turn: turn.session_id for turn in self._held if turn.session_id is not None and not turn.over}
        for waiter in waiters.values():
            path = self._graph.path(self._session_id, waiter)
            if path is not None:
                circle = " -> ".join(repr(each) for each in (waiter, *path))
                raise CyclicAsk(
                    f"{action} waits for a turn of session {self._session_id!r}, which waits for this one: {circle}; "
                    "let the tool go on without it, or use another session"
                )
        for turn, waiter in waiters.items():
            self._waiters[turn] = waiter
            self._graph.add(waiter, self._session_id)
            turn.waits.add(self)

    def end(self) -> None:
        """It was granted, refused, or given up."""
        for turn in list(self._waiters):
            self.drop(turn)

    def drop(self, turn: HeldTurn) -> None:
        """This turn waits no more."""
        waiter = self._waiters.pop(turn, None)
        if waiter is not None:
            self._graph.remove(waiter, self._session_id)
            turn.waits.discard(self)

    def sent(self, send: Callable[[], PendingReply[ReplyT]], action: str) -> PendingReply[ReplyT]:
        """Begin, and ask for the turn with `send`. It ends at the latest with the reply's outcome.

        Raises:
            as `begin`, and as `send`: then nothing has begun.
        """
        self.begin(action)
        try:
            pending = send()
        except BaseException:
            self.end()
            raise
        pending.when_settled(self.end)  # not later, in the caller's task: by then others may have the turn
        return pending


_held: contextvars.ContextVar[tuple[HeldTurn, ...]] = contextvars.ContextVar("callboard_held_turns", default=())


def current_held_turns() -> tuple[HeldTurn, ...]:
    """The turns that wait for what goes on in this task."""
    held = _held.get()
    return tuple(turn for turn in held if not turn.over) if held else ()


def hold(session_id: str | None, *, within: tuple[HeldTurn, ...]) -> HeldTurn:
    """What this task does from now on happens in a turn of this session, and the turns `within` wait for it.

    Tasks that it starts inherit that, until the turn has ended.
    """
    turn = HeldTurn(session_id)
    _held.set((*within, turn))
    return turn


def check_not_held(session_id: str, action: str) -> None:
    """Raises CyclicAsk where `action`, which waits for a turn of the session, is tried from within one."""
    if any([turn.session_id == session_id for turn in current_held_turns()]):
        raise CyclicAsk(
            f"{action} waits for the next turn of session {session_id!r}, from within a turn of it that waits for "
            "this: let the tool return the text, or the turn made by hand add it, or use another session"
        )
