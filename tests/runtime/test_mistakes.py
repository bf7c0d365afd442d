"""Mistakes of programmers are told at the door: what is wrong, and how to mend it. Nothing runs."""

import pydoc
import re
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import anyio
import pytest

import callboard
import callboard.runtime as kernel
from callboard.runtime import Actor, ActorId, Context, Failed, Request, Runtime, handles
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
    (lambda ref: ref.ask(Add), TypeError, r"this is the class Add"),
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


class Do(Request[None], frozen=True):
    """Carries what somebody without a type checker writes into a handler."""

    act: Callable[[Any], Any]


class Deaf(Actor):
    """Handles no signal of the kernel."""

    @handles(Do)
    def do(self, message: Do, context: Context) -> None:
        message.act(context)


OTHER = ActorId("counter", "other")

IN_HANDLERS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.after(1.0, "t"), r"Deaf would not hear of its timer: .* @handles\(Tick\)"),
    (lambda c: c.every(1.0, "t"), r"Deaf would not hear of its timer: .* @handles\(Tick\)"),
    (lambda c: c.spawn(anyio.sleep_forever, tag="t"), r"hear of the task's end: .* @handles\(ChildEnded\)"),
    (lambda c: c.spawn(None, tag="t"), r"spawn takes an async function"),
    (lambda c: c.request(OTHER, Add(1), tag="t"), r"hear of the answer: .* @handles\(Answered\)"),
    (lambda c: c.watch(OTHER, tag="t"), r"hear of the end .*: .* @handles\(ActorEnded\)"),
    (lambda c: c.remind("t", after_s=1.0), r"hear of its reminder: .* @handles\(Reminder\)"),
    (lambda c: c.tell(OTHER, "add"), r"derives from callboard\.runtime\.Request.*this is a str"),
    (lambda c: c.tell(OTHER, Add), r"is an instance.*this is the class Add"),
    (lambda c: c.request(OTHER, Add, tag="t"), r"this is the class Add"),
    (lambda c: c.tell(c.actor("counter", "other"), Add(1)), r"the `id` of a Ref, not by <Ref counter:other>"),
    (lambda c: c.request("counter:other", Add(1), tag="t"), r"ActorId.* not by 'counter:other'"),
    (lambda c: c.watch(c.actor("counter", "other"), tag="t"), r"the `id` of a Ref"),
    (lambda c: c.supervise(c.actor("counter", "other")), r"the `id` of a Ref"),
]


@pytest.mark.parametrize(("act", "told"), IN_HANDLERS)
def test_what_a_handler_begins_and_could_not_end_well_is_refused_at_the_call(
    run: Run, act: Callable[[Any], Any], told: str
) -> None:
    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("deaf", Deaf)
            runtime.register("counter", Counter)

            with pytest.raises(Failed) as failed:
                await runtime.actor("deaf", "k").ask(Do(act))
            assert isinstance(failed.value.__cause__, TypeError)
            assert re.search(told, str(failed.value.__cause__), re.DOTALL)
            assert runtime.statistics().children == 0

    run(body)


PUBLIC = [(room, name) for room in (kernel, callboard) for name in room.__all__]


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_help_shows_every_public_name(room: ModuleType, name: str) -> None:
    shown = pydoc.render_doc(getattr(room, name), title=f"{name}: %s")

    assert shown.startswith(name), "and it did not raise, as it does where an annotation cannot be resolved"
