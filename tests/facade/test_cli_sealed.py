"""The commands on a sealed store: with CALLBOARD_MASTER_KEY as on any other, without it one clear line."""

import json
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner, Result

from callboard import Runtime, Session
from callboard.actors.archive import Archive
from callboard.cli import app

KEY, OTHER_KEY = "5e" * 32, "0d" * 32


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "sealed.lmdb"

    async def fill() -> None:
        async with Runtime(path, master_key=KEY) as runtime:
            await Session(runtime, "user-1", owner="Dana").add_message("user", "My name is Dana.")

    anyio.run(fill, backend="trio")
    return path


def call(*arguments: str | Path, key: str | None) -> Result:
    environment = {"CALLBOARD_MASTER_KEY": key, "CALLBOARD_STORE": None}
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])


def test_reading_commands_take_the_key_from_the_environment(store: Path) -> None:
    listed = call("sessions", "--store", store, "--owner", "Dana", "--json", key=KEY)
    shown = call("show", "user-1", "--store", store, "--json", key=KEY)

    assert json.loads(listed.output)["id"] == "user-1"
    assert json.loads(shown.output)["messages"][0]["content"] == "My name is Dana."


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (None, "is sealed: give the master key"),
        ("", "is sealed: give the master key"),
        (OTHER_KEY, "is sealed with the master key"),
        ("sesame", "a master key as text is 64 hex digits"),
    ],
)
def test_without_the_right_key_a_command_says_so_in_one_line(store: Path, key: str | None, told: str) -> None:
    for arguments in (("sessions",), ("show", "user-1"), ("export", "user-1")):
        result = call(*arguments, "--store", store, key=key)

        assert result.exit_code == 1
        assert told in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "Dana" not in result.output


def test_a_session_is_carried_from_one_sealed_store_into_another(store: Path, tmp_path: Path) -> None:
    lines, other = tmp_path / "user-1.jsonl", tmp_path / "other.lmdb"

    exported = call("export", "user-1", "--store", store, "--output", lines, key=KEY)
    imported = call("import", lines, "--store", other, key=OTHER_KEY)

    assert (exported.exit_code, imported.exit_code) == (0, 0)
    with Archive.open(other, master_key=OTHER_KEY) as archive:
        assert [message.text for message in archive.messages("user-1")] == ["My name is Dana."]
    assert all(b"Dana" not in file.read_bytes() for file in other.iterdir())
