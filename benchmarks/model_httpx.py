"""httpx and httpx2 in the rows of bench_model_path.py: a program's own loop around `AsyncClient`, as most write it.

One client for all callers. Streams are read with `aiter_lines` and `json`,
which a line separator inside a text breaks (FACTS.md), and nothing is checked: no error object, no finish_reason.
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

AT_ONCE_MAX = {"httpx": 100, "httpx2": 1_000}
"""Their pools walk over all connections for each request: with more, a round takes minutes."""


def posting(client: Any, url: str, number: int, model: str) -> Caller:
    """A program's own call, whole or streamed."""
    talks = cycle(TALKS)

    async def call() -> None:
        body = {"model": model, "messages": next(talks)}
        response = await client.post(f"{url}/chat/completions", json=body)
        response.raise_for_status()
        assert response.json()["choices"][0]["message"]["content"] == ANSWER

    async def call_streamed() -> None:
        body = {"model": model, "messages": next(talks), "stream": True, "stream_options": {"include_usage": True}}
        pieces: list[str] = []
        async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    for choice in json.loads(line[6:])["choices"]:
                        pieces.append(choice["delta"].get("content") or "")
        assert "".join(pieces) == ANSWER

    return call if model.startswith("whole") else call_streamed


@asynccontextmanager
async def opened(package: Any, wanted: Wanted) -> AsyncGenerator[Way]:
    limits: dict[str, Any] = {}
    if number := wanted.connections:
        limits["limits"] = package.Limits(max_connections=number, max_keepalive_connections=number, keepalive_expiry=60)
    async with package.AsyncClient(timeout=60, **limits) as client:
        yield partial(posting, client, wanted.url)


def measures(variant: str) -> Mapping[str, Measure]:
    """By row."""
    package = importlib.import_module(variant)
    return measures_with(partial(opened, package), at_once_max=AT_ONCE_MAX[variant])
