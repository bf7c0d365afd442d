"""A circuit breaker for outages of the store, so that they cost no actor its restart budget. Pure: no clock.

    CLOSED ──failed──> OPEN ──probe──> HALF_OPEN ──failed, abandoned──> OPEN
       ^                │                  │
       └───succeeded────┴────succeeded─────┘

CLOSED: everybody may try. OPEN: nobody may; whoever was told a delay by `failed` waits that long, then asks `probe`.
HALF_OPEN: one attempt is under way and the rest waits for how it ends. The one that `probe` let go ends in exactly one
of `failed`, `succeeded` and `abandoned`, or the breaker would stay HALF_OPEN for good.

Attempts that began while it was CLOSED may still end when it is not. Their failures in OPEN lengthen no delay: a
hundred loads that one outage hits at once are one failure. In HALF_OPEN they cannot be told from the probe's, so a
second probe may start while the first is under way; that costs one more attempt, and no promise.

Source: M. Nygard, Release It!, "Circuit Breaker"; M. Fowler, "CircuitBreaker" (2014).
"""

from enum import Enum, auto

from .budget import Backoff

__all__ = ["Breaker", "BreakerState"]


class BreakerState(Enum):
    """Whether attempts may be made."""

    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()


class _Event(Enum):
    FAILED = auto()
    SUCCEEDED = auto()
    PROBE = auto()
    ABANDONED = auto()


_TABLE: dict[tuple[BreakerState, _Event], BreakerState] = {
    (BreakerState.CLOSED, _Event.FAILED): BreakerState.OPEN,
    (BreakerState.CLOSED, _Event.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.CLOSED, _Event.PROBE): BreakerState.CLOSED,
    (BreakerState.CLOSED, _Event.ABANDONED): BreakerState.CLOSED,
    (BreakerState.OPEN, _Event.FAILED): BreakerState.OPEN,
    (BreakerState.OPEN, _Event.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.OPEN, _Event.PROBE): BreakerState.HALF_OPEN,
    (BreakerState.OPEN, _Event.ABANDONED): BreakerState.OPEN,
    (BreakerState.HALF_OPEN, _Event.FAILED): BreakerState.OPEN,
    (BreakerState.HALF_OPEN, _Event.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.HALF_OPEN, _Event.PROBE): BreakerState.HALF_OPEN,
    (BreakerState.HALF_OPEN, _Event.ABANDONED): BreakerState.OPEN,
}


class Breaker:
    """See the module's text.

    Attributes:
        state: see BreakerState.
        closed: everybody may try.
        failures: failed attempts in a row, those that ended while it was OPEN left out; 0 while it is CLOSED.
    """

    __slots__ = ("_backoff", "closed", "failures", "state")

    def __init__(self, backoff: Backoff = Backoff(first_s=0.05, max_s=5.0)) -> None:  # noqa: B008 - frozen
        self._backoff = backoff
        self.state = BreakerState.CLOSED
        self.closed = True
        self.failures = 0

    def failed(self, chance: float) -> float:
        """An attempt failed; the delay in seconds before `probe` may be asked. `chance` is a random number in 0..1."""
        if self.state is not BreakerState.OPEN:
            self.failures += 1
        self._happen(_Event.FAILED)
        return self._backoff.delay_s(self.failures, chance)

    def probe(self) -> bool:
        """Whether an attempt may be made now. In OPEN it is the one probe: nobody else is let go before it ends."""
        may = self.state is not BreakerState.HALF_OPEN
        self._happen(_Event.PROBE)
        return may

    def succeeded(self) -> None:
        """An attempt was answered: the outage is over."""
        self._happen(_Event.SUCCEEDED)
        self.failures = 0

    def abandoned(self) -> None:
        """The probe was cancelled before it could tell: somebody else may probe."""
        self._happen(_Event.ABANDONED)

    def _happen(self, event: _Event) -> None:
        self.state = _TABLE[self.state, event]
        self.closed = self.state is BreakerState.CLOSED
