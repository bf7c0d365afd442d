"""Both backends for every body, under clocks that jump over idle time."""

from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias, cast

import anyio
import pytest

from callboard.testing import run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


HANG_S = 20.0


def _run_in_real_time(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    async def within_reason() -> None:
        with anyio.fail_after(HANG_S):
            await body()

    anyio.run(within_reason, backend=backend)


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body on one backend; for bodies without threads of their own, since no jumping clock sees them."""
    backend = cast("Literal['trio', 'asyncio']", request.param)
    return lambda body: run_in_virtual_time(body, backend=backend)


@pytest.fixture(params=["trio", "asyncio"])
def run_in_real_time(request: pytest.FixtureRequest) -> Run:
    """The same for bodies whose store commits on a thread."""
    backend = str(request.param)
    return lambda body: _run_in_real_time(backend, body)
