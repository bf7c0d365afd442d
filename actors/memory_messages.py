"""What can be asked of the actor of a memory."""

from msgspec import Struct

from ..runtime.envelope import MESSAGE_BYTES_DEFAULT, Request
from .memory_records import MemoryHit, MemoryRecord, RememberedMark
from .memory_shelf import Wish

__all__ = ["AddMemories", "CountMemories", "DeleteMemories", "FindMemories", "ForgetMemories", "Made", "ReadMark"]


class Made(Struct, frozen=True):
    """By which embedder vectors were made, and how many numbers each has."""

    embedder: str
    dimensions: int


class AddMemories(Request[int], frozen=True):
    """Store these; how many of them were not there already. By its ids it may be sent again.

    Attributes:
        records: of a session, all its messages between the last mark and this one that are to be kept.
        made: where they have vectors.
        mark: where they were taken from a session. Those up to the mark that is stored are left out.
    """

    records: tuple[MemoryRecord, ...]
    made: Made | None = None
    mark: RememberedMark | None = None

    def size_bytes(self) -> int:
        return MESSAGE_BYTES_DEFAULT + sum(len(record.text) + len(record.vector) + 500 for record in self.records)


class FindMemories(Request[list[MemoryHit]], frozen=True):
    """What fits best, the best first."""

    wish: Wish
    made: Made | None = None


class DeleteMemories(Request[bool], frozen=True):
    """Delete one; whether it was there."""

    id: str


class ForgetMemories(Request[int], frozen=True):
    """Delete all of a session, or of an owner; how many. A session's mark goes too."""

    session_id: str | None = None
    owner: str | None = None


class CountMemories(Request[int], frozen=True):
    """How many there are, of an owner or in all."""

    owner: str | None = None


class ReadMark(Request[RememberedMark | None], frozen=True):
    """How far a session has been taken in."""

    session_id: str
