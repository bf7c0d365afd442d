"""Virtual time: a MockClock that jumps to the next deadline whenever nothing else can happen."""

import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from callboard.runtime.timers import Timers
from callboard.runtime.waking import current_backend

plans = st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["fire", "cancel", "cancel early"])), max_size=40)


@given(plans)
@settings(max_examples=50, deadline=None)
def test_timers_fire_at_their_time_in_order_and_never_after_being_cancelled(plan: list[tuple[int, str]]) -> None:
    fired: list[tuple[int, float]] = []
    left: list[int] = []

    async def main() -> None:
        timers = Timers(current_backend())
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.serve)
            made = [
                timers.at(start + delay, lambda number=number: fired.append((number, trio.current_time() - start)))
                for number, (delay, _) in enumerate(plan)
            ]
            for number, (_, fate) in enumerate(plan):
                if fate == "cancel":
                    made[number].cancel()
                    made[number].cancel()
            await trio.sleep(7.5)
            for number, (_, fate) in enumerate(plan):
                if fate == "cancel early":
                    made[number].cancel()
            await trio.sleep(30)
            left.append(len(timers))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    due = [
        (number, float(delay))
        for number, (delay, fate) in enumerate(plan)
        if fate == "fire" or (fate == "cancel early" and delay <= 7)
    ]
    assert fired == sorted(due, key=lambda entry: entry[1])
    assert left == [0]


async def test_an_earlier_timer_that_is_made_later_still_comes_first(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers(current_backend())
    fired: list[str] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.serve)
        timers.at(autojump_clock.current_time() + 10, lambda: fired.append("late"))
        await trio.sleep(1)
        timers.at(autojump_clock.current_time() + 1, lambda: fired.append("early"))
        await trio.sleep(2)

        assert fired == ["early"]
        nursery.cancel_scope.cancel()


async def test_thousands_of_cancelled_timers_do_not_stay_in_memory(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers(current_backend())
    for _ in range(20_000):
        timers.at(autojump_clock.current_time() + 30, lambda: None).cancel()

    stored = timers._heap  # pyright: ignore[reportPrivateUsage] - how much stays in memory shows nowhere else
    assert len(stored) < 3000
    assert len(timers) == 0


async def test_what_a_timer_sets_for_now_comes_next_round_so_that_others_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    timers = Timers(current_backend())
    fired = 0

    def again() -> None:
        nonlocal fired
        fired += 1
        timers.at(autojump_clock.current_time(), again)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.serve)
        timers.at(autojump_clock.current_time(), again)
        for _ in range(100):
            await trio.lowlevel.checkpoint()

        assert 20 < fired <= 102
        nursery.cancel_scope.cancel()


async def test_thousands_of_timers_that_are_due_at_once_let_others_run_in_between(
    autojump_clock: trio.testing.MockClock,
) -> None:
    timers = Timers(current_backend())
    fired: list[int] = []
    seen: set[int] = set()
    when = autojump_clock.current_time() + 10
    for number in range(2000):
        timers.at(when, lambda number=number: fired.append(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.serve)
        await trio.sleep(10)
        while len(fired) < 2000:
            seen.add(len(fired))
            await trio.lowlevel.checkpoint()

        assert fired == list(range(2000))
        assert len(seen) > 3
        nursery.cancel_scope.cancel()


async def test_a_timer_that_was_cancelled_wakes_nobody(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers(current_backend())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.serve)
        made = [timers.at(autojump_clock.current_time() + delay, lambda: None) for delay in range(10, 500)]
        for timer in made:
            timer.cancel()
        timers.at(autojump_clock.current_time() + 1, lambda: None)
        await trio.sleep(2)

        stored = timers._heap  # pyright: ignore[reportPrivateUsage] - a wake-up in vain shows nowhere else
        assert stored == []
        nursery.cancel_scope.cancel()
