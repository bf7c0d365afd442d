"""Where the event loop has no way to take a step in another task's name, a worker is woken for each async handler."""

import logging
from typing import Literal

import pytest
from kernel_checks import play

from callboard.runtime import waking

Backend = Literal["trio", "asyncio"]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_programs_hold_every_invariant_also_without_steps(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a step was taken")

    for kind, seat in (("_TrioBackend", "_TrioSeat"), ("_AsyncioBackend", "_AsyncioSeat")):
        monkeypatch.setattr(getattr(waking, kind), "steps", False)
        monkeypatch.setattr(getattr(waking, seat), "step", never)

    for seed in range(40):
        play(seed, backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_same_programs_take_steps_where_there_is_a_way(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    seat = {"trio": "_TrioSeat", "asyncio": "_AsyncioSeat"}[backend]
    real = getattr(waking, seat).step

    def counted(*args: object) -> None:
        nonlocal taken
        taken += 1
        real(*args)

    monkeypatch.setattr(getattr(waking, seat), "step", counted)

    play(0, backend)

    assert taken > 0
