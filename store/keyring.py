"""The keys of a sealed store: how they hang on the master key, and what each of them is for.

    master key                      its owner's; opens the keyring and nothing else
    └─ keyring                      head of the stream ".keyring" beneath: AES-256-GCM under HKDF(master, salt)
       ├─ root of generation 1, 2, ...    random; the newest seals, the older ones only open
       │  └─ value key              one per stream: HKDF(root, stream's pseudonym); seals its head and its rows
       └─ naming root               random; one for the life of the store
          ├─ name key               HMAC: pseudonyms of streams and of row keys
          └─ text key               AES-SIV: the texts in index values, found by equality and read back

So changing the master key rewrites one record. A root that got out, by a dump of memory, say, is answered with a new
generation and `SealedStore.rewrite`.

A sealed value: generation u16, nonce 12 bytes, then the AES-256-GCM ciphertext with its tag of 16 bytes. Nonces are
random. The chance that any two of a key's n values share one stays below 2**-32 up to n = 2**32, which is the limit of
the standard; as each stream has its own key, that is 2**32 values written to one stream in one generation.

Source: NIST SP 800-38D (AES-GCM; section 8.3 has the limit), RFC 5869 (HKDF; the roots are uniform, so that its second
half, Expand, suffices: section 3.3), RFC 5297 (AES-SIV), RFC 2104 (HMAC).
"""

import base64
import hmac
import os
from functools import lru_cache

import msgspec
from msgspec import Struct

from .errors import Corrupt, NewerFormat, WrongKey
from .master_key import MasterKey
from .records import Codec

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "a sealed store needs the package `cryptography`: pip install 'callboard[encryption]'", name=missing.name
    ) from missing

__all__ = [
    "NONCE_BYTES",
    "OVERHEAD_BYTES",
    "PSEUDONYM_BYTES",
    "Keyring",
    "KeyringRecord",
    "UnknownGeneration",
    "Unopened",
]

NONCE_BYTES = 12
OVERHEAD_BYTES = 2 + NONCE_BYTES + 16
"""What sealing adds to a value."""
PSEUDONYM_BYTES = 16
GENERATION_MAX = 0xFFFF
LAYOUT = 1
"""Counts the ways of sealing; a store of a greater one is refused."""

CIPHERS_MAX = 8192
"""Value keys kept ready, 2.5 KB each (measured); the least recently used is derived again, which takes 4 us."""
TEXTS_MAX = 16384
"""Pseudonyms and texts kept, some 200 bytes each."""


class Unopened(Exception):
    """A sealed value does not open. The text says why, without the value."""


class UnknownGeneration(Unopened):
    """It says that keys have sealed it which this keyring does not have: perhaps the stored one does by now."""


class KeyringRecord(Struct, frozen=True, tag="keyring"):
    """What is stored. `fingerprint` names the master key that `wrapped` (nonce and ciphertext) opens under."""

    layout: int
    fingerprint: str
    salt: bytes
    wrapped: bytes


class _Roots(Struct, frozen=True, array_like=True):
    naming: bytes
    generations: dict[int, bytes]


_RECORD = Codec(KeyringRecord)
_ENCODER = msgspec.msgpack.Encoder()
_ROOTS = msgspec.msgpack.Decoder(_Roots)


class Keyring:
    """The opened keys. Any thread may use it.

    Attributes:
        generation: the newest, which seals.
    """

    def __init__(self, roots: _Roots) -> None:
        self._roots = roots
        self.generation = max(roots.generations)
        self._name_key = _expand(roots.naming, b"callboard names")
        self._siv = AESSIV(_expand(roots.naming, b"callboard texts", size_bytes=64))
        self.cipher = lru_cache(CIPHERS_MAX)(self._derive_cipher)
        self.pseudonym = lru_cache(TEXTS_MAX)(self._derive_pseudonym)
        self.hide_text = lru_cache(TEXTS_MAX)(self._hide_text)
        self.text_of = lru_cache(TEXTS_MAX)(self._text_of)

    @classmethod
    def new(cls) -> "Keyring":
        """Fresh keys, generation 1."""
        return cls(_Roots(os.urandom(32), {1: os.urandom(32)}))

    @classmethod
    def unwrap(cls, data: bytes, master: MasterKey, *, location: str) -> "Keyring":
        """The keys in a stored keyring.

        Raises:
            WrongKey: it is wrapped with another master key.
            NewerFormat: a newer callboard wrote it.
            Corrupt: it is damaged.
        """
        where = f"keyring of the store {location!r}"
        record = _RECORD.decode(data, where=where)
        if record.layout > LAYOUT:
            raise NewerFormat(
                f"the store {location!r} is sealed in the way {record.layout}; this callboard knows up to {LAYOUT}: "
                "upgrade callboard"
            )
        if record.fingerprint != master.fingerprint:
            raise WrongKey(
                f"the store {location!r} is sealed with the master key {record.fingerprint}, and the one given is "
                f"{master.fingerprint} (fingerprints, not keys): give the one that it was made with, or last rotated to"
            )
        try:
            wrapping = AESGCM(_wrapping_key(master, record.salt))
            packed = wrapping.decrypt(
                record.wrapped[:NONCE_BYTES], record.wrapped[NONCE_BYTES:], _bound(record.fingerprint)
            )
            return cls(_ROOTS.decode(packed))
        except (InvalidTag, ValueError, msgspec.DecodeError) as error:
            raise Corrupt(where, "it does not open, though the master key is the right one") from error

    def wrap(self, master: MasterKey) -> bytes:
        """The keyring as it is stored."""
        salt, nonce = os.urandom(16), os.urandom(NONCE_BYTES)
        packed = _ENCODER.encode(self._roots)
        sealed = AESGCM(_wrapping_key(master, salt)).encrypt(nonce, packed, _bound(master.fingerprint))
        return _RECORD.encode(KeyringRecord(LAYOUT, master.fingerprint, salt, nonce + sealed))

    def renewed(self) -> "Keyring":
        """These keys and one generation more."""
        if self.generation >= GENERATION_MAX:
            raise ValueError(f"a store has at most {GENERATION_MAX} generations of keys: export it into a new one")
        fresh = {self.generation + 1: os.urandom(32)}
        return Keyring(_Roots(self._roots.naming, self._roots.generations | fresh))

    def old_generations(self) -> list[int]:
        """The generations that only open, oldest first."""
        return sorted(self._roots.generations)[:-1]

    # Values -----------------------------------------------------------------------------------------------------------

    def _derive_cipher(self, generation: int, stream: str) -> AESGCM:
        """The cipher of one stream, by its pseudonym. LookupError for an unknown generation."""
        return AESGCM(_expand(self._roots.generations[generation], b"callboard values\0" + stream.encode()))

    def open(self, stream: str, sealed: bytes, bound_to: bytes) -> bytes:
        """The value that was sealed for this stream and this place in it.

        Raises:
            Unopened: it was sealed for another place or with other keys, or it was changed.
            UnknownGeneration: that is an Unopened too.
        """
        if len(sealed) < OVERHEAD_BYTES:
            raise Unopened(f"a sealed value has at least {OVERHEAD_BYTES} bytes, and this one has {len(sealed)}")
        generation = int.from_bytes(sealed[:2], "big")
        try:
            return self.cipher(generation, stream).decrypt(sealed[2:14], sealed[14:], bound_to)
        except KeyError:
            raise UnknownGeneration(f"there is no key of generation {generation}") from None
        except InvalidTag:
            raise Unopened("it was changed, or belongs to another place") from None

    # Names ------------------------------------------------------------------------------------------------------------

    def digest(self, purpose: bytes, data: bytes) -> bytes:
        """16 bytes that stand for `data`, the same each time; nobody without the key can tell which data it was."""
        return hmac.digest(self._name_key, purpose + b"\0" + data, "sha256")[:PSEUDONYM_BYTES]

    def _derive_pseudonym(self, stream: str) -> str:
        """What a stream is called in the store beneath: 22 characters."""
        return base64.urlsafe_b64encode(self.digest(b"stream", stream.encode()))[:22].decode()

    def _hide_text(self, purpose: bytes, text: bytes) -> bytes:
        """A text, sealed so that the same text gives the same bytes: padded to whole blocks of 16, and 16 more."""
        return self._siv.encrypt(text + b"\x80" + bytes(-(len(text) + 1) % 16), [purpose])

    def _text_of(self, purpose: bytes, hidden: bytes) -> bytes:
        """The text that was hidden. Unopened if these bytes are none."""
        try:
            return self._siv.decrypt(hidden, [purpose]).rstrip(b"\0")[:-1]
        except (InvalidTag, ValueError):
            raise Unopened("it was changed, or belongs to another index") from None


def _expand(root: bytes, info: bytes, *, size_bytes: int = 32) -> bytes:
    return HKDFExpand(SHA256(), size_bytes, info).derive(root)


def _wrapping_key(master: MasterKey, salt: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, b"callboard keyring").derive(master.secret())


def _bound(fingerprint: str) -> bytes:
    return b"callboard keyring\0" + bytes((LAYOUT,)) + fingerprint.encode()
