"""The demo: end to end against a slow model server, its ways to fail, and its comparison on its own."""

import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from callboard.actors.archive import Archive
from callboard.actors.message import Message, Usage
from callboard.actors.run_record import RunRecord, RunStatus
from callboard.demo_case import CASES
from callboard.demo_events import Acknowledged, TurnStarted
from callboard.demo_ledger import Ledger
from callboard.testing import Body, FakeUpstream, UpstreamAnswer, answer, refuse

WORDS = 20


def slowly(body: Body) -> UpstreamAnswer:
    """Streams for about half a second, so that the kill finds a turn that is under way."""
    question = body["messages"][-1]["content"]
    return answer("Answer to: " + question + " word" * WORDS, piece_delay_s=0.02)


def environment(upstream: FakeUpstream) -> dict[str, str]:
    return os.environ | {
        "OPENAI_BASE_URL": upstream.url,
        "OPENAI_MODEL": "fake",
        "OPENAI_API_KEY": "none",
        "COLUMNS": "220",
    }


def command(store: Path) -> list[str]:
    return [sys.executable, "-m", "callboard", "demo", "--store", str(store)]


async def run_demo(upstream: FakeUpstream, store: Path) -> tuple[int, str, str]:
    result = await anyio.run_process(command(store), env=environment(upstream), check=False)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.mark.kill
async def test_the_demo_kills_its_worker_in_mid_turn_and_loses_nothing(tmp_path: Path) -> None:
    store = tmp_path / "case.lmdb"
    async with FakeUpstream(slowly) as upstream:
        code, output, errors = await run_demo(upstream, store)

    assert (code, errors) == (0, "")
    with Archive.open(store) as archive:
        for case in CASES:
            messages, runs = archive.messages(case.session_id), archive.runs(case.session_id)
            questions = [message.text for message in messages if message.role == "user"]
            assert questions == [turn.text for turn in case.turns]
            assert [message.author for message in messages if message.role == "assistant"] == [
                turn.agent for turn in case.turns
            ]
            assert [run.agent for run in runs if run.status == "completed"] == [turn.agent for turn in case.turns]
            assert {run.status for run in runs} <= {"completed", "interrupted"}
            for run in runs:
                assert re.search(rf"{run.id}\s+{run.agent}\s+{run.status}\s.*\s{run.usage.total_tokens}\b", output)
        cut = [run for run in archive.runs(CASES[0].session_id) if run.status == "interrupted"]
        stored = sum(len(archive.messages(case.session_id)) for case in CASES)
    assert [run.agent for run in cut] == ["Solution"]
    assert f"run {cut[0].id} of Solution (case-4711) is marked 'interrupted'" in output
    assert f"acknowledged messages: {stored}, in the store: {stored}, lost: 0" in output
    assert "SIGKILL" in output
    assert str(store) in output


@pytest.mark.kill
@pytest.mark.real_server
async def test_the_demo_needs_no_key_and_no_server_but_its_own(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}

    result = await anyio.run_process(command(tmp_path / "case.lmdb"), env=own, check=False)

    assert (result.returncode, result.stderr) == (0, b"")
    assert b"no key" in result.stdout
    assert re.search(rb"acknowledged messages: 12, in the store: 12, lost: 0, runs cut .*: [1-9]\n", result.stdout)


@pytest.mark.kill
async def test_both_cases_are_at_work_at_the_same_time(tmp_path: Path) -> None:
    async with FakeUpstream(slowly) as upstream:
        await run_demo(upstream, tmp_path / "case.lmdb")

        assert upstream.in_flight_max == 2


@pytest.mark.kill
async def test_a_model_that_refuses_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    async with FakeUpstream(lambda _: refuse(401, "this key is no good")) as upstream:
        code, output, errors = await run_demo(upstream, tmp_path / "case.lmdb")

    assert code == 1
    assert "this key is no good" in errors
    assert "Traceback" not in output + errors


@pytest.mark.kill
async def test_an_answer_in_one_piece_leaves_the_kill_to_a_later_turn_or_is_said(tmp_path: Path) -> None:
    async with FakeUpstream(lambda _: answer(pieces=["all at once"], delay_s=0.05)) as upstream:
        code, output, errors = await run_demo(upstream, tmp_path / "case.lmdb")

    # Whether the signal is faster than the end of so short a stream is the scheduler's choice; silence is not.
    assert (code, "lost: 0" in output) == (0, True) or "too fast" in errors or "before it could be killed" in errors


async def test_a_store_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"mine")
    async with FakeUpstream(slowly) as upstream:
        code, _, errors = await run_demo(upstream, tmp_path)

    assert code == 1
    assert re.fullmatch(r"callboard: .* is not an empty directory: .*\n", errors)
    assert (tmp_path / "data.mdb").read_bytes() == b"mine"


@pytest.mark.kill
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
async def test_the_worker_ends_with_the_demo_however_that_ends(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    async with (
        FakeUpstream(lambda _: answer("word " * 1000, piece_delay_s=0.5)) as upstream,
        started(command(tmp_path / "case.lmdb"), environment(upstream)) as demo,
    ):
        worker = await pid_of_worker(demo)

        demo.send_signal(sent)

        with anyio.fail_after(20):
            assert await demo.wait() == code
            await wait_gone(worker)


@pytest.mark.kill
async def test_a_worker_that_dies_by_itself_is_reported(tmp_path: Path) -> None:
    async with (
        FakeUpstream(lambda _: answer("word " * 1000, piece_delay_s=0.5)) as upstream,
        started(command(tmp_path / "case.lmdb"), environment(upstream)) as demo,
    ):
        worker = await pid_of_worker(demo)

        os.kill(worker, signal.SIGTERM)

        with anyio.fail_after(20):
            assert await demo.wait() == 1
        assert demo.stderr is not None
        assert b"ended before it could be killed: SIGTERM" in await demo.stderr.receive()


@asynccontextmanager
async def started(command: list[str], environment: Mapping[str, str]) -> AsyncGenerator[anyio.abc.Process]:
    async with await anyio.open_process(command, env=environment) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def pid_of_worker(demo: anyio.abc.Process) -> int:
    assert demo.stdout is not None
    output = b""
    with anyio.fail_after(20):
        while (found := re.search(rb"worker (\d+) has opened", output)) is None:
            output += await demo.stdout.receive()
    return int(found[1])


async def wait_gone(pid: int) -> None:
    """Returns once the process has ended, whose child ever it is."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(ended)
    finally:
        os.close(ended)


class Records:
    """What a store would hold, given in full."""

    def __init__(self, messages: list[Message], runs: list[RunRecord]) -> None:
        self._messages = messages
        self._runs = runs

    def messages(self, session_id: str) -> list[Message]:
        return self._messages

    def runs(self, session_id: str) -> list[RunRecord]:
        return self._runs


QUESTION = Message(role="user", content="Why?", id="m1", seq=1, run_id="run_1")
REPLY = Message(role="assistant", content="Because.", id="m2", seq=2, run_id="run_1")


def run(id: str, status: RunStatus) -> RunRecord:
    return RunRecord(id=id, session_id="s", created_at_ms=1, status=status)


def ledger() -> Ledger:
    """One turn was acknowledged, another had begun."""
    book = Ledger()
    book.record(TurnStarted(session_id="s", agent="A", run_id="run_1"))
    book.record(Acknowledged(session_id="s", agent="A", run_id="run_1", usage=Usage(), messages=(QUESTION, REPLY)))
    book.record(TurnStarted(session_id="s", agent="A", run_id="run_2"))
    return book


def test_what_was_acknowledged_and_is_held_is_not_lost() -> None:
    held = Records([QUESTION, REPLY], [run("run_1", "completed"), run("run_2", "interrupted")])

    proof = ledger().compare(held)

    assert (proof.acknowledged, proof.stored, proof.lost, proof.half_turns, proof.open_runs) == (2, 2, (), (), ())
    assert [one.id for one in proof.interrupted] == ["run_2"]


@pytest.mark.parametrize(
    ("held", "lost"),
    [
        ([], 2),
        ([QUESTION], 1),
        ([REPLY], 1),
        ([REPLY, QUESTION], 1),
        ([QUESTION, QUESTION, REPLY], 1),
        ([QUESTION, Message(role="assistant", content="Becaus", id="m2", seq=2, run_id="run_1")], 1),
    ],
)
def test_a_message_that_is_missing_doubled_changed_or_out_of_order_is_lost(held: list[Message], lost: int) -> None:
    proof = ledger().compare(Records(held, [run("run_1", "completed")]))

    assert len(proof.lost) == lost


def test_a_message_of_a_run_that_did_not_complete_is_half_a_turn() -> None:
    half = Message(role="user", content="And?", id="m3", seq=3, run_id="run_2")

    proof = ledger().compare(Records([QUESTION, REPLY, half], [run("run_1", "completed"), run("run_2", "running")]))

    assert len(proof.half_turns) == 1
    assert proof.open_runs == ("run_2",)
