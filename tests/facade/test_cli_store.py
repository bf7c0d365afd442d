"""`callboard store ...`, against real stores, with and without a process that writes to them."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import lmdb
import pytest
from typer.testing import CliRunner, Result

from callboard import Agent, Runtime, Session
from callboard.actors.archive import Archive
from callboard.cli import app
from callboard.cli_store import NEW_KEY_VARIABLE
from callboard.store import Index, keys
from callboard.store.lmdb_check import check_directory
from callboard.testing import ScriptedModel

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "format-1"
COMMANDS = ("check", "backup", "compact", "migrate", "stats", "export", "import", "expire", "rotate-key")

HOLDER = """
import sys, anyio
from callboard import Runtime, Session
async def main():
    async with Runtime(sys.argv[1]) as runtime:
        await Session(runtime, "of-the-holder").add_message("user", "just written")
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
anyio.run(main, backend="trio")
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CALLBOARD_STORE", "CALLBOARD_MASTER_KEY", NEW_KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def filled(path: Path, *, master_key: str | None = None) -> Path:
    async def fill() -> None:
        async with Runtime(path, master_key=master_key) as runtime:
            session = Session(runtime, "user-1", owner="Dana", tags=("trial",), metadata={"plan": "pro"})
            await Agent("Helper", model=ScriptedModel(), session=session).chat("What is my name?")
            await Session(runtime, "user-2", owner="Lee").add_message("user", "Hi " + "x" * 20_000)

    anyio.run(fill, backend="trio")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two sessions."""
    return filled(tmp_path / "support.lmdb")


@contextmanager
def in_use(store: Path) -> Generator[int]:
    command = [sys.executable, "-c", HOLDER, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield holder.pid
        holder.kill()


def call(command: str, *arguments: str | Path, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["store", command, *map(str, arguments)], input=text)


def told(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)


def texts(store: Path, session_id: str) -> list[str]:
    with Archive.open(store) as archive:
        return [message.text for message in archive.messages(session_id)]


def damage(store: Path, key: bytes) -> None:
    with lmdb.open(str(store)) as env, env.begin(write=True) as txn, txn.cursor() as cursor:
        assert cursor.set_range(key)
        cursor.put(cursor.key(), b"damaged")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    result = call(command, "--help")

    assert result.exit_code == 0
    assert re.search(rf"Example: .*callboard store {command}", result.output)


@pytest.mark.parametrize(
    "command",
    [
        ("check",), ("check", "--repair"), ("backup", "copy"), ("compact",), ("migrate",), ("stats",), ("export",),
        ("expire", "--all", "--older-than", "1"),
    ],
)  # fmt: skip
def test_a_store_that_is_not_there_is_one_clear_line_and_is_not_made(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = call(*command, "--store", tmp_path / "none")

    assert result.exit_code == 1
    assert result.stderr.startswith("callboard: ")
    assert str(tmp_path / "none") in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_sound_store_is_found_sound(store: Path) -> None:
    result, as_json = call("check", "--store", store), call("check", "--store", store, "--json")

    assert (result.exit_code, as_json.exit_code) == (0, 0)
    assert "all is sound" in result.stdout
    assert told(as_json)["sound"] is True
    assert told(as_json)["streams"] == 2
    assert told(as_json)["findings"] == []


@pytest.mark.parametrize("key", [keys.guard_key(1), keys.row_prefix(1), keys.index_prefix(Index.UPDATED)])
def test_damage_is_told_with_its_place_and_mended_as_far_as_can_be(store: Path, key: bytes) -> None:
    damage(store, key)

    found = call("check", "--store", store, "--json")
    repaired = call("check", "--store", store, "--repair")

    assert found.exit_code == 1
    assert told(found)["findings"][0]["where"]
    assert "faults were found" in repaired.stdout
    assert texts(store, "user-2")[0].startswith("Hi ")
    if key != keys.row_prefix(1):  # what is lost of its rows is gone
        assert repaired.exit_code == 0
        assert texts(store, "user-1") == ["What is my name?", "echo: What is my name?"]
        assert call("check", "--store", store).exit_code == 0


def test_a_store_in_use_is_checked_copied_and_exported_as_it_is_and_not_changed(store: Path, tmp_path: Path) -> None:
    with in_use(store) as pid:
        checked = call("check", "--store", store)
        copied = call("backup", tmp_path / "copy", "--store", store)
        exported = call("export", "--store", store, "-o", tmp_path / "all.jsonl")
        counted = call("stats", "--store", store, "--json")
        refusals = [
            call(command, *options, "--store", store)
            for command, *options in (
                ("check", "--repair"), ("compact",), ("migrate",), ("expire", "--all", "--older-than", "0"),
                ("import", tmp_path / "all.jsonl"),
            )
        ]  # fmt: skip

    assert [one.exit_code for one in (checked, copied, exported, counted)] == [0, 0, 0, 0], checked.output
    assert texts(tmp_path / "copy", "of-the-holder") == ["just written"]
    assert '"of-the-holder"' in (tmp_path / "all.jsonl").read_text()
    assert (tmp_path / "all.jsonl").stat().st_mode & 0o777 == 0o600
    assert told(counted)["streams"] == 3
    for refusal in refusals:
        assert refusal.exit_code == 1
        assert f"process {pid}" in refusal.stderr, refusal.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl", "copy", "support.lmdb"]


def test_everything_goes_out_and_comes_back(store: Path, tmp_path: Path) -> None:
    exported = call("export", "--store", store)
    imported = call("import", "-", "--store", tmp_path / "other", text=exported.stdout_bytes)

    assert imported.exit_code == 0, imported.output
    assert "2 streams" in imported.stdout
    again = call("export", "--store", tmp_path / "other").stdout.splitlines()
    assert [renewed(line) for line in again[1:]] == [renewed(line) for line in exported.stdout.splitlines()[1:]]
    assert call("check", "--store", tmp_path / "other").exit_code == 0


def renewed(line: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name not in ("epoch", "version")}


def test_an_import_leaves_what_is_there_alone_unless_told(store: Path, tmp_path: Path) -> None:
    call("export", "--store", store, "-o", tmp_path / "all.jsonl")
    before = texts(store, "user-1")

    refused = call("import", tmp_path / "all.jsonl", "--store", store)
    skipped = call("import", tmp_path / "all.jsonl", "--store", store, "--existing", "skip")
    replaced = call("import", tmp_path / "all.jsonl", "--store", store, "--existing", "replace")
    mistaken = call("import", tmp_path / "all.jsonl", "--store", store, "--existing", "what")

    assert (refused.exit_code, skipped.exit_code, replaced.exit_code, mistaken.exit_code) == (1, 0, 0, 1)
    assert "2 of the streams are in" in refused.stderr
    assert "2 were there already" in skipped.stdout
    assert texts(store, "user-1") == before
    assert call("check", "--store", store).exit_code == 0


def test_a_file_that_is_no_export_makes_no_store(store: Path, tmp_path: Path) -> None:
    lines = call("export", "--store", store).stdout.splitlines(keepends=True)

    for text in ("", "no json\n", "".join(lines[:-1]), "".join(lines[1:])):
        result = call("import", "-", "--store", tmp_path / "other", text=text)

        assert result.exit_code == 1
        assert re.match(r"callboard: line \d+: ", result.stderr)
        assert not (tmp_path / "other").exists()


def test_an_export_of_damaged_records_says_what_is_left_out(store: Path, tmp_path: Path) -> None:
    damage(store, keys.row_prefix(1))

    result = call("export", "--store", store, "-o", tmp_path / "all.jsonl")

    assert result.exit_code == 1
    assert "left out: " in result.stderr
    assert '"user-2"' in (tmp_path / "all.jsonl").read_text()


def test_a_compact_store_says_by_how_much(store: Path) -> None:
    result = call("compact", "--store", store)

    before, after = map(int, re.findall(r"\d+(?= bytes| now)", result.stdout))
    assert (result.exit_code, after <= before) == (0, True)
    assert texts(store, "user-1")[0] == "What is my name?"


def test_an_older_store_is_named_and_migrated(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    shutil.copy(GOLDEN / "data.mdb", tmp_path / "old" / "data.mdb")

    refused = CliRunner().invoke(app, ["sessions", "--store", str(tmp_path / "old")])
    migrated, again = call("migrate", "--store", tmp_path / "old"), call("migrate", "--store", tmp_path / "old")

    assert refused.exit_code == 1
    assert "callboard store migrate" in refused.stderr
    assert (migrated.exit_code, again.exit_code) == (0, 0), migrated.output
    assert "9 streams migrated" in migrated.stdout
    assert "present format already" in again.stdout
    assert texts(tmp_path / "old", "grüße") == ["Grüß Gott \N{GRINNING FACE}"]
    assert call("check", "--store", tmp_path / "old").exit_code == 0


def test_sessions_expire_by_tag_or_all(store: Path) -> None:
    kept = call("expire", "--tag", "trial", "--older-than", "1", "--store", store)
    dropped = call("expire", "--tag", "trial", "--older-than", "0", "--store", store)
    unclear = call("expire", "--older-than", "0", "--store", store)
    rest = call("expire", "--all", "--older-than", "0", "--store", store)

    assert "0 sessions deleted" in kept.stdout
    assert "1 sessions deleted" in dropped.stdout
    assert (unclear.exit_code, "--tag TAG, or --all" in unclear.stderr) == (1, True)
    assert "1 sessions deleted" in rest.stdout
    assert texts(store, "user-2") == []


def test_stats_are_for_people_and_programs(store: Path) -> None:
    plain, as_json = call("stats", "--store", store), call("stats", "--store", store, "--json")

    assert re.search(r"streams +2", plain.stdout)
    assert told(as_json)["file_bytes"] == (store / "data.mdb").stat().st_size


def test_a_sealed_store_is_looked_after_with_its_key_and_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    store = filled(tmp_path / "sealed", master_key=old)

    keyless = call("check", "--store", store)
    monkeypatch.setenv("CALLBOARD_MASTER_KEY", old)
    exported = call("export", "--store", store)
    unset = call("rotate-key", "--store", store)
    monkeypatch.setenv(NEW_KEY_VARIABLE, new)
    rotated = call("rotate-key", "--rewrite", "--store", store)
    refused = call("export", "--store", store)
    monkeypatch.setenv("CALLBOARD_MASTER_KEY", new)
    again = call("export", "--store", store)

    assert (keyless.exit_code, unset.exit_code, rotated.exit_code, refused.exit_code) == (0, 1, 0, 1), rotated.output
    assert NEW_KEY_VARIABLE in unset.stderr
    assert list(map(renewed, exported.stdout.splitlines()[1:])) == list(map(renewed, again.stdout.splitlines()[1:]))
    assert call("check", "--store", store).exit_code == 0
    assert check_directory(store).findings == []


def test_a_reader_that_has_seen_enough_is_no_error(store: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "callboard", "store", "export", "--store", str(store)]
    result = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write_end)

    assert (result.returncode, result.stderr) == (0, b"")
