"""What is looked for in messages, whether one has it, and where. Pure.

All words have to occur, in any order, each as a part of the text: so there is no stemming and no ranking, and it works
the same in languages that part no words. Case and form do not count: text is folded as NFKC(casefold(NFKC(text))).

Source: Unicode 15, section 3.13, D147 (compatibility caseless match), without its step for U+0345.
"""

import unicodedata
from collections.abc import Iterator
from typing import cast

from msgspec import Struct

from .cursors import Cursors
from .limits import check_author
from .message import ROLES, Message, Role

__all__ = ["EXCERPT_CHARACTERS", "QUERY_CHARACTERS_MAX", "SearchHit", "SearchPage", "Wanted", "excerpt_of", "folded"]

EXCERPT_CHARACTERS = 160
"""Of a message's text, around the first word that was found: two lines."""

QUERY_CHARACTERS_MAX = 1_000
"""A line of words, not a document."""

_CURSOR_ADVICE = "pass page.cursor of the page before, unchanged, with the same words and filters"


class SearchHit(Struct, frozen=True):
    """A message in which the words occur; `excerpt` is what stands around one of them, "…" where text was left out."""

    session_id: str
    message: Message
    excerpt: str


class SearchPage(Struct, frozen=True):
    """Some hits. `cursor` goes on behind them, maybe to no more hits; None where everything was looked through."""

    hits: list[SearchHit]
    cursor: str | None


class Wanted(Struct, frozen=True):
    """Folded words that all have to occur, the longest first, and whose messages are meant."""

    words: tuple[str, ...]
    role: Role | None = None
    author: str | None = None

    @classmethod
    def of(cls, text: object, *, role: object = None, author: object = None) -> "Wanted":
        """The same of what a caller gave.

        Raises:
            TypeError, ValueError: there are no words, or too many; no such role or author.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is the words to look for, a string, not {type(text).__name__}")
        if len(text) > QUERY_CHARACTERS_MAX:
            raise ValueError(f"text has {len(text)} characters, and a search takes {QUERY_CHARACTERS_MAX}")
        words = sorted(set(folded(text).split()), key=lambda word: (-len(word), word))  # the longest is the rarest
        if not words:
            raise ValueError(f"text holds no words to look for: {text!r}")
        if role is not None and role not in ROLES:
            raise ValueError(f"role is one of {', '.join(ROLES)}, not {role!r}")
        return cls(tuple(words), cast("Role | None", role), check_author(author))

    def matches(self, message: Message) -> bool:
        """True where the message is of this role and author, and all words occur in its text."""
        if (self.role is not None and message.role != self.role) or (
            self.author is not None and message.author != self.author
        ):
            return False
        text = folded(message.text)
        return all(word in text for word in self.words)

    def hit(self, session_id: str, message: Message) -> SearchHit:
        """This message, which matches, as a hit."""
        return SearchHit(session_id, message, excerpt_of(message.text, self.words[0]))

    def cursors(self, *scope: str | None) -> Cursors:
        """Those of this search in this scope."""
        listed = repr((self.words, self.role, self.author, scope))
        return Cursors.of(listed, what="this search", advice=_CURSOR_ADVICE)


def folded(text: str) -> str:
    """The text with its case and its compatibility forms taken away."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def excerpt_of(text: str, word: str) -> str:
    """What stands around the first occurrence of a folded word in a text, in one line."""
    start = _place(text, word)
    begin = max(0, start - EXCERPT_CHARACTERS // 3)
    end = min(len(text), max(begin, start) + EXCERPT_CHARACTERS)
    shown = " ".join(text[begin:end].split())
    return ("…" if begin else "") + shown + ("…" if end < len(text) else "")


def _place(text: str, word: str) -> int:
    """Where in the text as it stands the folded word begins, to a character or so; 0 where it does not occur."""
    if text.isascii():
        return max(0, text.lower().find(word))
    wanted = folded(text).find(word)
    if wanted <= 0:
        return 0
    passed = 0
    for start, cluster in _clusters(text):
        passed += len(folded(cluster))
        if passed > wanted:
            return start
    return 0


def _clusters(text: str) -> Iterator[tuple[int, str]]:
    """Characters with what combines with them, which fold on their own."""
    start = 0
    for at in range(1, len(text)):
        if not _combines(text[at]):
            yield start, text[start:at]
            start = at
    yield start, text[start:]


def _combines(character: str) -> bool:
    if character.isascii():
        return False
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.combining(first) > 0 or "\u1160" <= first <= "\u11ff"  # vowels and ends of Korean syllables
