"""Structured output: the form that an agent's answer is to have, and its reading. Pure.

    Output.of(Weather) ── schema ──► ModelRequest.output, for servers that can hold a model to it
                       ── read(answer) ──► a Weather, or BadOutput with words for the model, or Refusal

A form is a type that msgspec knows (Struct, dataclass, TypedDict, list[...], a union, ...) or a JSON schema as a dict.
What comes is checked here in any case: servers ignore schemas, and a strict schema cannot say everything.

Servers want an object at the top. Another form is put into one, {"value": ...}, and taken out again.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, cast

import msgspec

from .errors import BadOutput, Refusal
from .json_in_text import json_candidates
from .json_schema import schema_of
from .model import ModelAnswer, OutputSchema
from .schema_check import Check, check_by_schema, check_schema, wrapped_schema
from .strict_schema import strict_form, without_added_nulls

__all__ = ["Output"]

PROBLEM_CHARACTERS_MAX: Final = 1_000
"""Of what is wrong with an answer: it goes to the model, and errors may quote the answer at length."""

_NAME = re.compile(r"[^a-zA-Z0-9_-]+")


class _NoJson(Exception):
    """A part of a text that is not JSON at all."""


class _Misfit(Exception):
    """JSON, and not of the form; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Output:
    """A form, checked and with its schema. Make it by `Output.of`.

    Attributes:
        schema: what the server is told.
    """

    schema: OutputSchema
    _full: dict[str, Any] = field(repr=False)  # the schema before it was made strict
    _check: Check = field(repr=False)  # raises ValueError with what is wrong
    _bare: Check | None = field(repr=False)  # of what is in {"value": ...}, for servers that were told in vain

    @staticmethod
    def of(form: Any) -> "Output":
        """The form as an Output; one that is an Output already is given back.

        Raises:
            TypeError: it is no type that JSON can give, or an object instead of its type.
            ValueError: it is a dict and no valid JSON schema, or refers to something outside of itself.
            ModuleNotFoundError: it is a dict, and the package is missing that checks by it:
                pip install 'callboard[jsonschema]'.
        """
        if isinstance(form, Output):
            return form
        if isinstance(form, dict):
            return _of_schema(check_schema(cast("dict[object, object]", form)))
        try:
            hash(form)
        except TypeError:  # Annotated with something of a user's own
            return _of_type(form)
        return _of_known_type(form)

    def read(self, answer: ModelAnswer) -> Any:
        """The value of a model's last answer.

        Raises:
            Refusal: the model, or a filter of its server, will not answer.
            BadOutput: it is no JSON, or not of this form.

        Cost: one decoding where the answer is as it should be; see `json_candidates` for where it is not.
        """
        text, reason = answer.message.text, answer.finish_reason
        refusal = answer.message.extra.get("refusal")
        if refusal:
            raise Refusal(str(refusal), _cut(str(refusal)))
        if reason == "content_filter":
            raise Refusal(text, "the server's content filter ended the answer")
        problem: str | None = None
        for candidate in json_candidates(text):
            try:
                return self._read(candidate)
            except _Misfit as misfit:
                problem = problem or str(misfit)
            except _NoJson:
                continue
        if reason == "length":
            problem = "it was cut off because it is too long (max_tokens): be brief"
        elif problem is None:
            problem = "it holds no JSON" if text.strip() else "it is empty"
        raise BadOutput(text, _cut(problem))

    def _read(self, text: str) -> Any:
        try:
            return self._check(text)
        except (ValueError, OverflowError, RecursionError) as error:
            given = _decoded(text)
            misfit = _Misfit(_words(error))
        for check, value in ((self._check, _without_nulls(given, self._full)), (self._bare, given)):
            if check is not None:
                try:
                    return check(msgspec.json.encode(value).decode())
                except (ValueError, OverflowError, RecursionError):
                    continue
        raise misfit


def _of_type(form: Any) -> Output:
    try:
        check = msgspec.json.Decoder(form).decode
        schema = schema_of(form)
    except (TypeError, NameError) as error:
        advice = "give a type that msgspec knows, as in output=Weather, or a JSON schema as a dict"
        raise TypeError(f"output={form!r} cannot come from JSON ({error}): {advice}") from error
    name = getattr(form, "__name__", "")
    if schema.get("type") == "object":
        return _output(name, schema, check, None)
    wrapper: Any = msgspec.json.Decoder(msgspec.defstruct("Output", [("value", form)]))
    return _output(name, wrapped_schema(schema), lambda text: wrapper.decode(text).value, check)


_of_known_type = lru_cache(maxsize=256)(_of_type)  # half a millisecond for a small Struct, else in each chat


def _of_schema(schema: dict[str, Any]) -> Output:
    name = str(schema.get("title", ""))
    check = check_by_schema(schema)
    if schema.get("type") == "object":
        return _output(name, schema, check, None)
    wrapped = wrapped_schema(schema)
    check_wrapped = check_by_schema(wrapped)
    return _output(name, wrapped, lambda text: check_wrapped(text)["value"], check)


def _output(name: str, full: dict[str, Any], check: Callable[[str], Any], bare: Callable[[str], Any] | None) -> Output:
    strict = strict_form(full)
    schema = OutputSchema(_NAME.sub("_", name)[:64].strip("_") or "output", strict or full, strict is not None)
    return Output(schema, full, check, bare)


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise _NoJson from error


def _without_nulls(value: Any, full: dict[str, Any]) -> Any:
    try:
        return without_added_nulls(value, full)
    except RecursionError:
        return value


def _words(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _cut(problem: str) -> str:
    if len(problem) <= PROBLEM_CHARACTERS_MAX:
        return problem
    return f"{problem[:PROBLEM_CHARACTERS_MAX]}..."
