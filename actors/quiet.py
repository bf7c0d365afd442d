"""Quiet: inputs that wait until no further one of their group has come for a while (the overlap policy "debounce").

    add ──► held ──► released, all of the group together, in order of arrival
             ▲ │     when the group was quiet for `quiet_s`, or QUIET_TIMES_MAX times that after the first of them
             └─┘
Pure; time is passed in, in seconds of a clock that never goes back.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .turns import Entry

__all__ = ["QUIET_TIMES_MAX", "Quiet"]

T = TypeVar("T")

QUIET_TIMES_MAX = 10
"""Somebody who never stops typing is answered all the same."""


@dataclass(slots=True)
class _Group(Generic[T]):
    """Those of one group that are held. `until_s` is when they are released, `latest_s` when at the latest."""

    until_s: float
    latest_s: float
    entries: dict[str, Entry[T]] = field(default_factory=lambda: dict[str, Entry[T]]())


class Quiet(Generic[T]):
    """The held entries of one session, by group and run id."""

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: dict[str, _Group[T]] = {}

    def __len__(self) -> int:
        """How many are held."""
        return sum(len(group.entries) for group in self._groups.values())

    def find(self, run_id: str) -> Entry[T] | None:
        """One that is held; None where it is not."""
        return next((group.entries[run_id] for group in self._groups.values() if run_id in group.entries), None)

    def add(self, entry: Entry[T], *, now_s: float, quiet_s: float) -> float:
        """Hold it: the seconds until its group may be released. Call `release` then, and for each further call of this
        only at the time that the last one said."""
        group = self._groups.get(entry.group)
        if group is None:
            group = self._groups[entry.group] = _Group(now_s, now_s + QUIET_TIMES_MAX * quiet_s)
        group.entries[entry.run_id] = entry
        group.until_s = min(now_s + quiet_s, group.latest_s)
        return max(group.until_s - now_s, 0.0)

    def release(self, group: str) -> tuple[Entry[T], ...]:
        """Take out all of a group, in order of arrival; () where all have been withdrawn."""
        held = self._groups.pop(group, None)
        return tuple(held.entries.values()) if held is not None else ()

    def withdraw(self, run_id: str) -> Entry[T] | None:
        """Take out one; None where it is not held."""
        for name, group in self._groups.items():
            entry = group.entries.pop(run_id, None)
            if entry is not None:
                if not group.entries:
                    del self._groups[name]
                return entry
        return None

    def clear(self) -> tuple[Entry[T], ...]:
        """Take out all."""
        return tuple(entry for name in list(self._groups) for entry in self.release(name))
