"""Ray in the rows of bench_messaging.py: one async actor in a worker process on this machine, `ray.get` of each call.

Its daemons take some CPU also while nobody calls, so it has a row of its own at the end of the run, and starts there.
"""

import importlib
import logging
import os
from collections.abc import Mapping
from typing import Any

from messaging_load import Figures, Load, Measure, alternating_us

__all__ = ["measures"]

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read while it is imported
# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
ray: Any = importlib.import_module("ray")


def echoing() -> Any:
    """The actor. Its class is made in here, since a worker could not import this module."""

    @ray.remote
    class Echo:
        async def echo(self, number: int) -> int:
            return number

    return Echo.remote()


async def ask(load: Load) -> Figures:
    if not ray.is_initialized():
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(num_cpus=1, object_store_memory=100 << 20, **options)
    actor = echoing()

    async def asks(times: int) -> None:
        for _ in range(times):
            ray.get(actor.echo.remote(1))

    try:
        return await alternating_us(load.seconds, {"ask_us": asks})
    finally:
        ray.kill(actor)


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return {"ray": ask}
