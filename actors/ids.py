"""Names for what callers do not name themselves: sortable by time, unique without asking anybody."""

import secrets
from itertools import count

__all__ = ["new_id"]

_numbers = count()


def new_id(prefix: str, at_ms: int) -> str:
    """`prefix`_, 12 hex digits of milliseconds, 4 that count within the process, 8 random ones.

    Ids of one process sort in the order of their making, as long as fewer than 65 536 are made in a millisecond.

    Source: the idea of RFC 9562, section 5.7 (UUID version 7).
    """
    return f"{prefix}_{at_ms:012x}{next(_numbers) & 0xFFFF:04x}{secrets.token_hex(4)}"
