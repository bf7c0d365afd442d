"""The process that test_tool_kills.py kills: turns with tools in many sessions, gone on with where one was cut off.

    tool_worker.py STORE EFFECTS --backend trio --sessions 8 --turns 4

Each effect of a tool is a line in EFFECTS, "begin KEY" and "end KEY", written at once. In each turn the model asks for
two rounds of `charge`, which may happen once only and in the second round needs an approval, and `look`, which may be
repeated. It prints a line for each, and "done" at last. It ends by itself when its standard input closes.
"""

import argparse
import os
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
from worker import cancel_at_end_of_input

from callboard import Agent, ModelAnswer, ModelRequest, Runtime, Session, ToolCall, ToolContext
from callboard.actors.errors import ApprovalRequired
from callboard.actors.tools import Tool
from callboard.store import LmdbStore
from callboard.testing import ScriptedModel, model_answer

ROUNDS = 2


def say(request: ModelRequest) -> ModelAnswer:
    """The model's part, which follows from the request alone: another process goes on with it."""
    number = 1
    for message in request.messages:
        number = 1 if message.role == "user" else number + bool(message.tool_calls)
    if number > ROUNDS:
        return model_answer("done")
    calls = [ToolCall(f"charge-{number}", "charge", f'{{"round": {number}}}'), ToolCall(f"look-{number}", "look")]
    return model_answer(tool_calls=calls)


def agent_on(runtime: Runtime, effects: int) -> Agent:
    async def act(context: ToolContext) -> str:
        for word in ("begin", "end"):
            os.write(effects, f"{word} {context.idempotency_key}\n".encode())
            os.write(sys.stdout.fileno(), b"effect\n")
            await anyio.sleep(random.random() * 0.005)
        return "acted"

    async def charge(round: int, context: ToolContext) -> str:
        return await act(context)

    async def look(context: ToolContext) -> str:
        return await act(context)

    tools = [Tool(charge, approval=lambda arguments: arguments["round"] == ROUNDS), Tool(look, repeatable=True)]
    return Agent("Clerk", model=ScriptedModel(say, delay_s=0.001), runtime=runtime, tools=tools)


async def converse(agent: Agent, session: Session, turns: int) -> None:
    """Go on where an earlier process was killed, then do the turns that are left."""
    for record in await session.runs():
        if record.status in ("waiting", "interrupted"):
            await approve_until_done(agent, session, record.id)
    done = sum(message.role == "user" for message in await session.messages())
    for turn in range(done + 1, turns + 1):
        try:
            await agent.chat(f"turn {turn}", session=session)
        except ApprovalRequired as waiting:
            await approve_until_done(agent, session, waiting.run_id)


async def approve_until_done(agent: Agent, session: Session, run_id: str) -> None:
    while True:
        try:
            await agent.resume(run_id, approve=True, session=session)
        except ApprovalRequired:
            continue
        return


async def work(options: argparse.Namespace) -> None:
    effects = os.open(options.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with Runtime.on(partial(LmdbStore, options.store, log_bytes_max=20_000)) as runtime:
        agent = agent_on(runtime, effects)
        async with anyio.create_task_group() as tasks:
            for number in range(options.sessions):
                tasks.start_soon(converse, agent, Session(runtime, f"s{number}"), options.turns)
    os.write(sys.stdout.fileno(), b"done\n")


async def work_while_the_parent_lives(options: argparse.Namespace) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_at_end_of_input, tasks.cancel_scope)
        await work(options)
        tasks.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("effects", type=Path)
    parser.add_argument("--backend", choices=["trio", "asyncio"], required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--turns", type=int, required=True)
    options = parser.parse_args(arguments)
    anyio.run(work_while_the_parent_lives, options, backend=options.backend)


if __name__ == "__main__":
    main()
