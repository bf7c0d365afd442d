"""Hooks for metrics: what happens rarely in a runtime, told to whoever observes it. See `Runtime.observe`.

An event is made only where somebody observes, and never for a message that is handled in place: with nobody there, each
of these places costs one look at an empty tuple. What happens too often to be told is in `Runtime.statistics()`.

Source: Erlang's telemetry (events with measurements, handlers that are called where it happens, one that raises is
reported and does no harm); OpenTelemetry, metrics API, asynchronous instruments (what is read at intervals instead).
"""

import logging
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from .dead_letters import DeadLetter
from .identity import ActorId
from .quarantine import Quarantined

__all__ = [
    "ActorActivated",
    "ActorCrashed",
    "ActorGaveUp",
    "ActorPassivated",
    "ActorRestarting",
    "BreakerMoved",
    "Committed",
    "LetterDied",
    "MessageQuarantined",
    "Observable",
    "Observer",
    "RuntimeEvent",
]

_log = logging.getLogger("callboard.runtime")


class ActorActivated(Struct, frozen=True):
    """An actor has come into memory, which took so long; 0 where it read nothing."""

    id: ActorId
    duration_s: float


class ActorPassivated(Struct, frozen=True):
    """An actor has left memory because nobody needed it."""

    id: ActorId


class ActorCrashed(Struct, frozen=True):
    """A handler or a load has raised what is no answer; `message` is what it handled, None for a load."""

    id: ActorId
    error: BaseException
    message: Any


class ActorRestarting(Struct, frozen=True):
    """An actor was taken out of memory, after `error`, and is loaded anew in `delay_s`."""

    id: ActorId
    error: BaseException
    delay_s: float


class ActorGaveUp(Struct, frozen=True):
    """An actor has failed: its restart budget is spent, or what is stored of it cannot be read."""

    id: ActorId
    error: BaseException


class Committed(Struct, frozen=True):
    """A group of batches came back from the store.

    Attributes:
        batches: how many there were, `refused` of them, for whatever reason.
        duration_s: from when the first of them was staged until the answer was here.
    """

    batches: int
    refused: int
    duration_s: float


class LetterDied(Struct, frozen=True):
    """A message that nobody awaits came to nothing."""

    letter: DeadLetter


class MessageQuarantined(Struct, frozen=True):
    """A message crashed its actor as often as it may be tried, and was put aside."""

    poison: Quarantined


class BreakerMoved(Struct, frozen=True):
    """The store stopped answering ("open"), is tried again ("half_open"), or answers ("closed")."""

    state: str
    failures: int


RuntimeEvent: TypeAlias = (
    ActorActivated
    | ActorPassivated
    | ActorCrashed
    | ActorRestarting
    | ActorGaveUp
    | Committed
    | LetterDied
    | MessageQuarantined
    | BreakerMoved
)
"""Further kinds may come: an observer passes over what it does not know."""


class Observer(Protocol):
    """Whoever wants to be told."""

    def note(self, event: RuntimeEvent, /) -> None:
        """It has happened. Plain and short: it is called on the event loop, in the middle of the kernel.

        It counts, logs, or puts the event where a task finds it; it sends no messages from in here. What it raises is
        logged, and disturbs nobody.
        """
        ...


class Observable:
    """Who observes.

    Attributes:
        observers: for the places that tell: `if events.observers: events.tell(...)`, so that no event is made in vain.
    """

    __slots__ = ("observers",)

    def __init__(self) -> None:
        self.observers: tuple[Observer, ...] = ()

    def add(self, observer: Observer) -> None:
        """Tell it from now on; one that is told already is told once.

        Raises:
            TypeError: it has no method `note`.
        """
        if isinstance(observer, type) or not callable(getattr(observer, "note", None)):
            raise TypeError(f"an observer is an object with a method `note(self, event)`, not {observer!r}")
        if not any(each is observer for each in self.observers):
            self.observers = (*self.observers, observer)

    def remove(self, observer: Observer) -> None:
        """Tell it no more; does nothing where it was not told."""
        self.observers = tuple(each for each in self.observers if each is not observer)

    def tell(self, event: RuntimeEvent) -> None:
        """Tell all of them. One that raises is logged, and keeps the event from nobody."""
        for observer in self.observers:
            try:
                observer.note(event)
            except Exception:  # noqa: BLE001 - a user's code, in the middle of the kernel, which must go on
                _log.exception("an observer raised at %s", type(event).__name__)

    def tell_of_letter(self, letter: DeadLetter) -> None:
        """What `DeadLetters.on_letter` calls."""
        if self.observers:
            self.tell(LetterDied(letter))
