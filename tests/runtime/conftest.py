"""Both backends for every body: trio under a clock that jumps over idle time, asyncio in real time."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
import trio.testing

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


def _options(backend: str, *, virtual_time: bool) -> dict[str, object]:
    if backend == "trio" and virtual_time:
        return {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return {}


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body on one backend; for bodies without threads of their own, since trio's jumping clock sees none."""
    backend = str(request.param)
    return lambda body: anyio.run(body, backend=backend, backend_options=_options(backend, virtual_time=True))


@pytest.fixture(params=["trio", "asyncio"])
def run_in_real_time(request: pytest.FixtureRequest) -> Run:
    """The same for bodies whose store commits on a thread."""
    backend = str(request.param)
    return lambda body: anyio.run(body, backend=backend, backend_options=_options(backend, virtual_time=False))
