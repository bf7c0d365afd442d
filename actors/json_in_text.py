"""Finds JSON in what a model wrote: alone, in a fenced block, or with words around it. Pure.

Servers that hold a model to a schema send JSON and nothing else. Others send what the model likes to write: "Here you
are:", a ```json block, a kind wish at the end.
"""

import json
import re
from collections.abc import Iterator

__all__ = ["json_candidates"]

STARTS_MAX = 64
"""Places at which JSON is looked for in a text: prose may hold any number of brackets, and each failed try costs."""

_FENCED = re.compile(r"```[\w-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_START = re.compile(r"[{\[]")
_scanner = json.JSONDecoder()


def json_candidates(text: str) -> Iterator[str]:
    """The parts of the text that may be the JSON meant, the likeliest first: the whole, then fenced blocks, then
    objects and lists among the words; of several the last first, since models think first and answer then.

    Cost: linear in the text; up to 64 times that where brackets lead nowhere.
    """
    whole = text.strip().removeprefix("\ufeff")
    yield whole
    yield from reversed(_FENCED.findall(whole))
    yield from reversed(_objects(whole))


def _objects(text: str) -> list[str]:
    found: list[str] = []
    position = 0
    for _ in range(STARTS_MAX):
        start = _START.search(text, position)
        if start is None:
            break
        try:
            _, position = _scanner.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            position = start.end()
        else:
            found.append(text[start.start() : position])
    return found
