"""JSON to answers, by the rules of FACTS.md, "Wire truth"."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from callboard.actors.message import Message, Usage
from callboard.actors.model import Delta, ModelAnswer
from callboard.actors.wire_answer import AnswerJoiner, ServerErrorInAnswer, UnusableAnswer


def chunk(delta: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, **choice}]}


def join(*pieces: dict[str, Any]) -> tuple[ModelAnswer, list[Delta]]:
    joiner = AnswerJoiner()
    deltas = [delta for piece in pieces for delta in joiner.take(json.dumps(piece).encode())]
    return joiner.finish(request_id="r"), deltas


def test_text_comes_together_and_usage_is_the_last_that_came() -> None:
    answer, deltas = join(
        {**chunk({"role": "assistant", "content": None}), "usage": {"prompt_tokens": 9}},
        chunk({"content": "He"}),
        {**chunk({"content": "llo"}), "usage": None},
        chunk(finish_reason="stop"),
        {"choices": [], "model": "m-1", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
    )

    assert answer.message == Message(role="assistant", content="Hello")
    assert answer.usage == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5, requests=1)
    assert (answer.finish_reason, answer.model, answer.request_id) == ("stop", "m-1", "r")
    assert deltas == [Delta("text", "He"), Delta("text", "llo")]


def test_details_of_usage_are_found_under_each_servers_names() -> None:
    openai = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}

    answer, _ = join({**chunk({"content": "a"}), "usage": {"prompt_tokens": 5, "completion_tokens": 3, **openai}})
    deepseek, _ = join({**chunk({"content": "a"}), "usage": {"prompt_tokens": 5, "prompt_cache_hit_tokens": 4}})

    assert (answer.usage.cached_tokens, answer.usage.reasoning_tokens, answer.usage.total_tokens) == (4, 2, 8)
    assert deepseek.usage.cached_tokens == 4


@pytest.mark.parametrize(
    "usage",
    [
        {},
        [7],
        "much",
        {"prompt_tokens": None, "prompt_tokens_details": None},
        {"prompt_tokens": "7"},
        {"prompt_tokens": True},
        {"prompt_tokens": 7.5},
        {"prompt_tokens": -1},
        {"prompt_tokens": 2**53 + 1},
        {"total_tokens": 2**70},
        {"completion_tokens": 10**4000},
        {
            "prompt_tokens_details": {"cached_tokens": 2**64},
            "completion_tokens_details": {"reasoning_tokens": -(2**70)},
        },
    ],
)
def test_broken_usage_counts_as_not_reported_and_does_not_cost_the_answer(usage: object) -> None:
    answer, _ = join({**chunk({"content": "a"}), "usage": usage})

    assert answer.usage == Usage(requests=1, estimated=1)


def test_the_largest_usage_is_taken_and_a_sum_beyond_it_counts_as_not_reported() -> None:
    answer, _ = join({**chunk({"content": "a"}), "usage": {"prompt_tokens": 2**53, "completion_tokens": 2.0}})

    assert answer.usage == Usage(prompt_tokens=2**53, completion_tokens=2, requests=1)


def test_usage_added_up_stays_within_its_bound() -> None:
    usage = Usage(prompt_tokens=2**53, requests=1)

    assert usage + usage == Usage(prompt_tokens=2**53, requests=2)


def test_endless_names_are_cut() -> None:
    answer, _ = join({**chunk({"content": "a"}, finish_reason="s" * 5000), "model": "m" * 5000})

    assert (answer.finish_reason, answer.model) == ("s" * 200, "m" * 200)


def test_chunks_without_choices_or_delta_are_read_over() -> None:
    answer, _ = join(
        {"choices": [], "prompt_filter_results": [{}]},
        chunk({"content": "a"}, finish_reason="stop"),
        {"choices": [{"index": 0, "content_filter_offsets": {}, "finish_reason": None}]},
        {"choices": None},
    )

    assert (answer.message.content, answer.finish_reason) == ("a", "stop")


def test_only_the_first_choice_is_the_answer() -> None:
    answer, _ = join({"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]})

    assert answer.message.content == "a"


def test_reasoning_and_refusal_are_shown_apart_and_kept() -> None:
    answer, deltas = join(
        chunk({"reasoning_content": "h", "reasoning": "h"}),
        chunk({"reasoning_content": "m", "reasoning": "m"}),
        chunk({"refusal": "no"}),
        chunk({"reasoning_details": [{"a": 1}]}),
        chunk({"reasoning_details": [{"b": 2}]}, finish_reason="stop"),
    )

    assert answer.message.content == ""
    assert answer.message.extra == {
        "reasoning_content": "hm",
        "reasoning": "hm",
        "reasoning_details": [{"a": 1}, {"b": 2}],
        "refusal": "no",
    }
    assert deltas == [Delta("reasoning", "h"), Delta("reasoning", "m"), Delta("refusal", "no")]


def test_a_list_of_thoughts_and_text_keeps_its_form_and_gives_its_text() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}

    answer, deltas = join(
        chunk({"content": [thought("h")]}),
        chunk({"content": [thought("m")]}),
        chunk({"content": [{"type": "text", "text": "He"}]}),
        chunk({"content": "llo"}, finish_reason="stop"),
    )

    assert answer.message.text == "Hello"
    assert answer.message.content == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
        {"type": "text", "text": "Hello"},
    ]
    assert [delta.kind for delta in deltas] == ["reasoning", "reasoning", "text", "text"]


def test_a_whole_body_is_read_like_a_stream_of_one() -> None:
    call = {"id": "", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, call]}

    answer, _ = join({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})

    first, second = answer.message.tool_calls
    assert answer.message.content is None
    assert (first.name, first.arguments) == (second.name, second.arguments) == ("f", '{"a":1}')
    assert first.id != second.id
    assert first.id.isalnum()
    assert len(first.id) == 9


def test_calls_of_a_whole_body_are_apart_though_a_server_gives_all_one_id() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    answer, _ = join({"choices": [{"index": 0, "message": {"tool_calls": [call, call]}, "finish_reason": "stop"}]})

    assert [call.arguments for call in answer.message.tool_calls] == ["{}", "{}"]
    assert len({call.id for call in answer.message.tool_calls}) == 2


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{"index": 0, "message": {"content": None}}]}])
def test_a_body_that_says_nothing_is_no_answer(body: dict[str, Any]) -> None:
    with pytest.raises(UnusableAnswer):
        join(body)


@pytest.mark.parametrize("data", [b"", b"[]", b"nonsense", b"\xff", b'{"choices": 3}', b'{"choices": [[]]}'])
def test_what_is_not_of_this_shape_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        AnswerJoiner().take(data)


@pytest.mark.parametrize("key", [b"usage", b"message", b"error", b"unknown"])
def test_a_body_nested_without_end_is_a_value_error(key: bytes) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        AnswerJoiner().take(b'{"' + key + b'":' + b"[" * 200_000)


def test_a_tool_call_of_any_depth_is_an_answer_or_a_value_error() -> None:
    refused: list[int] = []
    for depth in range(1, 1_200):  # over all of Python's bound, wherever the stack stands now
        call = b'{"function":{"name":"f","arguments":' + b"[" * depth + b"]" * depth + b"}}"
        try:
            AnswerJoiner().take(b'{"choices":[{"delta":{"tool_calls":[' + call + b"]}}]}")
        except ValueError:
            refused.append(depth)

    assert 100 not in refused


@given(st.text(), st.lists(st.integers(0, 40), max_size=6))
def test_however_a_text_is_cut_its_deltas_joined_are_the_answers_text(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]

    answer, deltas = join(*(chunk({"content": piece}) for piece in pieces), chunk(finish_reason="stop"))

    assert answer.message.text == "".join(delta.text for delta in deltas) == "".join(pieces)


@pytest.mark.parametrize(
    ("beside", "kept"),
    [
        ({"reasoning": "hm"}, {"reasoning": "hm"}),
        ({"reasoning_content": "hm"}, {"reasoning_content": "hm"}),
        ({"reasoning_details": [1]}, {"reasoning_details": [1]}),
        ({"extra_content": {"google": "s"}}, {"extra_content": {"google": "s"}}),
        ({"refusal": "no"}, {"refusal": "no"}),
    ],
)
def test_what_stands_beside_a_piece_of_text_is_not_lost(beside: dict[str, Any], kept: dict[str, Any]) -> None:
    answer, _ = join(chunk({"content": "a"}), chunk({"content": "b", **beside}), chunk(finish_reason="stop"))

    assert (answer.message.content, answer.message.extra) == ("ab", kept)


def test_parts_of_one_kind_are_joined_with_all_that_either_says() -> None:
    first = {"type": "thinking", "thinking": [1], "a": 1}
    second = {"type": "thinking", "thinking": [2], "closed": True}

    answer, _ = join(chunk({"content": [first]}), chunk({"content": [second]}, finish_reason="stop"))

    assert answer.message.content == [{"type": "thinking", "thinking": [1, 2], "a": 1, "closed": True}]


@pytest.mark.parametrize("odd", [{}, {"thinking": {}}, {"thinking": 5}, {"thinking": None}])
def test_parts_that_cannot_be_joined_stay_apart(odd: dict[str, Any]) -> None:
    part = {"type": "thinking", **odd}

    answer, _ = join(chunk({"content": [part]}), chunk({"content": [part]}, finish_reason="stop"))

    assert answer.message.content == [part, part]


# --- errors where an answer should be ---


@pytest.mark.parametrize(
    ("piece", "message", "codes"),
    [
        ({"error": {"message": "no", "code": 502, "type": "server_error"}}, "no", ("server_error",)),
        ({"error": "no"}, "no", ()),
        ({"object": "error", "message": "no", "type": "BadRequestError"}, "no", ("BadRequestError",)),
        ({"detail": "no"}, "no", ()),
        ({"message": "no"}, "no", ()),
        ({**chunk({"content": "a"}), "error": {"message": "no"}}, "no", ()),
        ({**chunk({"content": ""}, finish_reason="error"), "error": {"message": "no", "code": "x"}}, "no", ("x",)),
        ({"error": ["odd"]}, "", ()),
    ],
)
def test_an_error_in_any_shape_is_told_as_the_server_worded_it(
    piece: dict[str, Any], message: str, codes: tuple[str, ...]
) -> None:
    with pytest.raises(ServerErrorInAnswer) as caught:
        join(chunk({"content": "He"}), piece)

    assert (caught.value.error.message, caught.value.error.codes) == (message, codes)


@pytest.mark.parametrize(
    "nothing", [{"error": None}, {"error": {}}, {"error": ""}, {"message": "hi"}, {"detail": None}]
)
def test_fields_of_errors_beside_an_answer_that_name_none_are_read_over(nothing: dict[str, Any]) -> None:
    answer, _ = join({**chunk({"content": "a"}, finish_reason="stop"), **nothing})

    assert answer.message.content == "a"


# --- oddities around an answer ---


ODDITIES: list[dict[str, Any]] = [
    {"model": 7},
    {"usage": [1]},
    {"object": 1, "code": {}, "created": "now"},
    {"choices": [{"index": "0", "delta": {"content": "a"}}]},
    {"choices": [{"delta": {"content": "a", "role": 3, "annotations": [], "audio": None}}]},
    {"choices": [{"index": None, "delta": {"content": "a", "tool_calls": None, "refusal": None}}]},
    {"choices": [{"index": 0.0, "delta": {"content": "a", "tool_calls": [], "reasoning_details": []}}]},
]


@pytest.mark.parametrize("oddity", ODDITIES)
def test_whatever_is_odd_around_the_answer_does_not_cost_it(oddity: dict[str, Any]) -> None:
    answer, deltas = join({**chunk({"content": "a"}), **oddity}, chunk(finish_reason="stop"))

    assert (answer.message.content, answer.finish_reason, answer.model) == ("a", "stop", "")
    assert deltas == [Delta("text", "a")]


@pytest.mark.parametrize(
    ("said", "extra"),
    [
        ({"reasoning": {"text": "hm"}}, {"reasoning": {"text": "hm"}}),
        ({"extra_content": {"google": "s"}}, {"extra_content": {"google": "s"}}),
        ({"refusal": ["no", 1]}, {"refusal": '["no",1]'}),
    ],
)
def test_what_is_said_in_an_odd_form_is_kept(said: dict[str, Any], extra: dict[str, Any]) -> None:
    answer, _ = join(chunk({"content": "a", **said}, finish_reason="stop"))

    assert (answer.message.content, answer.message.extra) == ("a", extra)


def test_a_finish_reason_that_is_no_text_ends_the_answer_too() -> None:
    answer, _ = join(chunk({"content": "a"}), chunk(finish_reason=1))

    assert answer.finish_reason == "1"


@pytest.mark.parametrize("content", [[7], [None], [[]]])
def test_a_part_of_the_content_that_is_nothing_is_no_answer(content: list[Any]) -> None:
    with pytest.raises(UnusableAnswer, match="neither text nor an object"):
        join(chunk({"content": content}))


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": 5}, {"type": "text", "text": None}])
def test_a_part_that_says_to_be_text_and_has_none_is_no_answer(part: dict[str, Any]) -> None:
    with pytest.raises(UnusableAnswer, match="a text without one"):
        join(chunk({"content": ["a", part]}, finish_reason="stop"))


def test_an_answer_is_heard_with_its_first_piece_and_not_before() -> None:
    joiner = AnswerJoiner()
    heard: list[bool] = []
    nothing: dict[str, Any] = {"choices": [], "usage": {}}
    for piece in (chunk({"role": "assistant", "content": ""}), nothing, chunk({"content": "a"})):
        joiner.take(json.dumps(piece).encode())
        heard.append(joiner.heard)

    assert heard == [False, False, True]


TEXTS = st.none() | st.text(max_size=3)
CALL = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
SAID: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "content": TEXTS,
        "reasoning_content": TEXTS,
        "reasoning": TEXTS,
        "refusal": TEXTS,
        "reasoning_details": st.none() | st.lists(st.integers(), max_size=2),
        "extra_content": st.none() | st.just({"google": "s"}),
        "tool_calls": st.none() | st.just([CALL]),
    },
)
AROUND: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {}, optional={"usage": st.none() | st.just({"prompt_tokens": 3}), "model": TEXTS, "error": st.none()}
)


def event(said: dict[str, Any], finish_reason: str | None, around: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"delta": said, "finish_reason": finish_reason}], **around}


EVENTS = st.lists(st.builds(event, SAID, st.sampled_from([None, None, None, "stop"]), AROUND), min_size=1)


@given(EVENTS)
@example([event({"content": "a", "reasoning_details": []}, None, {})])
@example([event({}, None, {"model": "m"}), event({"content": "a"}, None, {"model": ""})])
def test_the_short_way_of_ordinary_events_gives_what_the_long_way_gives(events: list[dict[str, Any]]) -> None:
    end = chunk(finish_reason="length")
    # A second choice means nothing, and takes an event off the short way.
    longer = [{**event, "choices": [*event["choices"], {"index": 1, "delta": {"content": "?"}}]} for event in events]

    assert join(*events, end) == join(*longer, end)


NAMES = st.sampled_from(
    [
        *(
            "choices",
            "index",
            "delta",
            "message",
            "content",
            "text",
            "type",
            "thinking",
            "tool_calls",
            "function",
            "name",
        ),
        *("arguments", "id", "finish_reason", "usage", "model", "error", "code", "detail", "object", "refusal"),
        *("reasoning", "reasoning_content", "reasoning_details", "extra_content"),
    ]
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["text", "thinking"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
)
PART: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking"])}, optional={"text": JSON, "thinking": JSON}
)
DELTAS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(NAMES, JSON) | st.fixed_dictionaries(
    {"content": st.lists(PART)}
)
NEARLY_EVENTS = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"delta": DELTAS}), min_size=1, max_size=2) | JSON},
    optional={"usage": JSON, "error": JSON, "model": JSON, "message": JSON},
)


END = chunk(finish_reason="stop")


@given(st.lists(NEARLY_EVENTS | JSON, max_size=4))
def test_whatever_comes_is_taken_or_refused_with_one_of_three_errors(events: list[Any]) -> None:
    joiner = AnswerJoiner()
    try:
        deltas = [delta for event in [*events, END] for delta in joiner.take(json.dumps(event).encode())]
        answer = joiner.finish(request_id=None)
    except (ValueError, ServerErrorInAnswer):
        return

    assert answer.message.text == "".join(delta.text for delta in deltas if delta.kind == "text")


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    joiner = AnswerJoiner()
    try:
        joiner.take(data)
    except (ValueError, ServerErrorInAnswer):
        assert not joiner.heard
