"""The README's example runs as written, on both event loops; what the README names is there."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import anyio.from_thread
import pytest

from callboard.testing import FakeUpstream

README = Path(__file__).parent.parent / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run without the repository around them")


def _example() -> str:
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return blocks[0]


@pytest.fixture
def upstream_url() -> Iterator[str]:
    """A model server in a thread of its own, since the example brings its own event loop."""
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(FakeUpstream()) as fake:
        yield fake.url


def _run_example(
    source: str, url: str, monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_MODEL", "fake")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(folder)
    exec(compile(source, str(README), "exec"), {"__name__": "__main__", "asyncio": asyncio})
    return capsys.readouterr().out


def test_the_example_runs_as_written_under_trio(
    upstream_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = _run_example(_example(), upstream_url, monkeypatch, tmp_path, capsys)

    assert "What was my issue again?" in shown
    assert (tmp_path / "support.lmdb").is_dir()


def test_the_example_runs_as_its_comment_says_under_asyncio(
    upstream_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _example()
    trio_line = next(line for line in source.splitlines() if line.startswith("trio.run(main)"))
    asyncio_line = trio_line.partition("# or: ")[2]

    shown = _run_example(source.replace(trio_line, asyncio_line), upstream_url, monkeypatch, tmp_path, capsys)

    assert asyncio_line == "asyncio.run(main())"
    assert "What was my issue again?" in shown


def test_the_example_is_fifteen_lines_at_most() -> None:
    assert len(_example().strip().splitlines()) <= 15


def test_every_path_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:tests|benchmarks|actors|runtime|store)/[\w/.]*)`", README.read_text())

    assert named
    assert [path for path in named if not (README.parent / path).exists()] == []


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"(?:`|^)make (\w+)", README.read_text(), re.MULTILINE))
    makefile = (README.parent / "Makefile").read_text()

    assert {target for target in targets if not re.search(rf"^{target}\b.*:", makefile, re.MULTILINE)} == set()
