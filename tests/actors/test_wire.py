"""Requests to JSON and JSON to answers, by the rules of FACTS.md, "Wire truth"."""

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from callboard.actors.message import Message, ToolCall, Usage
from callboard.actors.model import Delta, ModelAnswer, ModelRequest, ModelSettings, ToolSchema
from callboard.actors.wire import AnswerJoiner, Dialect, UnusableAnswer, decode_piece, encode_message, encode_request

WEATHER = ToolSchema("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})


def encoded(
    request: ModelRequest, *, dialect: Dialect | None = None, stream: bool = False, **settings: Any
) -> dict[str, Any]:
    data = encode_request(request, ModelSettings(model="m", **settings), dialect=dialect or Dialect(), stream=stream)
    return msgspec.json.decode(data, type=dict[str, Any])


def chunk(delta: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, **choice}]}


def call_piece(index: int | None = None, **fields: Any) -> dict[str, Any]:
    function = {name: fields.pop(name) for name in ("name", "arguments") if name in fields}
    place = {} if index is None else {"index": index}
    return {**place, **fields, "function": function}


def join(*pieces: dict[str, Any]) -> tuple[ModelAnswer, list[Delta]]:
    joiner = AnswerJoiner()
    deltas = [delta for piece in pieces for delta in joiner.add(decode_piece(json.dumps(piece).encode()))]
    return joiner.finish(request_id="r"), deltas


def calls_of(*pieces: dict[str, Any]) -> list[tuple[str, str, str]]:
    answer, _ = join(*(chunk({"tool_calls": [piece]}) for piece in pieces))
    return [(call.id, call.name, call.arguments) for call in answer.message.tool_calls]


HELLO = ModelRequest((Message(role="user", content="hello"),))


def test_a_plain_request_holds_nothing_but_model_and_messages() -> None:
    assert encoded(HELLO) == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def test_every_setting_has_its_field() -> None:
    body = encoded(HELLO, temperature=0.5, top_p=0.9, max_tokens=5, stop=("x",), seed=7)

    assert {name: body[name] for name in body if name not in ("model", "messages")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 5,
        "stop": ["x"],
        "seed": 7,
    }


def test_max_tokens_goes_out_under_one_name_only() -> None:
    body = encoded(HELLO, dialect=Dialect(max_tokens_field="max_completion_tokens"), max_tokens=5)

    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body


def test_extra_body_is_merged_last_and_wins() -> None:
    body = encoded(HELLO, temperature=0.5, extra_body={"temperature": 1, "top_k": 3})

    assert (body["temperature"], body["top_k"]) == (1, 3)


def test_a_stream_asks_for_usage_unless_told_not_to() -> None:
    asking = encoded(HELLO, stream=True)
    silent = encoded(HELLO, stream=True, dialect=Dialect(stream_usage=False))

    assert (asking["stream"], asking["stream_options"]) == (True, {"include_usage": True})
    assert (silent["stream"], "stream_options" in silent) == (True, False)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("auto", "auto"), ("required", "required"), ("weather", {"type": "function", "function": {"name": "weather"}})],
)
def test_tools_and_their_choice_are_sent(choice: str, expected: Any) -> None:
    request = ModelRequest(HELLO.messages, (WEATHER,))

    body = encoded(request, tool_choice=choice, parallel_tool_calls=False)

    assert body["tools"][0]["function"]["name"] == "weather"
    assert body["tools"][0]["type"] == "function"
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (expected, False)


def test_without_tools_no_choice_of_tools_is_sent() -> None:
    body = encoded(HELLO, tool_choice="auto", parallel_tool_calls=True)

    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(body)


def test_a_round_of_tool_calls_is_sent_as_the_api_has_it() -> None:
    calls = (ToolCall("c1", "weather", '{"city":"Rome"}', {"extra_content": {"google": "sig"}}), ToolCall("c2", "now"))
    asking = Message(role="assistant", tool_calls=calls, author="Ada", extra={"reasoning_content": "hm"})

    assert encode_message(asking) == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
                "extra_content": {"google": "sig"},
            },
            {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        ],
    }
    assert encode_message(Message(role="tool", content="21 C", tool_call_id="c1")) == {
        "role": "tool",
        "content": "21 C",
        "tool_call_id": "c1",
    }


def test_extra_stays_here_where_the_server_must_not_see_it() -> None:
    message = Message(role="assistant", content="a", extra={"reasoning": "hm"})

    assert encode_message(message, Dialect(sends_back=frozenset())) == {"role": "assistant", "content": "a"}


def test_extra_never_replaces_what_was_said() -> None:
    message = Message(role="assistant", content="a", extra={"content": "b"})

    assert encode_message(message)["content"] == "a"


def test_content_is_null_beside_tool_calls_only() -> None:
    assert encode_message(Message(role="assistant"))["content"] == ""


# --- answers ---


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

    assert answer.usage == Usage(requests=1)


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


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{"index": 0, "message": {"content": None}}]}])
def test_a_body_that_says_nothing_is_no_answer(body: dict[str, Any]) -> None:
    with pytest.raises(UnusableAnswer):
        join(body)


@pytest.mark.parametrize("data", [b"", b"[]", b"nonsense", b"\xff", b'{"choices": 3}', b'{"choices": [[]]}'])
def test_what_is_not_of_this_shape_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_piece(data)


@pytest.mark.parametrize("key", [b"usage", b"message", b"error", b"unknown"])
def test_a_body_nested_without_end_is_a_value_error(key: bytes) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_piece(b'{"' + key + b'":' + b"[" * 200_000)


def test_a_tool_call_of_any_depth_is_an_answer_or_a_value_error() -> None:
    refused: list[int] = []
    for depth in range(1, 1_200):  # over all of Python's bound, wherever the stack stands now
        call = b'{"function":{"name":"f","arguments":' + b"[" * depth + b"]" * depth + b"}}"
        try:
            AnswerJoiner().add(decode_piece(b'{"choices":[{"delta":{"tool_calls":[' + call + b"]}}]}"))
        except ValueError:
            refused.append(depth)

    assert 100 not in refused


# --- tool-call deltas ---


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


def test_an_id_that_comes_late_belongs_to_its_index() -> None:
    assert calls_of(call_piece(0, name="f"), call_piece(0, id="a", arguments="{}")) == [("a", "f", "{}")]


def test_what_a_call_wants_sent_back_stays_with_it() -> None:
    answer, _ = join(chunk({"tool_calls": [call_piece(0, id="a", name="f", extra_content={"google": "sig"})]}))

    assert answer.message.tool_calls[0].extra == {"extra_content": {"google": "sig"}}


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

    joined = calls_of(*pieces)

    assert joined == [(f"id{at}", name, "".join(parts)) for at, (name, parts) in enumerate(calls)]


@given(st.text(), st.lists(st.integers(0, 40), max_size=6))
def test_however_a_text_is_cut_its_deltas_joined_are_the_answers_text(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]

    answer, deltas = join(*(chunk({"content": piece}) for piece in pieces), chunk(finish_reason="stop"))

    assert answer.message.text == "".join(delta.text for delta in deltas) == "".join(pieces)
