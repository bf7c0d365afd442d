import enum
import json
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from callboard.actors.json_schema import schema_of


class Place(Struct):
    city: str
    country: str = "FR"


class Trip(Struct):
    start: Annotated[Place, Meta(description="where it begins")]
    stops: list[Place]
    by_day: dict[str, Place]


class Described(Struct):
    """What the type says of itself."""

    place: Place


class Ordered(Struct):
    own: Described
    special: Annotated[Described, Meta(description="what the field says")]


class Odd(Struct):
    """Contains itself in a field that is called like a keyword."""

    enum: "list[Odd]"


class Cat(Struct, tag="cat"):
    lives: int


class Dog(Struct, tag="dog"):
    tricks: list[str]


class Owner(Struct):
    pet: Cat | Dog


class Tree(Struct):
    place: Place
    children: "list[Tree]"


class Garden(Struct):
    tree: Tree


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Misleading(Struct):
    """Fields that are called like keywords of JSON Schema."""

    properties: Place
    discriminator: Place
    enum: Literal["$ref", "x"]


PLACE = {
    "title": "Place",
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string", "default": "FR"}},
    "required": ["city"],
}


def test_references_are_written_out_and_the_top_has_no_title() -> None:
    assert schema_of(Trip) == {
        "type": "object",
        "properties": {
            "start": {**PLACE, "description": "where it begins"},
            "stops": {"type": "array", "items": PLACE},
            "by_day": {"type": "object", "additionalProperties": PLACE},
        },
        "required": ["start", "stops", "by_day"],
    }


def test_tagged_union_refers_to_no_names() -> None:
    schema = schema_of(Owner)

    assert set(schema["properties"]["pet"]) == {"anyOf"}
    assert [each["properties"]["type"]["enum"] for each in schema["properties"]["pet"]["anyOf"]] == [["cat"], ["dog"]]
    assert "$" not in json.dumps(schema)


def test_enum_is_written_out() -> None:
    assert schema_of(list[Size]) == {"type": "array", "items": {"title": "Size", "enum": ["l", "s"]}}


@pytest.mark.parametrize("type_", [Tree, Garden])
def test_type_that_contains_itself_stays_a_definition_below_an_object(type_: Any) -> None:
    schema = schema_of(type_)

    assert schema["type"] == "object"
    assert set(schema["$defs"]) == {"Tree"}
    assert schema["$defs"]["Tree"]["properties"] == {
        "place": PLACE,
        "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
    }


def test_fields_that_are_called_like_keywords_are_fields() -> None:
    assert schema_of(Misleading)["properties"] == {
        "properties": PLACE,
        "discriminator": PLACE,
        "enum": {"enum": ["$ref", "x"]},
    }


def test_description_of_a_field_goes_before_that_of_its_type() -> None:
    properties = schema_of(Ordered)["properties"]

    assert properties["own"]["description"] == "What the type says of itself."
    assert properties["special"]["description"] == "what the field says"
    assert properties["special"]["properties"] == {"place": PLACE}


def test_type_is_found_to_contain_itself_in_a_field_called_like_a_keyword() -> None:
    assert schema_of(Odd)["properties"] == {"enum": {"type": "array", "items": {"$ref": "#/$defs/Odd"}}}


def test_type_that_cannot_come_from_json_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        schema_of(object)
