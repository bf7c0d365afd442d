"""Forms that users write as JSON schemas: what is refused at the door, and what is checked by them."""

import subprocess
import sys
from typing import Any

import jsonschema
import pytest

from callboard.actors.schema_check import check_by_schema, check_schema, wrapped_schema

VALIDATOR: Any = jsonschema.Draft202012Validator
PLACE: dict[Any, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}}},
    "required": ["city"],
    "$defs": {"stop": {"type": "integer", "minimum": 1}},
}


def test_good_schema_is_copied() -> None:
    checked = check_schema(PLACE)

    assert checked == PLACE
    assert checked is not PLACE
    assert checked["properties"] is not PLACE["properties"]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "says nothing"),
        ({"city": "Paris"}, "says nothing"),
        ({"type": 5}, r"no valid JSON schema: at `\$\.type`"),
        ({"type": "string", "pattern": "["}, "no valid JSON schema"),
        ({"type": object()}, "is no JSON"),
        ({"$ref": "http://127.0.0.1/x"}, "put it there, under"),
        ({"$ref": "#other"}, "put it there, under"),
        ({"properties": {"a": {"items": [{"$ref": "#/$defs/no"}]}}, "$schema": "http://json-schema.org/draft-07/schema#"},
         "put it there, under"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "put it there, under"),
        ({"anyOf": [{"$ref": "#/anyOf/2"}, {"type": "null"}]}, "put it there, under"),
        ({"anyOf": [{"const": {"type": 5}}, {"$ref": "#/anyOf/0/const"}]}, "put it there, under"),
        ({"properties": {"a": {"$id": "http://127.0.0.1/x", "type": "null"}}}, r"has \$id"),
        ({"type": "object", "$dynamicRef": "#x"}, r"has \$dynamicRef"),
    ],
)  # fmt: skip
def test_bad_schema_is_refused_at_the_door(schema: dict[Any, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_schema(schema)


def test_schema_that_contains_itself_is_refused() -> None:
    schema: dict[Any, Any] = {"type": "object"}
    schema["properties"] = {"again": schema}

    with pytest.raises(ValueError, match="is no JSON"):
        check_schema(schema)


def test_properties_may_be_called_like_keywords() -> None:
    schema: dict[Any, Any] = {
        "type": "object",
        "properties": {"$ref": {"type": "string"}, "$id": {"enum": [{"$ref": 1}]}},
    }

    assert check_schema(schema) == schema
    assert wrapped_schema(schema)["properties"]["value"] == schema


def test_own_name_of_a_schema_does_not_move_its_references() -> None:
    check = check_by_schema(check_schema({"$id": "http://127.0.0.1/place", **PLACE}))

    assert check('{"city": "Paris", "stops": [1]}') == {"city": "Paris", "stops": [1]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"city": 5}', r"5 is not of type 'string' - at `\$\.city`"),
        ("{}", "'city' is a required property"),
        ('{"city": "Paris", "stops": [3, 0]}', r"minimum of 1 - at `\$\.stops\[1\]`"),
        ("no JSON", "malformed"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(text: str, words: str) -> None:
    check = check_by_schema(check_schema(PLACE))

    with pytest.raises(ValueError, match=words):
        check(text)


def test_schema_says_which_draft_it_is_of() -> None:
    draft_7 = "http://json-schema.org/draft-07/schema#"
    pairs: dict[Any, Any] = {"$schema": draft_7, "type": "array", "items": [{"type": "integer"}, {"type": "string"}]}
    check = check_by_schema(check_schema(pairs))

    assert check('[1, "a"]') == [1, "a"]
    with pytest.raises(ValueError, match="is not of type"):
        check('["a", 1]')
    with pytest.raises(ValueError, match="no valid JSON schema"):
        check_schema({**pairs, "$schema": "https://json-schema.org/draft/2020-12/schema"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"$ref": "#/$defs/one"}, "$defs": {"one": {"const": 1}}},
        {"type": "array", "items": {"$ref": "#/definitions/one"}, "definitions": {"one": {"const": 1}}},
        {"anyOf": [{"const": 1}, {"type": "array", "items": {"$ref": "#"}}]},
        {"anyOf": [{"const": 1}, {"type": "array", "prefixItems": [{"$ref": "#/anyOf/0"}]}]},
    ],
)
def test_references_lead_to_the_same_when_the_schema_is_wrapped(schema: dict[Any, Any]) -> None:
    wrapped = wrapped_schema(check_schema(schema))

    jsonschema.Draft202012Validator.check_schema(wrapped)
    for value in ([1], [2], 1, "a", [[1]]):
        alone = VALIDATOR(schema).is_valid(value)
        assert VALIDATOR(wrapped).is_valid({"value": value}) == alone, value


def test_without_its_package_a_dict_says_what_to_install_and_a_type_works() -> None:
    program = """
import sys
sys.modules["jsonschema"] = None
from callboard.actors.output import Output
print(Output.of(list[int]).schema.name)
try:
    Output.of({"type": "object"})
except ModuleNotFoundError as error:
    print(error)
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    name, advice = done.stdout.splitlines()
    assert name == "list"
    assert "pip install 'callboard[jsonschema]'" in advice
