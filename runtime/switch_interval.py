"""How long the event loop may keep the GIL while the committer's thread waits for it.

LMDB gives up the GIL around each of its calls, and so does each write and flush. A thread that wants it back from code
that never rests waits up to the interpreter's switch interval, 5 ms by default: measured beside a loop that is busy all
the time, 124 commits a second with a wait of 805 ms (p99), and 18 784 with 8.4 ms at an interval of 0.5 ms (FACTS.md).
The interval is the whole interpreter's: other threads change hands more often too, which costs them some per cent at
most at 0.5 ms. It is set while a runtime with a store on disk is open, and given back by the last one that closes, if
nobody else has set another since.

Source: sys.setswitchinterval; Beazley, "Understanding the Python GIL", PyCon 2010 (the convoy effect).
"""

import sys
from threading import Lock

__all__ = ["SWITCH_INTERVAL_S", "SwitchInterval"]

SWITCH_INTERVAL_S = 0.0005

_lock = Lock()
_wanted: list[float] = []
_before_s = 0.0
_set_s = 0.0


class SwitchInterval:
    """An interval that holds from `hold` to `release`. Of several the shortest counts."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._held = False

    def hold(self) -> None:
        """The interval holds from now on. Calling it again does nothing."""
        with _lock:
            if not self._held:
                self._held = True
                _notice_others()
                _wanted.append(self._interval_s)
                _apply()

    def release(self) -> None:
        """The interval of before holds again, unless other runtimes want theirs. Calling it again does nothing."""
        with _lock:
            if self._held:
                self._held = False
                _notice_others()
                _wanted.remove(self._interval_s)
                _apply()


def _notice_others() -> None:
    """What holds without us is what we found, or what somebody else has set since."""
    global _before_s
    now_s = sys.getswitchinterval()
    if not _wanted or now_s != _set_s:
        _before_s = now_s


def _apply() -> None:
    global _set_s
    sys.setswitchinterval(min([*_wanted, _before_s]) + 0.5e-6)  # it is cut off to whole microseconds
    _set_s = sys.getswitchinterval()
