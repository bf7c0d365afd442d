"""Requests to JSON, by the rules of FACTS.md, "Wire truth", in each server's dialect."""

from typing import Any

import msgspec
import pytest

from callboard.actors.dialect import Dialect
from callboard.actors.message import Message, ToolCall
from callboard.actors.model import ModelRequest, ModelSettings, OutputSchema, ToolSchema
from callboard.actors.wire_request import encode_message, encode_request

WEATHER = ToolSchema("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})


def encoded(
    request: ModelRequest, *, dialect: Dialect | None = None, stream: bool = False, **settings: Any
) -> dict[str, Any]:
    data = encode_request(request, ModelSettings(model="m", **settings), dialect=dialect or Dialect(), stream=stream)
    return msgspec.json.decode(data, type=dict[str, Any])


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


# --- dialects ---


ASKING = Message(
    role="assistant",
    tool_calls=(ToolCall("call_1", "weather", "{}", {"extra_content": {"google": "s"}, "other": 1}),),
    extra={"reasoning_content": "hm", "reasoning_details": [1], "refusal": "no"},
)
RESULT = Message(role="tool", content="21 C", tool_call_id="call_1")
ANSWER = Message(role="assistant", content="It is warm.", extra={"reasoning_content": "so"})


def user(text: str) -> Message:
    return Message(role="user", content=text)


def sent(*messages: Message, dialect: Dialect) -> list[dict[str, Any]]:
    return encoded(ModelRequest(messages), dialect=dialect)["messages"]


def test_only_the_fields_that_a_server_knows_go_back_to_it() -> None:
    (message,) = sent(ASKING, dialect=Dialect(sends_back=frozenset({"reasoning_details", "extra_content"})))

    assert message["reasoning_details"] == [1]
    assert "reasoning_content" not in message
    assert "refusal" not in message
    assert message["tool_calls"][0]["extra_content"] == {"google": "s"}
    assert "other" not in message["tool_calls"][0]


def test_thoughts_go_back_on_turns_with_tool_calls_only_and_stand_beside_each_call() -> None:
    dialect = Dialect(reasoning_beside_calls="reasoning_content")
    silent = Message(role="assistant", tool_calls=(ToolCall("c2", "weather"),))

    messages = sent(
        user("a"), ANSWER, user("b"), ASKING, RESULT, silent, RESULT, ANSWER, user("c"), ANSWER, dialect=dialect
    )

    thoughts = [message.get("reasoning_content") for message in messages]
    assert thoughts == [None, None, None, "hm", None, "", None, "so", None, None]


def test_an_id_of_a_call_that_a_server_would_refuse_is_the_same_in_call_and_result_and_every_time() -> None:
    dialect = Dialect(nine_letter_ids=True)

    first, second = (sent(ASKING, RESULT, dialect=dialect) for _ in range(2))

    call_id = first[0]["tool_calls"][0]["id"]
    assert call_id == first[1]["tool_call_id"]
    assert call_id.isalnum()
    assert (len(call_id), first) == (9, second)


def test_ids_stay_apart_when_they_are_rewritten_and_a_good_one_stays_as_it_is() -> None:
    calls = tuple(
        ToolCall(call_id, "weather") for call_id in ("call_1", "call_2", "abcDEF123", "abcDEF12", "äbcDEF123")
    )

    (message,) = sent(Message(role="assistant", tool_calls=calls), dialect=Dialect(nine_letter_ids=True))

    ids = [call["id"] for call in message["tool_calls"]]
    assert ids[2] == "abcDEF123"
    assert len(set(ids)) == 5
    assert all(len(call_id) == 9 and call_id.isascii() and call_id.isalnum() for call_id in ids)


def test_names_of_messages_are_left_out_where_they_are_refused() -> None:
    named = Message(role="user", content="hello", name="Ada")

    assert sent(named, dialect=Dialect()) == [{"role": "user", "content": "hello", "name": "Ada"}]
    assert sent(named, dialect=Dialect(message_names=False)) == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("choice", "expected"), [("none", "none"), ("auto", "auto"), ("required", "any"), ("weather", {"name": "weather"})]
)
def test_a_server_has_its_own_word_for_required(choice: str, expected: Any) -> None:
    body = encoded(ModelRequest(HELLO.messages, (WEATHER,)), dialect=Dialect(required_choice="any"), tool_choice=choice)

    got = body["tool_choice"]
    assert (got if isinstance(got, str) else got["function"]) == expected


def test_where_a_tool_cannot_be_named_it_is_sent_alone_and_required() -> None:
    time = ToolSchema("time", "Tells the time.", {"type": "object"})
    request = ModelRequest(HELLO.messages, (time, WEATHER))

    one = encoded(request, dialect=Dialect(named_choice="alone"), tool_choice="weather")
    any_of_them = encoded(request, dialect=Dialect(named_choice="alone"), tool_choice="required")

    assert ([tool["function"]["name"] for tool in one["tools"]], one["tool_choice"]) == (["weather"], "required")
    assert ([tool["function"]["name"] for tool in any_of_them["tools"]], any_of_them["tool_choice"]) == (
        ["time", "weather"],
        "required",
    )


def test_a_tool_that_is_not_among_those_sent_is_demanded_by_name_and_for_the_server_to_refuse() -> None:
    request = ModelRequest(HELLO.messages, (WEATHER,))

    body = encoded(request, dialect=Dialect(named_choice="alone"), tool_choice="unknown")

    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "unknown"}}


# --- the form of the answer ---


CITY = OutputSchema("city", {"type": "object", "properties": {"name": {"type": "string"}}}, strict=True)


def test_a_schema_goes_out_whole_where_the_server_takes_one() -> None:
    body = encoded(ModelRequest(HELLO.messages, output=CITY))

    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "city", "schema": CITY.schema, "strict": True},
    }
    assert body["messages"] == [{"role": "user", "content": "hello"}]


def test_where_only_json_can_be_asked_for_the_schema_is_told_in_words() -> None:
    body = encoded(ModelRequest(HELLO.messages, output=CITY), dialect=Dialect(output_form="json_object"))

    assert body["response_format"] == {"type": "json_object"}
    assert body["messages"] == [{"role": "system", "content": CITY.instruction}, {"role": "user", "content": "hello"}]


def test_words_join_the_instructions_that_are_there_and_change_no_message_of_ours() -> None:
    system = Message(role="system", content="Be brief.")
    request = ModelRequest((system, *HELLO.messages), output=CITY)

    body = encoded(request, dialect=Dialect(output_form="words"))

    assert "response_format" not in body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == f"Be brief.\n\n{CITY.instruction}"
    assert system.content == "Be brief."


def test_extra_body_overrules_the_form() -> None:
    body = encoded(ModelRequest(HELLO.messages, output=CITY), extra_body={"response_format": {"type": "text"}})

    assert body["response_format"] == {"type": "text"}
