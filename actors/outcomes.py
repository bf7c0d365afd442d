"""What a session remembers of idempotency keys: which run answered a key, and to what.

    a key comes   no outcome, or an old one         the request runs, and takes the key
                  of the same content               that run is the answer: see ON_KEY for what its status means
                  of another content                KeyReused

The outcome of a key is stored with the turn that begins for it, or with the acceptance of what was submitted, so that
it is there exactly when something may happen. A request that never began leaves none.
"""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from types import MappingProxyType
from typing import Literal

import msgspec
from msgspec import Struct

from ..store.contract import Row, Store, Table
from ..store.errors import StoreError
from ..store.records import Codec
from .errors import KeyReused
from .limits import check_key
from .message import Message
from .run_record import RunStatus
from .session_records import stream_of

__all__ = ["ON_KEY", "OUTCOMES_KEPT_MS", "OUTCOME_CODEC", "Key", "Outcome", "Outcomes", "key_of"]

OUTCOMES_KEPT_MS = 86_400_000
"""As long as Stripe, who made the header usual, keeps them."""

OnKey = Literal["join", "resume", "run"]
ON_KEY: MappingProxyType[RunStatus, OnKey] = MappingProxyType(
    {
        "queued": "join",
        "running": "join",
        "waiting": "join",
        "completed": "join",
        "failed": "join",  # the failure is the outcome; another key, or `retry`, tries again
        "cancelled": "run",  # nothing came of it, and somebody wants it after all
        "interrupted": "resume",
    }
)
"""What a request does whose key a run of this status has: join it and have its answer, resume it, or run anew."""


_PREFIX = b"key "
_SWEEP_EVERY_MS = 3_600_000
"""A session that is given keys looks once an hour for those that are old."""


class Key(Struct, frozen=True):
    """An idempotency key, and a digest of what was asked with it."""

    text: str
    digest: bytes


class Outcome(Struct, frozen=True, omit_defaults=True, tag="outcome"):
    """What is stored of a key.

    Attributes:
        key: its text.
        digest: of what was asked.
        run_id: the run that has the answer.
        at_ms: when the run began, or was accepted; milliseconds since 1970, UTC.
    """

    key: str
    digest: bytes
    run_id: str
    at_ms: int


OUTCOME_CODEC = Codec(Outcome)


def key_of(text: object, agent: str, messages: Iterable[Message]) -> Key:
    """The key of this request of an agent.

    Raises:
        TypeError, ValueError: the text is no good as a key; the message says what would be.
    """
    checked = check_key(text)
    said = msgspec.msgpack.encode((agent, tuple(messages)))
    return Key(checked, hashlib.blake2b(said, digest_size=16).digest())


class Outcomes:
    """The outcomes of one session. Those whose run has not ended, for good, are here; all others are in the store.

    `kept_ms` is how long an outcome counts, from the beginning of its run.
    """

    __slots__ = ("_kept_ms", "_live", "_session_id", "_store", "_swept_ms")

    def __init__(self, store: Store, session_id: str, kept_ms: int) -> None:
        self._store = store
        self._session_id = session_id
        self._kept_ms = kept_ms
        self._live: dict[str, Outcome] = {}
        self._swept_ms = 0

    def find(self, key: Key, *, at_ms: int) -> Outcome | None:
        """The outcome that counts for this key; None where there is none, or only an old one.

        Raises:
            KeyReused: the key stands for something else.
            Corrupt: the store's record of it cannot be read: whether something was done is not known.
        """
        outcome = self._live.get(key.text)
        if outcome is None:
            row = _row_key(key.text)
            found = self._store.scan(stream_of(self._session_id), Table.OUTCOME, start=row, stop=row + b"\0", limit=1)
            if not found:
                return None
            where = f"outcome of key {key.text!r} of session {self._session_id!r}"
            outcome = OUTCOME_CODEC.decode(found[0][1], where=where)
            if outcome.at_ms + self._kept_ms < at_ms:
                return None
        if outcome.digest != key.digest:
            raise KeyReused(key.text, run_id=outcome.run_id)
        return outcome

    def note(self, key: Key, run_id: str, *, at_ms: int) -> Outcome:
        """This run, which may still wait for its turn, will answer the key."""
        outcome = self._live[key.text] = Outcome(key.text, key.digest, run_id, at_ms)
        return outcome

    def forget(self, key: Key) -> None:
        """The run that was noted for the key has never begun, or what became of it is in the store."""
        self._live.pop(key.text, None)

    def clear(self) -> None:
        """The session was deleted, with all that was stored of its outcomes."""
        self._live.clear()

    def settled(self, run_ids: tuple[str, ...]) -> None:
        """These runs have ended, and that is durable: from now on the store knows."""
        if self._live:
            self._live = {key: outcome for key, outcome in self._live.items() if outcome.run_id not in run_ids}

    def rows(self, outcome: Outcome, *, at_ms: int) -> list[Row]:
        """What is to be stored where the run of an outcome begins; now and then old outcomes go with it."""
        rows = [Row(Table.OUTCOME, _row_key(outcome.key), OUTCOME_CODEC.encode(outcome))]
        if at_ms - self._swept_ms >= _SWEEP_EVERY_MS:
            self._swept_ms = at_ms
            rows += self._old_rows(at_ms)
        return rows

    def _old_rows(self, at_ms: int) -> list[Row]:
        rows: list[Row] = []
        for key, value in self._store.scan(stream_of(self._session_id), Table.OUTCOME):
            if not key.startswith(_PREFIX):
                continue  # a head that was damaged, kept by session_check.py
            with suppress(StoreError):  # one that cannot be read stays
                outcome = OUTCOME_CODEC.decode(value, where="an outcome")
                if outcome.at_ms + self._kept_ms < at_ms:
                    rows.append(Row(Table.OUTCOME, key, None))
        return rows


def _row_key(text: str) -> bytes:
    """A hash: a key may be longer than a row's may."""
    return _PREFIX + hashlib.blake2b(text.encode(), digest_size=24).digest()
