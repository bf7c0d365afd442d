from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st

from callboard.actors.conversation import (
    INTERRUPTED_RESULT,
    Unit,
    as_chat_dict,
    as_message,
    as_messages,
    repair,
    units,
)
from callboard.actors.message import ROLES, Message, Role, ToolCall


def said(role: Role, content: str = "…", **fields: Any) -> Message:
    return Message(role=role, content=content, **fields)


def calls(*ids: str) -> Message:
    return Message(role="assistant", tool_calls=tuple(ToolCall(each, "tool") for each in ids))


def result(call_id: str, content: str = "42") -> Message:
    return Message(role="tool", tool_call_id=call_id, content=content)


def interrupted(call_id: str) -> Message:
    return Message(role="tool", tool_call_id=call_id, content=INTERRUPTED_RESULT, interrupted=True)


def broken_rule(messages: Sequence[Message]) -> str | None:
    """The API's pairing rule, written down a second time: walks the list and says what a server would object to."""
    place = 0
    while place < len(messages):
        message = messages[place]
        if message.role == "tool":
            return f"result at {place} is no answer to the message before it"
        wanted = [call.id for call in message.tool_calls]
        behind = messages[place + 1 : place + 1 + len(wanted)]
        if [(each.role, each.tool_call_id) for each in behind] != [("tool", call_id) for call_id in wanted]:
            return f"the calls at {place} are not answered behind it"
        place += 1 + len(wanted)
    return None


# Few ids, so that they collide, repeat and get lost all the time.
call_ids = st.sampled_from(["a", "b", "c"])
plain_messages = st.builds(said, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=3))
calling_messages = st.lists(call_ids, min_size=1, max_size=3).map(lambda ids: calls(*ids))
any_messages = plain_messages | calling_messages | st.builds(result, call_ids, st.text(max_size=3))
histories = st.lists(any_messages, max_size=14)
valid_histories = st.lists(
    plain_messages.map(lambda message: [message])
    | st.lists(call_ids, min_size=1, max_size=3).map(lambda ids: [calls(*ids), *(result(each) for each in ids)]),
    max_size=6,
).map(lambda groups: [message for group in groups for message in group])


@given(histories)
def test_repaired_history_obeys_the_pairing_rule(history: list[Message]) -> None:
    assert broken_rule(repair(history).messages) is None


@given(histories)
def test_repairing_again_changes_nothing(history: list[Message]) -> None:
    once = repair(history)
    twice = repair(once.messages)

    assert twice.messages == once.messages
    assert not twice.changed


@given(valid_histories)
def test_valid_history_comes_back_untouched(history: list[Message]) -> None:
    repaired = repair(history)

    assert not repaired.changed
    assert [id(each) for each in repaired.messages] == [id(each) for each in history]


@given(histories)
def test_repair_says_exactly_what_it_inserted_and_dropped(history: list[Message]) -> None:
    repaired = repair(history)
    before, after = Counter(map(id, history)), Counter(map(id, repaired.messages))

    assert after - before == Counter(map(id, repaired.inserted))
    assert before - after == Counter(map(id, repaired.dropped))
    assert all(each.role == "tool" for each in (*repaired.inserted, *repaired.dropped))
    assert all(each == interrupted(each.tool_call_id or "") for each in repaired.inserted)
    assert repaired.changed == (list(repaired.messages) != history)


@given(histories)
def test_repair_keeps_everything_but_results_in_order(history: list[Message]) -> None:
    kept = [id(each) for each in repair(history).messages if each.role != "tool"]

    assert kept == [id(each) for each in history if each.role != "tool"]


@given(histories)
def test_history_that_already_obeys_the_rule_is_the_only_one_left_alone(history: list[Message]) -> None:
    assert repair(history).changed == (broken_rule(history) is not None)


def test_open_call_gets_a_result_that_says_so() -> None:
    history = [said("user"), calls("a", "b"), result("b"), said("user")]
    repaired = repair(history)

    assert repaired.messages == (history[0], history[1], interrupted("a"), history[2], history[3])
    assert repaired.inserted == (interrupted("a"),)
    assert (repaired.dropped, repaired.reordered) == ((), False)


def test_result_without_its_call_is_dropped() -> None:
    history = [result("a", "orphan"), said("user"), calls("b"), result("b")]
    repaired = repair(history)

    assert repaired.messages == tuple(history[1:])
    assert repaired.dropped == (history[0],)


def test_result_that_stands_before_its_call_is_dropped() -> None:
    repaired = repair([result("a", "early"), calls("a")])

    assert repaired.messages == (calls("a"), interrupted("a"))
    assert repaired.dropped == (result("a", "early"),)


def test_first_of_several_results_for_one_call_is_kept() -> None:
    repaired = repair([calls("a"), result("a", "first"), result("a", "second"), said("user"), result("a", "third")])

    assert repaired.messages == (calls("a"), result("a", "first"), said("user"))
    assert [each.content for each in repaired.dropped] == ["second", "third"]


def test_results_move_behind_their_call_in_the_order_of_the_calls() -> None:
    repaired = repair([calls("a", "b"), result("b"), said("user"), result("a")])

    assert repaired.messages == (calls("a", "b"), result("a"), result("b"), said("user"))
    assert repaired.reordered
    assert not repaired.inserted


def test_result_belongs_to_the_nearest_call_of_its_id() -> None:
    repaired = repair([calls("a"), result("a", "1"), said("user"), calls("a"), result("a", "2")])
    lost = repair([calls("a"), said("user"), calls("a"), result("a", "2")])

    assert not repaired.changed
    assert lost.messages == (calls("a"), interrupted("a"), said("user"), calls("a"), result("a", "2"))


@given(histories)
def test_units_concatenate_back_to_the_repaired_messages(history: list[Message]) -> None:
    repaired = repair(history).messages
    grouped = units(repaired)

    assert tuple(message for unit in grouped for message in unit.messages) == repaired
    assert all(broken_rule(unit.messages) is None for unit in grouped)
    assert all(unit.messages[0].role != "tool" for unit in grouped)
    assert all(each.role == "tool" for unit in grouped for each in unit.messages[1:])


@given(histories, st.data())
def test_leaving_out_any_units_never_breaks_the_pairing_rule(history: list[Message], data: st.DataObject) -> None:
    grouped = units(repair(history).messages)
    kept = [unit for unit in grouped if data.draw(st.booleans())]

    assert broken_rule([message for unit in kept for message in unit.messages]) is None


def test_call_and_all_its_results_are_one_unit() -> None:
    history = [said("system"), said("user"), calls("a", "b"), result("a"), result("b"), said("assistant")]

    assert [len(unit.messages) for unit in units(history)] == [1, 1, 3, 1]
    assert units(history)[2] == Unit((calls("a", "b"), result("a"), result("b")))


@pytest.mark.parametrize(
    "history",
    [
        [calls("a"), said("user"), result("a")],
        [calls("a", "b"), result("b"), result("a")],
        [calls("a"), calls("b"), result("b")],
        [said("user"), result("a")],
        [calls("a")],
    ],
)
def test_units_refuse_each_way_of_breaking_the_rule(history: list[Message]) -> None:
    with pytest.raises(ValueError, match=r"repair\(\)"):
        units(history)


@given(histories)
def test_units_refuse_exactly_what_needs_repair(history: list[Message]) -> None:
    if broken_rule(history) is None:
        units(history)
    else:
        with pytest.raises(ValueError, match=r"repair\(\)"):
            units(history)


texts = st.text(min_size=1, max_size=5)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
extras = st.dictionaries(st.text(max_size=5).map(lambda key: f"x_{key}"), json_values, max_size=2)


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


parts = st.builds(text_part, st.text(max_size=5)) | st.builds(image_part, texts)
contents = st.text(max_size=5) | st.lists(parts, min_size=1, max_size=3)
names = st.none() | texts
tool_calls = st.lists(
    st.builds(ToolCall, texts, texts, st.text(max_size=5), extras), max_size=3, unique_by=lambda call: call.id
).map(tuple)
wire_messages: st.SearchStrategy[Message] = (
    st.builds(
        Message, role=st.sampled_from(["system", "developer", "user"]), content=contents, name=names, extra=extras
    )
    | st.builds(Message, role=st.just("assistant"), content=contents, tool_calls=tool_calls, name=names, extra=extras)
    | st.builds(Message, role=st.just("assistant"), tool_calls=tool_calls.filter(len), extra=extras)
    | st.builds(Message, role=st.just("tool"), tool_call_id=texts, content=contents, extra=extras)
)


@given(wire_messages)
def test_message_survives_the_way_to_the_wire_and_back(message: Message) -> None:
    assert as_message(as_chat_dict(message)) == message


@given(wire_messages)
def test_checked_message_equals_the_one_given(message: Message) -> None:
    assert as_message(message) == message


any_texts = st.text() | st.text(st.characters(categories=["Cs", "Ll"]), max_size=3) | st.none() | st.just(b"x")


@given(st.sampled_from([*ROLES, "robot", None, 3]), any_texts, st.none() | st.just("ann") | st.just(""))
def test_dict_of_a_role_and_a_text_is_checked_as_any_other(role: object, text: object, author: str | None) -> None:
    """Such a one takes a shorter way; with a key that says nothing it takes the long one."""
    outcomes: list[Message | str] = []
    for further in ({}, {"name": None}):
        try:
            outcomes.append(as_message({"role": role, "content": text, **further}, author=author))
        except (TypeError, ValueError) as error:
            outcomes.append(repr(error))

    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("character", ["x", "é", "語"])
def test_text_is_as_large_as_the_whole_message_may_be(character: str) -> None:
    largest = (4 * 2**20 - 100) // len(character.encode())
    assert as_message({"role": "user", "content": character * largest}).text == character * largest

    with pytest.raises(ValueError, match="more than the 4194304 that fit"):
        as_message({"role": "user", "content": character * (largest + 100)})


def test_openai_style_dict_becomes_a_message() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}

    assert as_message({"role": "assistant", "content": None, "tool_calls": [call]}) == Message(
        role="assistant", tool_calls=(ToolCall("c1", "weather", '{"city": "Paris"}'),)
    )
    assert as_message({"role": "tool", "tool_call_id": "c1", "content": "9 C"}) == result("c1", "9 C")


def test_wire_form_is_that_of_the_api() -> None:
    message = Message(
        role="assistant",
        tool_calls=(ToolCall("c1", "f", "{}", {"extra_content": {"google": 1}}),),
        author="Support",
        id="m1",
        seq=7,
        run_id="r1",
        created_at_ms=5,
        interrupted=True,
        extra={"reasoning_content": "because"},
    )

    assert as_chat_dict(message) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "f", "arguments": "{}"},
                "extra_content": {"google": 1},
            }
        ],
        "reasoning_content": "because",
    }


def test_unknown_keys_are_kept_in_extra_unless_they_say_nothing() -> None:
    message = as_message({"role": "user", "content": "hi", "cache_control": {"type": "x"}, "refusal": None})

    assert message.extra == {"cache_control": {"type": "x"}}


def test_a_sessions_own_fields_are_not_sent_to_servers() -> None:
    message = as_message({"role": "user", "content": "hi", "id": "m1", "author": "ann", "seq": 3, "interrupted": True})

    assert message == Message(role="user", content="hi", id="m1", author="ann", seq=3, interrupted=True)
    assert as_chat_dict(message) == {"role": "user", "content": "hi"}


def test_author_is_filled_in_where_the_message_names_none() -> None:
    assert as_message({"role": "user", "content": "x"}, author="bob").author == "bob"
    assert as_message(Message(role="user", content="x", author="ann"), author="bob").author == "ann"


def test_arguments_given_as_an_object_become_json_text() -> None:
    function = {"name": "f", "arguments": {"n": [1, None]}}

    assert as_message({"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}).tool_calls == (
        ToolCall("c", "f", '{"n":[1,null]}'),
    )


def test_message_shares_nothing_that_can_change_with_its_source() -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "before"}]
    extra: dict[str, Any] = {"x": [1]}
    from_dict = as_message({"role": "user", "content": parts, **extra})
    from_message = as_message(Message(role="user", content=parts, extra=extra))
    chat = as_chat_dict(from_dict)
    parts[0]["text"] = "after"
    extra["x"].append(2)
    chat["content"][0]["text"] = "after"
    chat["x"].append(2)

    for message in (from_dict, from_message):
        assert message.text == "before"
        assert message.extra == {"x": [1]}


def test_assistant_may_refuse_instead_of_saying_something() -> None:
    assert as_message({"role": "assistant", "content": None, "refusal": "no"}).extra == {"refusal": "no"}


CALL: dict[str, Any] = {"id": "c", "function": {"name": "f", "arguments": ""}}


WRONG_VALUES: list[tuple[object, str]] = [
    ({"role": "robot", "content": "x"}, "unknown role 'robot': use one of " + ", ".join(ROLES)),
    ({"role": None, "content": "x"}, "unknown role None"),
    ({"content": "x"}, "message has no role: use one of system, developer"),
    ({"role": "user"}, "has no content"),
    ({"role": "user", "content": None}, "has no content"),
    ({"role": "tool", "tool_call_id": "c"}, "has no content"),
    ({"role": "user", "content": []}, "message.content is an empty list"),
    ({"role": "assistant"}, "neither content nor tool_calls"),
    ({"role": "assistant", "tool_calls": []}, "neither content nor tool_calls"),
    ({"role": "tool", "content": "x"}, "without tool_call_id"),
    ({"role": "tool", "content": "x", "tool_call_id": ""}, "tool_call_id must not be empty"),
    ({"role": "user", "content": "x", "tool_call_id": "c"}, "has a tool_call_id, but its role is 'user'"),
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, "has tool_calls, but its role is 'user'"),
    ({"role": "user", "content": "x", "name": ""}, "message.name must not be empty"),
    ({"role": "user", "content": "\ud800"}, "half a character"),
    ({"role": "user", "content": "x", "author": ""}, "author must not be empty"),
    ({"role": "user", "content": "x", "score": float("nan")}, r'extra\["score"\] is nan'),
    ({"role": "assistant", "tool_calls": [CALL, CALL]}, "two tool calls with the id 'c'"),
    ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, 'only type "function" is known'),
    ({"role": "assistant", "tool_calls": [{"id": "c"}]}, r"tool_calls\[0\] has no function"),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, r"tool_calls\[0\].id must not be empty"),
    ({"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]}, r"function.name must not be empty"),
    (
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "strict": True}}]},
        "unknown key 'strict'",
    ),
    ({"role": "user", "content": "x", "seq": -1}, r"message.seq must be from 0 to 2\*\*63 - 1"),
    (Message(role="user", content="x", seq=2**63), r"message.seq must be from 0 to 2\*\*63 - 1"),
    (Message(role="user", content="x", created_at_ms=10**40), r"message.created_at_ms must be from 0 to 2\*\*63 - 1"),
    (Message(role="user", content="x", created_at_ms=-1), r"message.created_at_ms must be from 0 to 2\*\*63 - 1"),
    (Message(role="user", content="x", id="\ud800"), "message.id contains half a character"),
    (Message(role="user", content="x", run_id="\ud800"), "message.run_id contains half a character"),
    (Message(role="user", content="x", extra={"role": "system"}), "extra holds 'role'"),
    (Message(role="user", content="x" * (4 * 2**20)), "more than the 4194304 that fit"),
    (
        Message(role="assistant", tool_calls=(ToolCall("c", "f", "", {"function": 1}),)),
        r"tool_calls\[0\].extra holds 'function'",
    ),
]


@pytest.mark.parametrize(("value", "reason"), WRONG_VALUES)
def test_message_with_a_wrong_value_is_refused_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_message(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hello", "message must be a Message or a dict like"),
        (None, "not NoneType"),
        ({"role": "user", "content": 5}, "message.content must be a string, a list of parts or None, not int"),
        ({"role": "user", "content": ["text"]}, r"message.content\[0\] must be a dict with a \"type\""),
        ({"role": "user", "content": [{"text": "x"}]}, r"message.content\[0\] must be a dict with a \"type\""),
        (
            {"role": "user", "content": [{"type": "text"}]},
            r"content\[0\] is of type \"text\" and must have its \"text\"",
        ),
        ({"role": "user", "content": [{"type": "x", "y": {1}}]}, r'content\[0\]\["y"\] is a set'),
        ({"role": "user", "content": "x", "name": 5}, "message.name must be a string, not int"),
        ({"role": "user", "content": "x", "seq": "5"}, r'message\["seq"\] must be int, not str'),
        ({"role": "user", "content": "x", "seq": True}, r'message\["seq"\] must be int, not bool'),
        (said("user", seq=5.0), "message.seq must be a whole number, not float"),
        (said("user", created_at_ms=True), "message.created_at_ms must be a whole number, not bool"),
        (said("user", id=None), "message.id must be a string, not NoneType"),
        (said("user", run_id=5), "message.run_id must be a string, not int"),
        (said("user", interrupted=1), "message.interrupted must be True or False, not int"),
        ({"role": "user", "content": "x", "when": object()}, r'message.extra\["when"\] is an object'),
        ({"role": "user", "content": "x", 5: "y"}, "message.extra has the key 5"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "tool_call_id must be a string, not int"),
        ({"role": "assistant", "tool_calls": CALL}, "message.tool_calls must be a list, not dict"),
        ({"role": "assistant", "tool_calls": ["f"]}, r"message.tool_calls\[0\] must be a dict like"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": [1]}}]},
            "arguments must be JSON text, not list",
        ),
    ],
)
def test_message_of_a_wrong_type_is_refused_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        as_message(value)


def test_largest_place_and_time_are_taken() -> None:
    message = said("user", seq=2**63 - 1, created_at_ms=2**63 - 1)

    assert as_message(message) == message


def test_message_in_a_list_is_named_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"messages\[1\] has the unknown role"):
        as_messages([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}])


def test_list_of_messages_and_dicts_becomes_messages() -> None:
    assert as_messages([said("user"), {"role": "assistant", "content": "…"}], author="ann") == [
        Message(role="user", content="…", author="ann"),
        Message(role="assistant", content="…", author="ann"),
    ]


@pytest.mark.parametrize("values", ["hello", {"role": "user", "content": "x"}, said("user"), 5])
def test_one_message_in_place_of_a_list_is_refused(values: object) -> None:
    with pytest.raises(TypeError, match="messages must be a list of Message or dict"):
        as_messages(values)
