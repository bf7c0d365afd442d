"""The demo's worker process: runtime, agents and store. `python -m callboard.demo_worker --store DIRECTORY`

It plays the cases of `demo_case` and reports to its parent as `demo_events` says. It is told nothing about where an
earlier worker stopped: which turns are still to be played it reads from the runs in the store. It ends by itself when
they are all answered, or when its standard input closes.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio

from callboard import Agent, Message, ModelSettings, OpenAIChat, Runtime, Session, Template
from callboard.actors.model import Delta
from callboard.actors.reply import AttemptFailed, RunStarted
from callboard.store.errors import CallboardError

from .demo_case import AGENTS, CASES, TOKENS_MAX, Case, Turn
from .demo_events import (
    Acknowledged,
    AttemptVoided,
    Event,
    Opened,
    Piece,
    TurnStarted,
    WorkerDone,
    WorkerFailed,
    encode_event,
)
from .first_error import first_error

__all__ = ["main", "play"]

_SETTINGS = ModelSettings(max_tokens=TOKENS_MAX, temperature=0.3, seed=7)


async def play(store: Path) -> None:
    """Play what is left of every case, side by side; each case is one session, and all use the same three agents.

    Raises:
        CallboardError: the store or the model failed for good; the turns before are stored.
    """
    async with Runtime(store) as runtime:
        _report(Opened(os.getpid()))
        model = OpenAIChat()
        agents = {
            name: Agent(name, instructions=Template(text), model=model, runtime=runtime, settings=_SETTINGS)
            for name, text in AGENTS.items()
        }
        async with anyio.create_task_group() as group:
            for case in CASES:
                group.start_soon(_play_case, runtime, agents, case)
    _report(WorkerDone())


async def _play_case(runtime: Runtime, agents: Mapping[str, Agent], case: Case) -> None:
    session = Session(
        runtime, case.session_id, metadata={"customer": case.customer}, owner=case.customer, tags=case.tags
    )
    answered = sum(run.status == "completed" for run in await session.runs())
    for turn in case.turns[answered:]:
        await _play_turn(agents[turn.agent], session, turn)


async def _play_turn(agent: Agent, session: Session, turn: Turn) -> None:
    names = {"session_id": session.id, "agent": agent.name}
    question = Message(role="user", content=turn.text, author=turn.author)
    run_id = ""
    async with agent.stream(question, session=session) as stream:
        async for event in stream:
            match event:
                case RunStarted():
                    run_id = event.run_id
                    _report(TurnStarted(**names, run_id=run_id))
                case Delta():
                    _report(Piece(**names, run_id=run_id, text=event.text))
                case AttemptFailed():
                    _report(AttemptVoided(**names, run_id=run_id, reason=event.reason))
                case _:
                    pass
        reply = stream.reply
    _report(Acknowledged(**names, run_id=reply.run_id, usage=reply.usage, messages=reply.messages))


def _report(event: Event) -> None:
    # At once and in one piece: what stood in a buffer when the SIGKILL comes would be an acknowledgement never given.
    os.write(sys.stdout.fileno(), encode_event(event))


async def _play_while_parent_lives(store: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_at_end_of_input, group.cancel_scope)
        await play(store)
        group.cancel_scope.cancel()


async def _cancel_at_end_of_input(scope: anyio.CancelScope) -> None:
    await anyio.wait_readable(sys.stdin)
    scope.cancel()


def main(arguments: list[str] | None = None) -> None:
    """Play, and exit with 1 where the store or the model failed."""
    parser = argparse.ArgumentParser(
        prog="python -m callboard.demo_worker",
        description="Play the demo's cases and report JSON lines; ends when standard input closes. "
        "The model's server is taken from OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY.",
    )
    parser.add_argument("--store", type=Path, required=True, help="directory of the store")
    options = parser.parse_args(arguments)
    try:
        anyio.run(_play_while_parent_lives, options.store, backend="trio")
    except* (CallboardError, ValueError) as errors:  # ValueError: OPENAI_MODEL or another setting is missing
        _report(WorkerFailed(str(first_error(errors))))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
