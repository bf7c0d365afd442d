"""Programs of operations against the kernel, made from seeds, on both backends; see kernel_program.py.

    CALLBOARD_SEEDS=1000:2000 pytest tests/simulation/test_kernel_programs.py       other programs than those of CI
    make soak                                                                       many more

A seed that fails is printed, and `kernel_checks.play(seed, backend)` runs it again.
"""

import logging
import os
from collections import Counter
from functools import cache

import pytest
from kernel_checks import play
from kernel_program import Backend, Program

_first, _last = (int(number) for number in os.environ.get("CALLBOARD_SEEDS", "0:500").split(":"))
SHARE_OF_ASYNCIO = 5
"""So many programs on trio to one on asyncio: trio's seeds are schedules too, asyncio has hardly more than one."""
GROUP = 50


def groups() -> list[tuple[Backend, range]]:
    starts = range(_first, _last, GROUP)
    on_trio: list[tuple[Backend, range]] = [("trio", range(start, min(start + GROUP, _last))) for start in starts]
    return [*on_trio, ("asyncio", range(_first, _first + max((_last - _first) // SHARE_OF_ASYNCIO, 1)))]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)


@pytest.mark.parametrize(
    ("backend", "seeds"), [pytest.param(*group, id=f"{group[0]}-{group[1]}") for group in groups()]
)
def test_programs_hold_every_invariant(backend: Backend, seeds: range) -> None:
    for seed in seeds:
        print(f"seed {seed} on {backend}: CALLBOARD_SEEDS={seed}:{seed + 1} repeats it")
        play(seed, backend)


@cache
def some_programs(backend: Backend) -> list[Program]:
    return [play(seed, backend) for seed in range(40)]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_one_seed_is_one_program_and_one_history(backend: Backend) -> None:
    first = some_programs(backend)[7]

    again = play(7, backend)

    assert [life.seen.handled for life in first.lives] == [life.seen.handled for life in again.lives]
    assert first.outcomes == again.outcomes


def test_the_programs_reach_every_kind_of_outcome() -> None:
    reached = Counter(end for program in some_programs("trio") for ends in program.outcomes.values() for end in ends)

    assert set(reached) >= {
        "reply", "cancelled", "Failed", "Unknown", "Refused",
        "MailboxFull", "Expired", "Stopping", "ActorFailed", "CyclicAsk",
    }  # fmt: skip


def test_the_programs_reach_every_room_of_the_kernel() -> None:
    lives = [life for program in some_programs("trio") for life in program.lives]
    causes = Counter[str]()
    for life in lives:
        causes += life.runtime.dead_letters.counts
    metrics = [life.runtime._metrics for life in lives]  # pyright: ignore[reportPrivateUsage] - what was passed through

    assert set(causes) >= {"dropped", "expired", "stopped", "failed", "crashed", "refused"}
    assert sum(one.passivations for one in metrics) > 20
    assert sum(one.restarts for one in metrics) > 20
    assert any(life.runtime.quarantine.list() or life.seen.purged or life.seen.released for life in lives)
    assert any(life.seen.ticks for life in lives)
    assert any(life.seen.ended for life in lives)
    assert {reason for life in lives for reason in life.endings} == {"stopped", "failed"}


def test_a_store_is_taken_over_while_its_old_owner_still_writes() -> None:
    stores = [life.store for program in some_programs("trio") for life in program.lives]
    refused = [store._refused for store in stores]  # pyright: ignore[reportPrivateUsage] - they are closed by now

    assert sum(refused) > 0
