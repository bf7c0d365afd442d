"""The life of a process of bench_messaging.py, see system_process.py: each measurement has an event loop of its own."""

import importlib
from collections.abc import Mapping

import anyio
import msgspec
from messaging_load import Load, Measure
from system_process import Answers, tasks

__all__ = ["serve"]


def serve(module: str, variant: str, backend: str) -> None:
    answers = Answers()
    measures: Mapping[str, Measure] = importlib.import_module(f"messaging_{module}").measures(variant)
    for task in tasks():
        measure = measures.get(task.row)
        load = msgspec.json.decode(task.load, type=Load)
        answers.give(anyio.run(measure, load, backend=backend) if measure is not None else {})
