"""Cursors of pages: where a list goes on, as text that its reader hands back unchanged. Pure.

A cursor begins with the name of what was listed, a hash of it, so that no other list takes it for a place of its own.
"""

import base64
import hashlib

from msgspec import Struct

__all__ = ["Cursors"]

_NAME_BYTES = 6
_SHOWN_CHARACTERS = 80


class Cursors(Struct, frozen=True):
    """The cursors of one list, by its `name`. `what` it is, and the `advice`, stand in the error for one of another."""

    name: bytes
    what: str
    advice: str

    @classmethod
    def of(cls, listed: str, *, what: str, advice: str) -> "Cursors":
        """Those of what is listed: a text that tells it, with its filters, from all others."""
        return cls(hashlib.blake2b(listed.encode(), digest_size=_NAME_BYTES).digest(), what, advice)

    def to(self, place: bytes) -> str:
        """The cursor to this place."""
        return base64.urlsafe_b64encode(self.name + place).decode()

    def place(self, cursor: object) -> bytes:
        """The place that a cursor leads to.

        Raises:
            TypeError, ValueError: this list has given no such cursor.
        """
        if not isinstance(cursor, str):
            raise TypeError(f"cursor must be a string, not {type(cursor).__name__}: {self.advice}")
        try:
            data = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
        except ValueError:
            data = b""
        if not data.startswith(self.name):
            raise self.refusal(cursor)
        return data[_NAME_BYTES:]

    def refusal(self, cursor: object) -> ValueError:
        """The error for a cursor whose place is none."""
        return ValueError(f"{str(cursor)[:_SHOWN_CHARACTERS]!r} is no cursor of {self.what}: {self.advice}")
