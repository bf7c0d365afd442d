"""Checks by a JSON schema that a user wrote. Pure. Needs the extra `callboard[jsonschema]`; types need nothing of it.

Source: JSON Schema 2020-12, or what the schema's own `$schema` names; the package `jsonschema`.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import msgspec

__all__ = ["Check", "check_by_schema", "check_schema", "wrapped_schema"]

Check: TypeAlias = Callable[[str], Any]
"""JSON text to its value; raises ValueError with what is wrong."""

_DEFINITIONS = ("$defs", "definitions")
_OF_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "dependentSchemas", *_DEFINITIONS})
_OF_VALUES = frozenset({"const", "default", "enum", "examples", "required"})
_ELSEWHERE = ("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor")
_TELLING = frozenset({"type", "properties", "items", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})


def check_schema(schema: dict[object, object]) -> dict[str, Any]:
    """A copy of the schema, which is valid and refers only to parts of itself.

    Raises:
        ValueError: it is not; the message says where.
        ModuleNotFoundError: the package `jsonschema` is missing.
    """
    jsonschema = _jsonschema()
    try:
        copy: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"output= is a dict that is no JSON ({error}): give a JSON schema, or a type") from error
    if not copy.keys() & _TELLING:
        raise ValueError(
            f"output={copy!r} says nothing as a JSON schema: give one, as in "
            '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
        )
    copy.pop("$id", None)  # a name for others, and the base of references
    try:
        jsonschema.validators.validator_for(copy, default=jsonschema.Draft202012Validator).check_schema(copy)
    except jsonschema.SchemaError as error:
        raise ValueError(f"output= is no valid JSON schema: at `{error.json_path}`: {error.message}") from error
    schemas = [*_schemas(copy)]
    for each in schemas:
        _check_reference(each, copy, schemas)
    return copy


def check_by_schema(schema: dict[str, Any]) -> Check:
    """A check by the schema, which `check_schema` found good. Formats (dates, ...) are not checked."""
    jsonschema = _jsonschema()
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)(schema)

    def check(text: str) -> Any:
        value = msgspec.json.decode(text)
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        if error is not None:
            raise ValueError(f"{error.message} - at `{error.json_path}`")
        return value

    return check


def wrapped_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """An object with the one property "value", which is of the schema."""
    inner = cast("dict[str, Any]", _moved(schema))
    hoisted = {keyword: inner.pop(keyword) for keyword in (*_DEFINITIONS, "$schema") if keyword in inner}
    return {"type": "object", "properties": {"value": inner}, "required": ["value"], **hoisted}


def _jsonschema() -> Any:
    # Imported here, as it is an extra; Any, as it ships no types.
    try:
        jsonschema: Any = importlib.import_module("jsonschema")
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "output= as a JSON schema needs the package `jsonschema`: pip install 'callboard[jsonschema]', "
            "or give a type (a msgspec Struct, a dataclass, ...)",
            name=missing.name,
        ) from None
    return jsonschema


def _moved(schema: object) -> object:
    """A copy for a place below `properties/value`; definitions stay at the top."""
    if isinstance(schema, list):
        return [_moved(each) for each in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    return {keyword: _moved_value(keyword, value) for keyword, value in cast("dict[str, object]", schema).items()}


def _moved_value(keyword: str, value: object) -> object:
    if keyword == "$ref":
        assert isinstance(value, str), "checked at the door"
        stays = value.startswith(tuple(f"#/{name}/" for name in _DEFINITIONS))
        return value if stays else "#/properties/value" + value.removeprefix("#")
    if keyword in _OF_VALUES:
        return value
    if keyword in _OF_NAMED_SCHEMAS and isinstance(value, dict):
        return {name: _moved(each) for name, each in cast("dict[str, object]", value).items()}
    return _moved(value)


def _schemas(schema: object) -> Iterator[dict[str, object]]:
    """The schema and all that are in it."""
    if isinstance(schema, list):
        for each in cast("list[object]", schema):
            yield from _schemas(each)
    elif isinstance(schema, dict):
        given = cast("dict[str, object]", schema)
        yield given
        for keyword, value in given.items():
            if keyword in _OF_NAMED_SCHEMAS and isinstance(value, dict):
                yield from _schemas([*cast("dict[str, object]", value).values()])
            elif keyword not in _OF_VALUES:
                yield from _schemas(value)


def _check_reference(schema: dict[str, object], root: dict[str, Any], schemas: list[dict[str, object]]) -> None:
    """Raises ValueError where the schema leads out of the root: a reference must never make us open a connection."""
    for keyword in _ELSEWHERE:
        if keyword in schema:
            raise ValueError(f"output= has {keyword}: put what it is about under $defs, and refer by #/$defs/NAME")
    if "$ref" in schema:
        target = _target(root, schema["$ref"])
        if not isinstance(target, bool) and not any(target is each for each in schemas):
            reference = schema["$ref"]
            raise ValueError(f"output= refers to {reference!r}, which is no schema in it: put it there, under $defs")


def _target(root: object, reference: object) -> object:
    """What stands there; None where nothing does."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        return None
    found = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = cast("dict[str, object]", found).get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(cast("list[object]", found)):
            found = cast("list[object]", found)[int(name)]
        else:
            return None
    return found
