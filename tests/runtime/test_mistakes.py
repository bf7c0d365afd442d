"""Mistakes of programmers are told at the door: what is wrong, and how to mend it. Nothing runs."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from callboard.runtime import Actor, Context, Request, Runtime, handles
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


class Add(Request[int], frozen=True):
    amount: int


class Counter(Actor):
    @handles(Add)
    def add(self, message: Add, _context: Context) -> int:
        return message.amount


Send = Callable[[Any], Awaitable[Any]]
"""What somebody without a type checker calls on a Ref."""

MISTAKES: list[tuple[Send, type[Exception], str]] = [
    (lambda ref: ref.ask("add one"), TypeError, r"derives from callboard\.runtime\.Request.*this is a str"),
    (lambda ref: ref.tell(None), TypeError, r"this is a NoneType"),
    (lambda ref: ref.ask(Add(1), overflow="drop_oldest"), ValueError, r"is for tell"),
    (lambda ref: ref.tell(Add(1), overflow="drop"), ValueError, r"not 'drop'"),
    (lambda ref: ref.ask(Add(1), timeout_s=0), ValueError, r"above 0"),
    (lambda ref: ref.drain(timeout_s=-1), ValueError, r"from 0"),
]


@pytest.mark.parametrize(("send", "mistake", "told"), MISTAKES)
def test_a_send_that_makes_no_sense_is_refused(run: Run, send: Send, mistake: type[Exception], told: str) -> None:
    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("counter", Counter)

            with pytest.raises(mistake, match=told):
                await send(runtime.actor("counter", "k"))
            assert runtime.statistics().handled == 0

    run(body)
