"""The openai client in the rows of bench_model_path.py: `chat.completions.create` of `AsyncOpenAI`."""

import importlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from copy import copy
from functools import partial
from itertools import cycle
from typing import Any

from closed_loop import Caller
from model_load import TALKS, Measure, Wanted, Way
from model_rows import measures_with
from model_upstream import ANSWER

__all__ = ["measures"]

# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
openai: Any = importlib.import_module("openai")

AT_ONCE_MAX = 100
"""It stands on httpx2: with more, a round takes minutes."""


def asking(client: Any, _number: int, model: str) -> Caller:
    talks = cycle(TALKS)
    create = client.chat.completions.create

    async def call() -> None:
        answer = await create(model=model, messages=next(talks))
        assert answer.choices[0].message.content == ANSWER

    async def call_streamed() -> None:
        pieces: list[str] = []
        asked = {"model": model, "messages": next(talks), "stream_options": {"include_usage": True}}
        async for chunk in await create(stream=True, **asked):
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
        assert "".join(pieces) == ANSWER

    return call if model.startswith("whole") else call_streamed


@asynccontextmanager
async def opened(wanted: Wanted) -> AsyncGenerator[Way]:
    options: dict[str, Any] = {"base_url": wanted.url, "api_key": "none", "timeout": 60, "max_retries": 0}
    if number := wanted.connections:
        # Of the package that it stands on, httpx or httpx2.
        limits = copy(openai.DEFAULT_CONNECTION_LIMITS)
        limits.max_connections = limits.max_keepalive_connections = number
        options["http_client"] = openai.DefaultAsyncHttpxClient(limits=limits)
    async with openai.AsyncOpenAI(**options) as client:
        yield partial(asking, client)


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return measures_with(opened, at_once_max=AT_ONCE_MAX)
