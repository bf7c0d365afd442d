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


def test_a_field_with_a_default_may_be_missing_and_an_unknown_one_is_passed_over() -> None:
    older = b"\x01" + msgspec.msgpack.encode({"type": "label", "text": "x", "colour": "red"})

    assert shapes.decode(older, where="here") == Label("x")
