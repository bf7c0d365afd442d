"""The strict form of a JSON schema: what servers can hold a model to while it writes. Pure.

    as the type says it                              as the server gets it
    {"properties": {"city": ..., "unit": ...},       + "additionalProperties": false
     "required": ["city"]}                           + "required": ["city", "unit"], and "unit" may be null

Strict servers want every property required. One that may be left out may be null instead, and `without_added_nulls`
takes such a null out again. What a strict schema cannot say (a length, a default) goes to the description, where the
model reads it; whether it holds is checked here afterwards. A schema that is open (a dict by free keys, `Any`) has no
strict form.

Source: OpenAI, Structured Outputs, "supported schemas" (as of 2026-02); openai-python's `to_strict_json_schema`.
"""

from typing import Any, Final, TypeAlias, cast

import msgspec

__all__ = ["OptionalNulls", "strict_form", "without_added_nulls"]

Schema: TypeAlias = dict[str, Any]

PROPERTIES_MAX: Final = 5_000
ENUM_VALUES_MAX: Final = 1_000
OBJECT_DEPTH_MAX: Final = 10
"""OpenAI's bounds: of a schema in all, and of objects inside each other."""

_KEPT = frozenset({"type", "enum", "const", "title", "description", "minItems", "maxItems"}) | frozenset(
    {"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_SAID_IN_WORDS = frozenset({"default", "examples", "minLength", "maxLength", "uniqueItems"}) | frozenset(
    {"contentEncoding", "contentMediaType"}
)
_DROPPED = frozenset({"$schema", "$comment", "deprecated", "readOnly", "writeOnly"})
_ABOUT_CHILDREN = frozenset({"properties", "required", "additionalProperties", "items", "anyOf", "oneOf"}) | frozenset(
    {"$defs", "definitions"}
)
_BESIDE_A_REFERENCE = frozenset({"title", "description", "default", "examples"}) | _DROPPED


class _NotStrict(Exception):
    """The schema says something that has no strict form."""


def strict_form(schema: Schema) -> Schema | None:
    """The schema in its strict form; None where it has none. What fits the strict form fits the schema itself once
    `without_added_nulls` has gone over it, save for what is only said in words."""
    form = _StrictForm(schema)
    try:
        written = form.write(schema, depth=0)
    except _NotStrict:
        return None
    return written if written.get("type") == "object" else None


class _StrictForm:
    """Writes one schema; counts what is bounded over all of it."""

    def __init__(self, root: Schema) -> None:
        self._nulls = OptionalNulls(root)
        self._properties = 0
        self._enum_values = 0

    def write(self, schema: object, *, depth: int) -> Schema:
        if not isinstance(schema, dict):
            raise _NotStrict  # True: anything goes
        given = cast("Schema", schema)
        if "$ref" in given:
            return _reference(given)
        words: list[str] = []
        written = self._plain(given, words)
        if "enum" in given or "const" in given:
            self._add_type(written)
        for keyword in ("anyOf", "oneOf"):
            if keyword in given:
                written.setdefault("anyOf", []).extend(self.write(each, depth=depth) for each in given[keyword])
        if "properties" in given or _may_be(given, "object"):
            self._write_object(given, written, depth=depth + 1)
        if "items" in given or _may_be(given, "array"):
            written["items"] = self.write(given.get("items"), depth=depth)
        for keyword in ("$defs", "definitions"):
            if keyword in given:
                written[keyword] = {name: self.write(each, depth=depth) for name, each in given[keyword].items()}
        if not written.keys() & {"type", "anyOf"}:
            raise _NotStrict
        if words:
            written["description"] = " ".join([*([written["description"]] if "description" in written else []), *words])
        return written

    def _plain(self, given: Schema, words: list[str]) -> Schema:
        """The keywords that hold no schemas; what cannot stay is added to the words."""
        written: Schema = {}
        for keyword, value in given.items():
            fits = (
                keyword in _KEPT
                or (keyword == "format" and value in _FORMATS)
                or (keyword == "pattern" and _is_anchored(value))
            )
            if fits:
                written[keyword] = value
            elif keyword in _SAID_IN_WORDS or keyword in ("format", "pattern"):
                words.append(f"({keyword}: {msgspec.json.encode(value).decode()})")
            elif keyword not in _DROPPED and keyword not in _ABOUT_CHILDREN:
                raise _NotStrict
        return written

    def _add_type(self, written: Schema) -> None:
        """msgspec says enums without a type, which strict servers refuse."""
        values: list[object] = written["enum"] if "enum" in written else [written["const"]]
        self._enum_values += len(values)
        if self._enum_values > ENUM_VALUES_MAX:
            raise _NotStrict
        kinds = list(dict.fromkeys(_kind(value) for value in values))
        written.setdefault("type", kinds[0] if len(kinds) == 1 else kinds)

    def _write_object(self, given: Schema, written: Schema, *, depth: int) -> None:
        properties = given.get("properties")
        required = given.get("required", [])
        self._properties += len(properties or ())
        if (
            not isinstance(properties, dict)
            or given.get("additionalProperties", False) is not False
            or any(name not in properties for name in required)
            or self._properties > PROPERTIES_MAX
            or depth > OBJECT_DEPTH_MAX
        ):
            raise _NotStrict
        fields = cast("dict[str, Any]", properties)
        written.setdefault("type", "object")
        written["properties"] = {
            name: _or_null(self.write(each, depth=depth))
            if name not in required and not self._nulls.accepted(each)
            else self.write(each, depth=depth)
            for name, each in fields.items()
        }
        written["required"] = [*fields]
        written["additionalProperties"] = False


def _reference(given: Schema) -> Schema:
    target = given["$ref"]
    known = target == "#" or target.startswith(("#/$defs/", "#/definitions/"))
    if not known or not given.keys() - {"$ref"} <= _BESIDE_A_REFERENCE:
        raise _NotStrict
    return {"$ref": target}  # nothing may stand beside a reference


def _may_be(schema: Schema, kind: str) -> bool:
    stated: object = schema.get("type")
    return stated == kind or (isinstance(stated, list) and kind in stated)


def _is_anchored(pattern: object) -> bool:
    # llama.cpp refuses a whole request for a pattern that is not.
    return isinstance(pattern, str) and pattern.startswith("^") and pattern.endswith("$")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case _:
            raise _NotStrict


def _or_null(written: Schema) -> Schema:
    beside = {keyword: written[keyword] for keyword in ("description",) if keyword in written}
    rest = {keyword: value for keyword, value in written.items() if keyword not in beside}
    branches: list[Schema] = rest["anyOf"] if [*rest] == ["anyOf"] else [rest]
    return {**beside, "anyOf": [*branches, {"type": "null"}]}


class OptionalNulls:
    """Which nulls only the strict form of a schema allows."""

    def __init__(self, root: Schema) -> None:
        self._root = root

    def accepted(self, schema: object, *, hops: int = 32) -> bool:
        """Whether the schema itself takes null. References that lead to themselves take nothing."""
        if not isinstance(schema, dict) or not hops:
            return schema is True
        given = cast("Schema", schema)
        if "$ref" in given:
            return self.accepted(self._target(given["$ref"]), hops=hops - 1)
        branches: list[object] = [*given.get("anyOf", ()), *given.get("oneOf", ())]
        if branches:
            return any(self.accepted(each, hops=hops - 1) for each in branches)
        if "enum" in given:
            return None in given["enum"]
        if "const" in given:
            return given["const"] is None
        return "type" not in given or _may_be(given, "null")

    def dropped(self, value: Any, schema: object) -> Any:
        """The value without them."""
        given = self._resolved(schema, value)
        if isinstance(value, list):
            items: list[Any] = [*value]
            return [self.dropped(each, given.get("items")) for each in items]
        if not isinstance(value, dict):
            return value
        properties: dict[str, object] = given.get("properties", {})
        required: list[str] = given.get("required", [])
        return {
            name: self.dropped(each, properties.get(name))
            for name, each in cast("dict[str, Any]", value).items()
            if each is not None or name not in properties or name in required or self.accepted(properties[name])
        }

    def _resolved(self, schema: object, value: object) -> Schema:
        """The schema that speaks about the value: references followed, the branch taken that the value is of."""
        given = cast("Schema", schema) if isinstance(schema, dict) else {}
        for _ in range(32):
            branches = [*given.get("anyOf", ()), *given.get("oneOf", ())]
            if "$ref" in given:
                given = self._target(given["$ref"])
            elif branches:
                given = self._branch([self._resolved(each, value) for each in branches], value)
            else:
                break
        return given

    def _branch(self, branches: list[Schema], value: object) -> Schema:
        near = [each for each in branches if _is_about(each, value)]
        return next((each for each in near if _tags_fit(each, value)), near[0] if near else {})

    def _target(self, reference: str) -> Schema:
        found: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = cast("Schema", found).get(name) if isinstance(found, dict) else None
        return cast("Schema", found) if isinstance(found, dict) else {}


def without_added_nulls(value: Any, schema: Schema) -> Any:
    """A value that fits the strict form of the schema, without the nulls that stand for what was left out."""
    return OptionalNulls(schema).dropped(value, schema)


def _is_about(schema: Schema, value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(schema.get("properties"), dict)
    return isinstance(value, list) and _may_be(schema, "array")


def _tags_fit(schema: Schema, value: object) -> bool:
    """Whether an object's names are those of the schema, and its constants (a tag) too."""
    if not isinstance(value, dict):
        return True
    given = cast("dict[str, Any]", value)
    properties: dict[str, Any] = schema["properties"]
    return given.keys() <= properties.keys() and all(
        given.get(name) in (each["enum"] if "enum" in each else [each["const"]])
        for name, each in properties.items()
        if isinstance(each, dict) and ("enum" in each or "const" in each) and given.get(name) is not None
    )
