"""What a store promises to the runtime: one page of guarantees, held by every implementation.

A store keeps *streams*. A stream belongs to one actor and has a small head, rows in a few tables, and two numbers that
guard it: the epoch of its last writer and a version that goes up by one with each batch.

Guarantees, checked on every implementation by `tests/contracts/test_store_contract.py`:

1. A batch is stored whole or not at all; all the accepted batches of one `commit` call appear together.
2. When `commit` returns, what it accepted survives what the store's durability level names.
3. A batch is refused with Fenced if its epoch is older than the stream's, and with Conflict if the stream is not at
   the batch's version. A refused batch does not touch the others of the same call, save that later ones of the same
   stream are then built on a version that never came, and are refused too.
4. `commit` raises only if nothing at all was stored, or with `uncertain=True` where that cannot be known.
5. Reads see whole transactions. Keys come in byte order; a limit never cuts a value.
6. A row that cannot be read is left out of what is read and noted in `damage`: it does not hide the rest.
7. `claim` gives a number greater than every number that it gave before, also after a crash.

Not promised: order between streams; reads inside a commit; more than one writing process.

Calls block (microseconds to a few milliseconds) and may come from any thread, `commit` from one thread at a time.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from .batch import Batch, Index, IndexRow, Row, Table
from .damage import DamageLog
from .errors import Conflict, Corrupt, Fenced

__all__ = [
    "Batch",
    "Durability",
    "Head",
    "Index",
    "IndexHit",
    "IndexRow",
    "Refusal",
    "Row",
    "Store",
    "StoreStatistics",
    "Table",
]

Refusal = Fenced | Conflict | Corrupt
"""Why a batch was not stored, while others of its commit were. Corrupt: its stream's guard cannot be read."""

Durability = Literal["sync", "async", "none"]
"""sync: survives power loss, as far as the disk tells the truth. async: survives a process crash. none: memory only."""


class Head(Struct, frozen=True, gc=False):
    """A stream's guard and its head. `head` is b"" where the stream was erased."""

    epoch: int
    version: int
    head: bytes


class IndexHit(Struct, frozen=True, gc=False):
    """One index entry. `position` is where it stands: pass it back as `after` to go on behind it."""

    position: bytes
    value: bytes
    stream: str


class StoreStatistics(Struct, frozen=True):
    """Counts since opening, and sizes now.

    Attributes:
        commits, batches, refused: transactions, the batches in them, and those of these that were refused.
        streams: all that were ever written.
        size_bytes: all that is stored, on disk where there is one.
        log_bytes: what the next opening would have to replay.
        checkpoints: how often the log was emptied into rows.
        damaged: records that could not be read, see `Store.damage`.
    """

    commits: int
    batches: int
    refused: int
    streams: int
    size_bytes: int
    log_bytes: int = 0
    checkpoints: int = 0
    damaged: int = 0


class Store(Protocol):
    """See the module's text for the guarantees."""

    @property
    def inline(self) -> bool:
        """True where `commit` never waits for a device, so that it may be called on the event loop."""
        ...

    @property
    def damage(self) -> DamageLog:
        """What could not be read since the store was opened."""
        ...

    @property
    def location(self) -> str:
        """Where the data lies, for people: a path, or "memory"."""
        ...

    def claim(self) -> int:
        """Give out the next owner number (1, 2, ...), durable before it returns.

        Raises:
            StoreUnavailable, StoreFull: no number was given.
        """
        ...

    def load(self, stream: str) -> Head | None:
        """The stream's guard and head, or None where it was never written.

        Raises:
            Corrupt: its guard cannot be read.
        """
        ...

    def scan(
        self,
        stream: str,
        table: Table,
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Rows with `start <= key < stop` in byte order, or from the end with `newest_first`; at most `limit`.

        Cost: one seek, then one step a row; a read transaction is held only inside the call.
        """
        ...

    def scan_index(
        self,
        index: Index,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[IndexHit]:
        """Entries whose value starts with `prefix`, in the byte order of (value, stream number), or backwards.

        `after` is a hit's position: only entries beyond it, in the direction of travel, are given.
        """
        ...

    def streams(self, *, after: str = "", limit: int | None = None) -> list[str]:
        """The names of all streams that were ever written, erased ones too, in the byte order of their UTF-8: those
        behind `after`, at most `limit`."""
        ...

    def entries(self, stream: str) -> list[IndexRow]:
        """The index entries that point at the stream, in the order of (index, value)."""
        ...

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        """Store the batches in one transaction; one answer a batch, None where it was accepted.

        Raises:
            TypeError: one of them is no Batch; nothing was stored.
            StoreFull: nothing was stored; the same call may succeed later.
            StoreUnavailable: nothing was stored, or, with `uncertain` True, perhaps everything.
        """
        ...

    def statistics(self) -> StoreStatistics: ...

    def close(self) -> None:
        """Give everything back. Calling it again does nothing; any other call afterwards raises StoreUnavailable."""
        ...
