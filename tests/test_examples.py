"""Each program in examples/ runs as a user would run it, against a fake model server over real HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio.from_thread
import pytest

from callboard.testing import FakeUpstream

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the tests run without the repository around them")


@pytest.fixture
def upstream_url() -> Iterator[str]:
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(FakeUpstream()) as fake:
        yield fake.url


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.stem for program in PROGRAMS])
def test_the_example_runs_twice_on_one_store(program: Path, upstream_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OPENAI_BASE_URL": upstream_url, "OPENAI_MODEL": "fake"}
    command = [sys.executable, "-W", "error", str(program), "store.lmdb"]

    first, second = (
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        for _ in range(2)
    )

    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stderr) == (0, "")
    assert len(second.stdout.splitlines()) > len(first.stdout.splitlines())
