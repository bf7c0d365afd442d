"""The actor of a scope: what it takes of deliveries that come twice, late, or out of order, and over its crashes."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from callboard import AppState, Runtime, TooLarge
from callboard.actors.state import StateDelta
from callboard.actors.state_actor import OutOfOrder
from callboard.actors.state_messages import ForgetDelivery, TakeDeltas
from callboard.actors.state_records import STATE_KIND
from callboard.store import MemoryStore, Table
from callboard.testing import crash_next, until_quiet

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def delivery(id: str, *, after: str = "", amount: int = 1) -> TakeDeltas:
    deltas = (StateDelta("app", "n", "increment", amount), StateDelta("app", "last", "set", id))
    return TakeDeltas(id, after, deltas)


def test_delivery_that_comes_twice_is_applied_once_until_it_is_forgotten(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            app = runtime.actor(STATE_KIND, "app")
            for _ in range(3):
                await app.ask(delivery("1"))
            assert await AppState(runtime).get() == {"n": 1, "last": "1"}
            for _ in range(2):
                await app.ask(ForgetDelivery("1"))
            assert runtime.store.scan("state:app", Table.OUTBOX) == []

            assert await AppState(runtime).get() == {"n": 1, "last": "1"}

    run(body)


def test_delivery_before_the_one_that_it_stands_behind_is_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            app = runtime.actor(STATE_KIND, "app")
            with pytest.raises(OutOfOrder, match="'2' comes behind '1', which is not here"):
                await app.ask(delivery("2", after="1"))
            assert await AppState(runtime).get() == {}
            for message in (delivery("1"), delivery("2", after="1"), delivery("1"), delivery("2", after="1")):
                await app.ask(message)

            assert await AppState(runtime).get() == {"n": 2, "last": "2"}

    run(body)


def test_actor_that_crashed_knows_what_it_has_taken(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            app = runtime.actor(STATE_KIND, "app")
            await app.ask(delivery("1"))
            crash_next(runtime, STATE_KIND, "app")
            await app.ask(delivery("2"))  # which is repeated
            await app.ask(delivery("1"))
            await app.ask(delivery("2", after="1"))

            assert await AppState(runtime).get() == {"n": 2, "last": "2"}

    run(body)


def test_next_process_forgets_what_no_outbox_has(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            await runtime.actor(STATE_KIND, "app").ask(delivery("1"))
        again = store.reopened()
        async with Runtime.on(lambda: again) as runtime:
            assert await AppState(runtime).get() == {"n": 1, "last": "1"}
            await until_quiet(runtime)

            assert again.scan("state:app", Table.OUTBOX) == []

    run(body)


def test_delivery_is_applied_also_where_the_whole_becomes_too_large(run: Run) -> None:
    """Its turn is committed. Only turns side by side can come to that; the next change must make it smaller."""

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            app, state = runtime.actor(STATE_KIND, "app"), AppState(runtime)
            await state.update({"half": "x" * 60_000})
            await app.ask(TakeDeltas("1", "", (StateDelta("app", "more", "set", "y" * 60_000),)))

            assert {key: len(value) for key, value in (await state.get()).items()} == {"half": 60_000, "more": 60_000}
            with pytest.raises(TooLarge, match="more than the 65536 that fit"):
                await state.update({"little": 1})
            await state.update({"half": None})
            assert await state.update({"little": 1, "more": None}) == {"little": 1}

    run(body)


def test_values_come_back_when_the_actor_has_left_memory(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            state = AppState(runtime)
            await state.update({"a": [1, {"b": None}], "c": 1.5})
            assert runtime.actor(STATE_KIND, "app").passivate()

            assert await state.get() == {"a": [1, {"b": None}], "c": 1.5}
            assert await state.increment("c") == 2.5

    run(body)
