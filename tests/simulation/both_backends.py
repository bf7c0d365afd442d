"""One body, run by trio and by asyncio in real time: for tests with sockets."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

__all__ = ["LIMIT_S", "on_both_backends", "run_on"]

LIMIT_S = 30.0
"""A body that waits for ever goes red."""


def run_on(body: Callable[[], Awaitable[None]], backend: str) -> None:
    """Run it there, within the limit."""

    async def guarded() -> None:
        with anyio.fail_after(LIMIT_S):
            await body()

    anyio.run(guarded, backend=backend)


def on_both_backends(body: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Make an async body a test, once for each backend."""

    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    def test(backend: str) -> None:
        run_on(body, backend)

    return test
