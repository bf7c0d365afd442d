"""Overlay: a summary that stands for the beginning of a history. The messages stay where they are."""

from msgspec import Struct

from ..store.records import Codec
from .message import Message

__all__ = ["OVERLAY_CODEC", "Overlay"]


class Overlay(Struct, frozen=True, omit_defaults=True, tag="overlay"):
    """A summary of all messages up to a place.

    Attributes:
        last_seq: the place of the last one.
        message_count: how many they are; where edits have taken some of them out since, the overlay is void.
        text: the summary.
        model: what wrote it.
        created_at_ms: when; milliseconds since 1970, UTC.
    """

    last_seq: int
    message_count: int
    text: str
    model: str = ""
    created_at_ms: int = 0

    def message(self) -> Message:
        """What a model sees of it. Of a user and not of the system: it is made of what users and tools said, which
        must not speak with the authority of instructions; and some servers take system messages only at the start."""
        return Message(role="user", content=f"[Summary of the {self.message_count} messages before]\n{self.text}")


OVERLAY_CODEC = Codec(Overlay)
