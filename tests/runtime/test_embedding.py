"""A runtime is a guest in somebody else's program: on plain trio or asyncio, beside others, under the app's signals."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from callboard.child_process import open_child_process
from callboard.runtime import (
    Actor,
    ChildEnded,
    Context,
    Failed,
    Ref,
    Request,
    RestartPolicy,
    Runtime,
    Stopping,
    handles,
)
from callboard.runtime.ref import PendingReply
from callboard.store import CallboardError, LmdbStore, MemoryStore, StoreLocked, StoreUnavailable

Run = Callable[[Callable[[], Awaitable[None]]], None]

APP = Path(__file__).with_name("sigterm_app.py")
GRACE_S = 0.5


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Add(Request[int], frozen=True):
    amount: int


class Crash(Request[None], frozen=True):
    pass


class Nap(Request[str], frozen=True):
    """Sleeps in the way of the loop that it is on."""

    seconds: float
    deaf: bool = False


class Spawn(Request[None], frozen=True):
    pass


class Fork(Request[int], frozen=True):
    """Answered by as many tasks of the handler's own."""

    tasks: int


class Host(Actor):
    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise ZeroDivisionError

    @handles(Nap)
    async def nap(self, message: Nap, _context: Context) -> str:
        with anyio.CancelScope(shield=message.deaf):
            await anyio.sleep(message.seconds)
        return "slept"

    @handles(Spawn)
    def spawn(self, _message: Spawn, context: Context) -> None:
        context.spawn(anyio.sleep_forever, tag="child")

    @handles(ChildEnded)
    def child_ended(self, _signal: ChildEnded, _context: Context) -> None:
        pass


class TrioHost(Host):
    @handles(Nap)
    async def nap_on_trio(self, message: Nap, _context: Context) -> str:
        await trio.sleep(message.seconds)
        return "slept on trio"

    @handles(Fork)
    async def fork(self, message: Fork, _context: Context) -> int:
        done: list[int] = []

        async def one(number: int) -> None:
            await trio.lowlevel.checkpoint()
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(message.tasks):
                nursery.start_soon(one, number)
        return len(done)


class AsyncioHost(Host):
    @handles(Nap)
    async def nap_on_asyncio(self, message: Nap, _context: Context) -> str:
        async with asyncio.timeout(message.seconds + 10.0):
            await asyncio.sleep(message.seconds)
        return "slept on asyncio"

    @handles(Fork)
    async def fork(self, message: Fork, _context: Context) -> int:
        async def one(number: int) -> int:
            await asyncio.sleep(0)
            return number

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(message.tasks)]
        return len({task.result() for task in tasks})


def a_runtime(store: Any = None, *, host: type[Actor] = Host, drain_timeout_s: float = 1.0) -> Runtime:
    runtime = Runtime(lambda: store or MemoryStore(), drain_timeout_s=drain_timeout_s)
    runtime.register("host", host, restart=RestartPolicy(restarts_max=0))
    return runtime


async def outcome(pending: PendingReply[Any]) -> str:
    try:
        return str(await pending.wait())
    except CallboardError as error:
        return type(error).__name__


def test_a_plain_trio_program_hosts_it_with_its_own_nurseries_and_cancellation() -> None:
    async def main() -> None:
        async with a_runtime(host=TrioHost) as runtime:
            host, other = runtime.actor("host", "k"), runtime.actor("host", "other")
            replies: list[Any] = []

            async def ask(message: Request[Any]) -> None:
                replies.append(await host.ask(message))

            async with trio.open_nursery() as nursery:
                for message in (Nap(0.001), Fork(5), Add(3)):
                    nursery.start_soon(ask, message)
            with trio.move_on_after(0.001) as scope:
                await other.ask(Nap(100.0))

            assert scope.cancelled_caught
            assert sorted(map(str, replies)) == ["3", "5", "slept on trio"]
            other.kill()

    trio.run(main)


def test_a_plain_asyncio_program_hosts_it_with_its_own_tasks_timeouts_and_cancellation() -> None:
    async def main() -> None:
        async with a_runtime(host=AsyncioHost) as runtime:
            host, other = runtime.actor("host", "k"), runtime.actor("host", "other")
            messages: list[Request[Any]] = [Nap(0.001), Fork(5), Add(3)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(host.ask(message)) for message in messages]
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await other.ask(Nap(100.0))
                cancelled = group.create_task(other.ask(Add(1)))
                await asyncio.sleep(0.001)
                cancelled.cancel()

            assert cancelled.cancelled()
            assert [task.result() for task in tasks] == ["slept on asyncio", 5, 3]
            other.kill()
            runtime.resume("host", "other")
            assert await other.ask(Add(1)) == 1, "what was cancelled in the queue has never run"

    asyncio.run(main(), debug=True)


def test_a_task_of_an_asyncio_program_may_outlive_the_runtime_and_is_refused() -> None:
    async def main() -> None:
        runtime = a_runtime()
        async with asyncio.TaskGroup() as group:
            async with runtime:
                host = runtime.actor("host", "k")
                running = group.create_task(host.ask(Nap(0.01)))
                await asyncio.sleep(0)

            assert await running == "slept"
            with pytest.raises(Stopping):
                await host.ask(Add(1))
        assert len(asyncio.all_tasks()) == 1, "no task of the runtime's is left"

    asyncio.run(main())


def test_runtimes_side_by_side_share_neither_actors_nor_crashes_nor_ends(run: Run) -> None:
    async def body() -> None:
        first, second = a_runtime(), a_runtime()
        async with first:
            async with second:
                for amount, runtime in ((1, first), (10, second)):
                    assert await runtime.actor("host", "same").ask(Add(amount)) == amount
                with pytest.raises(Failed):
                    await second.actor("host", "same").ask(Crash())
                assert (first.statistics().failed, second.statistics().failed) == (0, 1)
                napping = second.actor("host", "other").ask_nowait(Nap(0.01))

            assert await napping.wait() == "slept"
            assert await first.actor("host", "same").ask(Add(1)) == 2
            with pytest.raises(Stopping):
                second.actor("host", "same")

    run(body)


def test_runtimes_of_different_tasks_open_and_close_in_any_order(run: Run) -> None:
    async def body() -> None:
        totals: list[int] = []

        async def guest(starts_s: float, lasts_s: float) -> None:
            await anyio.sleep(starts_s)
            async with a_runtime() as runtime:
                for _ in range(3):
                    totals.append(await runtime.actor("host", "k").ask(Add(1)))
                    await anyio.sleep(lasts_s)

        async with anyio.create_task_group() as tasks:
            for starts_s, lasts_s in ((0.0, 0.05), (0.01, 0.001), (0.02, 0.02)):
                tasks.start_soon(guest, starts_s, lasts_s)

        assert Counter(totals) == {1: 3, 2: 3, 3: 3}

    run(body)


def test_a_handler_may_open_a_runtime_of_its_own_and_ask_back_out_of_it(run: Run) -> None:
    class Nested(Actor):
        @handles(Add)
        async def add(self, message: Add, context: Context) -> int:
            async with a_runtime() as inner:
                below = await inner.actor("host", self.id.key).ask(message)
                return below + await context.actor("host", "beside").ask(message)

    async def body() -> None:
        async with a_runtime() as outer:
            outer.register("nested", Nested, durable=False)

            assert await outer.actor("nested", "k").ask(Add(2)) == 4
            assert await outer.actor("nested", "k").ask(Add(2)) == 6

    run(body)


def test_the_same_store_is_opened_by_one_loop_after_the_other(tmp_path: Path) -> None:
    async def count() -> int:
        async with a_runtime(LmdbStore(tmp_path)) as runtime:
            with pytest.raises(StoreLocked):
                LmdbStore(tmp_path)
            return await runtime.actor("host", "k").ask(Add(1))

    totals = [anyio.run(count, backend=backend) for backend in ("trio", "asyncio", "trio", "asyncio")]

    assert totals == [1, 2, 3, 4]


def test_a_store_that_cannot_be_opened_leaves_the_program_as_it_was(run: Run) -> None:
    def locked() -> MemoryStore:
        raise StoreUnavailable("somebody else has it")

    async def body() -> None:
        before = a_runtime()
        async with before:
            with pytest.raises(StoreUnavailable):
                await Runtime(locked).__aenter__()

            assert await before.actor("host", "k").ask(Add(1)) == 1

    run(body)


def test_all_phases_of_the_end_fit_into_deadline_and_grace_and_what_was_cut_is_named_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.runtime.CANCEL_GRACE_S", GRACE_S)

    async def body() -> None:
        store = MemoryStore()
        runtime = a_runtime(store, drain_timeout_s=2.0)
        pending: dict[str, PendingReply[Any]] = {}
        ends: list[str] = []
        answered_at: list[float] = []

        async def stop(ref: Ref) -> None:
            await ref.stop()
            ends.append(ref.id.key)

        def ask(name: str, message: Request[Any]) -> None:
            one = pending[f"{name}: {type(message).__name__}"] = runtime.actor("host", name).ask_nowait(message)
            one.when_settled(lambda: answered_at.append(anyio.current_time()))

        started = anyio.current_time()
        async with anyio.create_task_group() as tasks, runtime:
            ask("finishes", Nap(1.0))
            ask("long", Nap(1000.0))
            ask("stopping", Nap(1000.0))
            ask("deaf", Nap(5.0, deaf=True))
            ask("deaf", Add(1))
            ask("done", Add(7))
            await runtime.actor("host", "parent").ask(Spawn())
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(stop, runtime.actor("host", "stopping"))
            await anyio.wait_all_tasks_blocked()

        assert {name: await outcome(one) for name, one in pending.items()} == {
            "finishes: Nap": "slept",
            "long: Nap": "Failed",
            "stopping: Nap": "Failed",
            "deaf: Nap": "Failed",
            "deaf: Add": "Stopping",
            "done: Add": "7",
        }
        assert max(answered_at) - started == pytest.approx(2.0 + GRACE_S, abs=0.2)
        assert anyio.current_time() - started == pytest.approx(5.0, abs=0.2), "no task is left, not the deaf one either"
        assert ends == ["stopping"]
        assert sorted(runtime.cut) == [
            "host:deaf: Add",
            "host:deaf: the handler of Nap",
            "host:long: the handler of Nap",
            "host:parent: child",
            "host:stopping: the handler of Nap",
        ]
        stored = store.reopened().load("host:done")
        assert stored is not None
        assert stored.head == b"7"

    run(body)


def test_an_unread_answer_is_there_after_the_end_and_nothing_is_answered_twice(run: Run) -> None:
    async def body() -> None:
        runtime = a_runtime(drain_timeout_s=0.01)
        settled: list[str] = []
        async with runtime:
            asks: list[Request[Any]] = [Add(1), Nap(1000.0), Add(1), Crash(), Nap(0.0)]
            pending = [runtime.actor("host", "k").ask_nowait(message) for message in asks]
            for number, one in enumerate(pending):
                one.when_settled(lambda number=number: settled.append(f"{number}"))

        assert [await outcome(one) for one in pending][:2] == ["1", "Failed"]
        assert sorted(settled) == ["0", "1", "2", "3", "4"]
        for one in pending:
            one.give_up()
        assert len(settled) == 5

    run(body)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_at_sigterm_an_app_leaves_the_block_and_all_it_was_told_is_stored(tmp_path: Path, backend: str) -> None:
    async def body() -> tuple[list[list[str]], int, float]:
        command = [sys.executable, str(APP), str(tmp_path), "--backend", backend, "--seconds", "0.3"]
        lines: list[list[str]] = []
        signalled_at = 0.0
        with anyio.fail_after(30.0):
            async with open_child_process(command) as child:
                async with contextlib.aclosing(child.lines()) as said:
                    async for line in said:
                        lines.append(line.decode().split(" "))
                        if lines[-1][:2] == ["ack", "slow"] and not signalled_at:
                            await anyio.sleep(0.1)  # so that the next slow one is under way
                            os.kill(child.pid, signal.SIGTERM)
                            signalled_at = time.monotonic()
                code = await child.wait()
        return lines, code, time.monotonic() - signalled_at

    lines, code, took_s = anyio.run(body)

    assert (code, lines[0], lines[-1]) == (0, ["open"], ["left"]), "nothing was cut"
    assert took_s < 5.0
    acknowledged = {" ".join(words[1:-1]): int(words[-1]) for words in lines if words[0] == "ack"}
    assert len(acknowledged) == 9
    assert acknowledged["slow"] >= 2, "the handler that ran when the signal came was finished"
    with contextlib.closing(LmdbStore(tmp_path)) as store:
        heads = {key: store.load(f"counter:{key}") for key in acknowledged}
        assert {key: int(head.head) for key, head in heads.items() if head is not None} == acknowledged


def test_an_ask_from_a_runtime_that_has_ended_says_so_and_not_something_else(run: Run) -> None:
    async def body() -> None:
        runtime = a_runtime()
        async with runtime:
            host = runtime.actor("host", "k")
            assert await host.ask(Add(1)) == 1

        for call in (host.ask(Add(1)), host.tell(Add(1))):
            with pytest.raises(Stopping):
                await call
        await host.stop()
        await host.drain(timeout_s=1.0)
        host.kill()
        assert not host.passivate()
        with pytest.raises(Stopping):
            runtime.resume("host", "k")

    run(body)
