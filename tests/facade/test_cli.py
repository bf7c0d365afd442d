"""The command line, against a real store and a model server over real HTTP."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.from_thread
import pytest
from typer.testing import CliRunner, Result

from callboard import Agent, OpenAIChat, Runtime, Session
from callboard.actors.archive import Archive
from callboard.actors.run_record import RunRecord
from callboard.cli import app
from callboard.testing import FakeUpstream, answer, refuse

PIECES = ("Hello", " from", " the", " fake")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL", "CALLBOARD_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    """A server in a thread of its own, because the command line blocks."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(FakeUpstream()) as server,
    ):
        yield server


@pytest.fixture
def store(tmp_path: Path, upstream: FakeUpstream) -> Path:
    """A store with two sessions; the first has three messages and one run."""
    path = tmp_path / "support.lmdb"

    async def fill() -> None:
        async with Runtime(path) as runtime:
            session = Session(runtime, "user-1", owner="Dana", tags=("billing",), metadata={"plan": "pro"})
            agent = Agent("Helper", model=OpenAIChat(base_url=upstream.url, model="fake"), session=session)
            await session.add_message("user", "My name is Dana.", author="Dana")
            await agent.chat("What is my name?")
            await Session(runtime, "user-2", owner="Lee").add_message("user", "Hi.")

    anyio.run(fill, backend="trio")
    return path


def call(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def runs_of(store: Path, session_id: str) -> list[RunRecord]:
    with Archive.open(store) as archive:
        return archive.runs(session_id)


def texts_of(store: Path, session_id: str) -> list[str]:
    with Archive.open(store) as archive:
        return [message.text for message in archive.messages(session_id)]


def test_the_help_names_every_command_and_where_to_begin() -> None:
    result = call("--help")

    assert result.exit_code == 0
    for command in ("demo", "chat", "sessions", "show", "export", "import"):
        assert re.search(rf"\b{command}\b", result.output)
    assert "callboard demo" in result.output


@pytest.mark.parametrize("command", ["demo", "chat", "sessions", "show", "export", "import"])
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    result = call(command, "--help")

    assert result.exit_code == 0
    assert f"Example: callboard {command}" in result.output


def test_the_version_is_printed() -> None:
    result = call("--version")

    assert result.exit_code == 0
    assert re.fullmatch(r"callboard \d+\.\d+\.\d+\S*\n", result.output)


def test_sessions_are_listed_the_latest_first(store: Path) -> None:
    result = call("sessions", "--store", store, "--json")

    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["user-2", "user-1"]


@pytest.mark.parametrize(
    ("options", "ids"),
    [(("--owner", "Dana"), ["user-1"]), (("--tag", "billing"), ["user-1"]), (("--limit", "1"), ["user-2"])],
)
def test_sessions_are_filtered(store: Path, options: tuple[str, ...], ids: list[str]) -> None:
    result = call("sessions", "--store", store, "--json", *options)

    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ids


def test_the_table_of_sessions_says_that_there_are_more(store: Path) -> None:
    result = call("sessions", "--store", store, "--limit", "1")

    assert "user-2" in result.stdout
    assert "user-1" not in result.stdout
    assert "more than 1" in result.stdout


def test_show_prints_messages_with_their_authors_and_runs_with_tokens(store: Path) -> None:
    (run,) = runs_of(store, "user-1")

    result = call("show", "user-1", "--store", store)

    assert "Dana (user): My name is Dana." in result.stdout
    assert "Helper (assistant): echo: What is my name?" in result.stdout
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith(run.id))
    assert row[1:3] == ["Helper", "completed"]
    assert row[-1] == str(run.usage.total_tokens)
    assert run.usage.total_tokens > 0


def test_a_pipe_gets_whole_lines(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    (run,) = runs_of(store, "user-1")

    result = call("show", "user-1", "--store", store)

    assert re.search(rf"^{run.id} .* {run.usage.total_tokens}\s*$", result.stdout, re.MULTILINE)


def test_show_as_json_has_head_messages_and_runs(store: Path) -> None:
    result = call("show", "user-1", "--store", store, "--json", "--limit", "2")

    shown = json.loads(result.stdout)
    assert shown["head"]["metadata"] == {"plan": "pro"}
    assert [message["seq"] for message in shown["messages"]] == [2, 3]
    assert [run["status"] for run in shown["runs"]] == ["completed"]


def test_what_a_model_wrote_cannot_move_the_cursor(tmp_path: Path) -> None:
    async def fill() -> None:
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            await Session(runtime, "user-1").add_message("assistant", "[bold]\x1b[2J\x1b]0;title\x07 done")

    anyio.run(fill, backend="trio")

    result = call("show", "user-1", "--store", tmp_path / "s.lmdb")

    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[bold]" in result.stdout


def test_reading_works_while_another_runtime_writes(store: Path) -> None:
    async def show_inside() -> subprocess.CompletedProcess[str]:
        async with Runtime(store) as runtime:
            await Session(runtime, "user-1").add_message("user", "one more")
            return await anyio.to_thread.run_sync(lambda: run_apart("show", "user-1", "--store", str(store)))

    result = anyio.run(show_inside, backend="trio")

    assert result.returncode == 0
    assert "one more" in result.stdout


@pytest.mark.parametrize("command", ["show", "export"])
def test_an_unknown_session_is_one_clear_line(store: Path, command: str) -> None:
    result = call(command, "nobody", "--store", store)

    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch(r"callboard: there is no session 'nobody' in .*\n", result.stderr)


@pytest.mark.parametrize("command", [("sessions",), ("show", "user-1"), ("export", "user-1")])
def test_a_store_that_is_not_there_is_one_clear_line_and_is_not_made(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = call(*command, "--store", tmp_path / "none")

    assert result.exit_code == 1
    assert result.stderr.startswith("callboard: there is no store at")
    assert not (tmp_path / "none").exists()


def test_an_export_imported_elsewhere_is_the_same_session(store: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "user-1.jsonl", tmp_path / "other.lmdb"
    call("export", "user-1", "--store", store, "--output", file)

    result = call("import", file, "--store", other)

    assert result.exit_code == 0, result.output
    assert call("export", "user-1", "--store", other).stdout == file.read_text()
    assert call("sessions", "--store", other, "--tag", "billing", "--json").stdout != ""


def test_an_import_reads_standard_input(store: Path, tmp_path: Path) -> None:
    exported = call("export", "user-1", "--store", store).stdout

    result = call("import", "-", "--store", tmp_path / "other.lmdb", text=exported)

    assert "user-1: 3 messages, 1 runs" in result.stdout


def test_an_imported_session_goes_on(store: Path, tmp_path: Path, upstream: FakeUpstream) -> None:
    exported = call("export", "user-1", "--store", store).stdout
    call("import", "-", "--store", store, "--as", "copy", text=exported)

    result = call("chat", "copy", "--store", store, "--base-url", upstream.url, "--model", "fake", text="And now?\n")

    assert result.exit_code == 0, result.output
    assert texts_of(store, "copy") == [*texts_of(store, "user-1"), "And now?", "echo: And now?"]


def test_an_import_leaves_an_existing_session_alone_unless_it_gets_another_id(store: Path) -> None:
    exported = call("export", "user-1", "--store", store).stdout

    refused = call("import", "-", "--store", store, text=exported)
    accepted = call("import", "-", "--store", store, "--as", "copy", text=exported)

    assert refused.exit_code == 1
    assert "--as" in refused.stderr
    assert call("export", "user-1", "--store", store).stdout == exported
    assert accepted.exit_code == 0
    (original,), (copied,) = runs_of(store, "user-1"), runs_of(store, "copy")
    assert copied.id != original.id
    with Archive.open(store) as archive:
        assert [message.run_id for message in archive.messages("copy")] == [None, copied.id, copied.id]


def test_a_session_that_was_deleted_can_be_imported_again(store: Path) -> None:
    exported = call("export", "user-1", "--store", store).stdout

    async def delete() -> None:
        async with Runtime(store) as runtime:
            assert await Session(runtime, "user-1").delete()

    anyio.run(delete, backend="trio")

    result = call("import", "-", "--store", store, text=exported)

    assert result.exit_code == 0, result.output
    assert call("export", "user-1", "--store", store).stdout == exported


@pytest.mark.parametrize(
    ("line", "change", "reason"),
    [
        (1, {"type": "message", "role": "user", "seq": 1}, "has to come first"),
        (1, {"message_count": 4}, "its first line says 4"),
        (1, {"tags": [""]}, "tag"),
        (2, {"role": "robot"}, "Invalid enum value 'robot'"),
        (3, {"seq": 9}, "message 2 comes next"),
        (4, {"type": "what"}, "Invalid value 'what'"),
        (5, {"session_id": "other"}, "belongs to session 'other'"),
        (5, {"id": ""}, "a run's id"),
        (6, {"run_id": "other"}, "does not come before"),
        (1, {"updated_at_ms": 2**60}, "a time is"),
        (1, {"metadata": {"n": 2**70}}, "metadata"),
        (1, {"revision": 2**70}, "a count is"),
        (2, {"created_at_ms": 2**70}, "a time is"),
        (2, {"extra": {"n": 2**70}}, "extra"),
        (2, {"content": None}, "no content"),
        (5, {"usage": {"total_tokens": 2**70}}, "usage.total_tokens must be from 0"),
        (5, {"input": [{"type": "message", "role": "user", "content": "Hi", "extra": {"n": 2**70}}]}, "input[0].extra"),
        (5, {"attempts": -3}, "a count is"),
        (5, {"first_seq": 99}, "messages 99 to"),
        (5, {"first_seq": 2, "last_seq": 2**70}, "messages 2 to"),
        (5, {"error": "x" * 1_000_000}, "the run's error has 1000000 characters"),
        (5, {"model": "x" * 1_000_000}, "the run's model has 1000000 characters"),
        (6, {"name": "x" * 1_000_000}, "the span's name has 1000000 characters"),
        (6, {"started_at_ms": 2**70}, "a time is"),
        (6, {"ended_at_ms": -1}, "a time is"),
        (6, {"parent": 2**70}, "parent"),
        (6, {"attributes": {"n": 2**70}}, "attributes"),
        (6, {"usage": {"requests": -1}}, "usage.requests"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_stored(
    store: Path, tmp_path: Path, *, line: int, change: dict[str, object], reason: str
) -> None:
    lines = call("export", "user-1", "--store", store).stdout.splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **change})

    result = call("import", "-", "--store", tmp_path / "other.lmdb", text="\n".join(lines))

    assert result.exit_code == 1
    assert reason in result.stderr
    assert re.match(rf"callboard: line {len(lines) if 'first line' in reason else line}: ", result.stderr)
    assert not (tmp_path / "other.lmdb").exists()


@pytest.mark.parametrize("text", ["", "\n\n", "not json\n", "[1, 2]\n", '{"type": "session"}\n', "\udcff"])
def test_what_is_no_export_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(text.encode(errors="surrogateescape"))

    result = call("import", file, "--store", tmp_path / "other.lmdb")

    assert result.exit_code == 1
    assert result.stderr.startswith("callboard: line 1: ")
    assert result.stderr.count("\n") == 1


def test_a_run_that_was_open_when_it_was_exported_is_imported_as_interrupted(store: Path, tmp_path: Path) -> None:
    lines = call("export", "user-1", "--store", store).stdout.splitlines()
    run = json.loads(lines[4])
    lines[4] = json.dumps({**{k: v for k, v in run.items() if k != "ended_at_ms"}, "status": "running"})

    call("import", "-", "--store", tmp_path / "other.lmdb", text="\n".join(lines))

    assert [run.status for run in runs_of(tmp_path / "other.lmdb", "user-1")] == ["interrupted"]


@pytest.mark.parametrize("ending", ["", "\nnever sent\n", "/quit\nnever sent\n"])
def test_chat_streams_an_answer_and_ends(tmp_path: Path, upstream: FakeUpstream, ending: str) -> None:
    upstream.queue(answer(pieces=PIECES))

    result = call(
        "chat", "user-1", "--store", tmp_path / "s", "--base-url", upstream.url, "--model", "m", "--agent", "Ann",
        "--instructions", "Be brief.", text="Hi\n" + ending,
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "Ann: Hello from the fake" in result.stdout
    assert texts_of(tmp_path / "s", "user-1") == ["Hi", "Hello from the fake"]
    assert [body["messages"][0]["content"] for body in upstream.requests] == ["Be brief."]
    assert upstream.requests[0]["stream"] is True


def test_chat_goes_on_after_a_model_error(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.queue(refuse(400, "no such thing"))

    result = call(
        "chat", "user-1", "--store", tmp_path / "s", "--base-url", upstream.url, "--model", "m", text="one\ntwo\n"
    )

    assert result.exit_code == 0, result.output
    assert "no such thing" in result.stdout
    assert texts_of(tmp_path / "s", "user-1") == ["two", "echo: two"]


def test_chat_of_a_script_whose_last_answer_failed_says_so_in_its_exit_code(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.queue(answer(pieces=PIECES), refuse(400, "no such thing"))

    result = call(
        "chat", "user-1", "--store", tmp_path / "s", "--base-url", upstream.url, "--model", "m", text="one\ntwo\n"
    )

    assert result.exit_code == 1
    assert "no such thing" in result.stdout
    assert "Traceback" not in result.output
    assert texts_of(tmp_path / "s", "user-1") == ["one", "Hello from the fake"]


def test_chat_of_a_person_ends_well_whatever_the_last_answer_was(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.queue(refuse(400, "no such thing"))
    person, terminal = os.openpty()
    os.write(person, b"Hi\n/quit\n")
    command = [sys.executable, "-m", "callboard", "chat", "user-1", "--store", str(tmp_path / "s")]

    result = subprocess.run(
        [*command, "--base-url", upstream.url, "--model", "m"],
        stdin=terminal, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(person)
    os.close(terminal)

    assert (result.returncode, result.stderr) == (0, b"")
    assert b"no such thing" in result.stdout


@pytest.mark.parametrize(
    "command",
    [("sessions",), ("sessions", "--json"), ("show", "user-1"), ("show", "user-1", "--json"), ("export", "user-1")],
)
def test_a_reader_that_has_seen_enough_is_no_error(store: Path, command: tuple[str, ...]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-m", "callboard", *command, "--store", str(store)],
        stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(write_end)

    assert (result.returncode, result.stderr) == (0, b"")


def test_chat_takes_the_server_from_the_environment(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_MODEL", "from-the-environment")
    monkeypatch.setenv("CALLBOARD_STORE", str(tmp_path / "s"))

    call("chat", "user-1", text="Hi\n")

    assert [body["model"] for body in upstream.requests] == ["from-the-environment"]
    assert texts_of(tmp_path / "s", "user-1") == ["Hi", "echo: Hi"]


def test_chat_without_a_server_is_one_clear_line(tmp_path: Path) -> None:
    result = call("chat", "user-1", "--store", tmp_path / "s", text="Hi\n")

    assert result.exit_code == 1
    assert result.stderr.startswith("callboard: ")
    assert "OPENAI_BASE_URL" in result.stderr
    assert result.stderr.count("\n") == 1


def test_chat_on_a_store_that_another_process_has_open_names_the_process(store: Path, upstream: FakeUpstream) -> None:
    async def chat_inside() -> subprocess.CompletedProcess[str]:
        async with Runtime(store):
            return await anyio.to_thread.run_sync(
                lambda: run_apart("chat", "user-1", "--store", str(store), "--base-url", upstream.url, "--model", "m")
            )

    result = anyio.run(chat_inside, backend="trio")

    assert result.returncode == 1
    assert f"process {os.getpid()}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.kill
def test_ctrl_c_stops_an_answer_and_not_the_chat(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.queue(answer(pieces=["begin", *["."] * 1000], piece_delay_s=0.05))
    command = [
        sys.executable, "-m", "callboard", "chat", "user-1", "--store", str(tmp_path / "s"),
        "--base-url", upstream.url, "--model", "m",
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write(b"one\n")
        chat.stdin.flush()
        seen = b""
        while b"begin" not in seen:
            seen += os.read(chat.stdout.fileno(), 1000)

        chat.send_signal(signal.SIGINT)
        output, errors = chat.communicate(b"two\n", timeout=20)

    assert (chat.returncode, errors) == (0, b"")
    assert b"stopped" in output
    assert texts_of(tmp_path / "s", "user-1") == ["two", "echo: two"]
    assert [run.status for run in runs_of(tmp_path / "s", "user-1")] == ["cancelled", "completed"]


def run_apart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, where its store is not ours."""
    command = [sys.executable, "-m", "callboard", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, input="")
