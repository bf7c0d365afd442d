"""Both backends for every body, in virtual time where it can be."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest

from callboard.testing import run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

BODY_S_MAX = 45.0
"""A body that waits for ever goes red instead; in virtual time at once."""


async def _bounded(body: Callable[[], Awaitable[None]]) -> None:
    with anyio.fail_after(BODY_S_MAX):
        await body()


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body on one backend; for bodies without threads and sockets, which a clock that jumps does not see."""
    return lambda body: run_in_virtual_time(body, backend=request.param)


@pytest.fixture(params=["trio", "asyncio"])
def run_in_real_time(request: pytest.FixtureRequest) -> Run:
    """The same for bodies with real sockets, or with a store that commits on a thread."""
    return lambda body: anyio.run(_bounded, body, backend=str(request.param))
