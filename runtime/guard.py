"""Runs code that is not ours so that nothing it raises reaches another task.

The scope stands inside of the `try`: a cancelled nursery may leave with an error and a cancellation in one group, from
which the scope takes the cancellation and lets the error go on.
"""

from collections.abc import Awaitable
from typing import Any, cast

import anyio
from msgspec import Struct

__all__ = ["Outcome", "foreign_cancellation", "interrupts", "run_guarded"]


class Outcome(Struct, gc=False):
    """How a piece of work ended: `error` where it raised one, else `cancelled`, else `value`."""

    value: Any = None
    error: BaseException | None = None
    cancelled: bool = False


def interrupts(error: BaseException) -> bool:
    """True for what belongs to whoever runs the program, not to the code that raised it: Ctrl-C, sys.exit()."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(interrupts, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, KeyboardInterrupt | SystemExit)


async def run_guarded(work: Awaitable[Any], *, scope: anyio.CancelScope, host: anyio.CancelScope) -> Outcome:
    """Await `work` inside of `scope`; only a cancellation of `host`, and interrupts, leave this."""
    try:
        with scope:
            return Outcome(await work)
    except Exception as error:  # noqa: BLE001 - the guard: every crash of a handler, load or child ends here
        return Outcome(error=error)
    except anyio.get_cancelled_exc_class() as error:
        if host.cancel_called:
            raise
        return Outcome(error=foreign_cancellation(error))
    except GeneratorExit:
        raise  # the event loop has ended without us
    except BaseException as error:
        if host.cancel_called or interrupts(error):
            raise
        return Outcome(error=error)
    return Outcome(cancelled=True)


def foreign_cancellation(error: BaseException) -> RuntimeError:
    """asyncio only: the work awaited another task or future that was cancelled, and nobody has cancelled the work.

    A task that ended with the cancellation would cancel the whole group, and with it every actor.
    """
    failure = RuntimeError("awaited something that was cancelled")
    failure.__cause__ = error
    return failure
