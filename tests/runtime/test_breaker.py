import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.runtime import Backoff
from callboard.runtime.breaker import Breaker, BreakerState

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
BACKOFF = Backoff(first_s=1.0, max_s=5.0)

AFTER = {
    (CLOSED, "failed"): OPEN,
    (CLOSED, "succeeded"): CLOSED,
    (CLOSED, "probe"): CLOSED,
    (CLOSED, "abandoned"): CLOSED,
    (OPEN, "failed"): OPEN,
    (OPEN, "succeeded"): CLOSED,
    (OPEN, "probe"): HALF_OPEN,
    (OPEN, "abandoned"): OPEN,
    (HALF_OPEN, "failed"): OPEN,
    (HALF_OPEN, "succeeded"): CLOSED,
    (HALF_OPEN, "probe"): HALF_OPEN,
    (HALF_OPEN, "abandoned"): OPEN,
}


def in_state(state: BreakerState) -> Breaker:
    breaker = Breaker(BACKOFF)
    if state is not CLOSED:
        breaker.failed(1.0)
    if state is HALF_OPEN:
        breaker.probe()
    assert breaker.state is state
    return breaker


def happen(breaker: Breaker, event: str) -> None:
    match event:
        case "failed":
            breaker.failed(1.0)
        case "succeeded":
            breaker.succeeded()
        case "probe":
            breaker.probe()
        case _:
            breaker.abandoned()


@pytest.mark.parametrize(("state", "event"), list(AFTER))
def test_each_event_in_each_state_leads_where_the_drawing_says(state: BreakerState, event: str) -> None:
    breaker = in_state(state)

    happen(breaker, event)

    assert breaker.state is AFTER[state, event]
    assert breaker.closed == (breaker.state is CLOSED)


@given(probes=st.integers(0, 10), chance=st.floats(0.0, 1.0))
def test_each_probe_that_fails_doubles_the_delay_up_to_its_bound(probes: int, chance: float) -> None:
    breaker = Breaker(BACKOFF)

    delays_s = [breaker.failed(chance)]
    for _ in range(probes):
        breaker.probe()
        delays_s.append(breaker.failed(chance))

    assert delays_s == [min(5.0, 2.0**failures) * chance for failures in range(probes + 1)]
    assert breaker.failures == probes + 1


def test_a_hundred_attempts_that_one_outage_hits_at_once_are_one_failure() -> None:
    breaker = Breaker(BACKOFF)

    delays_s = {breaker.failed(1.0) for _ in range(100)}

    assert delays_s == {1.0}
    assert breaker.failures == 1


def test_after_an_outage_the_next_one_begins_with_the_shortest_delay() -> None:
    breaker = in_state(HALF_OPEN)
    breaker.failed(1.0)
    breaker.probe()
    breaker.succeeded()

    assert breaker.failures == 0
    assert breaker.failed(1.0) == 1.0


def test_a_probe_that_is_abandoned_lets_the_next_one_go_and_lengthens_no_delay() -> None:
    breaker = in_state(HALF_OPEN)
    refused = breaker.probe()

    breaker.abandoned()

    assert not refused
    assert breaker.failures == 1
    assert breaker.probe()


def test_without_a_backoff_of_its_own_delays_go_from_50_ms_to_5_s() -> None:
    breaker = Breaker()
    first_s = breaker.failed(1.0)
    for _ in range(20):
        breaker.probe()
        breaker.failed(1.0)

    assert first_s == pytest.approx(0.05)
    assert breaker.failed(1.0) == 5.0


def test_the_drawing_leaves_no_event_out() -> None:
    assert len(AFTER) == len(BreakerState) * len({event for _, event in AFTER})


class ProbeMachine(RuleBasedStateMachine):
    """Attempts that begin only where the breaker lets them, and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.probing = False

    @rule()
    def begin(self) -> None:
        was_closed = self.breaker.closed
        may = self.breaker.probe()

        assert may == (was_closed or not self.probing)
        self.probing = self.probing or (may and not was_closed)

    @precondition(lambda self: self.breaker.closed)
    @rule()
    def an_attempt_fails_while_all_may_try(self) -> None:
        self.breaker.failed(0.5)

    @precondition(lambda self: self.probing)
    @rule(outcome=st.sampled_from(["failed", "succeeded", "abandoned"]))
    def the_probe_ends(self, outcome: str) -> None:
        happen(self.breaker, outcome)
        self.probing = False

    @invariant()
    def it_is_half_open_exactly_while_a_probe_is_under_way(self) -> None:
        assert (self.breaker.state is HALF_OPEN) == self.probing
        assert self.breaker.closed == (self.breaker.failures == 0)


TestOneProbeAtATime = ProbeMachine.TestCase
