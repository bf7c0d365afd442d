"""What the model of one agent gets of a history that several agents share."""

import re

import pytest
from hypothesis import given, strategies as st

from callboard import Message, ToolCall
from callboard.actors.perspective import cue, seen_by, wire_name

USER = Message(role="user", content="hello", author="Dana")
MINE = Message(role="assistant", content="mine", author="Ann")
OTHERS = Message(role="assistant", content="another's", author="Bob the builder")
CALL = Message(role="assistant", tool_calls=(ToolCall("c", "look"),), author="Bob the builder")
RESULT = Message(role="tool", content="found", tool_call_id="c", author="Bob the builder")

messages = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool", "system"]),
    content=st.text(max_size=5),
    author=st.sampled_from([None, "Ann", "Bob the builder", "客服"]),
    name=st.sampled_from([None, "given"]),
)


def test_another_agents_answers_carry_its_name_and_keep_their_role() -> None:
    seen = seen_by("Ann", [USER, MINE, OTHERS, CALL, RESULT])

    assert [(message.role, message.name) for message in seen] == [
        ("user", None),
        ("assistant", None),
        ("assistant", "Bob_the_builder"),
        ("assistant", "Bob_the_builder"),
        ("tool", None),
    ]


def test_a_history_of_one_agent_is_sent_as_the_same_objects() -> None:
    history = (USER, MINE)

    assert seen_by("Ann", history) is history


def test_a_name_that_a_message_brought_is_kept() -> None:
    named = Message(role="assistant", content="x", author="Bob", name="Robert")

    assert seen_by("Ann", [named, OTHERS])[0] is named


@pytest.mark.parametrize(
    ("author", "name"),
    [
        ("Ann", "Ann"),
        ("Support Agent", "Support_Agent"),
        ("a/b:c", "a_b_c"),
        ("x" * 90, "x" * 64),
        ("Müller", "M_ller"),
    ],
)
def test_a_name_is_put_as_the_api_takes_it(author: str, name: str) -> None:
    assert wire_name(author) == name


@given(st.text(min_size=1, max_size=100).filter(lambda text: text.encode(errors="replace").decode() == text))
def test_every_author_has_a_name_that_the_api_takes(author: str) -> None:
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", wire_name(author))


def test_authors_of_whom_no_letter_is_left_are_still_told_apart() -> None:
    assert wire_name("客服") == wire_name("客服")
    assert wire_name("客服") != wire_name("专家")


@given(st.lists(messages, max_size=8))
def test_nothing_but_names_is_changed_and_seeing_twice_is_seeing_once(history: list[Message]) -> None:
    seen = seen_by("Ann", history)

    assert [(m.role, m.content, m.author) for m in seen] == [(m.role, m.content, m.author) for m in history]
    assert list(seen_by("Ann", seen)) == list(seen)
    for message in seen:
        assert (message.author in (None, "Ann")) or message.role != "assistant" or message.name is not None


@pytest.mark.parametrize("history", [[], [USER], [USER, CALL, RESULT]], ids=["nothing", "a user", "a result"])
def test_no_cue_is_needed_where_it_is_not_the_assistant_who_spoke_last(history: list[Message]) -> None:
    assert cue("Ann", history) == ()


@pytest.mark.parametrize("last", [MINE, OTHERS])
def test_behind_an_answer_the_agent_is_told_that_it_is_its_turn(last: Message) -> None:
    (told,) = cue("Ann", [USER, last])

    assert told.role == "user"
    assert "Ann" in told.text
