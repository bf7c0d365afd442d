"""The test kit's faults: each comes once, where it was ordered, and goes the way of a real one. On both backends."""

import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import anyio
import pytest

from callboard.runtime import Actor, Backoff, Context, Failed, Request, RestartPolicy, Runtime, handles
from callboard.runtime.errors import Unknown, UnknownActor
from callboard.store import LmdbStore, MemoryStore, Store, StoreFull, Table
from callboard.testing import crash_next, fail_commit, fail_read, run_in_virtual_time, until_quiet

QUICK = RestartPolicy(restarts_max=9, window_s=60.0, backoff=Backoff(first_s=0.001, max_s=0.002))


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> Literal["trio", "asyncio"]:
    return request.param


class Add(Request[int], frozen=True):
    amount: int


class AddAgain(Request[int], frozen=True):
    amount: int


class AddSlowly(Request[int], frozen=True):
    amount: int


class Look(Request[int], frozen=True):
    pass


class Counter(Actor):
    """Keeps its total in the store."""

    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(AddAgain, retryable=True)
    def add_again(self, message: AddAgain, context: Context) -> int:
        return self.add(Add(message.amount), context)

    @handles(AddSlowly)
    async def add_slowly(self, message: AddSlowly, context: Context) -> int:
        await anyio.sleep(1.0)
        return self.add(Add(message.amount), context)

    @handles(Look)
    def look(self, _message: Look, context: Context) -> int:
        return len(context.store.scan(str(self.id), Table.MESSAGE))


def run(backend: Literal["trio", "asyncio"], body: Callable[[Runtime], Awaitable[None]]) -> None:
    async def program() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("counter", Counter, restart=QUICK)
            await body(runtime)

    run_in_virtual_time(program, backend=backend)


def with_limit(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(20.0):
            await body()

    anyio.run(bounded, backend=backend)


def test_a_crash_takes_the_next_message_of_just_this_actor(backend: Literal["trio", "asyncio"]) -> None:
    async def body(runtime: Runtime) -> None:
        counter, other = runtime.actor("counter", "a"), runtime.actor("counter", "b")
        await counter.ask(Add(1))
        ordered = KeyError("ordered")

        crash_next(runtime, "counter", "a", ordered)
        spared = await other.ask(Add(5))
        with pytest.raises(Failed) as caught:
            await counter.ask(Add(10))
        after = await counter.ask(Add(100))

        assert (spared, after) == (5, 101)
        assert caught.value.__cause__ is ordered
        assert runtime.inspect("counter", "a").restarts == runtime.statistics().crashes == 1

    run(backend, body)


def test_an_actor_that_is_not_in_memory_crashes_when_it_comes(backend: Literal["trio", "asyncio"]) -> None:
    async def body(runtime: Runtime) -> None:
        counter = runtime.actor("counter", "a")
        crash_next(runtime, "counter", "a")
        assert runtime.inspect("counter", "a").state == "absent"

        with pytest.raises(Failed, match="as crash_next has ordered"):
            await counter.ask(Add(1))
        await counter.ask(Add(2))
        crash_next(runtime, "counter", "a")
        assert counter.passivate()
        with pytest.raises(Failed):
            await counter.ask(Add(4))

        assert await counter.ask(Add(8)) == 10

    run(backend, body)


def test_crashes_add_up_also_for_an_async_handler_and_one_that_is_tried_again(
    backend: Literal["trio", "asyncio"],
) -> None:
    async def body(runtime: Runtime) -> None:
        counter = runtime.actor("counter", "a")
        for _ in range(3):
            crash_next(runtime, "counter", "a")

        with pytest.raises(Failed):
            await counter.ask(AddSlowly(1))
        again = await counter.ask(AddAgain(2))

        assert again == 2
        assert runtime.statistics().crashes == 3

    run(backend, body)


def test_what_is_no_crash_is_refused_at_the_door(backend: Literal["trio", "asyncio"]) -> None:
    async def body(runtime: Runtime) -> None:
        with pytest.raises(ValueError, match="is its answer"):
            crash_next(runtime, "counter", "a", Failed("x"))
        with pytest.raises(TypeError, match="an Exception"):
            crash_next(runtime, "counter", "a", KeyboardInterrupt())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - the test
        with pytest.raises(UnknownActor):
            crash_next(runtime, "nobody", "a")
        with pytest.raises(ValueError, match="uncertain"):
            fail_commit(runtime, StoreFull("full"), after_write=True)

        assert await runtime.actor("counter", "a").ask(Add(1)) == 1

    run(backend, body)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_a_commit_fails_once_before_or_after_the_write(
    kind: str, backend: Literal["trio", "asyncio"], tmp_path: Path
) -> None:
    open_store: Callable[[], Store] = functools.partial(LmdbStore, tmp_path / "s") if kind == "lmdb" else MemoryStore

    async def body() -> None:
        async with Runtime(open_store) as runtime:
            runtime.register("counter", Counter, restart=QUICK)
            counter = runtime.actor("counter", "a")

            fail_commit(runtime)
            fail_commit(runtime, after_write=True)
            with pytest.raises(Failed):
                await counter.ask(Add(1))
            with pytest.raises(Unknown):
                await counter.ask(Add(2))

            assert await counter.ask(Add(4)) == 6
            assert runtime.statistics().crashes == 0

    with_limit(backend, body)


def test_a_read_fails_once_for_whoever_holds_the_store(backend: Literal["trio", "asyncio"]) -> None:
    async def body(runtime: Runtime) -> None:
        counter = runtime.actor("counter", "a")
        await counter.ask(Add(1))

        fail_read(runtime, full := StoreFull("ordered"))
        with pytest.raises(StoreFull) as caught:
            await counter.ask(Look())
        assert counter.passivate()
        fail_read(runtime)
        loaded = await counter.ask(Add(2))

        assert caught.value is full
        assert loaded == 3
        assert runtime.statistics().restarts == 1  # the load that failed was tried again
        assert await counter.ask(Look()) == 0

    run(backend, body)


def test_quiet_comes_when_the_last_handler_and_its_commit_are_over(backend: Literal["trio", "asyncio"]) -> None:
    async def body(runtime: Runtime) -> None:
        counter = runtime.actor("counter", "a")
        assert runtime.quiet
        for _ in range(5):
            await counter.tell(AddSlowly(1))
        assert not runtime.quiet

        began_at = anyio.current_time()
        await until_quiet(runtime)

        assert runtime.quiet
        assert anyio.current_time() - began_at == pytest.approx(5.0)
        assert await counter.ask(Add(0)) == 5

    run(backend, body)


def test_two_may_wait_for_quiet_and_one_gives_up_with_a_picture(backend: Literal["trio", "asyncio"]) -> None:
    async def body(runtime: Runtime) -> None:
        began_at = anyio.current_time()
        await runtime.actor("counter", "a").tell(AddSlowly(1))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_quiet, runtime)
            with pytest.raises(TimeoutError, match="counter:a  ready, runs AddSlowly"):
                await until_quiet(runtime, timeout_s=0.25)
            assert not runtime.quiet
        assert runtime.quiet
        assert anyio.current_time() - began_at == pytest.approx(1.0)

    run(backend, body)


def test_a_crash_that_is_waiting_for_its_restart_with_a_queue_is_not_quiet(
    backend: Literal["trio", "asyncio"],
) -> None:
    async def body(runtime: Runtime) -> None:
        counter = runtime.actor("counter", "a")
        crash_next(runtime, "counter", "a")
        await counter.tell(Add(1))
        await counter.tell(Add(2))

        await until_quiet(runtime)

        assert await counter.ask(Add(0)) == 2

    run(backend, body)
