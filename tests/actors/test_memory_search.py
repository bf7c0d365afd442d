"""What a memory finds, against plain models of BM25, of the cosine and of the two lists as one."""

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings, strategies as st

from callboard.actors import memory_shelf
from callboard.actors.memory_records import MemoryHit, MemoryMode, MemoryRecord
from callboard.actors.memory_shelf import Shelf, Wish
from callboard.actors.text_index import indexed_words
from callboard.actors.vector_table import VectorTable, unit_vector

WORDS = st.sampled_from(["tea", "Tea", "milk", "train", "茶", "抹茶を", "ﬁne", "straße"])
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
NUMBERS = st.floats(-1, 1, width=32).map(lambda number: number or 1.0)
OWNERS = st.sampled_from([None, "ann", "bob"])


def all_of(find: Callable[[list[Any]], Any]) -> list[Any]:
    found: list[Any] = []
    for _ in find(found):
        pass
    return found


def found_on(shelf: Shelf, wish: Wish) -> list[MemoryHit]:
    return all_of(lambda hits: shelf.find(wish, hits))


def plain_bm25(query: str, texts: dict[str, str]) -> dict[str, float]:
    """By the formula as it stands in the paper, text by text."""
    words = {id: indexed_words(text) for id, text in texts.items()}
    mean = sum(map(len, words.values())) / max(1, len(words))
    scores: dict[str, float] = {}
    for id, own in words.items():
        for word in set(indexed_words(query)):
            having = sum(word in others for others in words.values())
            times = own.count(word)
            if times:
                rarity = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
                share = times * 2.2 / (times + 1.2 * (0.25 + 0.75 * len(own) / mean))
                scores[id] = scores.get(id, 0.0) + rarity * share
    return scores


def in_order(scores: dict[str, float], limit: int) -> list[str]:
    """The best first; of equals that of the greatest id."""
    return sorted(scores, key=lambda id: (round(scores[id], 9), id), reverse=True)[:limit]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann's TEA, ﬁne_1!", ["ann", "s", "tea", "fine_1"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("抹茶を飲む tea", ["抹", "茶", "を", "飲", "む", "抹茶", "茶を", "を飲", "飲む", "tea"]),
        ("ｶﾌｪ", ["カ", "フ", "ェ", "カフ", "フェ"]),
        ("?! …", []),
    ],
)
def test_words_are_folded_and_of_scripts_without_spaces_there_are_characters_and_pairs(
    text: str, words: list[str]
) -> None:
    assert indexed_words(text) == words


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(TEXTS, OWNERS), max_size=12),
    st.builds(Wish, TEXTS, st.just("text"), st.integers(1, 15), OWNERS),
    st.sets(st.integers(0, 11), max_size=6),
)
def test_by_words_the_order_and_scores_are_those_of_bm25_over_what_suits_and_is_not_deleted(
    kept: list[tuple[str, str | None]], wish: Wish, deleted: set[int]
) -> None:
    shelf = Shelf()
    for number, (text, whose) in enumerate(kept):
        shelf.put(MemoryRecord(id=f"{number:02}", text=text, at_ms=0, owner=whose))
    for number in deleted & set(range(len(kept))):
        shelf.take(f"{number:02}")
    left = {
        f"{number:02}": text
        for number, (text, whose) in enumerate(kept)
        if number not in deleted and wish.owner in (None, whose)
    }
    hits = found_on(shelf, wish)
    scores = plain_bm25(wish.text, left)

    assert {hit.id: hit.score for hit in hits} == pytest.approx({hit.id: scores[hit.id] for hit in hits})
    assert sorted((round(hit.score, 9), hit.id) for hit in hits)[::-1] == [
        (round(scores[id], 9), id) for id in in_order(scores, wish.limit)
    ]
    assert shelf.count(wish.owner) == len(left)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 5), st.integers(1, 8))
def test_with_numpy_and_without_the_nearest_are_the_same_to_the_last_bit(
    data: st.DataObject, dimensions: int, limit: int
) -> None:
    vectors = st.lists(NUMBERS, min_size=dimensions, max_size=dimensions)
    kept = data.draw(st.lists(vectors, max_size=20))
    kept += kept[:3]  # equals
    query = unit_vector(data.draw(vectors))
    hidden = data.draw(st.sets(st.integers(0, 22)))
    found: list[list[tuple[float, int]]] = []
    for module in (numpy, None):
        table = VectorTable(dimensions, numpy=module)
        for number, vector in enumerate(kept):
            table.add(number, unit_vector(vector))
        near = all_of(lambda pairs, table=table: table.nearest(query, lambda n: n not in hidden, pairs, count=limit))
        found.append(sorted(((score, number) for number, score in near), reverse=True)[:limit])

    assert found[0] == found[1]
    assert len(found[0]) == min(limit, len([number for number in range(len(kept)) if number not in hidden]))
    for score, number in found[0]:
        asked = list(memoryview(query).cast("f"))
        length = math.hypot(*kept[number])
        assert score == pytest.approx(sum(a * b / length for a, b in zip(asked, kept[number], strict=True)), abs=1e-5)


@pytest.mark.parametrize("module", [numpy, None])
def test_many_vectors_of_many_dimensions_that_lie_close_together_come_in_the_exact_order(module: Any) -> None:
    dimensions, count = 96, 9_000 if module else 900
    drawn = numpy.random.default_rng(1).normal(size=(count, dimensions)) * 1e-4 + 1.0
    table = VectorTable(dimensions, numpy=module)
    for number, vector in enumerate(drawn.tolist()):
        table.add(number, unit_vector(vector))
    query = unit_vector((drawn[0] + drawn[1]).tolist())
    near = all_of(lambda pairs: table.nearest(query, lambda _: True, pairs, count=5))
    stored = numpy.array([memoryview(vector).cast("f") for _, vector in table.rows()], dtype=numpy.float64)
    exact = stored @ numpy.asarray(memoryview(query).cast("f"), dtype=numpy.float64)

    best = sorted(near, key=lambda pair: -pair[1])[:5]
    assert [number for number, _ in best] == numpy.argsort(-exact)[:5].tolist()


@pytest.mark.parametrize("vector", [[], [0.0, 0.0], [math.inf], [math.nan, 1.0]])
def test_a_vector_without_a_direction_is_refused(vector: list[float]) -> None:
    with pytest.raises(ValueError, match="has no direction"):
        unit_vector(vector)


def test_both_lists_are_one_by_the_places_that_each_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_shelf, "FUSED_DEPTH", 2)
    shelf = Shelf()
    for id, text, vector in [("1", "tea tea", [0.0, 1.0]), ("2", "tea or milk", [1.0, 0.1]), ("3", "x", [1.0, 0.0])]:
        shelf.put(MemoryRecord(id=id, text=text, at_ms=0, vector=unit_vector(vector)))
    modes: tuple[MemoryMode, ...] = ("text", "semantic", "both")
    places = [
        [(hit.id, hit.score) for hit in found_on(shelf, Wish("tea", mode, 2, vector=unit_vector([1.0, 0.0])))]
        for mode in modes
    ]

    assert [id for id, _ in places[0]] == ["1", "2"]
    assert [id for id, _ in places[1]] == ["3", "2"]
    assert places[2] == [("2", 2 / 62), ("3", 1 / 61)]


def test_a_shelf_made_anew_without_what_was_deleted_finds_the_same() -> None:
    shelf, new = Shelf(), Shelf()
    for number in range(2 * memory_shelf.REBUILD_LEAST):
        vector = unit_vector([1.0, number / 10]) if number % 3 else b""
        shelf.put(MemoryRecord(id=f"{number:05}", text=f"tea {number % 7}", at_ms=0, vector=vector))
    was_due = shelf.should_be_rebuilt
    for number in range(memory_shelf.REBUILD_LEAST + 1):
        shelf.take(f"{number:05}")
    for _ in shelf.rebuild(new):
        pass

    assert (was_due, shelf.should_be_rebuilt, new.should_be_rebuilt) == (False, True, False)
    assert (len(new), new.text_bytes, new.vector_count) == (len(shelf), shelf.text_bytes, shelf.vector_count)
    assert new.size_bytes < shelf.size_bytes
    wish = Wish("tea 3", "both", 50, vector=unit_vector([0.3, 1.0]))
    assert found_on(new, wish) == found_on(shelf, wish)
