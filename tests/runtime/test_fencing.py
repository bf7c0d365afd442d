"""Two runtimes on one store: the one that was replaced cannot write any more, and nothing is lost or doubled.

Such a pair comes of a process that was paused beyond its claim (a frozen machine, a long stop of the world) and of
another that took over meanwhile. Here both have one store object, which a directory's lock would not allow across
processes: what is tested is the fence that holds where no lock does.
"""

import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias, cast

import anyio
import anyio.lowlevel
import pytest

from callboard import Agent, RunFailed, Runtime, Session, SessionManager
from callboard.actors.archive import Archive
from callboard.runtime import Failed
from callboard.store import Batch, Conflict, Fenced, LmdbStore, MemoryStore, Store, StoreError
from callboard.testing import ScriptedModel, run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


class Hand:
    """One runtime's hold on a shared store: it closes nothing, and its commits can be held up before they get there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reached = threading.Event()
        self.let_go = threading.Event()
        self.let_go.set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def commit(self, batches: Sequence[Batch]) -> Sequence[StoreError | None]:
        self.reached.set()
        assert self.let_go.wait(20)
        return self._store.commit(batches)

    def close(self) -> None:
        """The store is the other's too."""


def runtime_on(store: Store, hand: Hand | None = None) -> Runtime:
    held = cast("Store", hand or Hand(store))  # the methods that it does not have are the store's, by __getattr__
    return Runtime.on(lambda: held, drain_timeout_s=5.0)


async def texts(runtime: Runtime, session_id: str = "s") -> list[str]:
    return [message.text for message in await Session(runtime, session_id).messages()]


async def refused(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(Failed) as caught:
        await call()
    assert isinstance(caught.value.__cause__, Fenced)


async def ends_refused(agent: Agent) -> None:
    with pytest.raises(RunFailed, match="its turn could not be stored"):
        await agent.chat("a question")


def test_a_runtime_that_was_replaced_is_refused_and_its_successor_goes_on(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with runtime_on(store) as first, runtime_on(store) as second:
            await Session(first, "s").add_message("user", "of the first")
            await Session(second, "s").add_message("user", "of the second")

            for _ in range(3):
                await refused(lambda: Session(first, "s").add_message("user", "too late"))
            await refused(lambda: Session(first, "s").update_metadata({"too": "late"}))
            await refused(lambda: SessionManager(first).delete("s"))
            await Session(second, "s").add_message("user", "again of the second")

            assert await texts(second) == ["of the first", "of the second", "again of the second"]
            assert await Session(second, "s").metadata() == {}

    run(body)


def test_a_turn_of_the_replaced_runtime_is_refused_whole_and_marked_by_its_successor(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with runtime_on(store) as first:
            session = Session(first, "s")
            agent = Agent("A", model=ScriptedModel(delay_s=10), session=session)
            await session.add_message("user", "before")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ends_refused, agent)
                await anyio.sleep(1)
                async with runtime_on(store) as second:
                    taken_over = await Session(second, "s").runs()
                    await Session(second, "s").add_message("user", "meanwhile")
                    await anyio.sleep(60)

                    assert [one.status for one in taken_over] == ["interrupted"]
                    assert await texts(second) == ["before", "meanwhile"]
                    assert await Session(second, "s").runs() == taken_over

    run(body)


def test_a_commit_paused_beyond_the_claim_is_refused_when_it_goes_on(tmp_path: Path) -> None:
    """The first runtime's commit has left its loop, which is stopped too, and reaches the store after the takeover."""
    store = LmdbStore(tmp_path)
    hand = Hand(store)
    taken_over = threading.Event()

    async def first_life() -> None:
        async with runtime_on(store, hand) as first:
            await Session(first, "s").add_message("user", "of the first")
            hand.reached.clear()
            hand.let_go.clear()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refused, lambda: Session(first, "s").add_message("user", "paused"))
                while not hand.reached.is_set():
                    await anyio.lowlevel.checkpoint()
                assert taken_over.wait(20)  # this blocks the loop, as a process that is stopped
                hand.let_go.set()
            await refused(lambda: Session(first, "s").add_message("user", "after it woke up"))

    async def second_life() -> None:
        async with runtime_on(store) as second:
            await Session(second, "s").add_message("user", "of the second")
            taken_over.set()
            await anyio.to_thread.run_sync(first.join)
            await Session(second, "s").add_message("user", "again of the second")

            assert await texts(second) == ["of the first", "of the second", "again of the second"]

    failures: list[BaseException] = []

    def live_first() -> None:
        try:
            anyio.run(first_life, backend="trio")
        except BaseException as error:
            failures.append(error)
            raise

    first = threading.Thread(target=live_first)
    first.start()
    while hand.let_go.is_set() or not hand.reached.is_set():
        first.join(0.001)
        assert not failures
    anyio.run(second_life, backend="asyncio")
    store.close()

    assert not failures


@pytest.mark.parametrize("seed", range(30))
def test_whatever_order_owners_come_in_what_was_acknowledged_is_there_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    store = MemoryStore()
    acknowledged: dict[str, list[str]] = {"s": [], "t": []}
    causes: list[type[BaseException | None]] = []

    async def append(runtime: Runtime, name: str, text: str) -> None:
        try:
            await Session(runtime, name).add_message("user", text)
        except Failed as error:
            causes.append(type(error.__cause__))
        else:
            acknowledged[name].append(text)

    async def program() -> None:
        async with AsyncExitStack() as owners:
            runtimes = [await owners.enter_async_context(runtime_on(store))]
            for number in range(60):
                if chance.random() < 0.1:
                    runtimes.append(await owners.enter_async_context(runtime_on(store)))
                for name in ("s", "t"):
                    await append(chance.choice(runtimes), name, f"{number}")

            for name in ("s", "t"):
                assert await texts(runtimes[-1], name) == acknowledged[name]

    run_in_virtual_time(program)
    for name, expected in acknowledged.items():
        assert [message.text for message in Archive(store).messages(name)] == expected
    assert set(causes) <= {Fenced, Conflict}
    assert Fenced in causes
