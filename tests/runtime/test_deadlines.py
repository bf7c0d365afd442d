"""One queue for each timeout: everybody gives up at their own time, and what is answered is not kept."""

import gc
import tracemalloc
from functools import partial

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from callboard.runtime import Actor, ActorId, Context, Request, Runtime, handles
from callboard.runtime.deadlines import Deadlines, Wait
from callboard.runtime.envelope import Delivery
from callboard.runtime.timers import Timers
from callboard.runtime.waking import current_backend
from callboard.store import MemoryStore


class Note(Request[None], frozen=True):
    pass


class Large(Request[bytes], frozen=True):
    blob: bytes


class Copier(Actor):
    @handles(Large)
    async def copy(self, message: Large, _context: Context) -> bytes:
        await anyio.sleep(0.001)
        return bytes(len(message.blob))


# (pause before it, its timeout, how much sooner its caller's own time is over, answered after so long)
waits = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 3.0]),
        st.sampled_from([1.0, 5.0, 20.0]),
        st.sampled_from([0.0, 0.0, 0.5, 0.75]),
        st.sampled_from([0.125, 2.125, 100.0]),
    ),
    max_size=60,
)


@given(plan=waits, distinct=st.booleans())
@settings(max_examples=100, deadline=None)
def test_everybody_gives_up_at_their_own_deadline_or_not_at_all(
    plan: list[tuple[float, float, float, float]], distinct: bool
) -> None:
    due: dict[int, float] = {}
    expired: dict[int, float] = {}

    async def main() -> None:
        timers = Timers(current_backend())
        deadlines = Deadlines(timers, lambda delivery: expire(delivery))

        def expire(delivery: Delivery) -> None:
            assert delivery.number not in expired
            expired[delivery.number] = trio.current_time()
            delivery.settle(None, None)

        def answer(delivery: Delivery, wait: Wait) -> None:
            delivery.settle(None, None)
            wait.over()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.serve)
            for number, (pause_s, timeout_s, sooner_s, answered_s) in enumerate(plan):
                await trio.sleep(pause_s)
                now = trio.current_time()
                delivery = Delivery(ActorId("kind", "key"), Note(), number, deadline=now + timeout_s - sooner_s)
                wait = deadlines.add(timeout_s + (number / 1e6 if distinct else 0.0), delivery)
                timers.at(now + answered_s, partial(answer, delivery, wait))
                if answered_s > timeout_s - sooner_s:
                    due[number] = delivery.deadline
            await trio.sleep(200)
            assert len(timers) == 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert expired == due


@pytest.mark.parametrize("one_is_slow", [False, True])
@pytest.mark.parametrize("timeouts", [1, 400])
def test_what_was_answered_is_not_kept_until_its_deadline(one_is_slow: bool, timeouts: int) -> None:
    grown: list[int] = []

    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("copier", Copier, durable=False)
            slow = Delivery(ActorId("copier", "k"), Note(), 0, deadline=anyio.current_time() + 30.0)
            if one_is_slow:
                runtime._post._deadlines.add(30.0, slow)  # pyright: ignore[reportPrivateUsage] - one that waits long
            copier = runtime.actor("copier", "k")
            await copier.ask(Large(b""))
            before = tracemalloc.get_traced_memory()[0]
            for number in range(400):
                await copier.ask(Large(bytes(50_000)), timeout_s=30.0 + number % timeouts)
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
            assert runtime.statistics().timers < 100
            slow.settle(None, None)

    tracemalloc.start()
    try:
        anyio.run(body, backend="trio")
    finally:
        tracemalloc.stop()

    assert grown[0] < 10 * 100_000
