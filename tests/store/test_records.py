"""Values: a version byte and a record; what cannot be read says where it lay and why."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from callboard.store import Codec, Corrupt, NewerFormat


class Circle(msgspec.Struct, frozen=True, tag="circle"):
    radius: int


class Label(msgspec.Struct, frozen=True, tag="label"):
    text: str
    note: str = ""


shapes: Codec[Circle | Label] = Codec(Circle | Label)


@given(st.builds(Circle, st.integers(0, 2**40)) | st.builds(Label, st.text(), st.text()))
def test_what_was_encoded_comes_back_equal(record: Circle | Label) -> None:
    assert shapes.decode(shapes.encode(record), where="here") == record


def test_the_first_byte_is_the_version() -> None:
    assert shapes.encode(Circle(1)) == b"\x01" + msgspec.msgpack.encode(Circle(1))


def test_a_newer_version_is_refused_and_named() -> None:
    with pytest.raises(NewerFormat, match=r"run 7 .* version 2; .* reads up to 1: upgrade"):
        shapes.decode(b"\x02" + shapes.encode(Circle(1))[1:], where="run 7")


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_a_record_or_a_typed_error(data: bytes) -> None:
    try:
        outcome: Circle | Label | Corrupt | NewerFormat = shapes.decode(data, where="row 5")
    except (Corrupt, NewerFormat) as error:
        outcome = error

    assert isinstance(outcome, Circle | Label) or "row 5" in str(outcome)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" + shapes.encode(Circle(1))[1:],
        shapes.encode(Circle(1))[:-1],
        shapes.encode(Circle(1)) + b"x",
        b"\x01" + msgspec.msgpack.encode({"type": "square"}),
        b"\x01" + msgspec.msgpack.encode({"type": "label", "text": b"\xff"}),
        b"\x01" + msgspec.msgpack.encode({"type": "label", "text": "x"}).replace(b"\xa1x", b"\xa1\xff"),
        b"\x01" + b"\x91" * 100_000,
    ],
)
def test_bytes_that_are_no_record_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="row 5"):
        shapes.decode(data, where="row 5")


class Ring(msgspec.Struct, frozen=True, tag="ring"):
    inner: int
    outer: int


rings: Codec[Ring] = Codec(Ring, version=3, older={1: (Circle, lambda circle: Ring(0, circle.radius))})


def test_older_version_is_read_as_a_record_of_today_and_todays_is_written() -> None:
    old, new = shapes.encode(Circle(4)), rings.encode(Ring(1, 2))

    assert new == b"\x03" + msgspec.msgpack.encode(Ring(1, 2))
    assert (rings.decode(old, where="here"), rings.decode(new, where="here")) == (Ring(0, 4), Ring(1, 2))


def test_version_between_that_was_never_released_is_corrupt_and_a_later_one_newer() -> None:
    with pytest.raises(Corrupt, match="its version byte is 2"):
        rings.decode(b"\x02" + shapes.encode(Circle(1))[1:], where="here")
    with pytest.raises(Corrupt, match="here"):
        rings.decode(shapes.encode(Label("x")), where="here")
    with pytest.raises(NewerFormat, match=r"here has version 4; .* up to 3"):
        rings.decode(b"\x04", where="here")


def test_all_are_decoded_at_once_where_each_is_sound_and_of_today() -> None:
    values = [rings.encode(Ring(n, n)) for n in range(3)]

    assert rings.decode_all(values) == [Ring(n, n) for n in range(3)]
    assert rings.decode_all([]) == []


@pytest.mark.parametrize("value", [b"", b"\x03", b"\x03\xff", b"\x04", shapes.encode(Circle(1))])
def test_all_are_not_decoded_at_once_where_one_is_something_else(value: bytes) -> None:
    assert rings.decode_all([rings.encode(Ring(1, 2)), value]) is None


def test_a_field_with_a_default_may_be_missing_and_an_unknown_one_is_passed_over() -> None:
    older = b"\x01" + msgspec.msgpack.encode({"type": "label", "text": "x", "colour": "red"})

    assert shapes.decode(older, where="here") == Label("x")
