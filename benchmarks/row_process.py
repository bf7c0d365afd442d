"""The life of a process of a benchmark, see system_process.py: it measures the rows that it is asked for.

Each module of a system has `measures(variant)`, which gives by row what measures a round.
"""

import importlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import msgspec
from system_process import Answers, Figures, Task, tasks

__all__ = ["Measures", "serve", "serve_in_one_loop"]

Measures: TypeAlias = Mapping[str, Callable[[Any], Awaitable[Figures]]]


def serve(module: str, variant: str, backend: str, *, load: type[msgspec.Struct]) -> None:
    """Each measurement has an event loop of its own."""
    answers = Answers()
    measures = _measures(module, variant)
    for task in tasks():
        answers.give(anyio.run(_measure, measures, task, load, backend=backend))


def serve_in_one_loop(module: str, variant: str, backend: str, *, load: type[msgspec.Struct]) -> None:
    """All have one event loop, so that rounds can share what lives there."""
    anyio.run(_serving, module, variant, load, backend=backend)


async def _serving(module: str, variant: str, load: type[msgspec.Struct]) -> None:
    answers = Answers()
    measures = _measures(module, variant)
    asked = tasks()
    while task := await anyio.to_thread.run_sync(next, asked, None):
        answers.give(await _measure(measures, task, load))


def _measures(module: str, variant: str) -> Measures:
    measures: Measures = importlib.import_module(module).measures(variant)
    return measures


async def _measure(measures: Measures, task: Task, load: type[msgspec.Struct]) -> Figures:
    measure = measures.get(task.row)
    return {} if measure is None else await measure(msgspec.json.decode(task.load, type=load))
