"""The messages that no handler has finished, for somebody to look at. Pure.

What was sent and came to nothing is written down here with its cause: the newest letters are kept, bounded by count and
by bytes, and all of them are counted. A dead letter is a record, not a queue: nothing is sent again from here.

Source: Akka and Pekko, dead letters; Hohpe and Woolf, Enterprise Integration Patterns, "Dead Letter Channel".
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from msgspec import Struct

from .envelope import MESSAGE_BYTES_DEFAULT, Request
from .identity import ActorId

__all__ = ["DEAD_LETTERS_BYTES_MAX", "DEAD_LETTERS_COUNT_MAX", "DeadLetter", "DeadLetterCause", "DeadLetters"]

DEAD_LETTERS_COUNT_MAX = 1000
DEAD_LETTERS_BYTES_MAX = 16 * 1024 * 1024  # two full mailboxes (8 MiB each) may die at once and still be read

DeadLetterCause = Literal["dropped", "expired", "stopped", "failed", "crashed", "refused"]
"""Why a message died:

    dropped   a full mailbox made room for newer ones
    expired   its deadline passed, or its caller gave it up, while it was queued
    stopped   its actor or the runtime was stopped before its turn
    failed    its actor's restart budget was spent before its turn
    crashed   its handler raised
    refused   it was not taken in, or what its handler staged was not stored
"""


class DeadLetter(Struct, frozen=True):
    """A message that came to nothing.

    Attributes:
        to: the actor that it was for.
        message: the request itself.
        sender: the actor that sent it, or None for code outside.
        cause: see DeadLetterCause.
        error: what its sender was told, or would have been told, as text.
        at: when it died, in seconds of the event loop's clock.
        size_bytes: what it counted against its mailbox.
    """

    to: ActorId
    message: Request[Any]
    sender: ActorId | None
    cause: DeadLetterCause
    error: str
    at: float
    size_bytes: int = MESSAGE_BYTES_DEFAULT


class DeadLetters:
    """The newest dead letters; iterating goes from the oldest that is kept to the newest.

    Attributes:
        counts: letters by cause since this was made, with those that are no longer kept; 0 for a cause not seen yet.
        late_replies: replies that came after their caller had gone; whoever sees one adds 1.
        on_letter: called with each letter once it is kept.
    """

    __slots__ = ("_bytes_max", "_count_max", "_letters", "counts", "late_replies", "on_letter", "size_bytes")

    def __init__(self, count_max: int = DEAD_LETTERS_COUNT_MAX, *, bytes_max: int = DEAD_LETTERS_BYTES_MAX) -> None:
        """Keep at most `count_max` letters and `bytes_max` bytes of messages, and the newest letter in any case.

        Raises:
            ValueError: one of them is below 1.
        """
        if count_max < 1 or bytes_max < 1:
            raise ValueError(f"keep at least 1 dead letter and 1 byte of them, not {count_max} and {bytes_max}")
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._letters: deque[DeadLetter] = deque()
        self.counts: Counter[DeadLetterCause] = Counter()
        self.late_replies = 0
        self.on_letter: Callable[[DeadLetter], None] | None = None
        self.size_bytes = 0

    def __len__(self) -> int:
        """How many letters are kept."""
        return len(self._letters)

    def __iter__(self) -> Iterator[DeadLetter]:
        return iter(tuple(self._letters))  # a copy: letters may come while somebody reads

    def add(self, letter: DeadLetter) -> None:
        """Count and keep it; the oldest letters leave where a bound is passed."""
        assert letter.cause in _CAUSES, f"no cause of death is called {letter.cause!r}"
        self.counts[letter.cause] += 1
        self._letters.append(letter)
        self.size_bytes += letter.size_bytes
        while len(self._letters) > self._count_max or (self.size_bytes > self._bytes_max and len(self._letters) > 1):
            self.size_bytes -= self._letters.popleft().size_bytes
        if self.on_letter is not None:
            self.on_letter(letter)


_CAUSES = frozenset[str](get_args(DeadLetterCause))
