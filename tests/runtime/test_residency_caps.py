"""How many actors, and bytes of them, stay in memory: over a cap the least recently used leave. On trio and asyncio."""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from callboard.runtime import Actor, ActorId, Context, Request, Runtime, Stopping, handles
from callboard.runtime.signals import Tick
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Use(Request[int], frozen=True):
    """Answered with the number of uses of this activation."""


class Grow(Request[None], frozen=True):
    to_bytes: int
    stored: bool = True


class Hold(Request[None], frozen=True):
    seconds: float


class TickEvery(Request[None], frozen=True):
    period_s: float


class Greet(Request[None], frozen=True):
    key: str


class Unheard(Request[None], frozen=True):
    """Nobody handles it."""


class Guest(Actor):
    stays = False

    def load(self, context: Context) -> None:
        self.bytes = 100
        self.uses = 0

    def size_bytes(self) -> int:
        return self.bytes

    def may_passivate(self) -> bool:
        return not self.stays

    @handles(Use)
    def use(self, _message: Use, _context: Context) -> int:
        self.uses += 1
        return self.uses

    @handles(Grow)
    def grow(self, message: Grow, context: Context) -> None:
        self.bytes = message.to_bytes
        if message.stored:
            context.stage(head=b"grown")

    @handles(Hold)
    async def hold(self, message: Hold, _context: Context) -> None:
        await anyio.sleep(message.seconds)

    @handles(TickEvery)
    def tick_every(self, message: TickEvery, context: Context) -> None:
        context.every(message.period_s, "tick")

    @handles(Tick)
    def tick(self, _signal: Tick, _context: Context) -> None:
        self.uses += 1

    @handles(Greet)
    def greet(self, message: Greet, context: Context) -> None:
        context.tell(ActorId("guest", message.key), Use())


class Stayer(Guest):
    stays = True


class Mute(Guest):
    def size_bytes(self) -> int:
        raise RuntimeError("cannot say")


def a_runtime(actors_max: int = 1000, bytes_max: int = 10**9, **options: Any) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0, actors_max=actors_max, actors_bytes_max=bytes_max)
    runtime.register("guest", Guest, **options)
    runtime.register("stayer", Stayer)
    runtime.register("mute", Mute)
    return runtime


def present(runtime: Runtime, keys: str, kind: str = "guest") -> str:
    """Those of `keys` that are in memory; looking at them is no use."""
    return "".join(key for key in keys if runtime.inspect(kind, key).state == "ready")


async def use(runtime: Runtime, keys: str, kind: str = "guest") -> None:
    for key in keys:
        await runtime.actor(kind, key).ask(Use())


async def use_all(runtime: Runtime, keys: Sequence[str]) -> None:
    for key in keys:
        await runtime.actor("guest", key).ask(Use())


def test_over_the_cap_the_least_recently_used_leaves(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=3) as runtime:
            await use(runtime, "abc")
            await use(runtime, "a")
            await use(runtime, "d")
            assert present(runtime, "abcd") == "acd"

            await use(runtime, "cae")
            assert present(runtime, "abcde") == "ace"
            assert runtime.actor("guest", "c").passivate()
            await use(runtime, "f")
            assert present(runtime, "abcdef") == "aef"

    run(body)


@given(actors_max=st.integers(1, 8), keys=st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), max_size=120))
@settings(max_examples=60, deadline=None)
def test_who_is_in_memory_is_what_an_exact_list_of_the_last_uses_says(actors_max: int, keys: list[str]) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=actors_max) as runtime:
            model: dict[str, int] = {}
            for key in keys:
                uses = model.pop(key, 0) + 1
                model[key] = uses
                while len(model) > actors_max:
                    del model[next(iter(model))]

                assert await runtime.actor("guest", key).ask(Use()) == uses
                assert runtime.statistics().active == len(model)
            assert set(present(runtime, "abcdefghijklmnopqrstuvwxyz")) == set(model)

    anyio.run(body, backend="trio")


def test_one_that_is_used_after_it_was_found_to_be_old_does_not_leave(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=32) as runtime:
            keys = [f"k{number}" for number in range(32)]
            await use_all(runtime, keys)
            await use(runtime, "a")  # one look finds several of the oldest: k0 leaves, k1 and k2 are next
            await use_all(runtime, ["k1"])
            await use(runtime, "b")

            assert [key for key in keys if runtime.inspect("guest", key).state != "ready"] == ["k0", "k2"]

    run(body)


def test_a_message_from_another_actor_is_a_use_and_a_tick_is_none(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=3) as runtime:
            await use(runtime, "ab")
            await runtime.actor("guest", "c").ask(TickEvery(1.0))
            await runtime.actor("guest", "b").ask(Greet("a"))
            await anyio.sleep(5)
            await use(runtime, "d")
            assert present(runtime, "abcd") == "abd", "c has only ticked since"

            await use(runtime, "ef")
            assert present(runtime, "abcdef") == "def"

    run(body)


@pytest.mark.parametrize("stored", [True, False])
def test_an_actor_that_grows_pushes_out_as_many_as_its_bytes_need(run: Run, stored: bool) -> None:
    async def body() -> None:
        async with a_runtime(bytes_max=10_000, idle_s=8000.0) as runtime:
            keys = [f"k{number}" for number in range(100)]
            for key in keys:
                await runtime.actor("guest", key).ask(Use())
            assert runtime.statistics().active == 100

            await runtime.actor("guest", "k0").ask(Grow(5_050, stored=stored))
            if not stored:
                await anyio.sleep(1001)  # it is weighed again by the sweep

            left = [key for key in keys if runtime.inspect("guest", key).state == "ready"]
            assert left == ["k0", *keys[51:]]

    run(body)


def test_an_actor_larger_than_the_cap_stays_alone(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(bytes_max=1000) as runtime:
            await use(runtime, "abc")
            await runtime.actor("guest", "d").ask(Grow(5000))
            assert present(runtime, "abcd") == "d"

            assert await runtime.actor("guest", "d").ask(Use()) == 1
            await use(runtime, "e")
            assert present(runtime, "abcde") == "e", "now it is the one that makes room"

    run(body)


def test_an_actor_that_cannot_say_its_size_counts_as_one_kibibyte(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(bytes_max=4 * 1024) as runtime:
            await use(runtime, "abcdef", kind="mute")

            assert present(runtime, "abcdef", kind="mute") == "cdef"
            assert runtime.statistics().crashes == 0

    run(body)


def test_where_all_are_busy_the_cap_is_passed_until_they_are_free(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=3, idle_s=8000.0) as runtime:
            for key in "abcdef":
                await runtime.actor("guest", key).tell(Hold(5.0))
            assert present(runtime, "abcdef") == "abcdef"

            await anyio.sleep(6)
            await use(runtime, "g")
            assert present(runtime, "abcdefg") == "efg"

    run(body)


def test_a_cap_that_was_passed_is_held_again_by_the_sweep_without_a_message(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=3, idle_s=8000.0) as runtime:
            for key in "abcdef":
                await runtime.actor("guest", key).tell(Hold(5.0))
            await anyio.sleep(1001)

            assert present(runtime, "abcdef") == "def"

    run(body)


def test_the_oldest_that_may_not_go_do_not_hide_those_that_may(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=40) as runtime:
            for number in range(39):
                await runtime.actor("stayer", str(number)).ask(Use())
            await use(runtime, "abcdefghijklmnop")

            assert present(runtime, "p") == "p"
            assert runtime.statistics().active <= 40 + 40 // 16

    run(body)


def test_an_actor_that_is_one_too_many_is_let_in_where_nobody_may_go(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=1) as runtime:
            await use(runtime, "abc", kind="stayer")
            assert present(runtime, "abc", kind="stayer") == "abc"

            await use(runtime, "xy")
            assert present(runtime, "xy") == "y"

    run(body)


def test_a_cap_that_cannot_be_held_does_not_cost_a_look_at_everybody_for_each_message(run: Run) -> None:
    asked = 0

    class Counted(Stayer):
        def may_passivate(self) -> bool:
            nonlocal asked
            asked += 1
            return False

    async def body() -> None:
        async with Runtime(MemoryStore, actors_max=1) as runtime:
            runtime.register("guest", Counted)
            for number in range(1000):
                await runtime.actor("guest", str(number)).ask(Use())
            first = asked
            for number in range(1000):
                await runtime.actor("guest", str(number)).ask(Grow(200))  # each commit is a reason to make room

            assert asked - first < 1000 * 32, "not 1000 x 1000"
            assert first < 1000 * 32

    run(body)


def test_kinds_that_never_leave_do_not_count(run: Run) -> None:
    async def body() -> None:
        async with a_runtime(actors_max=2, bytes_max=300) as runtime:
            runtime.register("pillar", Guest, idle_s=math.inf)
            await use(runtime, "xyz", kind="pillar")
            await runtime.actor("pillar", "x").ask(Grow(10_000))
            await use(runtime, "ab")

            assert present(runtime, "ab") == "ab"
            assert present(runtime, "xyz", kind="pillar") == "xyz"

    run(body)


@pytest.mark.parametrize("caps", [{"actors_max": 0}, {"actors_bytes_max": 0}])
def test_caps_that_leave_room_for_nobody_are_refused(caps: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1 actor"):
        Runtime(MemoryStore, **caps)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (Use(), 1),
        (Greet("other"), None),
        (Unheard(), TypeError),
    ],
)
def test_an_actor_that_is_pushed_out_by_what_its_own_load_sends_still_answers(
    run: Run, message: Request[Any], answer: object
) -> None:
    class Herald(Guest):
        def load(self, context: Context) -> None:
            super().load(context)
            context.tell(ActorId("guest", "told"), Use())

    async def body() -> None:
        async with a_runtime(actors_max=1) as runtime:
            runtime.register("herald", Herald)
            answers: list[object] = []
            try:
                answers.append(await runtime.actor("herald", "k").ask(message))
            except TypeError as error:
                answers.append(type(error))

            assert answers == [answer]

    run(body)


def test_an_actor_that_is_ended_by_what_its_own_load_sends_is_not_counted(run: Run) -> None:
    class Mayfly(Guest):
        def load(self, context: Context) -> None:
            super().load(context)
            context.after_commit(context.actor("mayfly", "k").kill)

    async def body() -> None:
        async with a_runtime(actors_max=2) as runtime:
            runtime.register("mayfly", Mayfly)
            with pytest.raises(Stopping):
                await runtime.actor("mayfly", "k").tell(Use())
            assert runtime.inspect("mayfly", "k").state == "stopped"
            await use(runtime, "ab")

            assert present(runtime, "ab") == "ab"

    run(body)
