"""The process that test_state_kills.py kills: turns in many sessions that change state of session, user and app.

    state_worker.py STORE --backend trio --sessions 6 --turns 5

Each turn sets the key of its run, and counts turns, in each scope. A line is printed for each turn that was answered,
"done" at last. It ends by itself when its standard input closes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
from worker import cancel_at_end_of_input

from callboard import Agent, ModelAnswer, ModelRequest, Runtime, Session, ToolCall, ToolContext
from callboard.store import Index, LmdbStore
from callboard.testing import ScriptedModel, model_answer


def owner_of(number: int) -> str:
    return ("ann", "bob")[number % 2]


def say(request: ModelRequest) -> ModelAnswer:
    if request.messages[-1].role == "tool":
        return model_answer("done")
    return model_answer(tool_calls=[ToolCall("call_1", "work")])


async def work(context: ToolContext) -> str:
    for state in (context.session_state, context.user_state, context.app_state):
        state.increment("turns")
        state[context.run_id] = context.session_id
        state[f"last of {context.session_id}"] = context.run_id
    return "worked"


async def converse(agent: Agent, session: Session, turns: int) -> None:
    """The turns that are left."""
    done = sum(message.role == "user" for message in await session.messages())
    for turn in range(done + 1, turns + 1):
        await agent.chat(f"turn {turn}", session=session)
        os.write(sys.stdout.fileno(), b"turn\n")


async def work_on(options: argparse.Namespace) -> None:
    async with Runtime.on(partial(LmdbStore, options.store, log_bytes_max=20_000)) as runtime:
        agent = Agent("Clerk", model=ScriptedModel(say), runtime=runtime, tools=[work])
        async with anyio.create_task_group() as tasks:
            for number in range(options.sessions):
                session = Session(runtime, f"s{number}", owner=owner_of(number))
                tasks.start_soon(converse, agent, session, options.turns)
        # What the last turns did is on its way; a process that ends now would leave it to the next one.
        while runtime.store.scan_index(Index.OUTBOX_DUE) or not await runtime.wait_quiet(timeout_s=1):  # noqa: ASYNC110
            await anyio.sleep(0.002)
    os.write(sys.stdout.fileno(), b"done\n")


async def work_while_the_parent_lives(options: argparse.Namespace) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_at_end_of_input, tasks.cancel_scope)
        await work_on(options)
        tasks.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--backend", choices=["trio", "asyncio"], required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--turns", type=int, required=True)
    options = parser.parse_args(arguments)
    anyio.run(work_while_the_parent_lives, options, backend=options.backend)


if __name__ == "__main__":
    main()
