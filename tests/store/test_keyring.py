"""The keyring: what opens with which key, and the shape of what is stored."""

import hmac
import os

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, strategies as st

from callboard.store import Codec, Corrupt, NewerFormat
from callboard.store.errors import WrongKey
from callboard.store.keyring import OVERHEAD_BYTES, Keyring, KeyringRecord, Unopened
from callboard.store.master_key import MasterKey

MASTER, OTHER = MasterKey(b"m" * 32), MasterKey(b"o" * 32)
RECORD = Codec(KeyringRecord)


def sealed(keyring: Keyring, stream: str, value: bytes, place: bytes) -> bytes:
    nonce = bytes(12)
    cipher = keyring.cipher(keyring.generation, stream)
    return keyring.generation.to_bytes(2, "big") + nonce + cipher.encrypt(nonce, value, place)


def test_what_was_wrapped_unwraps_to_the_same_keys() -> None:
    keyring = Keyring.new()

    again = Keyring.unwrap(keyring.wrap(MASTER), MASTER, location="here")

    assert again.pseudonym("session:a") == keyring.pseudonym("session:a")
    assert again.open("s", sealed(keyring, "s", b"value", b"p"), b"p") == b"value"


def test_two_stores_have_nothing_in_common() -> None:
    one, two = Keyring.new(), Keyring.new()

    assert one.pseudonym("session:a") != two.pseudonym("session:a")
    assert one.hide_text(b"\2", b"ann") != two.hide_text(b"\2", b"ann")
    with pytest.raises(Unopened):
        two.open("s", sealed(one, "s", b"value", b"p"), b"p")


def test_another_master_key_is_named_by_its_fingerprint() -> None:
    wrapped = Keyring.new().wrap(MASTER)

    with pytest.raises(WrongKey, match=f"{MASTER.fingerprint}, and the one given is {OTHER.fingerprint}"):
        Keyring.unwrap(wrapped, OTHER, location="here")


def test_wrapping_twice_gives_other_bytes_each_time() -> None:
    keyring = Keyring.new()
    records = [RECORD.decode(keyring.wrap(MASTER), where="") for _ in range(2)]

    assert records[0].salt != records[1].salt
    assert records[0].wrapped[:12] != records[1].wrapped[:12]


@pytest.mark.parametrize(
    ("first", "last", "salt"),
    [(0, 0, None), (0, 20, None), (1, None, None), (0, -1, None), (0, None, bytes(16))],
)
def test_a_damaged_keyring_is_corrupt_and_no_wrong_key(first: int, last: int | None, salt: bytes | None) -> None:
    record = RECORD.decode(Keyring.new().wrap(MASTER), where="")
    changed = KeyringRecord(record.layout, record.fingerprint, salt or record.salt, record.wrapped[first:last])
    damaged = RECORD.encode(changed)

    with pytest.raises(Corrupt, match=r"keyring of the store .here.*though the master key is the right one"):
        Keyring.unwrap(damaged, MASTER, location="here")


def test_a_newer_way_of_sealing_is_refused() -> None:
    record = RECORD.decode(Keyring.new().wrap(MASTER), where="")

    with pytest.raises(NewerFormat, match="upgrade"):
        Keyring.unwrap(RECORD.encode(msgspec.structs.replace(record, layout=2)), MASTER, location="here")


def test_a_new_generation_seals_and_the_old_one_still_opens() -> None:
    first = Keyring.new()
    old = sealed(first, "s", b"old", b"p")

    second = Keyring.unwrap(first.renewed().wrap(MASTER), MASTER, location="here")

    assert (second.generation, second.old_generations()) == (2, [1])
    assert second.open("s", old, b"p") == b"old"
    assert second.pseudonym("a") == first.pseudonym("a")
    with pytest.raises(Unopened, match="no key of generation 2"):
        first.open("s", sealed(second, "s", b"new", b"p"), b"p")


def test_each_stream_and_each_generation_has_a_key_of_its_own() -> None:
    keyring = Keyring.new().renewed()
    ciphertexts = {
        keyring.cipher(generation, stream).encrypt(bytes(12), b"value", b"")
        for generation in (1, 2)
        for stream in ("a", "b", "a" * 22)
    }

    assert len(ciphertexts) == 6


def test_value_keys_are_derived_as_hkdf_expand_says() -> None:
    # RFC 5869, section 2.3, for one block of output: T(1) = HMAC(PRK, info | 0x01). The format rests on it.
    keyring = Keyring.new()
    root = keyring._roots.generations[1]  # pyright: ignore[reportPrivateUsage] - nothing else may see it
    key = hmac.digest(root, b"callboard values\0stream\x01", "sha256")
    nonce = os.urandom(12)

    assert AESGCM(key).encrypt(nonce, b"value", b"p") == keyring.cipher(1, "stream").encrypt(nonce, b"value", b"p")


@given(st.binary(max_size=400))
def test_a_hidden_text_is_the_same_each_time_and_comes_back(text: bytes) -> None:
    keyring = SHARED
    hidden = keyring.hide_text(b"\2", text)

    assert len(hidden) % 16 == 0
    assert 16 < len(hidden) - len(text) <= 32
    assert keyring.text_of(b"\2", hidden) == text
    assert hidden != keyring.hide_text(b"\3", text)
    with pytest.raises(Unopened, match="another index"):
        keyring.text_of(b"\3", hidden)


@pytest.mark.parametrize("size_bytes", [0, 1, 15, 16, 17, 48])
def test_what_is_no_hidden_text_does_not_open(size_bytes: int) -> None:
    with pytest.raises(Unopened):
        SHARED.text_of(b"\2", bytes(size_bytes))


@pytest.mark.parametrize("size_bytes", [0, 1, OVERHEAD_BYTES - 1, OVERHEAD_BYTES, 100])
def test_what_is_no_sealed_value_does_not_open(size_bytes: int) -> None:
    with pytest.raises(Unopened):
        SHARED.open("s", b"\0\1" + bytes(max(0, size_bytes - 2)) if size_bytes else b"", b"")


def test_pseudonyms_of_names_are_short_and_have_nothing_of_them() -> None:
    names = ["session:user-1", "session:user-2", "é" * 200, "a"]
    pseudonyms = [SHARED.pseudonym(name) for name in names]

    assert len(set(pseudonyms)) == len(names)
    assert all(len(one) == 22 and one.isascii() and "." not in one and ":" not in one for one in pseudonyms)


def test_digests_for_one_purpose_are_none_for_another() -> None:
    assert SHARED.digest(b"key", b"x") != SHARED.digest(b"value", b"x")


SHARED = Keyring.new()
