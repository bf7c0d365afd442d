"""Both backends for every body: trio under a clock that jumps over idle time, asyncio in real time."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
import trio.testing

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


HANG_S = 20.0
VIRTUAL_HANG_S = 1e6


def _run(backend: str, body: Callable[[], Awaitable[None]], *, virtual_time: bool) -> None:
    virtual = virtual_time and backend == "trio"
    options: dict[str, object] = {"clock": trio.testing.MockClock(autojump_threshold=0)} if virtual else {}

    async def within_reason() -> None:
        with anyio.fail_after(VIRTUAL_HANG_S if virtual else HANG_S):
            await body()

    anyio.run(within_reason, backend=backend, backend_options=options)


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body on one backend; for bodies without threads of their own, since trio's jumping clock sees none."""
    backend = str(request.param)
    return lambda body: _run(backend, body, virtual_time=True)


@pytest.fixture(params=["trio", "asyncio"])
def run_in_real_time(request: pytest.FixtureRequest) -> Run:
    """The same for bodies whose store commits on a thread."""
    backend = str(request.param)
    return lambda body: _run(backend, body, virtual_time=False)
