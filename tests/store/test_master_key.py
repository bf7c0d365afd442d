"""The master key: what is taken for one, and that it shows itself nowhere."""

import base64
import copy
import pickle
from typing import Any, cast

import pytest

from callboard.store.master_key import MasterKey

SECRET = bytes(range(224, 256))


@pytest.mark.parametrize(
    "key",
    [
        SECRET,
        SECRET.hex(),
        SECRET.hex().upper(),
        f"  {SECRET.hex()}\n",
        base64.b64encode(SECRET).decode(),
        base64.urlsafe_b64encode(SECRET).decode(),
        base64.urlsafe_b64encode(SECRET).decode().rstrip("="),
        MasterKey(SECRET),
    ],
)
def test_bytes_hex_and_base64_give_the_same_key(key: bytes | str | MasterKey) -> None:
    assert MasterKey(key).secret() == SECRET
    assert MasterKey(key).fingerprint == MasterKey(SECRET).fingerprint


@pytest.mark.parametrize("key", [None, 5, bytearray(SECRET), memoryview(SECRET), [1]])
def test_what_is_neither_bytes_nor_text_is_a_type_error_that_says_how_to_make_one(key: object) -> None:
    with pytest.raises(TypeError, match=r"a master key is 32 bytes.*secrets\.token_hex"):
        MasterKey(cast("Any", key))


@pytest.mark.parametrize(
    "key",
    [b"", SECRET[:31], SECRET + b"x", SECRET.hex().encode(), "", "correct horse battery staple", "g" * 64, "é" * 43],
)
def test_what_has_another_size_is_a_value_error_that_says_how_to_make_one(key: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"32 bytes.*secrets\.token_hex"):
        MasterKey(key)


def test_no_error_and_no_form_of_a_key_shows_it() -> None:
    wrong = "sesame-open-sesame-open"
    key = MasterKey(SECRET)

    with pytest.raises(ValueError, match="23 characters") as caught:
        MasterKey(wrong)

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "sesame" not in str(caught.value)
    assert repr(key) == f"<MasterKey {key.fingerprint}>"
    assert SECRET.hex()[:8] not in repr(key)


@pytest.mark.parametrize("keep", [pickle.dumps, copy.copy])
def test_a_key_is_not_pickled(keep: Any) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        keep(MasterKey(SECRET))


def test_keys_are_told_apart_by_their_fingerprints() -> None:
    assert len({MasterKey(bytes((number,)) * 32).fingerprint for number in range(100)}) == 100
