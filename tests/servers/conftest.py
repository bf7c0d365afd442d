"""Real servers for tests: one llama.cpp for all of them, and the URL of a `transformers serve` that others started."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import TypeAlias

import anyio
import pytest

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

BODY_S_MAX = 90.0
SLOTS = 2


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body on one backend, in real time."""

    async def bounded(body: Callable[[], Awaitable[None]]) -> None:
        with anyio.fail_after(BODY_S_MAX):
            await body()

    return lambda body: anyio.run(bounded, body, backend=str(request.param))


@pytest.fixture(scope="session")
def llama_url() -> Generator[str]:
    """The base URL of llama.cpp's server with SmolLM2-135M and two slots. It ends with its standard input."""
    command = [sys.executable, "-m", "callboard.local_server", "--slots", str(SLOTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        word, _, url = process.stdout.readline().decode().strip().partition(" ")
        assert word == "ready", "llama.cpp's server did not start: python -m callboard.local_server says why"
        yield f"{url}/v1"
        process.stdin.close()
        process.wait(10)


@pytest.fixture(scope="session")
def transformers_url() -> str:
    """The base URL of a `transformers serve`."""
    url = os.environ.get("CALLBOARD_TRANSFORMERS_URL")
    if not url:
        pytest.skip("needs `transformers serve`: make transformers")
    return url
