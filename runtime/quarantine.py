"""Poison: messages that crashed their actor as often as they were tried, kept aside until somebody decides. Pure.

A message in quarantine holds up nobody: its actor goes on with the next one. An operator lists and inspects what is
here, then takes a message out to send it again (the code is mended), or purges it. Memory only: it does not outlive the
runtime, and a durable caller sends again with its idempotency key.

Source: Hohpe and Woolf, Enterprise Integration Patterns, "Invalid Message Channel"; RabbitMQ quorum queues,
delivery-limit (poison message handling).
"""

from typing import Any

from msgspec import Struct

from .envelope import MESSAGE_BYTES_DEFAULT, Request
from .identity import ActorId

__all__ = ["QUARANTINE_COUNT_MAX", "Quarantine", "Quarantined"]

QUARANTINE_COUNT_MAX = 1000


class Quarantined(Struct, frozen=True):
    """A message that is kept aside.

    Attributes:
        number: its delivery's number within the runtime, by which it is inspected and taken.
        to: the actor that it crashed.
        message: the request itself.
        attempts: how often it was tried.
        error: what the last attempt raised, as text.
        at: when it came here, in seconds of the event loop's clock.
        size_bytes: roughly what the message holds in memory, by its own word.
    """

    number: int
    to: ActorId
    message: Request[Any]
    attempts: int
    error: str
    at: float
    size_bytes: int = MESSAGE_BYTES_DEFAULT


class Quarantine:
    """The messages in quarantine, by number, in the order in which they came."""

    __slots__ = ("_count_max", "_kept")

    def __init__(self, count_max: int = QUARANTINE_COUNT_MAX) -> None:
        """Keep at most `count_max` messages.

        Raises:
            ValueError: it is below 1.
        """
        if count_max < 1:
            raise ValueError(f"a quarantine holds at least 1 message, not {count_max}")
        self._count_max = count_max
        self._kept: dict[int, Quarantined] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, poison: Quarantined) -> Quarantined | None:
        """Keep it; gives back the oldest one where that had to leave to make room: it is the caller's to report."""
        assert poison.number not in self._kept, f"message {poison.number} is in quarantine already"
        self._kept[poison.number] = poison
        if len(self._kept) <= self._count_max:
            return None
        return self._kept.pop(next(iter(self._kept)))

    def list(self, id: ActorId | None = None) -> tuple[Quarantined, ...]:
        """What is kept, oldest first: all of it, or that of one actor."""
        return tuple(kept for kept in self._kept.values() if id is None or kept.to == id)

    def inspect(self, number: int) -> Quarantined:
        """The message with this number, which stays.

        Raises:
            LookupError: there is none; it was taken, purged or pushed out by newer ones, or never came here.
        """
        kept = self._kept.get(number)
        if kept is None:
            raise LookupError(
                f"no message {number} is in quarantine: it was resumed, purged or pushed out by newer ones, or never "
                f"came here; list() shows the {len(self._kept)} that are"
            )
        return kept

    def take(self, number: int) -> Quarantined:
        """Remove the message with this number and give it back, to be sent again or thrown away.

        Raises:
            LookupError: as for inspect; nothing has changed.
        """
        taken = self.inspect(number)
        del self._kept[number]
        return taken

    def purge(self, id: ActorId | None = None) -> int:
        """Throw away what is kept, all of it or that of one actor; how many messages that were."""
        purged = self.list(id)
        for gone in purged:
            del self._kept[gone.number]
        return len(purged)
