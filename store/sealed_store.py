"""A store over a store: what lies beneath holds nothing that can be read without the master key.

    SealedStore(LmdbStore("support.lmdb"), master_key)

It keeps the contract of every store, and so goes with each of them. Its own keys lie in the store beneath, wrapped.

sealed_store          reads and writes: begin here ── sealed_rows, sealed_index
├─ sealing            bytes to bytes: what a sealed value is bound to
├─ pseudonyms         what stands for names and texts, and what somebody who has the file still sees
├─ keyring            which key is for what, and how they hang on the master key
├─ resealing          old values under new keys
└─ master_key         the one that its owner keeps

Two ways to change keys, for two reasons:

- `rotate`: another master key from now on; the old one no longer opens this store. At once: one record is written. For
  keys that are changed by the calendar, or when somebody leaves who knew the master key but not the file. Copies of the
  file made before, and pages that LMDB has not used again, still open with the old one: compact the store afterwards.
- `renew`, then `rewrite`: new value keys for all that is written from now on, then for what was written before. For
  when the keys themselves got out. Names and index texts keep their pseudonyms: for others export into a new store.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

from msgspec.structs import replace

from . import keys
from .batch import Batch, Index, IndexRow, Table, check_batches, check_name
from .contract import Head, IndexHit, Refusal, Store, StoreStatistics
from .damage import DamageLog
from .errors import Conflict, Corrupt, Fenced, WrongKey
from .master_key import MasterKey

if TYPE_CHECKING:
    from .keyring import Keyring

__all__ = ["KEYRING_STREAM", "SealedStore"]

KEYRING_STREAM = ".keyring"
"""Where the wrapped keys lie. No other stream has this name: an actor's has a colon, and a pseudonym has no dot."""
_NAMES_MAX = 16384


class SealedStore:
    """See contract.py for the guarantees, the module's text for the keys.

    Two things differ: entries of REMINDER_DUE with the same time come in an order of their own; and an index value of
    more than some 350 bytes is stored apart, so that who reads while it is replaced may miss it.

    Args:
        inner: the store beneath, empty or sealed. It belongs to this one from now on, and is closed with it; also where
            this one cannot be opened.
        master_key: 32 bytes, or their text in hex or base64, or a MasterKey.

    Attributes:
        inner: the store beneath, with sealed values and pseudonyms.

    Raises:
        WrongKey: it was sealed with another master key, or holds what was not sealed at all.
        ModuleNotFoundError: the package `cryptography` is missing: pip install 'callboard[encryption]'.
        TypeError, ValueError: the master key cannot be one.
        StoreError: as `inner` raises it.

    Cost: beyond the store beneath 2 us a batch, 1.3 us and 30 bytes a value, 2 us a row that is read. A prefix of OWNER
    or TAG without the 00 that ends its text reads the whole index; a range of OUTCOME or REMINDER that is not one key
    reads what the stream has in that table; `streams` reads the head of each that is new to it, and keeps their names.
    """

    def __init__(self, inner: Store, master_key: bytes | str | MasterKey) -> None:
        self.inner = inner
        self._writing = Lock()
        self._commits = self._batches = self._refused = 0
        try:
            self._master = MasterKey(master_key)
            self._open()
        except BaseException:
            inner.close()
            raise

    def _open(self) -> None:
        # Imported here, as cryptography is an extra.
        from .keyring import Keyring
        from .sealed_index import SealedIndexes
        from .sealed_rows import SealedRows
        from .sealing import Sealing

        if self.inner.load(KEYRING_STREAM) is None:
            if self.inner.statistics().streams:
                raise WrongKey(
                    f"the store {self.location!r} holds content that is not sealed: open it without a master key, or "
                    "export it and import that into a new store with one"
                )
            self._commit_beneath(Batch(KEYRING_STREAM, 0, 0, head=Keyring.new().wrap(self._master)))
        self._sealing = Sealing(self._stored_keyring(), self.inner.damage, reload=self._stored_keyring)
        self._rows = SealedRows(self.inner, self._sealing)
        self._name_of = lru_cache(_NAMES_MAX)(self._read_name)
        self._naming = Lock()
        self._named: dict[str, str | None] = {}
        self._ordered: list[str] = []
        self._indexes = SealedIndexes(self.inner, self._sealing, name_of=self._name_or_none)

    @property
    def inline(self) -> bool:
        return self.inner.inline

    @property
    def location(self) -> str:
        return self.inner.location

    @property
    def damage(self) -> DamageLog:
        return self.inner.damage

    def claim(self) -> int:
        return self.inner.claim()

    def load(self, stream: str) -> Head | None:
        check_name(stream)
        pseudonym = self._sealing.names.of_stream(stream)
        try:
            found = self.inner.load(pseudonym)
            return None if found is None else replace(found, head=self._sealing.open_head(pseudonym, found)[1])
        except Corrupt as error:
            raise Corrupt(f"{error.where}, which is {stream!r},", error.reason) from error

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
        check_name(stream)
        keys.check_limit(limit)
        keys.check_bounds(start, stop)
        return self._rows.scan(stream, table, start=start, stop=stop, limit=limit, newest_first=newest_first)

    def scan_index(
        self,
        index: Index,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[IndexHit]:
        keys.check_limit(limit)
        keys.check_index_prefix(prefix)
        return self._indexes.scan(index, prefix=prefix, after=after, limit=limit, newest_first=newest_first)

    def streams(self, *, after: str = "", limit: int | None = None) -> list[str]:
        keys.check_limit(limit)
        # Beneath they are in another order. No stream is ever taken away, so that those of the last call still stand.
        with self._naming:
            if self.statistics().streams != len(self._named):
                for pseudonym in self.inner.streams():
                    if pseudonym != KEYRING_STREAM and pseudonym not in self._named:
                        self._named[pseudonym] = self._name_or_none(pseudonym)
                self._ordered = sorted((name for name in self._named.values() if name is not None), key=str.encode)
            first = bisect_right(self._ordered, after.encode(), key=str.encode)
            return self._ordered[first : None if limit is None else first + limit]

    def entries(self, stream: str) -> list[IndexRow]:
        check_name(stream)
        return self._indexes.entries(self._sealing.names.of_stream(stream))

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        check_batches(batches)
        # Sealed and stored under one lock, so that after `renew` nothing is on its way under an older generation.
        with self._writing:
            answers = self.inner.commit([self._sealing.seal(batch) for batch in batches])
            self._commits += 1
            self._batches += len(batches)
            self._refused += len(batches) - answers.count(None)
        return [answer and _renamed(answer, batch.stream) for answer, batch in zip(answers, batches, strict=True)]

    def statistics(self) -> StoreStatistics:
        counted = self.inner.statistics()
        return replace(
            counted,
            commits=self._commits,
            batches=self._batches,
            refused=self._refused,
            streams=counted.streams - 1,
        )

    def close(self) -> None:
        self.inner.close()

    # Keys -------------------------------------------------------------------------------------------------------------

    def rotate(self, master_key: bytes | str | MasterKey) -> None:
        """From now on this master key opens the store, and the one before does not. Nothing else is written again.

        Raises:
            TypeError, ValueError: it cannot be a master key; nothing has changed.
            StoreError: nothing has changed, unless it is `uncertain`: then keep both until the store was opened again.
        """
        master = MasterKey(master_key)
        self._store_keyring(self._stored_keyring(), master)
        self._master = master

    def renew(self) -> int:
        """All that is written from now on is sealed with keys of a new generation, whose number this gives.

        Raises:
            StoreError: nothing has changed, unless it is `uncertain`: then there may be a generation that is not used.
        """
        self._store_keyring(self._stored_keyring().renewed(), self._master)
        return self._sealing.keyring.generation

    def rewrite(self, *, progress: Callable[[int], None] | None = None) -> int:
        """What older generations have sealed is sealed with the newest; gives the number of streams that had any.

        For a store that no runtime uses: a stream's version goes up, so that an actor that has it in memory is refused
        with Conflict. May be broken off anywhere and called again: what is done is not written again.

        Args:
            progress: told after each stream how many are done.

        Raises:
            Conflict, Fenced: somebody else wrote to a stream meanwhile; call it again.
            StoreError: as the store beneath raises it.
        """
        from .resealing import Resealing

        return Resealing(self.inner, self._sealing, commit=self._commit_beneath).run(progress)

    def _stored_keyring(self) -> "Keyring":
        from .keyring import Keyring

        found = self.inner.load(KEYRING_STREAM)
        if found is None:
            raise Corrupt(f"keyring of the store {self.location!r}", "it is gone")
        return Keyring.unwrap(found.head, self._master, location=self.location)

    def _store_keyring(self, keyring: "Keyring", master: MasterKey) -> None:
        found = self.inner.load(KEYRING_STREAM)
        assert found is not None, "it was read just before"
        batch = Batch(KEYRING_STREAM, found.epoch, found.version, head=keyring.wrap(master))
        with self._writing:
            self._commit_locked(batch)
            self._sealing.keyring = keyring

    def _commit_beneath(self, batch: Batch) -> None:
        with self._writing:
            self._commit_locked(batch)

    def _commit_locked(self, batch: Batch) -> None:
        [answer] = self.inner.commit([batch])
        if answer is not None:
            raise answer

    def _read_name(self, pseudonym: str) -> str:
        found = self.inner.load(pseudonym)
        if found is None:
            raise Corrupt(f"head of the stream stored as {pseudonym!r}", "it is gone")
        return self._sealing.open_head(pseudonym, found)[0]

    def _name_or_none(self, pseudonym: str) -> str | None:
        try:
            return self._name_of(pseudonym)
        except Corrupt as error:
            self.damage.report(error.where, error.reason)
            return None


def _renamed(answer: Refusal, stream: str) -> Refusal:
    """The answer of the store beneath with the name that the caller knows."""
    match answer:
        case Fenced():
            return Fenced(stream, epoch=answer.epoch, stored_epoch=answer.stored_epoch)
        case Conflict():
            return Conflict(stream, version=answer.version, stored_version=answer.stored_version)
        case Corrupt():
            return Corrupt(f"{answer.where}, which is {stream!r},", answer.reason)
