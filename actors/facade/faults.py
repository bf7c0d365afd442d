"""Faults to order in a runtime under test, and the moment when it has come to rest.

    crash_next(runtime, "counter", "a")        # the next message that counter:a handles crashes it
    fail_commit(runtime, after_write=True)     # the next commit is written, and nobody is told
    await until_quiet(runtime, timeout_s=60)

They take any runtime and any store, whose own way they go: a crash is restarted, a commit that failed is answered. What
orders none pays nothing. Faults add up, in order.
"""

from collections import deque
from typing import Any

import anyio.lowlevel

from callboard.runtime.runtime import Runtime
from callboard.store.contract import Store
from callboard.store.errors import StoreError, StoreUnavailable

__all__ = ["crash_next", "fail_commit", "fail_read", "until_quiet"]

QUIET_TIMEOUT_S = 60.0

_READS = ("load", "scan", "scan_index")


def crash_next(runtime: Runtime, kind: str, key: str, error: Exception | None = None) -> None:
    """Let the next message that reaches a handler of this actor crash it, in place of being handled.

    Signals of the kernel count as messages. It waits for an actor that is not in memory, and outlives restarts.

    Args:
        error: what the handler raises; a RuntimeError where nothing is given.

    Raises:
        UnknownActor: nobody has registered this kind.
        ValueError: the error is a CallboardError, which would be the handler's answer.
    """
    runtime.crash_next(kind, key, error or RuntimeError(f"{kind}:{key} crashes as crash_next has ordered"))


def fail_commit(runtime: Runtime, error: StoreError | None = None, *, after_write: bool = False) -> None:
    """Let the next commit of the runtime's store raise `error`, with all batches of its group.

    Args:
        error: a StoreUnavailable where nothing is given.
        after_write: everything was stored all the same. The error says that this may be so.

    Raises:
        ValueError: `after_write` with an error that is not `uncertain`: no store may claim that nothing was stored
            when it was.
        TypeError: the error is no StoreError, the only ones that a store raises.
    """
    _check_store_error(error)
    error = error or StoreUnavailable("this commit fails as fail_commit has ordered", uncertain=after_write)
    if after_write and not error.uncertain:
        raise ValueError("an error after the write must be made with uncertain=True")
    _failing(runtime.store, ("commit",)).append((error, after_write))


def fail_read(runtime: Runtime, error: StoreError | None = None) -> None:
    """Let the next read of the runtime's store (load, scan, scan_index) raise `error`, else a StoreUnavailable.

    Raises:
        TypeError: the error is no StoreError.
    """
    _check_store_error(error)
    error = error or StoreUnavailable("this read fails as fail_read has ordered")
    _failing(runtime.store, _READS).append((error, False))


def _check_store_error(error: Any) -> None:
    if not (error is None or isinstance(error, StoreError)):
        raise TypeError(f"a store raises StoreErrors only, such as StoreUnavailable('...'), not {error!r}")


async def until_quiet(runtime: Runtime, *, timeout_s: float = QUIET_TIMEOUT_S) -> None:
    """Return once nothing is queued, running or on its way to the disk; see `Runtime.quiet`.

    Raises:
        TimeoutError: that did not come about in time. The message is a picture of what goes on.
    """
    await anyio.lowlevel.checkpoint()
    if not await runtime.wait_quiet(timeout_s=timeout_s):
        raise TimeoutError(f"the runtime is not quiet after {timeout_s:g} s:\n{runtime.dump()}")


_Orders = deque[tuple[StoreError, bool]]


class _Failing:
    """A method of a store that fails as ordered, and else does what it did."""

    def __init__(self, method: Any, orders: _Orders) -> None:
        self._method = method
        self.orders = orders

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.orders:
            return self._method(*arguments, **options)
        error, after_write = self.orders.popleft()
        if after_write:
            self._method(*arguments, **options)
        raise error


def _failing(store: Store, names: tuple[str, ...]) -> _Orders:
    """Where to put what these methods of the store are to raise.

    They are put on the store itself, before those of its class: whoever holds it finds them, at whatever time.
    """
    present = vars(store).get(names[0])
    if isinstance(present, _Failing):
        return present.orders
    orders: _Orders = deque()
    for name in names:
        setattr(store, name, _Failing(getattr(store, name), orders))
    return orders
