"""The process that kill_rounds.py kills: many sessions side by side, a turn acknowledged when its chat has returned.

    worker.py STORE UPSTREAM_URL --backend trio --sessions 30 --turns 12 --log 20000

STORE is a directory, or the URL of a PostgreSQL or Redis server. It prints JSON lines: "opening" before it opens the
store, "open" after, then one acknowledgement a turn, at last "done". Which turns are left it reads from the sessions'
histories. It ends by itself when its standard input closes.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import msgspec

from callboard import Agent, OpenAIChat, Reply, Runtime, Session
from callboard.store import LmdbStore, Store


def open_store(place: str, log_bytes_max: int) -> Store:
    if place.startswith("postgresql://"):
        from callboard.store.postgres_store import PostgresStore

        return PostgresStore(place)
    if place.startswith("redis://"):
        from callboard.store.redis_store import RedisStore

        return RedisStore(place)
    return LmdbStore(place, log_bytes_max=log_bytes_max)


async def lookup(topic: str) -> str:
    """Look a topic up."""
    await anyio.lowlevel.checkpoint()
    return f"facts on {topic}"


async def work(options: argparse.Namespace) -> None:
    say(kind="opening")
    async with Runtime.on(lambda: open_store(options.store, options.log)) as runtime:
        say(kind="open")
        model = OpenAIChat(base_url=options.upstream, model="fake")
        agent = Agent("Clerk", instructions="Be brief.", model=model, runtime=runtime, tools=[lookup])
        async with anyio.create_task_group() as tasks:
            for number in range(options.sessions):
                tasks.start_soon(converse, agent, Session(runtime, f"s{number:02}"), options.turns)
    say(kind="done")


async def converse(agent: Agent, session: Session, turns: int) -> None:
    done = sum(message.role == "user" for message in await session.messages())
    for turn in range(done + 1, turns + 1):
        text = f"turn {turn} of {session.id}"
        reply = await (stream(agent, text, session) if turn % 5 == 0 else agent.chat(text, session=session))
        seqs = [message.seq for message in reply.messages]
        say(kind="ack", session=session.id, turn=turn, seqs=seqs, text=reply.text, run_id=reply.run_id)


async def stream(agent: Agent, text: str, session: Session) -> Reply:
    async with agent.stream(text, session=session) as events:
        async for _ in events:
            pass
        return events.reply


def say(**facts: object) -> None:
    # One write straight to the pipe: what stood in a buffer at the kill would be an acknowledgement never given.
    os.write(sys.stdout.fileno(), msgspec.json.encode(facts) + b"\n")


async def work_while_the_parent_lives(options: argparse.Namespace) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_at_end_of_input, tasks.cancel_scope)
        await work(options)
        tasks.cancel_scope.cancel()


async def cancel_at_end_of_input(scope: anyio.CancelScope) -> None:
    await anyio.wait_readable(sys.stdin)
    scope.cancel()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("upstream")
    parser.add_argument("--backend", choices=["trio", "asyncio"], required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--log", type=int, required=True, help="bytes of log from which the store makes a checkpoint")
    options = parser.parse_args(arguments)
    anyio.run(work_while_the_parent_lives, options, backend=options.backend)


if __name__ == "__main__":
    main()
