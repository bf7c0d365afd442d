"""What the store keeps of a durable reminder, and the arithmetic of its times. Pure: the time is passed in.

    stream "<kind>:<key>"
      REMINDER        name                       -> ReminderRecord
    index
      REMINDER_DUE    due_ms u64 (big-endian), name

So the index is the queue of all reminders of all actors, in the order in which they come due.

A periodic reminder stays on the grid of its first time: due, due + every, due + 2 x every, ... One firing stands for
every point of the grid that has passed, however late it comes, and says how many beside its own: none is told twice,
none is lost.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from ..store.contract import Index, IndexRow, Row, Store, Table
from ..store.records import Codec

__all__ = [
    "REMINDER_CODEC",
    "REMINDER_NAME_BYTES_MAX",
    "REMINDER_TIME_MS_MAX",
    "ReminderChanges",
    "ReminderRecord",
    "check_reminder_name",
    "due_entry",
    "due_value",
    "new_reminder",
    "read_reminder",
    "reminder_rows",
]

REMINDER_NAME_BYTES_MAX = 64
"""A name is the key of a row (store.contract.Row)."""
REMINDER_TIME_MS_MAX = 2**61
"""For times and periods: a sum of three still fits into the eight bytes of the index."""


class ReminderRecord(Struct, frozen=True, omit_defaults=True, tag="reminder"):
    """One reminder of one actor.

    Attributes:
        name: unique within the actor.
        due_ms: when it is to fire next, in milliseconds since 1970, UTC.
        every_ms: the period in milliseconds; None where it fires once.
    """

    name: str
    due_ms: int
    every_ms: int | None = None

    def missed(self, now_ms: int) -> int:
        """How many points of the grid beyond `due_ms` have passed at `now_ms`; 0 before it is due."""
        if self.every_ms is None:
            return 0
        return max(0, now_ms - self.due_ms) // self.every_ms

    def moved_on(self, missed: int) -> "ReminderRecord | None":
        """What is left once a firing that stands for `missed` points beside its own is handled; None: nothing."""
        if self.every_ms is None:
            return None
        return replace(self, due_ms=self.due_ms + (missed + 1) * self.every_ms)


REMINDER_CODEC = Codec(ReminderRecord)


def new_reminder(
    name: str, *, now_ms: int, at_ms: int | None, after_s: float | None, every_s: float | None
) -> ReminderRecord:
    """A reminder from a caller's arguments; see `Context.remind`.

    Raises:
        TypeError, ValueError: the name or a time cannot be.
    """
    check_reminder_name(name)
    every_ms = None if every_s is None else _milliseconds("every_s", every_s)
    if every_ms == 0:
        raise ValueError(f"every_s is a period of at least 0.001 seconds, not {every_s}")
    if at_ms is not None and after_s is not None:
        raise TypeError("give a reminder at_ms or after_s, not both")
    if at_ms is None:
        first_s = after_s if after_s is not None else every_s
        if first_s is None:
            raise TypeError("give a reminder a time: at_ms=, after_s= or every_s=")
        at_ms = now_ms + _milliseconds("after_s", first_s)
    if not isinstance(at_ms, int):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise TypeError(f"at_ms is a whole number of milliseconds since 1970, not {at_ms!r}: int(seconds * 1000)")
    if not 0 <= at_ms <= REMINDER_TIME_MS_MAX:
        raise ValueError(f"a reminder's time is 0 to 2**61 milliseconds since 1970, not {at_ms}")
    return ReminderRecord(name, at_ms, every_ms)


def check_reminder_name(name: str) -> None:
    """TypeError or ValueError unless `name` can name a reminder."""
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise TypeError(f"a reminder's name is a str, not {type(name).__name__}")
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a reminder's name must be valid Unicode: take the lone surrogates out of {name!r}"
        ) from error
    if not 0 < size_bytes <= REMINDER_NAME_BYTES_MAX:
        raise ValueError(
            f"a reminder's name has 1 to {REMINDER_NAME_BYTES_MAX} bytes of UTF-8, but {name[:40]!r} has {size_bytes}"
        )


def due_value(record: ReminderRecord) -> bytes:
    """The value of the reminder's entry in REMINDER_DUE."""
    return record.due_ms.to_bytes(8, "big") + record.name.encode()


def due_entry(value: bytes) -> tuple[int, str]:
    """Time and name of an entry. ValueError where these bytes are none."""
    if len(value) < 9:
        raise ValueError(f"{value!r} is no time and name")
    return int.from_bytes(value[:8], "big"), value[8:].decode()


def reminder_rows(
    name: str, old: ReminderRecord | None, new: ReminderRecord | None
) -> tuple[tuple[Row, ...], tuple[IndexRow, ...]]:
    """The writes that make `new` of `old`; None stands for no reminder of this name."""
    row = Row(Table.REMINDER, name.encode(), REMINDER_CODEC.encode(new) if new is not None else None)
    gone = (IndexRow(Index.REMINDER_DUE, due_value(old), present=False),) if old is not None else ()
    added = (IndexRow(Index.REMINDER_DUE, due_value(new)),) if new is not None else ()
    return (row,), gone + added


def read_reminder(store: Store, stream: str, name: str) -> ReminderRecord | None:
    """The reminder that the store has; None where there is none.

    Raises:
        StoreError: it cannot be read.
    """
    key = name.encode()
    rows = store.scan(stream, Table.REMINDER, start=key, stop=key + b"\0", limit=1)
    return REMINDER_CODEC.decode(rows[0][1], where=f"reminder {name!r} of {stream!r}") if rows else None


class ReminderChanges:
    """What one activation has given to be stored and may not find in the store yet: newer than what is read there.

    Made of the batches in flight; each has the number of the version that it was built on.
    """

    __slots__ = ("_changed", "_erased_at")

    def __init__(self) -> None:
        self._changed: dict[str, tuple[int, ReminderRecord | None]] = {}
        self._erased_at = -1

    def __len__(self) -> int:
        """How many reminders are changed by batches in flight."""
        return len(self._changed)

    def given(self, version: int, changed: Mapping[str, ReminderRecord | None], *, erase: bool) -> None:
        """A batch is on its way; with `erase` it drops all that was there before it."""
        if erase:
            self._changed.clear()
            self._erased_at = version
        for name, record in changed.items():
            self._changed[name] = (version, record)

    def stored(self, version: int, changed: Iterable[str]) -> None:
        """That batch is durable: from now on the store says the same."""
        for name in changed:
            if self._changed.get(name, (-1, None))[0] == version:
                del self._changed[name]
        if self._erased_at == version:
            self._erased_at = -1

    def knows(self, name: str) -> bool:
        """True where what the store has is out of date, or may be."""
        return name in self._changed or self._erased_at >= 0

    def find(self, name: str) -> ReminderRecord | None:
        """The reminder as it will be; only where it `knows`."""
        return self._changed.get(name, (-1, None))[1]


def _milliseconds(what: str, seconds: float) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise TypeError(f"{what} is a number of seconds, not {seconds!r}")
    if not 0 <= seconds <= REMINDER_TIME_MS_MAX / 1000:
        raise ValueError(f"{what} is a number of seconds from 0, and of some million years at most, not {seconds}")
    return round(seconds * 1000)
