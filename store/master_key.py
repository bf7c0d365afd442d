"""The key that its owner keeps: 32 random bytes, from which nothing is sealed directly, see keyring.py.

It needs no extra, so that a key that cannot be one is refused where it is given, before any store is opened.
"""

import base64
import binascii
import hmac

__all__ = ["MASTER_KEY_BYTES", "MasterKey"]

MASTER_KEY_BYTES = 32
_ADVICE = 'make one with: python -c "import secrets; print(secrets.token_hex(32))"'


class MasterKey:
    """A master key, which shows itself to nobody: neither its text form nor an error has its bytes.

    Args:
        key: 32 bytes, or those as 64 hex digits or as base64. No passphrase: what people can remember can be guessed.

    Attributes:
        fingerprint: 16 hex digits that tell keys apart and give nothing of them away.

    Raises:
        TypeError, ValueError: it is none of these.
    """

    __slots__ = ("_secret", "fingerprint")

    def __init__(self, key: "bytes | str | MasterKey") -> None:
        if isinstance(key, MasterKey):
            self._secret: bytes = key._secret
        else:
            self._secret = _from_text(key) if isinstance(key, str) else _checked(key)
        self.fingerprint = hmac.digest(self._secret, b"callboard fingerprint", "sha256")[:8].hex()

    def __repr__(self) -> str:
        return f"<MasterKey {self.fingerprint}>"

    def __reduce__(self) -> str:
        raise TypeError("a MasterKey is not pickled: it would lie readable wherever that goes")

    def secret(self) -> bytes:
        """The 32 bytes, for deriving keys."""
        return self._secret


def _checked(key: object) -> bytes:
    if not isinstance(key, bytes):
        raise TypeError(
            f"a master key is {MASTER_KEY_BYTES} bytes, or their text in hex or base64, not {type(key).__name__}: "
            + _ADVICE
        )
    if len(key) != MASTER_KEY_BYTES:
        raise ValueError(f"a master key has {MASTER_KEY_BYTES} bytes, and this one has {len(key)}: {_ADVICE}")
    return key


def _from_text(text: str) -> bytes:
    stripped = text.strip()
    try:
        if len(stripped) == 2 * MASTER_KEY_BYTES:
            return bytes.fromhex(stripped)
        plain = stripped.replace("-", "+").replace("_", "/").rstrip("=")
        decoded = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (ValueError, binascii.Error):
        decoded = b""
    if len(decoded) != MASTER_KEY_BYTES:
        # Without the text and without the cause, which may quote it.
        raise ValueError(
            f"a master key as text is {2 * MASTER_KEY_BYTES} hex digits, or base64 of {MASTER_KEY_BYTES} bytes, and "
            f"this text of {len(stripped)} characters is neither: {_ADVICE}"
        ) from None
    return decoded
