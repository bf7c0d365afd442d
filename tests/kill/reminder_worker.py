"""The process that test_reminder_kills.py kills: actors that set reminders, and write down what they are reminded of.

    reminder_worker.py STORE --backend trio --actors 10 --rounds 40

It prints JSON lines: "open" once the store is open, then "set" for each reminder that was acknowledged. It ends by
itself when its standard input closes.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import anyio
import msgspec

from callboard.runtime import Actor, Context, Reminder, Request, Runtime, handles
from callboard.store import LmdbStore, Row, Table


class SetNext(Request[int], frozen=True):
    """Set reminder number so-and-so of this actor; every third one is periodic. Answers with its time."""

    number: int


class Diary(Actor):
    """One row for each thing that happened, in the batch in which it did."""

    @handles(SetNext)
    def set_next(self, message: SetNext, context: Context) -> int:
        due_ms = context.wall_ms() + message.number % 5 * 10
        context.remind(f"r{message.number}", at_ms=due_ms, every_s=0.05 if message.number % 3 == 0 else None)
        self.write({"what": "set", "name": f"r{message.number}", "due_ms": due_ms}, context)
        return due_ms

    @handles(Reminder)
    async def reminded(self, reminder: Reminder, context: Context) -> None:
        await anyio.sleep(0.001)
        facts = {"what": "fired", "name": reminder.name, "due_ms": reminder.due_ms, "missed": reminder.missed}
        self.write(facts, context)

    def write(self, facts: Mapping[str, object], context: Context) -> None:
        row = Row(Table.MESSAGE, context.version.to_bytes(8, "big"), msgspec.json.encode(facts))
        context.stage(rows=(row,))


async def work(options: argparse.Namespace) -> None:
    async with Runtime(partial(LmdbStore, options.store, log_bytes_max=20_000)) as runtime:
        runtime.register("diary", Diary)
        say(what="open")
        async with anyio.create_task_group() as tasks:
            for number in range(options.actors):
                tasks.start_soon(converse, runtime, f"a{number}", options.rounds)
        await anyio.sleep_forever()


async def converse(runtime: Runtime, key: str, rounds: int) -> None:
    for number, _ in zip(cycle(range(9)), range(rounds), strict=False):
        due_ms = await runtime.actor("diary", key).ask(SetNext(number))
        say(what="set", key=key, name=f"r{number}", due_ms=due_ms)
        await anyio.sleep(0.005)


def say(**facts: object) -> None:
    # One write straight to the pipe: what stood in a buffer at the kill would be an acknowledgement never given.
    os.write(sys.stdout.fileno(), msgspec.json.encode(facts) + b"\n")


async def work_while_the_parent_lives(options: argparse.Namespace) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_at_end_of_input, tasks.cancel_scope)
        await work(options)


async def cancel_at_end_of_input(scope: anyio.CancelScope) -> None:
    await anyio.wait_readable(sys.stdin)
    scope.cancel()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--backend", choices=["trio", "asyncio"], required=True)
    parser.add_argument("--actors", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args(arguments)
    anyio.run(work_while_the_parent_lives, options, backend=options.backend)


if __name__ == "__main__":
    main()
