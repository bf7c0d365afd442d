"""The row `cancel` of bench_model_path.py: what is left over of turns that are cancelled at any moment.

Callers contend for few connections and cancel each turn after a random time: while it queues, while it streams, while
it commits. Then, in the same runtime: is every slot there (as many calls as there are connections, at once, all of
which the server must have together), is every socket closed, has every task ended, and is no run open?
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import trio
from model_load import INSTRUCTIONS, QUESTION, Load
from model_upstream import ANSWER, ask_statistics
from system_process import Figures

from callboard import Agent, Message, ModelRequest, ModelSettings, OpenAIChat, Runtime, Session
from callboard.actors.archive import Archive

__all__ = ["cancelled_turns"]

CALLERS = 100
CONNECTIONS = 20
PATIENCE_S = 0.6
"""A turn takes 0.2 s when it has its connection, and four others wait for the same."""


async def cancelled_turns(load: Load) -> Figures:
    before_sockets = sockets()
    with tempfile.TemporaryDirectory(dir=load.folder) as folder:
        store = Path(folder) / "cancelled.lmdb"
        model = OpenAIChat(base_url=load.url, model="none", api_key="none", connections_max=CONNECTIONS)
        async with Runtime(store) as runtime:
            streaming, whole = (
                Agent(name, instructions=INSTRUCTIONS, runtime=runtime, model=model, settings=ModelSettings(model=name))
                for name in ("paced-1", "whole-200")
            )
            await whole.chat(QUESTION, session=Session(runtime, "first"))
            before_tasks, began_s = tasks_living(), time.perf_counter()
            cancelled = await storm(streaming, whole, runtime, load.cancelled)
            took_s = time.perf_counter() - began_s
            figures = {"cancelled_turns": float(cancelled), "cancelled_per_s": cancelled / took_s}
            figures["tasks_left"] = float(await settled(tasks_living) - before_tasks)
            figures["slots_left"] = float(CONNECTIONS - await calls_at_once(model, load.url))
            await model.aclose()
            figures["sockets_left"] = float(await settled(sockets) - before_sockets)
        with Archive.open(store) as archive:
            figures["open_runs_left"] = float(len(archive.with_open_runs()))
    return figures


async def storm(streaming: Agent, whole: Agent, runtime: Runtime, turns: int) -> int:
    """Begin so many turns, and cancel each after a random time; how many had not ended by then."""
    cancelled = 0

    async def call_and_cancel(number: int) -> None:
        nonlocal cancelled
        moment = random.Random(number)
        for turn in range(turns // CALLERS):
            with anyio.move_on_after(moment.uniform(0, PATIENCE_S)) as scope:
                session = Session(runtime, f"caller-{number}")
                if turn % 2:
                    await whole.chat(QUESTION, session=session)
                else:
                    async with streaming.stream(QUESTION, session=session) as stream:
                        async for _ in stream:
                            pass
            cancelled += scope.cancelled_caught

    async with anyio.create_task_group() as tasks:
        for number in range(CALLERS):
            tasks.start_soon(call_and_cancel, number)
    return cancelled


async def calls_at_once(model: OpenAIChat, url: str) -> int:
    """As many calls as there are connections: so many of them the server had at once."""
    ask_statistics(url, "/reset")
    request = ModelRequest((Message(role="user", content=QUESTION),), settings=ModelSettings(model="whole-500"))

    async def call() -> None:
        answer = await model.complete(request)
        assert answer.message.text == ANSWER

    async with anyio.create_task_group() as tasks:
        for _ in range(CONNECTIONS):
            tasks.start_soon(call)
    return ask_statistics(url).in_flight_max


async def settled(count: Callable[[], int]) -> int:
    """The least that it comes to within a second: what is cancelled may need a moment of the loop to end."""
    least = count()
    for _ in range(20):
        await anyio.sleep(0.05)
        least = min(least, count())
    return least


def tasks_living() -> int:
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


def sockets() -> int:
    """How many sockets this process has."""
    return sum(is_socket(number) for number in os.listdir("/proc/self/fd"))


def is_socket(number: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    except FileNotFoundError:  # what listed the folder
        return False
