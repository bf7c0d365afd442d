"""JSON found in what models write around it."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st

from callboard.actors.json_in_text import json_candidates

JSON_OBJECTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers(-99, 99) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
WORDS = st.text(st.characters(exclude_characters='"{[`'), max_size=30)


def found(text: str) -> list[Any]:
    """What of the candidates is JSON, the likeliest first."""
    values: list[Any] = []
    for candidate in json_candidates(text):
        try:
            values.append(json.loads(candidate))
        except ValueError:
            continue
    return values


@given(JSON_OBJECTS, WORDS, WORDS)
def test_object_among_words_is_found(value: dict[str, Any], before: str, after: str) -> None:
    text = f"{before}{json.dumps(value)}{after}"

    assert found(text)[0] == value


@given(JSON_OBJECTS, WORDS, st.sampled_from(["json", "JSON", "", "jsonc"]), st.sampled_from(["\n", "\r\n"]))
def test_object_in_a_fence_is_found(value: dict[str, Any], words: str, language: str, line_end: str) -> None:
    text = f"{words}\n```{language}{line_end}{json.dumps(value, indent=1)}{line_end}```\n{words}"

    assert value in found(text)


def test_whole_text_goes_first_and_later_ones_go_before_earlier_ones() -> None:
    assert found('  {"a": {"b": 1}}\n') == [{"a": {"b": 1}}] * 2
    assert found('I think {"a": 1}, no: {"a": 2}.') == [{"a": 2}, {"a": 1}]
    assert found('```\n{"a": 1}\n```\nBetter:\n```json\n{"a": 2}\n```')[:2] == [{"a": 2}, {"a": 1}]


def test_byte_order_mark_is_no_part_of_it() -> None:
    assert found('\ufeff{"a": 1}')[0] == {"a": 1}


def test_fence_may_hold_what_is_no_object_and_stand_behind_any_number_of_brackets() -> None:
    prose = "[see 1] {sic} " * 100

    assert found("So:\n```json\n7\n```") == [7]
    assert found(f'{prose}\n```json\n{{"a": 1}}\n```')[0] == {"a": 1}


def test_fence_inside_a_string_does_not_cut_the_object() -> None:
    value = {"code": "```python\nprint()\n```"}

    assert found(f"Here:\n```json\n{json.dumps(value)}\n```")[0] == value


@pytest.mark.parametrize("text", ["", " ", "no JSON at all", "{", "[1", "```json\n```"])
def test_where_there_is_none_none_is_found(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"a":' * 300_000, "{ " * 500_000, "```\n" * 200_000])
def test_brackets_that_lead_nowhere_cost_little(text: str) -> None:
    began = time.process_time()

    candidates = list(json_candidates(text))

    assert time.process_time() - began < 2.0
    assert candidates[0] == text.strip()
