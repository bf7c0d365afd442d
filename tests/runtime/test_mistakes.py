"""Mistakes of programmers are told at the door: what is wrong, and how to mend it. Nothing runs."""

import logging
import math
import pydoc
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import anyio
import pytest

import callboard
import callboard.runtime as kernel
from callboard.runtime import Actor, ActorFailed, ActorId, Context, Failed, Request, Runtime, Stopping, handles
from callboard.store import MemoryStore
from callboard.testing import fail_commit, fail_read

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
    (lambda ref: ref.drain(timeout_s=None), TypeError, r"timeout_s is a number, not None; say math.inf for never"),
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


AT_REGISTER: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"factory": None}, TypeError, r"a factory is .*, not None"),
    ({"factory": Counter(ActorId("counter", "k"))}, TypeError, r"pass its class"),
    ({"factory": dict}, TypeError, r"derives from callboard\.runtime\.Actor, and dict does not"),
    ({"restart": {"restarts_max": 3}}, TypeError, r"restart is a callboard\.runtime\.RestartPolicy"),
    ({"idle_s": "5"}, TypeError, r"idle_s is a number, not '5'"),
    ({"idle_s": math.nan}, ValueError, r"idle_s is a number, not nan"),
    ({"mailbox_count_max": "9"}, TypeError, r"mailbox_count_max is a number"),
    ({"mailbox_bytes_max": None}, TypeError, r"mailbox_bytes_max is a number"),
]


@pytest.mark.parametrize(("options", "mistake", "told"), AT_REGISTER)
def test_a_kind_that_makes_no_sense_is_refused(options: dict[str, Any], mistake: type[Exception], told: str) -> None:
    sound: dict[str, Any] = {"kind": "counter", "factory": Counter}

    with pytest.raises(mistake, match=told):
        Runtime(MemoryStore).register(**(sound | options))


AT_CONSTRUCTION: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: kernel.Backoff(first_s=0), ValueError, r"first_s above 0"),
    (lambda: kernel.Backoff(first_s=2.0, max_s=1.0), ValueError, r"max_s of at least that, not 2\.0 and 1\.0"),
    (lambda: kernel.Backoff(max_s=math.inf), ValueError, r"finite max_s"),
    (lambda: kernel.Backoff(first_s=cast("Any", "1")), TypeError, r"first_s is a number"),
    (lambda: kernel.RestartPolicy(restarts_max=cast("Any", "3")), TypeError, r"restarts_max is a number, not '3'"),
    (lambda: kernel.RestartPolicy(healthy_s=cast("Any", None)), TypeError, r"healthy_s .* say math\.inf for never"),
    (lambda: kernel.RestartPolicy(backoff=cast("Any", 1.0)), TypeError, r"backoff is a callboard\.runtime\.Backoff"),
    (lambda: Runtime(cast("Any", MemoryStore())), TypeError, r"pass the class or a function"),
    (lambda: Runtime(cast("Any", "x.lmdb")), TypeError, r"callboard\.Runtime is the one that takes a path.*x\.lmdb"),
    (lambda: Runtime(cast("Any", Path("x.lmdb"))), TypeError, r"callboard\.Runtime is the one that takes a path"),
    (lambda: Runtime(MemoryStore, drain_timeout_s=math.nan), ValueError, r"drain_timeout_s is a number, not nan"),
    (lambda: Runtime(MemoryStore, drain_timeout_s=cast("Any", None)), TypeError, r"say math\.inf for never"),
    (lambda: Runtime(MemoryStore, actors_max=cast("Any", "1")), TypeError, r"actors_max is a number"),
    (lambda: Runtime(MemoryStore, actors_bytes_max=cast("Any", None)), TypeError, r"actors_bytes_max is a number"),
    (lambda: Runtime(MemoryStore).observe(cast("Any", print)), TypeError, r"with a method `note\(self, event\)`"),
    (lambda: Runtime(MemoryStore).observe(cast("Any", Watching)), TypeError, r"with a method `note\(self, event\)`"),
    (lambda: Runtime(MemoryStore).resume("counter", "k"), Stopping, r"not open"),
    (lambda: fail_commit(Runtime(MemoryStore), cast("Any", ValueError())), TypeError, r"raises StoreErrors only"),
    (lambda: fail_read(Runtime(MemoryStore), cast("Any", ValueError())), TypeError, r"raises StoreErrors only"),
]


class Watching:
    def note(self, event: kernel.RuntimeEvent, /) -> None: ...


@pytest.mark.parametrize(("make", "mistake", "told"), AT_CONSTRUCTION)
def test_what_is_made_with_options_that_make_no_sense_is_refused(
    make: Callable[[], object], mistake: type[Exception], told: str
) -> None:
    with pytest.raises(mistake, match=told):
        make()


def test_a_runtime_that_has_closed_resumes_nobody(run: Run) -> None:
    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("counter", Counter)
            runtime.resume("counter", "k")

        with pytest.raises(Stopping, match="not open"):
            runtime.resume("counter", "k")

    run(body)


def test_a_factory_that_gives_no_actor_fails_the_actor_at_once_and_says_so(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def body() -> None:
        made: list[ActorId] = []

        def forgetful(id: ActorId) -> Any:
            made.append(id)

        async with Runtime(MemoryStore) as runtime:
            runtime.register("counter", forgetful)

            with pytest.raises(ActorFailed, match="the factory of 'counter' gave None") as failed:
                await runtime.actor("counter", "k").ask(Add(1))
            assert isinstance(failed.value.__cause__, TypeError)
            await anyio.sleep(3600.0)
            assert (len(made), runtime.statistics().restarts) == (1, 0)

    run(body)
