"""ToolCallJoiner: tool calls from the pieces in which servers send them. Pure.

The rules with which all known servers can live:

- A piece belongs to the call of its index; another id at the same index is a new call (Ollama gives all index 0).
- Without an index: a known id continues its call, a new id opens one, no id continues the last; a second name opens
  one (Gemini sends whole calls with neither index nor id).
- id and name come once; arguments are concatenated, an object stands for its JSON. A call without an id is given one.

Source: FACTS.md, "Wire truth" (tool-call deltas).
"""

from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct

from .message import ToolCall

__all__ = ["CallPiece", "ToolCallJoiner", "UnusableAnswer"]


class UnusableAnswer(ValueError):
    """What came has the API's shape and cannot be used."""


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: Any = None  # text; from some servers an object


class CallPiece(Struct, gc=False):
    """A whole call or a piece of one, as it came. `index` and `id` are what they should be, or anything else."""

    index: Any = None
    id: Any = None
    function: _Function | None = None
    extra_content: Any = None


class _PartialCall:
    __slots__ = ("arguments", "extra", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.extra: dict[str, Any] = {}


class ToolCallJoiner:
    """Joins the tool calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[_PartialCall] = []
        self._by_index: dict[int, _PartialCall] = {}

    def add(self, piece: CallPiece, *, at: int | None = None) -> str | None:
        """Take a piece; returns its part of the arguments, or None where the piece says nothing at all.

        Args:
            piece: what came.
            at: the place of a whole call among its answer's, in place of whatever index it names.

        Raises:
            UnusableAnswer: the arguments are nothing that can be read.
        """
        index = _index_of(piece.index) if at is None else at
        call_id = str(piece.id) if isinstance(piece.id, str | int) else ""
        name = (piece.function and piece.function.name) or ""
        arguments = _arguments_text(piece.function.arguments if piece.function else None)
        if not (call_id or name or arguments or piece.extra_content):
            return None
        call = self._find(index, call_id, name)
        if call is None:
            call = _PartialCall()
            self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        call.id = call.id or call_id
        call.name = call.name or name
        if arguments:
            call.arguments.append(arguments)
        if piece.extra_content is not None:
            call.extra["extra_content"] = piece.extra_content
        return arguments

    def _find(self, index: int | None, call_id: str, name: str) -> _PartialCall | None:
        if index is not None:
            call = self._by_index.get(index)
            if call is None or not call_id or call.id in ("", call_id):
                return call
            return self._with_id(call_id)
        if call_id:
            return self._with_id(call_id)
        last = self._calls[-1] if self._calls else None
        return None if last is not None and name and last.name else last

    def _with_id(self, call_id: str) -> _PartialCall | None:
        return next((call for call in self._calls if call.id == call_id), None)

    def finish(self) -> tuple[ToolCall, ...]:
        """The calls in the order in which they began, each with an id of its own.

        Raises:
            UnusableAnswer: one has no name.
        """
        calls: list[ToolCall] = []
        used: set[str] = set()
        for partial in self._calls:
            if not partial.name:
                raise UnusableAnswer("a tool call without a name")
            call_id = partial.id
            if not call_id or call_id in used:
                # Nine letters and digits: Mistral takes no other form back.
                call_id = uuid4().hex[:9]
            used.add(call_id)
            calls.append(ToolCall(call_id, partial.name, "".join(partial.arguments), partial.extra))
        return tuple(calls)


def _index_of(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _arguments_text(arguments: Any) -> str:
    if arguments is None:
        return ""
    try:
        return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    except (ValueError, OverflowError, RecursionError):  # the stack is higher here than it was for the decoder
        raise UnusableAnswer("the arguments of a tool call hold a huge number or are nested too deeply") from None
