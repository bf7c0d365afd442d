"""autogen-core in the rows of bench_messaging.py: SingleThreadedAgentRuntime, RoutedAgent, `rpc` and `send_message`.

It has async handlers only, so its asks stand in the rows of plain and of async ones. Logging is off, as it comes.
"""

import asyncio
import importlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from messaging_load import Figures, Load, Measure, alternating_us, repeated, together_us

__all__ = ["measures"]

# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
autogen: Any = importlib.import_module("autogen_core")


@dataclass
class Echo:
    number: int


@dataclass
class EchoWaiting:
    number: int


async def echo(self: Any, message: Echo, ctx: Any) -> Echo:
    return message


async def echo_waiting(self: Any, message: EchoWaiting, ctx: Any) -> EchoWaiting:
    await asyncio.sleep(0)
    return message


class Echoing(autogen.RoutedAgent):
    def __init__(self) -> None:
        super().__init__("echoes")  # pyright: ignore[reportUnknownMemberType] - of a base that is imported by name

    echo = autogen.rpc(echo)
    echo_waiting = autogen.rpc(echo_waiting)


@asynccontextmanager
async def opened() -> AsyncGenerator[Any]:
    runtime = autogen.SingleThreadedAgentRuntime()
    await Echoing.register(runtime, "echo", Echoing)
    runtime.start()
    yield runtime
    await runtime.stop_when_idle()


def asking(runtime: Any, message: object) -> Callable[[int], Awaitable[None]]:
    to = autogen.AgentId("echo", "one")

    async def ask(times: int) -> None:
        for _ in range(times):
            await runtime.send_message(message, to)

    return ask


async def ask(load: Load) -> Figures:
    async with opened() as runtime:
        return await alternating_us(load.seconds, {"ask_us": asking(runtime, Echo(1))})


async def ask_async(load: Load) -> Figures:
    async with opened() as runtime:
        return await alternating_us(load.seconds, {"async_us": asking(runtime, Echo(1))})


async def ask_waiting(load: Load) -> Figures:
    async with opened() as runtime:
        ask = asking(runtime, EchoWaiting(1))
        alone = await alternating_us(load.seconds, {"waits_us": ask})
        crowd = partial(together_us, [partial(ask, 5)] * 50, operations=50 * 5)
        return {**alone, "waits_50_callers_us": await repeated(load.seconds, crowd)}


async def many(load: Load) -> Figures:
    """Two asks of each caller: it is a hundred times slower than the others."""
    async with opened() as runtime:
        ids = [autogen.AgentId("echo", f"actor-{number}") for number in range(1000)]

        async def caller(first: int) -> None:
            for number in range(first, first + 2):
                await runtime.send_message(Echo(first), ids[number % 1000])

        for number in range(1000):
            await runtime.send_message(Echo(0), ids[number])
        callers = [partial(caller, number) for number in range(1000)]
        return {"many_us": await together_us(callers, operations=1000 * 2)}


async def create(load: Load) -> Figures:
    actors = load.created // 5
    async with opened() as runtime:

        async def first_messages() -> None:
            for number in range(actors):
                await runtime.send_message(Echo(1), autogen.AgentId("echo", f"actor-{number}"))

        return {"create_us": await together_us([first_messages], operations=actors)}


def measures(_variant: str) -> Mapping[str, Measure]:
    """By row."""
    return {"ask": ask, "async": ask_async, "waits": ask_waiting, "many": many, "create": create}
