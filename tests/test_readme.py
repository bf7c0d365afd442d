"""The README's example runs as written, on both event loops; what the README names is there."""

import asyncio
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from callboard import Runtime, WrongKey
from callboard.cli_store import store_app
from callboard.store import LmdbStore, SealedStore
from callboard.testing import FakeUpstream

README = Path(__file__).parent.parent / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run without the repository around them")


def _example(containing: str = "import trio") -> str:
    """The first block of Python that has this in it."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return next(block for block in blocks if containing in block)


def _for_asyncio(source: str) -> str:
    trio_line = next(line for line in source.splitlines() if line.startswith("trio.run(main)"))
    asyncio_line = trio_line.partition("# or: ")[2]
    assert asyncio_line == "asyncio.run(main())"
    return source.replace(trio_line, asyncio_line)


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """What the example needs: a model server, in a thread of its own as the example brings its own event loop, and an
    empty folder to work in."""
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(FakeUpstream()) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        monkeypatch.setenv("OPENAI_MODEL", "fake")
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.chdir(tmp_path)
        yield tmp_path


def _run(source: str) -> None:
    exec(compile(source, str(README), "exec"), {"__name__": "__main__", "asyncio": asyncio})


def test_the_example_runs_as_written_under_trio(surroundings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(_example())

    assert "What was my issue again?" in capsys.readouterr().out
    assert (surroundings / "support.lmdb").is_dir()


def test_the_example_runs_as_its_comment_says_under_asyncio(
    surroundings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(_for_asyncio(_example()))

    assert "What was my issue again?" in capsys.readouterr().out
    assert (surroundings / "support.lmdb").is_dir()


def test_the_example_of_an_actor_of_ones_own_counts_on_over_runs_and_event_loops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = _example("class Counter(Actor)")

    _run(source)
    _run(_for_asyncio(source))

    assert capsys.readouterr().out == "1\n2\n"


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


def test_the_keys_of_a_sealed_store_change_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"old_key": bytes(32), "new_key": bytes(range(32))}
    SealedStore(LmdbStore("support.lmdb"), names["old_key"]).close()

    exec(compile(_example("store.rotate(new_key)"), str(README), "exec"), names)

    with pytest.raises(WrongKey):
        SealedStore(LmdbStore("support.lmdb"), names["old_key"])
    SealedStore(LmdbStore("support.lmdb"), names["new_key"]).close()


def test_the_commands_and_policies_of_operating_a_store_are_there(tmp_path: Path) -> None:
    section = README.read_text().partition("## Operating a store")[2].partition("\n## ")[0]
    commands = {name for name in re.findall(r"`callboard store ([a-z-]+)", section)} | {"import"}
    block = _example("Retention(tag=")
    program = "async def main(runtime):\n" + textwrap.indent(block, "    ")
    names: dict[str, Any] = {}
    exec(compile(program, str(README), "exec"), names)

    async def main() -> None:
        async with Runtime(tmp_path / "s") as runtime:
            await names["main"](runtime)

    anyio.run(main, backend="trio")

    assert commands == {
        command.name or getattr(command.callback, "__name__", "") for command in store_app.registered_commands
    }
