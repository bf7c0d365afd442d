"""JSON schemas of Python types, in the form that model servers accept. Pure.

msgspec puts every named type under `$defs` and refers to it. Not every server follows references, and the top must be
an object itself, so they are written out here; only types that contain themselves stay in `$defs`.

Source: msgspec.json.schema_components; JSON Schema 2020-12.
"""

from collections.abc import Iterator
from typing import Any, cast

import msgspec

__all__ = ["schema_of"]

_REF_PREFIX = "#/$defs/"
_Schema = dict[str, Any]

# Keywords whose value is data or names, not a schema: it is copied as it is.
_LITERAL_KEYWORDS = frozenset({"const", "default", "enum", "examples", "required", "title", "description"})


def schema_of(type_: Any) -> dict[str, Any]:
    """The type's schema without references, save for types that contain themselves, and without a title at the top.

    Raises:
        TypeError: the type cannot come from JSON.
    """
    (top,), components = msgspec.json.schema_components([type_], ref_template=_REF_PREFIX + "{name}")
    recursive = {name for name in components if name in _reachable(components[name], components)}
    written = _written_out(top, components, recursive)
    if isinstance(written.get("$ref"), str):  # the top itself contains itself: an object must stand there all the same
        written = _written_out(components[_name(written["$ref"])], components, recursive)
    written.pop("title", None)
    still_named = [name for name in components if name in recursive & _reachable(top, components)]
    if still_named:
        written["$defs"] = {name: _written_out(components[name], components, recursive) for name in still_named}
    return written


def _name(reference: str) -> str:
    return reference.removeprefix(_REF_PREFIX)


def _written_out(schema: _Schema, components: _Schema, recursive: set[str]) -> _Schema:
    written: _Schema = {}
    for keyword, value in schema.items():
        if keyword == "$ref" and _name(value) not in recursive:
            # What stands beside the reference (a description) is more special than the type's own.
            written = {**_written_out(components[_name(value)], components, recursive), **written}
        elif keyword == "discriminator":
            continue  # OpenAPI's; it refers to names that are no more, and anyOf with its constants says the same
        elif keyword == "properties":
            written[keyword] = {name: _written_out(each, components, recursive) for name, each in value.items()}
        else:
            written[keyword] = _value(keyword, value, components, recursive)
    return written


def _value(keyword: str, value: Any, components: _Schema, recursive: set[str]) -> Any:
    if keyword in _LITERAL_KEYWORDS:
        return value
    if isinstance(value, dict):
        return _written_out(cast("_Schema", value), components, recursive)
    if isinstance(value, list):
        items: list[Any] = [*value]
        return [_value(keyword, item, components, recursive) for item in items]
    return value


def _reachable(schema: _Schema, components: _Schema) -> set[str]:
    """The names that the schema refers to, directly or through others."""
    found: set[str] = set()
    open_ = [schema]
    while open_:
        for name in _references(open_.pop()):
            if name not in found:
                found.add(name)
                open_.append(components[name])
    return found


def _references(schema: _Schema) -> Iterator[str]:
    for keyword, value in schema.items():
        if keyword == "$ref":
            yield _name(value)
        elif keyword == "properties":
            for each in value.values():
                yield from _references(each)
        elif keyword not in _LITERAL_KEYWORDS and keyword != "discriminator":
            items: list[Any] = [*value] if isinstance(value, list) else [value]
            for item in items:
                if isinstance(item, dict):
                    yield from _references(cast("_Schema", item))
