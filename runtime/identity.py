"""Who an actor is: a kind and a key, for instance ("session", "user-123")."""

from msgspec import Struct

__all__ = ["ACTOR_KEY_BYTES_MAX", "ACTOR_KIND_BYTES_MAX", "ActorId", "checked_id", "checked_key"]

ACTOR_KIND_BYTES_MAX = 64
# kind + ":" + key is a stream's name in the store, which takes 400 bytes (store.contract.Batch).
ACTOR_KEY_BYTES_MAX = 300


class ActorId(Struct, frozen=True, order=True, gc=False):
    """The name of one actor. It outlives every activation of it, and every process."""

    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.key}"

    @property
    def parts(self) -> tuple[str, str]:
        return (self.kind, self.key)


def checked_id(kind: str, key: str) -> ActorId:
    """An ActorId from a caller's strings.

    Raises:
        TypeError, ValueError: not text, empty, or longer than the bounds above in bytes of UTF-8.
    """
    _check("kind", kind, ACTOR_KIND_BYTES_MAX)
    if ":" in kind:
        raise ValueError(f"an actor's kind holds no colon, it separates kind and key: {kind!r}")
    return ActorId(kind, checked_key(key))


def checked_key(key: str) -> str:
    """The key, for a kind that was checked. Raises: as checked_id."""
    if not (type(key) is str and key.isascii() and 0 < len(key) <= ACTOR_KEY_BYTES_MAX):  # the usual key, at 50 ns
        _check("key", key, ACTOR_KEY_BYTES_MAX)
    return key


def _check(name: str, value: str, bytes_max: int) -> None:
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise TypeError(f"an actor's {name} is a str, not {type(value).__name__}")
    size_bytes = len(value.encode())
    if not 0 < size_bytes <= bytes_max:
        raise ValueError(f"an actor's {name} has 1 to {bytes_max} bytes of UTF-8; this one has {size_bytes}")
