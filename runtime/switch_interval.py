"""How long the event loop may keep the GIL while the committer's thread waits for it.

LMDB gives up the GIL around each of its calls, and so does each write and flush. A thread that wants it back from code
that never rests waits up to the interpreter's switch interval, 5 ms by default: measured beside a loop that is busy all
the time, 124 commits a second with a wait of 805 ms (p99), and 18 784 with 8.4 ms at an interval of 0.5 ms (FACTS.md).
The interval is the whole interpreter's: other threads change hands more often too, which costs them some per cent at
most at 0.5 ms. It is set while a runtime with a store on disk is open, and given back by the last one that closes, if
it is still the one that was set.

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
        global _before_s
        with _lock:
            if not _wanted:
                _before_s = sys.getswitchinterval()
            _wanted.append(self._interval_s)
            self._held = True
            _apply()

    def release(self) -> None:
        """The interval of before holds again, unless other runtimes want theirs. Calling it again does nothing."""
        with _lock:
            if self._held:
                self._held = False
                _wanted.remove(self._interval_s)
                _apply()


def _apply() -> None:
    global _set_s
    if _wanted:
        sys.setswitchinterval(min(*_wanted, _before_s))
        _set_s = sys.getswitchinterval()
    elif sys.getswitchinterval() == _set_s:  # else somebody else has set it since
        sys.setswitchinterval(_before_s)
