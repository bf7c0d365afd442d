"""What a store could not read: kept for people, so that one bad record neither hides the rest nor goes unseen."""

import logging
from threading import Lock

from msgspec import Struct

__all__ = ["DAMAGES_MAX", "Damage", "DamageLog"]

_log = logging.getLogger("callboard.store")

DAMAGES_MAX = 1000
"""Past so many, further ones are logged and counted, but not kept."""


class Damage(Struct, frozen=True):
    """A record that was left out. `where` names it as an error would, `reason` says what is wrong with its bytes."""

    where: str
    reason: str


class DamageLog:
    """The damage seen since the store was opened, each place once. Any thread may use it.

    Attributes:
        count: places reported.
    """

    __slots__ = ("_lock", "_places", "count")

    def __init__(self) -> None:
        self._places: dict[str, Damage] = {}
        self._lock = Lock()
        self.count = 0

    def report(self, where: str, reason: str) -> None:
        """Note that the record `where` was left out; logged as an error the first time."""
        with self._lock:
            if where in self._places:
                return
            self.count += 1
            if len(self._places) < DAMAGES_MAX:
                self._places[where] = Damage(where, reason)
        _log.error("left out, as it cannot be read: %s: %s", where, reason)

    def list(self) -> list[Damage]:
        """What was reported, in order; at most DAMAGES_MAX."""
        with self._lock:
            return list(self._places.values())
