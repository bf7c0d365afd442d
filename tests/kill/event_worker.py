"""The process that test_event_kills.py kills: turns and appends in one session, and a reader of its events.

    event_worker.py STORE --backend trio --after 17

It prints a JSON line for each event that lasts, once the reader has it. It ends by itself when its standard input
closes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from callboard import Agent, Runtime, Session
from callboard.testing import ScriptedModel


async def converse(session: Session) -> None:
    agent = Agent("Ann", model=ScriptedModel(), session=session)
    for number in range(10_000):
        await agent.chat(f"text {number}")
        await session.add_message("user", "between")
        await session.update_metadata({"n": number})


async def read(session: Session, after: int) -> None:
    async with session.events(after=after, progress=False) as events:
        async for event in events:
            os.write(1, msgspec.json.encode({"number": event.number, "event": repr(event)}) + b"\n")


async def work_while_the_parent_lives(options: argparse.Namespace) -> None:
    async with Runtime(options.store) as runtime, anyio.create_task_group() as tasks:
        session = Session(runtime, "s")
        tasks.start_soon(read, session, options.after)
        tasks.start_soon(converse, session)
        await anyio.wait_readable(sys.stdin)
        tasks.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--backend", choices=["trio", "asyncio"], required=True)
    parser.add_argument("--after", type=int, required=True)
    options = parser.parse_args(arguments)
    anyio.run(work_while_the_parent_lives, options, backend=options.backend)


if __name__ == "__main__":
    main()
