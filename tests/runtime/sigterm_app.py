"""The app that test_embedding.py sends SIGTERM: it owns the loop and the signal, callboard is a guest.

    sigterm_app.py STORE --backend trio --seconds 0.2

Tasks of it ask actors on an LMDB store, and print a line "ack KEY TOTAL" for each answer, after "open". At SIGTERM it
leaves the runtime's block, in which what is under way is finished, prints "left" with what was cut, and ends with 0. It
also ends when its standard input closes, with 3.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import anyio

from callboard.runtime import Actor, Context, Request, Runtime, Stopping, handles
from callboard.store import LmdbStore

WRITERS = 8


class Add(Request[int], frozen=True):
    amount: int


class AddSlowly(Request[int], frozen=True):
    seconds: float


class Counter(Actor):
    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(AddSlowly)
    async def add_slowly(self, message: AddSlowly, context: Context) -> int:
        await anyio.sleep(message.seconds)
        return self.add(Add(1), context)


def say(*words: object) -> None:
    # One write straight to the pipe: what stood in a buffer would be lost where the process ends by a signal.
    os.write(sys.stdout.fileno(), " ".join(map(str, words)).encode() + b"\n")


async def work(runtime: Runtime, key: str, message: Request[int]) -> None:
    counter = runtime.actor("counter", key)
    while True:
        try:
            total = await counter.ask(message)
        except Stopping:
            return
        say("ack", key, total)


async def end_with_the_parent() -> None:
    await anyio.wait_readable(sys.stdin)
    os._exit(3)


async def main(options: argparse.Namespace) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end_with_the_parent)
            async with anyio.create_task_group() as writers:
                async with Runtime(lambda: LmdbStore(options.store)) as runtime:
                    runtime.register("counter", Counter)
                    say("open")
                    for number in range(WRITERS):
                        writers.start_soon(work, runtime, f"fast {number}", Add(1))
                    writers.start_soon(work, runtime, "slow", AddSlowly(options.seconds))
                    async for _ in signals:
                        break
                say("left", *runtime.cut)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--backend", choices=["trio", "asyncio"], required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    anyio.run(main, arguments, backend=arguments.backend)
