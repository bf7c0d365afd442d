import enum
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from callboard.actors import limits
from callboard.actors.message import Message

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # st.text() gives no halves of characters
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize("session_id", ["a", "user-123", "ö" * 100, "x" * 200, "with space", "💬"])
def test_session_id_of_1_to_200_bytes_is_taken_as_it_is(session_id: str) -> None:
    assert limits.check_session_id(session_id) == session_id


@pytest.mark.parametrize(
    ("session_id", "reason"),
    [
        ("", "must not be empty: use 1 to 200 bytes"),
        ("x" * 201, "is 201 bytes long: use at most 200 bytes of UTF-8"),
        ("ö" * 101, "is 202 bytes long: use at most 200 bytes of UTF-8"),
        ("a\nb", r"contains the control character '\\n': take it out"),
        ("a\x00", "control character"),
        ("\x7f", "control character"),
        ("\x85", "control character"),
        ("\ud83d", "half a character"),
    ],
)
def test_session_id_that_cannot_be_a_key_is_refused_with_the_reason(session_id: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        limits.check_session_id(session_id)


@pytest.mark.parametrize("session_id", [None, 5, b"bytes", ["a"]])
def test_session_id_that_is_no_string_is_a_type_error(session_id: object) -> None:
    with pytest.raises(TypeError, match="a session id must be a string, not a"):
        limits.check_session_id(session_id)


def test_names_of_a_string_subclass_become_plain_strings() -> None:
    checked = limits.check_session_id(Colour.RED)

    assert type(checked) is str
    assert checked == "red"


def test_longest_session_id_fits_into_a_stream_name() -> None:
    assert len(b"session:") + limits.SESSION_ID_BYTES_MAX <= 400


def test_owner_and_author_may_be_none_but_not_empty() -> None:
    assert limits.check_owner(None) is None
    assert limits.check_author(None) is None
    assert limits.check_owner("o" * 200) == "o" * 200
    for check in (limits.check_owner, limits.check_author, limits.check_agent_name):
        with pytest.raises(ValueError, match="must not be empty"):
            check("")
        with pytest.raises(ValueError, match="201 bytes"):
            check("o" * 201)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (limits.check_agent_name, "an agent name must"),
        (limits.check_owner, "an owner must"),
        (limits.check_author, "an author must"),
        (limits.check_run_id, "a run id must"),
    ],
)
def test_names_go_by_the_right_article(check: Callable[[object], object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said} not be empty"):
        check("")
    with pytest.raises(TypeError, match=f"^{said} be a string, not an int"):
        check(5)


class Speechless(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


def test_reason_is_kind_and_text_and_storable_whatever_the_error_says() -> None:
    assert limits.reason_of(ValueError("a\ud800b")) == "ValueError: a?b"
    assert limits.reason_of(Speechless()) == "Speechless (its text cannot be had: LookupError)"
    assert len(limits.reason_of(ValueError("x" * 100_000))) == limits.REASON_CHARACTERS_MAX


def test_agent_name_may_not_be_none() -> None:
    with pytest.raises(TypeError, match="agent name"):
        limits.check_agent_name(None)


def test_tags_are_kept_once_each_in_the_order_given() -> None:
    assert limits.check_tags(["b", "a", "b"]) == ("b", "a")
    assert limits.check_tags(()) == ()


@pytest.mark.parametrize("tags", ["billing", b"billing", {"a": 1}, 5, None])
def test_tags_that_are_no_list_are_a_type_error_that_shows_how(tags: object) -> None:
    with pytest.raises(TypeError, match=r'for one tag write tags=\("billing",\)'):
        limits.check_tags(tags)


def test_tags_have_bounds_of_length_and_number() -> None:
    assert limits.check_tags(["t" * 100]) == ("t" * 100,)
    assert len(limits.check_tags([str(n) for n in range(64)])) == 64
    with pytest.raises(ValueError, match="101 bytes long: use at most 100"):
        limits.check_tags(["t" * 101])
    with pytest.raises(ValueError, match="65 tags are more than the 64"):
        limits.check_tags([str(n) for n in range(65)])


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_json_metadata_is_kept_as_an_equal_copy(metadata: dict[str, Any]) -> None:
    copy = limits.check_metadata(metadata)

    assert copy == metadata
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(copy)) == metadata


def test_metadata_copy_shares_nothing_with_the_callers() -> None:
    inner: list[Any] = [{"x": 1}]
    copy = limits.check_metadata({"a": inner})
    inner[0]["x"] = 2
    inner.append(3)

    assert copy == {"a": [{"x": 1}]}


def test_any_mapping_is_taken_as_metadata_at_the_top() -> None:
    assert limits.check_metadata(OrderedDict[str, int](a=1)) == {"a": 1}


@pytest.mark.parametrize("metadata", [None, [("a", 1)], "a", 5])
def test_metadata_that_is_no_mapping_is_a_type_error(metadata: object) -> None:
    with pytest.raises(TypeError, match="metadata must be a dict, not a"):
        limits.check_metadata(metadata)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"a": [1, 2, 3, {1}]}, r'metadata\["a"\]\[3\] is a set'),
        ({"a": {"b": object()}}, r'metadata\["a"\]\["b"\] is an object'),
        ({"a": (1, 2)}, r'metadata\["a"\] is a tuple'),
        ({"a": b"x"}, r'metadata\["a"\] is a bytes'),
        ({"a": Colour.RED}, r'metadata\["a"\] is a Colour'),
        ({"a": {5: 1}}, r'metadata\["a"\] has the key 5, which is an int: JSON keys are strings, use \'5\''),
        ({None: 1}, r"metadata has the key None"),
    ],
)
def test_metadata_that_is_not_json_is_a_type_error_naming_the_place(metadata: object, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        limits.check_metadata(metadata)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "is nan, which JSON does not have"),
        (-math.inf, "is -inf, which JSON does not have"),
        (2**64, "beyond 64 bits: use a string"),
        (-(2**63) - 1, "beyond 64 bits: use a string"),
        ("\ud800", "half a character"),
        ({"\ud800": 1}, "half a character"),
    ],
)
def test_metadata_values_that_cannot_be_stored_are_refused_naming_the_place(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        limits.check_metadata({"a": [value]})

    assert 'metadata["a"][0]' in str(caught.value)


def test_metadata_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop

    with pytest.raises(ValueError, match="nested deeper than 32, or contains itself"):
        limits.check_metadata(loop)


def test_metadata_may_be_nested_32_deep_and_no_deeper() -> None:
    fits: Any = "leaf"
    for _ in range(32):
        fits = {"a": fits}

    assert limits.check_metadata(fits) == fits
    with pytest.raises(ValueError, match="nested deeper"):
        limits.check_metadata({"a": fits})


def test_metadata_of_64_kib_fits_and_one_byte_more_does_not() -> None:
    fits = {"a": "x" * (64 * 1024 - len('{"a":""}'))}

    assert limits.check_metadata(fits) == fits
    with pytest.raises(ValueError, match="metadata is 65537 bytes as JSON, more than the 65536"):
        limits.check_metadata({"a": fits["a"] + "x"})


def test_metadata_goes_by_the_name_that_the_caller_knows() -> None:
    with pytest.raises(TypeError, match=r'patch\["a"\] is a set'):
        limits.check_metadata({"a": {1}}, what="patch")


def test_message_of_4_mib_fits_and_one_byte_more_does_not() -> None:
    overhead = len(msgspec.msgpack.encode(Message(role="user", content="x" * 2**20))) - 2**20
    largest = 4 * 2**20 - overhead

    assert limits.check_message_size(Message(role="user", content="x" * largest)) == 4 * 2**20
    with pytest.raises(ValueError, match=r"role 'user' is 4194305 bytes, more than the 4194304 that fit: split it"):
        limits.check_message_size(Message(role="user", content="x" * (largest + 1)))


def test_limit_is_none_or_from_1() -> None:
    assert limits.check_limit(None) is None
    assert limits.check_limit(1) == 1
    assert limits.check_limit(50, maximum=50) == 50


@pytest.mark.parametrize("limit", [0, -1, 51])
def test_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit must be from 1 to 50, not {limit}"):
        limits.check_limit(limit, maximum=50)


@pytest.mark.parametrize("limit", [True, 1.0, "5"])
def test_limit_that_is_no_whole_number_is_a_type_error(limit: object) -> None:
    with pytest.raises(TypeError, match="limit must be a whole number from 1"):
        limits.check_limit(limit)


def test_limit_that_has_a_maximum_must_be_given() -> None:
    with pytest.raises(TypeError, match="whole number from 1 to 50"):
        limits.check_limit(None, maximum=50)
