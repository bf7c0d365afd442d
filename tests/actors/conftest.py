"""Both backends for every body: trio under a clock that jumps over idle time, asyncio in real time."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
import trio.testing

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

BODY_S_MAX = 45.0
"""A body that waits for ever goes red instead; under trio's jumping clock at once."""


async def _bounded(body: Callable[[], Awaitable[None]]) -> None:
    with anyio.fail_after(BODY_S_MAX):
        await body()


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body on one backend; for bodies without threads and sockets, which trio's jumping clock does not see."""
    backend = str(request.param)
    options = {"clock": trio.testing.MockClock(autojump_threshold=0)} if backend == "trio" else {}
    return lambda body: anyio.run(_bounded, body, backend=backend, backend_options=options)


@pytest.fixture(params=["trio", "asyncio"])
def run_in_real_time(request: pytest.FixtureRequest) -> Run:
    """The same for bodies with real sockets, or with a store that commits on a thread."""
    backend = str(request.param)
    return lambda body: anyio.run(_bounded, body, backend=backend)
