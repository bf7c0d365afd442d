"""Tool calls from their pieces, however a server cuts, counts and names them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from callboard.actors.message import ToolCall
from callboard.actors.tool_call_joiner import CallPiece, ToolCallJoiner, UnusableAnswer


def call_piece(index: int | None = None, **fields: Any) -> dict[str, Any]:
    function = {name: fields.pop(name) for name in ("name", "arguments") if name in fields}
    place = {} if index is None else {"index": index}
    return {**place, **fields, "function": function}


def joined(*pieces: dict[str, Any]) -> tuple[ToolCall, ...]:
    joiner = ToolCallJoiner()
    for piece in pieces:
        joiner.add(msgspec.convert(piece, CallPiece))
    return joiner.finish()


def calls_of(*pieces: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of the calls that came in these pieces."""
    return [(call.id, call.name, call.arguments) for call in joined(*pieces)]


def test_interleaved_calls_are_joined_by_index() -> None:
    assert calls_of(
        call_piece(0, id="a", name="f", arguments=""),
        call_piece(1, id="b", name="g", arguments="{"),
        call_piece(0, arguments='{"x"'),
        call_piece(1, arguments="}"),
        call_piece(0, arguments=":1}"),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_id_and_name_count_once_even_when_repeated() -> None:
    assert calls_of(call_piece(0, id="a", name="f", arguments="{"), call_piece(0, id="a", name="f", arguments="}")) == [
        ("a", "f", "{}")
    ]


def test_another_id_at_the_same_index_is_another_call() -> None:
    assert calls_of(
        call_piece(0, id="a", name="f", arguments="{}"),
        call_piece(0, id="b", name="g", arguments='{"y"'),
        call_piece(0, arguments=":2}"),
    ) == [("a", "f", "{}"), ("b", "g", '{"y":2}')]


def test_without_index_the_id_tells_the_calls_apart() -> None:
    assert calls_of(
        call_piece(id="a", name="f", arguments="{"),
        call_piece(arguments='"x":'),
        call_piece(id="b", name="g", arguments="{}"),
        call_piece(id="a", arguments="1}"),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_without_index_and_id_each_name_opens_a_call_and_gets_an_id() -> None:
    calls = calls_of(call_piece(id="", name="f", arguments="{}"), call_piece(id="", name="f", arguments='{"x":1}'))

    assert [(name, arguments) for _, name, arguments in calls] == [("f", "{}"), ("f", '{"x":1}')]
    assert len({call_id for call_id, _, _ in calls}) == 2


def test_a_name_that_comes_late_belongs_to_the_last_call() -> None:
    assert calls_of(call_piece(id="a", arguments="{"), call_piece(name="f"), call_piece(arguments="}")) == [
        ("a", "f", "{}")
    ]


def test_an_id_that_comes_late_belongs_to_its_index() -> None:
    assert calls_of(call_piece(0, name="f"), call_piece(0, id="a", arguments="{}")) == [("a", "f", "{}")]


def test_what_a_call_wants_sent_back_stays_with_it() -> None:
    (call,) = joined(call_piece(0, id="a", name="f", extra_content={"google": "sig"}), call_piece(0, arguments="{}"))

    assert call == ToolCall("a", "f", "{}", {"extra_content": {"google": "sig"}})


def test_an_odd_index_counts_as_none_and_an_odd_id_is_made_a_text() -> None:
    assert calls_of(
        {"index": "0", "id": 7, "function": {"name": "f", "arguments": "{"}},
        {"index": [], "id": {}, "function": {"arguments": "}"}},
    ) == [("7", "f", "{}")]


def test_whole_calls_are_never_joined_whatever_index_and_id_they_have() -> None:
    joiner = ToolCallJoiner()
    for at in range(2):
        joiner.add(msgspec.convert(call_piece(0, id="a", name="f", arguments="{}"), CallPiece), at=at)

    first, second = joiner.finish()

    assert (first.id, first.arguments) == ("a", "{}")
    assert second.id not in ("", "a")
    assert second.arguments == "{}"


def test_a_piece_that_says_nothing_opens_no_call() -> None:
    joiner = ToolCallJoiner()

    said = joiner.add(msgspec.convert({"index": 0}, CallPiece))

    assert (said, joiner.finish()) == (None, ())


@pytest.mark.parametrize(
    ("arguments", "text"), [({"a": 1}, '{"a":1}'), ([1], "[1]"), (None, ""), ("", ""), ('{"a"', '{"a"'), ({}, "{}")]
)
def test_arguments_that_are_no_text_stand_for_their_json(arguments: Any, text: str) -> None:
    assert calls_of(call_piece(0, id="a", name="f", arguments=arguments)) == [("a", "f", text)]


def test_arguments_that_no_json_can_hold_are_refused() -> None:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]

    with pytest.raises(UnusableAnswer, match="nested too deeply"):
        calls_of(call_piece(0, id="a", name="f", arguments=nest))


def test_a_call_without_a_name_is_no_answer() -> None:
    with pytest.raises(UnusableAnswer, match="without a name"):
        calls_of(call_piece(0, id="a", arguments="{}"))


CALLS = st.lists(st.tuples(st.text(min_size=1), st.lists(st.text(max_size=3), max_size=5)), min_size=1, max_size=4)


@given(CALLS, st.booleans(), st.randoms(use_true_random=False))
def test_any_interleaving_of_indexed_pieces_gives_the_calls(
    calls: list[tuple[str, list[str]]], repeat_id: bool, random: Any
) -> None:
    queues = [
        [
            call_piece(index, id=f"id{index}", name=name),
            *(call_piece(index, **({"id": f"id{index}"} if repeat_id else {}), arguments=part) for part in parts),
        ]
        for index, (name, parts) in enumerate(calls)
    ]
    pieces = [queue.pop(0) for queue in queues]
    while any(queues):
        pieces.append(random.choice([queue for queue in queues if queue]).pop(0))

    assert calls_of(*pieces) == [(f"id{at}", name, "".join(parts)) for at, (name, parts) in enumerate(calls)]
