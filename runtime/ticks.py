"""The volatile timers of one activation: each sends its actor a Tick, and the next one only when that was handled.

So a slow actor never finds a heap of ticks in its mailbox, and a period counts from the end of one tick's handler to
the next tick.

Source: Erlang/OTP gen_server timeouts; Orleans timers ("the period is measured from completion").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .identity import ActorId
from .signals import Tick
from .timers import Timer

if TYPE_CHECKING:
    from .context import Host
    from .envelope import Delivery

__all__ = ["Ticks"]


@dataclass(slots=True, eq=False)
class _Clockwork:
    """One timer: `timer` is its next entry in the runtime's heap, None while a tick is queued or handled."""

    period_s: float | None
    timer: Timer | None = None
    count: int = 0


class Ticks:
    """See the module's text. By tag: a timer that is started again takes the place of the old one."""

    __slots__ = ("_clockworks", "_host", "_id")

    def __init__(self, host: "Host", id: ActorId) -> None:
        self._host = host
        self._id = id
        self._clockworks: dict[Any, _Clockwork] = {}

    def start(self, tag: Any, delay_s: float, period_s: float | None) -> None:
        """Tick after `delay_s` seconds, and then every `period_s`, or not again.

        Raises:
            ValueError: a time that is no number of seconds, or a period that is not above 0.
        """
        if not (delay_s >= 0 and math.isfinite(delay_s)) or period_s == 0:
            raise ValueError(f"a timer takes a finite number of seconds (a period: above 0), not {delay_s}")
        self.cancel(tag)
        clockwork = self._clockworks[tag] = _Clockwork(period_s)
        self._wind(tag, clockwork, delay_s)

    def cancel(self, tag: Any) -> bool:
        """End one; False where there is none."""
        clockwork = self._clockworks.pop(tag, None)
        if clockwork is None:
            return False
        if clockwork.timer is not None:
            clockwork.timer.cancel()
        return True

    def end(self) -> None:
        """End all of them."""
        for tag in list(self._clockworks):
            self.cancel(tag)

    def current(self, tick: Tick) -> bool:
        """False for a tick that was queued when its timer was cancelled, or started anew."""
        clockwork = self._clockworks.get(tick.tag)
        return clockwork is not None and clockwork is tick.source

    def _wind(self, tag: Any, clockwork: _Clockwork, delay_s: float) -> None:
        clockwork.timer = self._host.at(self._host.now() + delay_s, self._fire(tag, clockwork))

    def _fire(self, tag: Any, clockwork: _Clockwork) -> Callable[[], None]:
        def fire() -> None:
            clockwork.timer = None
            clockwork.count += 1
            tick = Tick(tag=tag, count=clockwork.count, source=clockwork)
            self._host.signal(self._id, tick, on_settled=handled)

        def handled(_delivery: "Delivery") -> None:
            if self._clockworks.get(tag) is not clockwork:
                return
            if clockwork.period_s is None:
                del self._clockworks[tag]
            else:
                self._wind(tag, clockwork, clockwork.period_s)

        return fire
