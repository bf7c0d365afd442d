"""The switch interval is the shortest that anybody holds, and afterwards what it was, or what somebody else set."""

import sys
from collections.abc import Generator

import pytest
from hypothesis import given, strategies as st

from callboard.runtime.switch_interval import SwitchInterval

BEFORE_S = 0.004


@pytest.fixture(autouse=True)
def interval_of_before() -> Generator[None, None, None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(BEFORE_S)
    yield
    sys.setswitchinterval(before_s)


def test_an_interval_holds_until_its_release() -> None:
    interval = SwitchInterval(0.0005)

    interval.hold()
    assert sys.getswitchinterval() == 0.0005
    interval.release()
    assert sys.getswitchinterval() == BEFORE_S


def test_holding_or_releasing_twice_is_as_once() -> None:
    interval = SwitchInterval(0.0005)

    interval.release()
    interval.hold()
    interval.hold()
    interval.release()
    assert sys.getswitchinterval() == BEFORE_S

    sys.setswitchinterval(0.001)
    interval.release()
    assert sys.getswitchinterval() == 0.001


def test_a_longer_interval_than_the_present_one_changes_nothing() -> None:
    interval = SwitchInterval(0.1)

    interval.hold()
    assert sys.getswitchinterval() == BEFORE_S
    interval.release()


def test_what_somebody_else_sets_in_between_is_left_alone() -> None:
    interval = SwitchInterval(0.0005)
    interval.hold()

    sys.setswitchinterval(0.002)
    interval.release()

    assert sys.getswitchinterval() == 0.002


@pytest.mark.parametrize("others_s", [0.002, 0.0001])
def test_what_somebody_else_sets_holds_again_when_the_last_of_several_is_released(others_s: float) -> None:
    first, second = SwitchInterval(0.0005), SwitchInterval(0.001)
    first.hold()
    sys.setswitchinterval(others_s)
    second.hold()
    assert sys.getswitchinterval() == pytest.approx(min(0.0005, others_s))

    first.release()
    assert sys.getswitchinterval() == pytest.approx(min(0.001, others_s))
    second.release()
    assert sys.getswitchinterval() == pytest.approx(others_s)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_of_several_the_shortest_counts_in_whatever_order_they_come_and_go(steps: list[tuple[int, bool]]) -> None:
    wants_s = [0.0005, 0.001, 0.0005, 0.01]
    intervals = [SwitchInterval(interval_s) for interval_s in wants_s]
    held: set[int] = set()
    for which, hold in steps:
        if hold:
            intervals[which].hold()
            held.add(which)
        else:
            intervals[which].release()
            held.discard(which)

        assert sys.getswitchinterval() == min([BEFORE_S, *(wants_s[each] for each in held)])
    for interval in intervals:
        interval.release()
    assert sys.getswitchinterval() == BEFORE_S
