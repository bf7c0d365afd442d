"""The life of a process of bench_store.py, see system_process.py: one event loop, so that rounds can share a store."""

import importlib
from collections.abc import Mapping

import anyio
import anyio.to_thread
import msgspec
from store_load import Load, Measure
from system_process import Answers, tasks

__all__ = ["serve"]


def serve(module: str, variant: str, backend: str) -> None:
    anyio.run(serving, module, variant, backend=backend)


async def serving(module: str, variant: str) -> None:
    answers = Answers()
    measures: Mapping[str, Measure] = importlib.import_module(f"store_{module}").measures(variant)
    asked = tasks()
    while task := await anyio.to_thread.run_sync(next, asked, None):
        measure = measures.get(task.row)
        load = msgspec.json.decode(task.load, type=Load)
        answers.give(await measure(load) if measure is not None else {})
