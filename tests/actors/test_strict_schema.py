"""The strict form of schemas: what servers demand of it, and that nothing is lost between it and the schema itself."""

import datetime
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import jsonschema
import pytest
from hypothesis import given, strategies as st
from msgspec import UNSET, Meta, Struct, UnsetType

from callboard.actors.json_schema import schema_of
from callboard.actors.strict_schema import strict_form, without_added_nulls

Schema = dict[str, Any]
VALIDATOR: Any = jsonschema.Draft202012Validator


class Place(Struct):
    city: str
    country: str = "FR"


class Cat(Struct, tag="cat"):
    lives: int = 9


class Dog(Struct, tag="dog"):
    tricks: list[str]
    owner: str | UnsetType = UNSET


class Node(Struct):
    name: str
    children: "list[Node]" = []


def strict(type_: Any) -> Schema:
    form = strict_form(schema_of(type_))
    assert form is not None
    return form


def objects(schema: object) -> Iterator[Schema]:
    """All schemas of objects in a schema."""
    if isinstance(schema, dict):
        given_schema = cast("Schema", schema)
        if "properties" in given_schema:
            yield given_schema
        for value in given_schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for each in cast("list[object]", schema):
            yield from objects(each)


# Schemas and values that fit them, drawn together. A property is (its schema, its values, whether it may be left out).


def plain() -> st.SearchStrategy[tuple[Schema, st.SearchStrategy[Any]]]:
    kinds: list[tuple[Schema, st.SearchStrategy[Any]]] = [
        ({"type": "string"}, st.text(max_size=3)),
        ({"type": "integer"}, st.integers(-9, 9)),
        ({"type": ["boolean", "null"]}, st.sampled_from([True, False, None])),
        ({"enum": ["a", 1, None]}, st.sampled_from(["a", 1, None])),
        ({"const": "x"}, st.just("x")),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, st.sampled_from([0.5, None])),
    ]
    return st.sampled_from(kinds)


@st.composite
def an_object(draw: st.DrawFn, inner: Any) -> tuple[Schema, st.SearchStrategy[Any]]:
    fields: dict[str, Any] = draw(st.dictionaries(st.sampled_from(["a", "b", "enum", "properties"]), inner, max_size=3))
    # Not those that take null themselves: there null is an answer of its own.
    may_be_optional = [name for name, (each, _) in fields.items() if not VALIDATOR(each).is_valid(None)]
    optional = draw(st.sets(st.sampled_from(may_be_optional))) if may_be_optional else set[str]()
    schema: Schema = {
        "type": "object",
        "properties": {name: each for name, (each, _) in fields.items()},
        "required": [name for name in fields if name not in optional],
    }
    values = st.fixed_dictionaries(
        {name: value for name, (_, value) in fields.items() if name not in optional},
        optional={name: value for name, (_, value) in fields.items() if name in optional},
    )
    return schema, values


@st.composite
def a_list(draw: st.DrawFn, inner: Any) -> tuple[Schema, st.SearchStrategy[Any]]:
    schema, values = draw(inner)
    return {"type": "array", "items": schema}, st.lists(values, max_size=2)


@st.composite
def tagged(draw: st.DrawFn, inner: Any) -> tuple[Schema, st.SearchStrategy[Any]]:
    """One of two kinds of object that a constant tells apart, or null."""
    branches: list[Schema] = []
    values: list[st.SearchStrategy[Any]] = []
    for tag in ("one", "two"):
        schema, fields = draw(an_object(inner))
        branches.append(
            {
                **schema,
                "properties": {"kind": {"enum": [tag]}, **schema["properties"]},
                "required": ["kind", *schema["required"]],
            }
        )
        values.append(fields.map(lambda value, tag=tag: {"kind": tag, **value}))
    return {"anyOf": [*branches, {"type": "null"}]}, st.one_of(*values, st.none())


def any_schema() -> st.SearchStrategy[tuple[Schema, st.SearchStrategy[Any]]]:
    return st.recursive(plain(), lambda inner: a_list(inner) | an_object(inner) | tagged(inner), max_leaves=8)


def filled(value: Any, strict_schema: Schema) -> Any:
    """The value as a server gives it that is held to the strict schema: null for all that was left out."""
    if isinstance(value, list):
        items = next(each["items"] for each in _branches(strict_schema) if "items" in each)
        return [filled(each, items) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    schema = next(
        each
        for each in _branches(strict_schema)
        if mapping.keys() <= each.get("properties", {}).keys()
        and mapping.get("kind") in each["properties"].get("kind", {}).get("enum", [mapping.get("kind")])
    )
    return {
        name: filled(mapping[name], each) if name in mapping else None for name, each in schema["properties"].items()
    }


def _branches(schema: Schema) -> list[Schema]:
    return [schema] if "anyOf" not in schema else [found for each in schema["anyOf"] for found in _branches(each)]


@given(an_object(any_schema()), st.data())
def test_what_was_left_out_is_null_in_the_strict_form_and_left_out_again(
    drawn: tuple[Schema, st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    schema, values = drawn
    value = data.draw(values)
    form = strict_form(schema)
    assert form is not None

    said = filled(value, form)

    jsonschema.validate(value, schema)
    jsonschema.validate(said, form)
    assert without_added_nulls(said, schema) == value


@given(an_object(any_schema()))
def test_strict_objects_are_closed_and_require_everything(drawn: tuple[Schema, Any]) -> None:
    form = strict_form(drawn[0])
    assert form is not None

    for each in objects({"top": form}):
        if isinstance(each["properties"], dict) and "additionalProperties" in each:
            assert each["additionalProperties"] is False
            assert each["required"] == [*each["properties"]]
    assert form["additionalProperties"] is False
    assert form["required"] == [*form["properties"]]


def test_field_with_a_default_may_be_null_and_its_default_is_said_in_words() -> None:
    assert strict(Place) == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "country": {"description": '(default: "FR")', "anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city", "country"],
        "additionalProperties": False,
    }


def test_enums_and_constants_get_their_type() -> None:
    class Choice(Struct):
        size: Literal["s", "l"]
        level: Literal[1, 2]
        mixed: Literal["a", 1, None]

    properties = strict(Choice)["properties"]

    assert properties["size"]["type"] == "string"
    assert properties["level"]["type"] == "integer"
    assert sorted(properties["mixed"]["type"]) == ["integer", "null", "string"]
    form = strict_form({"type": "object", "properties": {"a": {"enum": [True, False]}, "b": {"const": 0.5}}})
    assert form is not None
    assert form["properties"]["a"]["anyOf"][0]["type"] == "boolean"
    assert form["properties"]["b"]["anyOf"][0]["type"] == "number"


def test_what_servers_cannot_hold_a_model_to_is_said_in_words() -> None:
    class Bounded(Struct):
        name: Annotated[str, Meta(min_length=2, pattern="a", description="a name")]
        code: Annotated[str, Meta(pattern="^[a-z]$")]
        count: Annotated[int, Meta(ge=1, le=5)]
        blob: bytes
        when: Annotated[datetime.datetime, Meta(tz=True)]
        id: uuid.UUID

    properties = strict(Bounded)["properties"]

    assert properties["name"] == {
        "type": "string",
        "description": 'a name (minLength: 2) (pattern: "a")',
    }
    assert properties["code"] == {"type": "string", "pattern": "^[a-z]$"}
    assert properties["count"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert properties["blob"] == {"type": "string", "description": '(contentEncoding: "base64")'}
    assert properties["when"] == {"type": "string", "format": "date-time"}
    assert properties["id"] == {"type": "string", "format": "uuid"}


@pytest.mark.parametrize("pattern", ["a", "^a", "a$"])
def test_pattern_that_is_not_of_the_whole_text_is_said_in_words(pattern: str) -> None:
    form = strict_form(
        {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    )

    assert form is not None
    assert form["properties"]["a"] == {"type": "string", "description": f'(pattern: "{pattern}")'}


def test_reference_stands_alone() -> None:
    schema: Schema = {
        "type": "object",
        "properties": {"next": {"$ref": "#", "description": "the next one"}},
        "required": ["next"],
    }

    form = strict_form(schema)

    assert form is not None
    assert form["properties"] == {"next": {"$ref": "#"}}


def test_type_that_contains_itself_is_strict_throughout() -> None:
    form = strict(Node)

    assert form["$defs"]["Node"]["additionalProperties"] is False
    assert form["$defs"]["Node"]["required"] == ["name", "children"]
    value = {"name": "a", "children": [{"name": "b", "children": None}]}
    jsonschema.validate(value, form)
    assert without_added_nulls(value, schema_of(Node)) == {"name": "a", "children": [{"name": "b"}]}


def test_of_tagged_objects_the_one_that_is_meant_says_what_may_be_null() -> None:
    class Owner(Struct):
        pets: list[Cat | Dog]

    pets: list[dict[str, Any]] = [
        {"type": "cat", "lives": None},
        {"type": "dog", "tricks": ["sit"], "owner": None},
        {"type": "dog", "tricks": None, "owner": "Dana"},
    ]

    assert without_added_nulls({"pets": pets}, schema_of(Owner))["pets"] == [
        {"type": "cat"},
        {"type": "dog", "tricks": ["sit"]},
        {"type": "dog", "tricks": None, "owner": "Dana"},  # required: for the check to refuse
    ]


def test_null_that_the_type_itself_takes_is_kept() -> None:
    class Guest(Struct):
        name: str | None = "unknown"

    assert strict(Guest)["properties"]["name"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert without_added_nulls({"name": None}, schema_of(Guest)) == {"name": None}


@pytest.mark.parametrize(
    "open_field",
    [
        {},
        True,
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"type": "array"},
        {"type": "array", "prefixItems": [{"type": "integer"}]},
        {"allOf": [{"type": "integer"}]},
        {"not": {"type": "integer"}},
        {"type": "string", "if": {"const": "a"}},
        {"$ref": "#/properties/other"},
        {"$ref": "#", "minimum": 1},
        {"enum": [["a", "list"]]},
        {"type": "object", "properties": {}, "required": ["unknown"]},
    ],
)
def test_what_is_open_or_composed_has_no_strict_form(open_field: Any) -> None:
    schema: Schema = {"type": "object", "properties": {"field": open_field}, "required": ["field"]}

    assert strict_form(schema) is None
    assert strict_form({**schema, "properties": {"field": {"type": "integer"}}}) is not None


@pytest.mark.parametrize("schema", [{"type": "array", "items": {"type": "integer"}}, {"anyOf": [{"type": "integer"}]}])
def test_top_that_is_no_object_has_no_strict_form(schema: Schema) -> None:
    assert strict_form(schema) is None


def test_bounds_of_strict_schemas_are_kept() -> None:
    def wide(count: int) -> Schema:
        return {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(count)}}

    def deep(levels: int) -> Schema:
        schema: Schema = {"type": "object", "properties": {}}
        for _ in range(levels - 1):
            schema = {"type": "object", "properties": {"in": schema}, "required": ["in"]}
        return schema

    def choice(count: int) -> Schema:
        return {"type": "object", "properties": {"one": {"enum": [*range(count)]}}}

    assert [strict_form(wide(count)) is None for count in (5_000, 5_001)] == [False, True]
    assert [strict_form(deep(levels)) is None for levels in (10, 11)] == [False, True]
    assert [strict_form(choice(count)) is None for count in (1_000, 1_001)] == [False, True]
