"""An index of words in memory, and the ranking of texts by the words that they share with a query. Pure.

Words are runs of letters and digits in text folded as search.py does; scripts that part no words (Chinese, Japanese,
Thai) give single characters and pairs of neighbours. There is no stemming.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), with the weight of
rare words as Lucene's BM25Similarity has it, which is never negative; pairs as Lucene's CJKAnalyzer.
"""

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

from .search import folded

__all__ = ["LENGTH_WEIGHT", "SATURATION", "TextIndex", "indexed_words", "rarity"]

SATURATION = 1.2
"""k1: how soon further occurrences of a word stop to count. Robertson and Zaragoza: 1.2 to 2."""

LENGTH_WEIGHT = 0.75
"""b: how much a longer text needs more occurrences."""

STEP = 2_000
"""Numbers of an index that are read before others may go on: some 0.3 ms."""

_WORD_BYTES = 200
"""A word that occurs once, with its array and its entry (CPython 3.11)."""

_UNPARTED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"([{_UNPARTED}]+)|[^\W{_UNPARTED}]+")


def indexed_words(text: str) -> list[str]:
    """The words of a text, folded, as often as they occur."""
    words: list[str] = []
    for run in _RUN.finditer(folded(text)):
        word = run[0]
        words += [word] if run[1] is None else [*word, *map("".join, pairwise(word))]
    return words


def rarity(count: int, having: int) -> float:
    """What a word counts that occurs in `having` of `count` texts."""
    return math.log(1 + (count - having + 0.5) / (having + 0.5))


class TextIndex:
    """Which texts have which words. Texts are known by numbers, given in order from 0; none is ever taken out.

    Cost: 8 bytes for each different word of a text, and some 200 for each word that is new to the index.
    """

    def __init__(self) -> None:
        self._places: dict[str, array[int]] = {}  # number of a text, occurrences, number of the next ...
        self._lengths = array("I")
        self._place_count = 0

    @property
    def size_bytes(self) -> int:
        """Roughly what it holds."""
        return 4 * len(self._lengths) + 8 * self._place_count + _WORD_BYTES * len(self._places)

    def add(self, text: str) -> int:
        """Take the next text in; its length in words."""
        number, words = len(self._lengths), indexed_words(text)
        self._lengths.append(len(words))
        counts = Counter(words)
        self._place_count += len(counts)
        for word, count in counts.items():
            self._places.setdefault(word, array("I")).extend((number, count))
        return len(words)

    def length(self, number: int) -> int:
        """How many words a text has."""
        return self._lengths[number]

    def rank(
        self, query: str, suits: Callable[[int], bool], scores: dict[int, float], *, count: int, words: int
    ) -> Iterator[None]:
        """Put the score of each text that suits and shares a word with the query into `scores`, in short steps.

        Args:
            suits: which texts there are, for this query.
            count, words: how many suit, and how many words these have together.
        """
        mean = words / count if count else 0.0
        for word in sorted(set(indexed_words(query))):
            places = self._places.get(word, array("I"))
            found: list[tuple[int, int]] = []
            for start in range(0, len(places), STEP):
                part = places[start : start + STEP]
                found += [pair for pair in zip(part[::2], part[1::2], strict=True) if suits(pair[0])]
                yield
            weight = rarity(count, len(found)) * (SATURATION + 1)
            for start in range(0, len(found), STEP):
                for number, times in found[start : start + STEP]:
                    length = 1 - LENGTH_WEIGHT + LENGTH_WEIGHT * self._lengths[number] / mean
                    scores[number] = scores.get(number, 0.0) + weight * times / (times + SATURATION * length)
                yield
