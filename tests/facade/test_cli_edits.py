"""The commands on a session that was edited: what is shown, counted, exported and imported."""

import json
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner, Result

from callboard import Runtime, Session
from callboard.actors.archive import Archive
from callboard.cli import app


def call(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def texts_of(store: Path, session_id: str) -> list[str]:
    with Archive.open(store) as archive:
        return [message.text for message in archive.messages(session_id)]


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A store with a session that was edited, and has state."""
    path = tmp_path / "edited.lmdb"

    async def fill() -> None:
        async with Runtime(path) as runtime:
            session = Session(runtime, "user-1")
            await session.add_messages([{"role": "user", "content": f"text {number}"} for number in range(1, 5)])
            await session.pop(2, by="Dana", reason="a typo")
            await session.add_message("user", "text 5")
            await session.state.update({"step": 2, "deep": {"n": [1]}})
            await session.pop()

    anyio.run(fill, backend="trio")
    return path


def test_what_edits_removed_is_not_shown_nor_counted(edited: Path) -> None:
    shown = json.loads(call("show", "user-1", "--store", edited, "--json").stdout)
    listed = json.loads(call("sessions", "--store", edited, "--json").stdout)

    assert [message["content"] for message in shown["messages"]] == ["text 1", "text 2"]
    assert (shown["head"]["message_count"], shown["head"]["last_seq"], listed["message_count"]) == (2, 5, 2)
    assert "text 3" not in call("show", "user-1", "--store", edited).stdout
    assert "2 messages" in call("show", "user-1", "--store", edited).stdout


def test_an_export_has_what_edits_removed_and_the_state(edited: Path, tmp_path: Path) -> None:
    exported = call("export", "user-1", "--store", edited).stdout
    result = call("import", "-", "--store", tmp_path / "other.lmdb", text=exported)
    copied = call("import", "-", "--store", edited, "--as", "copy", text=exported)

    assert "user-1: 2 messages, 0 runs" in result.stdout, result.output
    assert copied.exit_code == 0
    assert call("export", "user-1", "--store", tmp_path / "other.lmdb").stdout == exported
    for path, session_id in ((tmp_path / "other.lmdb", "user-1"), (edited, "copy")):
        with Archive.open(path) as archive:
            audit = archive.audit(session_id)
            assert [message.text for message in audit.messages] == [f"text {number}" for number in range(1, 6)]
            assert [(edit.removed, edit.by, edit.reason) for edit in audit.edits] == [
                (((3, 4),), "Dana", "a typo"),
                (((5, 5),), None, ""),
            ]
            assert archive.state(session_id) == {"step": 2, "deep": {"n": [1]}}
        assert texts_of(path, session_id) == ["text 1", "text 2"]


@pytest.mark.parametrize(
    ("line", "change", "reason"),
    [
        (1, {"removed": [[4, 9]]}, "no places of 5 messages"),
        (1, {"removed": [[0, 2]]}, "no places of 5 messages"),
        (1, {"removed": [[4, 5], [2, 3]]}, "no places of 5 messages"),
        (1, {"removed": [[3, 3], [4, 5]]}, "no places of 5 messages"),
        (1, {"removed": [[4, 5]]}, "edit 2 removed messages 3 to 4, which the head does not say"),
        (1, {"forked_from": {"session_id": "", "seq": 1}}, "session id"),
        (7, {"number": 99}, "edit 99 does not belong"),
        (8, {"number": 2}, "edit 2 does not belong"),
        (7, {"kind": "what"}, "'what'"),
        (7, {"removed": [[2, 1]]}, "no places"),
        (7, {"at_ms": -1}, "a time is"),
        (7, {"revision": -1}, "a count is"),
        (7, {"reason": "x" * 9_999}, "the edit's reason has 9999 characters"),
        (9, {"key": ""}, "state key"),
        (9, {"value": {"n": 2**70}}, "state"),
        (10, {"key": "deep"}, "a key of state comes once"),
    ],
)
def test_a_wrong_line_about_edits_or_state_is_named(
    edited: Path, tmp_path: Path, *, line: int, change: dict[str, object], reason: str
) -> None:
    lines = call("export", "user-1", "--store", edited).stdout.splitlines()
    assert len(lines) == 10
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **change})

    result = call("import", "-", "--store", tmp_path / "other.lmdb", text="\n".join(lines))

    assert result.exit_code == 1
    assert reason in result.stderr
    assert not (tmp_path / "other.lmdb").exists()
