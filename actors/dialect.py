"""Dialect: in what a server of the chat completions API departs from it, as far as requests go. Pure, a table's row.

What answers depart in needs no switch: `wire_answer` reads all of it from anybody. The rows are in `providers`.

Source: FACTS.md, "Wire truth" (the table of deviations).
"""

from typing import Literal, TypeAlias

from msgspec import Struct

__all__ = ["Dialect", "MaxTokensField", "OutputForm"]

MaxTokensField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]

OutputForm: TypeAlias = Literal["json_schema", "json_object", "words"]
"""How an answer's form is asked for: by its schema · by "JSON", the schema in words · in words alone."""


class Dialect(Struct, frozen=True):
    """How a server wants its requests.

    Attributes:
        max_tokens_field: the newer name, which OpenAI's reasoning models insist on, or the older one that others know.
        stream_usage: whether to ask for usage in streams; a few servers refuse the field that asks.
        sends_back: the fields of `extra`, of messages and of tool calls, that go back to the server; None: all. One
            that is strict refuses what it does not know, and a session may come from another.
        reasoning_beside_calls: the field of thoughts that each message with tool calls must have, if only as "", and
            that goes back on turns with tool calls only; None: no such rule.
        message_names: whether messages may have a name.
        nine_letter_ids: whether tool calls' ids must be nine letters and digits; others are then sent as a hash of
            theirs, which is the same in the call and in its result, and in each request.
        required_choice: the word for a tool_choice of "required".
        named_choice: whether one tool is demanded by an object that names it, or by sending it alone.
        output_form: how an answer's form is asked for.
    """

    max_tokens_field: MaxTokensField = "max_tokens"
    stream_usage: bool = True
    sends_back: frozenset[str] | None = None
    reasoning_beside_calls: str | None = None
    message_names: bool = True
    nine_letter_ids: bool = False
    required_choice: Literal["required", "any"] = "required"
    named_choice: Literal["object", "alone"] = "object"
    output_form: OutputForm = "json_schema"
