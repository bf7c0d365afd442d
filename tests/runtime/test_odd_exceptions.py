"""What is no Exception: a crash like any other, unless it belongs to whoever runs the program."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import anyio
import pytest

from callboard.runtime import Actor, Backoff, Context, Failed, Request, RestartPolicy, Runtime, handles
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


class Odd(BaseException):
    pass


class Raise(Request[None], frozen=True):
    make: Callable[[], BaseException]


class RaiseAsync(Raise, frozen=True):
    pass


class RaiseLate(Raise, frozen=True):
    pass


class Ping(Request[str], frozen=True):
    pass


class PassOn(Request[str], frozen=True):
    """Tell another actor to raise; this one does nothing wrong."""

    make: Callable[[], BaseException]


class Thrower(Actor):
    on_load: ClassVar[list[BaseException]] = []

    def load(self, context: Context) -> None:
        if self.on_load:
            raise self.on_load.pop()

    @handles(Raise)
    def throw(self, message: Raise, _context: Context) -> None:
        raise message.make()

    @handles(RaiseAsync)
    async def throw_async(self, message: RaiseAsync, _context: Context) -> None:
        raise message.make()

    @handles(RaiseLate)
    async def throw_late(self, message: RaiseLate, _context: Context) -> None:
        await anyio.sleep(1)
        raise message.make()

    @handles(Ping)
    def ping(self, _message: Ping, _context: Context) -> str:
        return "pong"

    @handles(PassOn)
    def pass_on(self, message: PassOn, context: Context) -> str:
        context.tell(context.actor("thrower", "other").id, Raise(message.make))
        return "passed on"


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def a_runtime() -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    policy = RestartPolicy(restarts_max=100, backoff=Backoff(first_s=0.01, max_s=0.01))
    runtime.register("thrower", Thrower, restart=policy)
    return runtime


def a_group() -> BaseException:
    return BaseExceptionGroup("odd", [Odd(), ValueError()])


@pytest.mark.parametrize("make", [Odd, a_group, asyncio.CancelledError])
@pytest.mark.parametrize("kind", [Raise, RaiseAsync, RaiseLate])
@pytest.mark.parametrize("warmed", [True, False])
def test_a_handler_that_raises_what_is_no_exception_crashes_its_actor_and_nobody_else(
    run: Run, kind: type[Raise], make: Callable[[], BaseException], warmed: bool
) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            if warmed:
                await runtime.actor("thrower", "w").tell(RaiseLate(ValueError))
                await anyio.sleep(2)
            thrower = runtime.actor("thrower", "t")

            for _ in range(3):
                with pytest.raises(Failed):
                    await thrower.ask(kind(make))
            assert await thrower.ask(Ping()) == "pong"
            assert await runtime.actor("thrower", "other").ask(Ping()) == "pong"

    run(body)


@pytest.mark.parametrize("make", [Odd, a_group, asyncio.CancelledError])
def test_who_only_passed_a_message_on_hears_nothing_of_what_it_raises(
    run: Run, make: Callable[[], BaseException]
) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            assert await runtime.actor("thrower", "t").ask(PassOn(make)) == "passed on"
            await anyio.sleep(10)

            assert [letter.cause for letter in runtime.dead_letters] == ["crashed"]
            assert await runtime.actor("thrower", "other").ask(Ping()) == "pong"

    run(body)


@pytest.mark.parametrize("make", [Odd, a_group, asyncio.CancelledError])
def test_a_load_that_raises_what_is_no_exception_is_tried_again(run: Run, make: Callable[[], BaseException]) -> None:
    async def body() -> None:
        async with a_runtime() as runtime:
            Thrower.on_load.append(make())

            assert await runtime.actor("thrower", "t").ask(Ping()) == "pong"
            assert runtime.statistics().crashes == 1

    run(body)


@pytest.mark.parametrize("kind", [Raise, RaiseAsync, RaiseLate])
@pytest.mark.parametrize("make", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_the_runtime_but_no_caller_without_an_answer(
    run: Run, kind: type[Raise], make: type[BaseException]
) -> None:
    ends: list[str] = []

    async def body() -> None:
        async with a_runtime() as runtime:

            async def ask() -> None:
                try:
                    await runtime.actor("thrower", "t").ask(kind(make))
                except BaseException as error:
                    ends.append(type(error).__name__)
                    raise

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)

    with pytest.raises(BaseException) as raised:  # noqa: PT011 - an interrupt, alone or in groups, is what is asked for
        run(body)

    left: Any = raised.value
    assert isinstance(left, make) or left.subgroup(make)
    assert len(ends) == 1
