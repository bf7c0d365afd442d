"""`callboard demo`: a support case on a real model, with the worker killed by SIGKILL in the middle of a turn.

    this process                                     worker (demo_worker), killed once and started again
    ┌───────────────────────────────┐    starts     ┌────────────────────────────────────────────────┐
    │ run_demo   the order of events│──────────────►│ Runtime, three Agents, two Sessions            │
    │ Board      what is shown      │◄──────────────│ reports demo_events as JSON lines              │
    │ Ledger     what was promised  │  JSON lines   └──────┬──────────────────────────────┬──────────┘
    └──────┬─────────────────┬──────┘                      │ HTTP                         │ writes
           │ starts          │ reads, to compare           ▼                              ▼
           └─────────────────┼─────────────► local_server or OPENAI_BASE_URL            LMDB
                             └──────────────────────────────────────────────────────────► ▲

Nothing is staged: the kill comes while pieces of an answer arrive, the comparison reads the store from outside, and the
second worker finds out by itself where to go on.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import msgspec
from rich.console import Console
from rich.text import Text

from callboard.actors.archive import Archive
from callboard.store.errors import CallboardError

from .child_process import ChildProcess, open_child_process
from .cli_tables import conversation, printable, runs_table
from .demo_case import CASES
from .demo_events import Event, Opened, Piece, WorkerDone, WorkerFailed, decode_event
from .demo_ledger import Ledger, Proof
from .demo_view import Board, View, open_view
from .local_server import LOCAL_MODEL, open_local_server

__all__ = ["DemoFailed", "run_demo"]

_LIVES_MAX = 2
"""How often a worker is killed at most: a turn that ends between the decision and the signal is not in its middle."""

_PIECES_BEFORE_KILL: Mapping[str, int] = {"Solution": 8, "Follow-up": 1}
"""The agent of the first case in whose turn the worker dies, after this many pieces; the second one is there for
servers that send an answer in fewer pieces than that."""

_TICK_S = 0.1


class DemoFailed(CallboardError):
    """The demo could not be played, or what it set out to show is not so. What was stored is still there."""


@dataclass(slots=True)
class _Stage:
    store: Path
    environment: Mapping[str, str]
    view: View
    board: Board
    ledger: Ledger = field(default_factory=Ledger)

    def record(self, event: Event) -> None:
        self.ledger.record(event)
        self.board.record(event)
        self.view.show(event)


async def run_demo(*, store: Path | None, console: Console) -> Path:
    """Play the demo and print it; its store remains and is returned.

    Args:
        store: a directory that is empty or does not exist yet; None takes a new one below `./callboard-demo/`.
        console: where it is shown: live on a terminal, as plain lines elsewhere.

    Raises:
        DemoFailed: a worker or the comparison failed; a message was lost, or a run was left open.
        LocalServerUnavailable: there is no model server; see `callboard.local_server`.

    Cancellation: the worker and the model server are stopped before the cancellation goes on.
    Cost: 10 to 30 s with the local server on 2 cores.
    """
    directory = _fresh_directory(store)
    board = Board()
    with open_view(console, board) as view:
        async with _open_model_server(view) as environment, _ticking(view):
            stage = _Stage(directory, environment, view, board)
            await _play_until_killed(stage)
            await _play_to_the_end(stage)
    _print_report(console, stage)
    return directory


def _fresh_directory(store: Path | None) -> Path:
    if store is not None:
        if store.exists() and (not store.is_dir() or any(store.iterdir())):
            raise DemoFailed(f"{store} is not an empty directory: name another one, or leave --store out for a new one")
        return store
    parent = Path("callboard-demo")
    parent.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent))


@contextlib.asynccontextmanager
async def _open_model_server(view: View) -> AsyncGenerator[dict[str, str]]:
    """The environment that names the server to the worker."""
    if url := os.environ.get("OPENAI_BASE_URL"):
        view.note(f"model server: {url} (from OPENAI_BASE_URL)")
        yield dict(os.environ)
        return
    view.note("starting llama.cpp's server with SmolLM2-135M on this machine ...")
    async with open_local_server() as server:
        view.note(f"model server: {server.url}, process {server.pid}, no key")
        yield os.environ | {"OPENAI_BASE_URL": server.url, "OPENAI_MODEL": LOCAL_MODEL, "OPENAI_API_KEY": ""}


@contextlib.asynccontextmanager
async def _ticking(view: View) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(_tick, view)
        yield
        group.cancel_scope.cancel()
    view.tick()


async def _tick(view: View) -> None:
    while True:
        view.tick()
        await anyio.sleep(_TICK_S)


async def _play_until_killed(stage: _Stage) -> None:
    """Play and kill the worker in the middle of a turn; afterwards it is proven that nothing acknowledged was lost."""
    for _ in range(_LIVES_MAX):
        cut_run_id = await _live_and_die(stage)
        stage.board.killed()
        _require_nothing_lost(stage, _compare(stage))
        if cut_run_id not in stage.ledger.answered:
            return
        stage.view.note("that turn was over just before the signal: once more", style="yellow")
    raise DemoFailed("the worker could not be killed in the middle of a turn: the model answers too fast for that")


async def _live_and_die(stage: _Stage) -> str:
    """One life of the worker, ended by SIGKILL. The id of the run that streamed at that moment."""
    victim: Piece | None = None
    async with _open_worker(stage) as worker:
        # The loop goes on after the kill: what the pipe still holds was acknowledged while the worker lived.
        async for event in _events(worker):
            stage.record(event)
            if victim is None and isinstance(event, Piece) and _is_the_moment(stage.board, event):
                worker.kill()
                victim = event
        if victim is None:
            raise DemoFailed(f"the worker ended before it could be killed: {await _ending(worker)}")
        await worker.wait()
    so_far = stage.board.seats[victim.session_id, victim.agent].text
    stage.view.note(
        f"SIGKILL: worker {worker.pid} is dead, while {victim.agent} was saying {so_far[-60:]!r}", style="bold red"
    )
    return victim.run_id


def _is_the_moment(board: Board, event: Piece) -> bool:
    pieces = board.seats[event.session_id, event.agent].pieces
    return event.session_id == CASES[0].session_id and pieces >= _PIECES_BEFORE_KILL.get(event.agent, sys.maxsize)


async def _play_to_the_end(stage: _Stage) -> None:
    done = False
    async with _open_worker(stage) as worker:
        async for event in _events(worker):
            stage.record(event)
            done = done or isinstance(event, WorkerDone)
            if isinstance(event, Opened):
                _require_cut_runs_marked(stage, _compare(stage))
        if not done:
            raise DemoFailed(f"the worker ended before its work: {await _ending(worker)}")
    proof = _compare(stage)
    _require_nothing_lost(stage, proof)
    if proof.open_runs:
        raise DemoFailed(f"runs were left open: {', '.join(proof.open_runs)}")


@contextlib.asynccontextmanager
async def _open_worker(stage: _Stage) -> AsyncGenerator[ChildProcess]:
    command = [sys.executable, "-m", "callboard.demo_worker", "--store", str(stage.store)]
    async with open_child_process(command, environment=stage.environment) as worker:
        yield worker


async def _events(worker: ChildProcess) -> AsyncGenerator[Event]:
    async with contextlib.aclosing(worker.lines()) as lines:
        async for line in lines:
            try:
                event = decode_event(line)
            except msgspec.MsgspecError as error:
                raise DemoFailed(f"the worker wrote a line that is none of its events: {line[:200]!r}") from error
            if isinstance(event, WorkerFailed):
                raise DemoFailed(f"the worker gave up: {event.reason}")
            yield event


async def _ending(worker: ChildProcess) -> str:
    await worker.wait()
    return worker.how_it_ended()


def _compare(stage: _Stage) -> Proof:
    with Archive.open(stage.store) as archive:
        return stage.ledger.compare(archive)


def _require_nothing_lost(stage: _Stage, proof: Proof) -> None:
    if proof.lost or proof.half_turns:
        raise DemoFailed(
            f"of {proof.acknowledged} acknowledged messages {len(proof.lost)} are lost: "
            f"{'; '.join(proof.lost) or '–'}; messages of half turns: {'; '.join(proof.half_turns) or 'none'}"
        )
    stage.view.note(
        f"acknowledged: {proof.acknowledged} messages · in the store: {proof.stored} · lost: {len(proof.lost)} · "
        f"half turns: {len(proof.half_turns)}",
        style="bold green",
    )


def _require_cut_runs_marked(stage: _Stage, proof: Proof) -> None:
    if not proof.interrupted:
        raise DemoFailed("no run is marked as interrupted, although the worker was killed in the middle of one")
    for run in proof.interrupted:
        stage.view.note(f"run {run.id} of {run.agent} ({run.session_id}) is marked {run.status!r}", style="yellow")


def _print_report(console: Console, stage: _Stage) -> None:
    with Archive.open(stage.store) as archive:
        for case in CASES:
            console.print(Text(f"\n{case.session_id} · {case.customer} · the conversation", "bold"))
            console.print(conversation(archive.messages(case.session_id)))
            console.print(Text(f"\n{case.session_id} · the runs", "bold"))
            console.print(runs_table(archive.runs(case.session_id), columns=console.width))
    proof = _compare(stage)
    console.print(
        Text(
            f"\nacknowledged messages: {proof.acknowledged}, in the store: {proof.stored}, lost: {len(proof.lost)}, "
            f"runs cut by the kill and marked: {len(proof.interrupted)}",
            "bold green",
        ),
        soft_wrap=True,
    )
    where = printable(str(stage.store))
    console.print(Text(f"The data lies in {where}. Look at it with:\n  callboard sessions --store {where}"))
    console.print(Text(f"  callboard show {CASES[0].session_id} --store {where}"), soft_wrap=True)
