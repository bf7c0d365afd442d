"""Tasks that actors spawn: each ends once, as its owner's signal or as nobody's. On trio and asyncio."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from callboard.runtime import Actor, ActorId, Backoff, ChildEnded, Context, Failed, Request, RestartPolicy, Runtime
from callboard.runtime.actor import handles
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Spawn(Request[None], frozen=True):
    work: Callable[[], Awaitable[Any]]
    tag: str = "child"


class Cancel(Request[bool], frozen=True):
    tag: str = "child"


class Crash(Request[None], frozen=True):
    pass


class Owner(Actor):
    def __init__(self, id: ActorId, log: list[str]) -> None:
        super().__init__(id)
        self.log = log

    @handles(Spawn)
    def spawn(self, message: Spawn, context: Context) -> None:
        context.spawn(message.work, tag=message.tag)

    @handles(Cancel)
    def cancel(self, message: Cancel, context: Context) -> bool:
        return context.cancel_child(message.tag)

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise RuntimeError("ordered")

    @handles(ChildEnded)
    def child_ended(self, signal: ChildEnded, _context: Context) -> None:
        outcome = signal.value if signal.error is None else type(signal.error).__name__
        self.log.append(f"{signal.tag}: {outcome}")


def a_runtime(log: list[str]) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    quick = RestartPolicy(backoff=Backoff(first_s=0.001, max_s=0.001))
    runtime.register("owner", lambda id: Owner(id, log), durable=False, restart=quick)
    return runtime


async def sleeper() -> str:
    await anyio.sleep(5)
    return "slept"


async def at_once() -> str:
    return "at once"


async def failing() -> None:
    await anyio.lowlevel.checkpoint()
    raise ValueError("ordered")


def not_even_begun() -> Awaitable[None]:
    raise KeyError("before the first await")


def test_every_child_ends_as_one_signal_however_it_ends(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            owner = runtime.actor("owner", "o")
            works: dict[str, Callable[[], Awaitable[Any]]] = {
                "sleeper": sleeper,
                "at once": at_once,
                "failing": failing,
                "not begun": not_even_begun,
                "cancelled": sleeper,
            }
            for tag, work in works.items():
                await owner.ask(Spawn(work, tag))
            assert await owner.ask(Cancel("cancelled")) is True
            await anyio.sleep(10)
            assert await owner.ask(Cancel("sleeper")) is False
            assert await owner.ask(Cancel("never was")) is False

            assert sorted(log) == [
                "at once: at once",
                "cancelled: Failed",
                "failing: ValueError",
                "not begun: KeyError",
                "sleeper: slept",
            ]
            assert runtime.statistics().children == 0
            assert runtime.inspect("owner", "o").restarts == 0

    run(body)


def test_a_tag_that_is_in_use_is_refused_and_free_again_after_the_end(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            owner = runtime.actor("owner", "o")
            await owner.ask(Spawn(at_once))
            await anyio.sleep(1)
            await owner.ask(Spawn(sleeper))
            with pytest.raises(Failed, match="has not ended"):
                await owner.ask(Spawn(at_once))
            await anyio.sleep(10)

            assert log == ["child: at once"], "the crash has taken the second one with its activation"
            await owner.ask(Spawn(at_once))
            await anyio.sleep(1)
            assert log == ["child: at once", "child: at once"]

    run(body)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_children_of_an_activation_that_is_gone_are_cancelled_and_nobody_hears_of_them(run: Run, end: str) -> None:
    async def stubborn() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(20)
            ended.append("stubborn")

    ended: list[str] = []

    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            owner = runtime.actor("owner", "o")
            await owner.ask(Spawn(stubborn))
            await anyio.sleep(1)
            if end == "crash":
                with pytest.raises(Failed):
                    await owner.ask(Crash())
            else:
                owner.kill()
                runtime.resume("owner", "o")
            await owner.ask(Spawn(at_once))
            await anyio.sleep(1)
            assert log == ["child: at once"], "its tag is free, though the old one is still ending"
            assert runtime.statistics().children == 1
            await anyio.sleep(30)

            assert ended == ["stubborn"]
            assert log == ["child: at once"]
            assert runtime.statistics().children == 0

    run(body)
