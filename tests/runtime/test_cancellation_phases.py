"""A caller that goes, in each phase of its message: what it is told, what is stored, and who goes on.

| phase | told at its deadline | the work | stored |
|---|---|---|---|
| waits for space, queued | Expired | never runs | nothing |
| runs, on_cancel="cancel" | Unknown | is cancelled | nothing |
| runs, on_cancel="detach" | Unknown | goes on | all of it |
| its reply is owed, "cancel" | Unknown | the actor hears of it | what the handler staged |
| its reply is owed, "detach" | Unknown | goes on, the reply is late | what the handler staged |
| its commit is in flight | Unknown | goes on, the reply is late | all of it |

One that is cancelled is told nothing: it gets its cancellation.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import anyio
import pytest

from callboard.runtime import Abandoned, Actor, ActorId, Context, Request, Runtime, Ticket, handles
from callboard.store import Batch, CallboardError, MemoryStore
from callboard.store.contract import Refusal

Run = Callable[[Callable[[], Awaitable[None]]], None]
Way = Literal["cancelled", "deadline", "given up"]
Phase = Literal["no space", "queued", "running", "detached", "owed", "owed lightly"]
WAYS: tuple[Way, ...] = ("cancelled", "deadline", "given up")
PHASES: tuple[Phase, ...] = ("no space", "queued", "running", "detached", "owed", "owed lightly")


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Write(Request[str], frozen=True):
    """Waits some seconds, then stages its name; if its caller goes, the work is cancelled."""

    name: str
    seconds: float = 0.0


class Insist(Write, frozen=True):
    """The same; the work goes on when its caller has gone."""


class Promise(Request[str], frozen=True):
    """Stages its name; the reply is owed until Keep comes."""

    name: str


class PromiseLightly(Promise, frozen=True):
    """The same, and the actor does not want to hear of it when its caller has gone."""


class Keep(Request[bool], frozen=True):
    """Give the reply; answered with whether anybody still waits for it."""


class Names(Request[str], frozen=True):
    """What was written so far, by the actor's memory."""


class Scribe(Actor):
    ticket: Ticket

    def __init__(self, id: ActorId, log: list[str]) -> None:
        super().__init__(id)
        self.log = log

    def load(self, context: Context) -> None:
        self.names = context.stored.head.decode() if context.stored is not None else ""

    def stage(self, name: str, context: Context) -> str:
        self.names += name
        context.stage(head=self.names.encode())
        return name

    async def work(self, message: Write, context: Context) -> str:
        self.log.append(f"begin {message.name}")
        try:
            await anyio.sleep(message.seconds)
        except anyio.get_cancelled_exc_class():
            self.log.append(f"cut {message.name}")
            raise
        self.log.append(f"end {message.name}")
        return self.stage(message.name, context)

    @handles(Write, on_cancel="cancel")
    async def write(self, message: Write, context: Context) -> str:
        return await self.work(message, context)

    @handles(Insist, on_cancel="detach")
    async def insist(self, message: Insist, context: Context) -> str:
        return await self.work(message, context)

    @handles(Promise, on_cancel="cancel")
    def promise(self, message: Promise, context: Context) -> Ticket:
        self.stage(message.name, context)
        self.ticket = context.defer()
        return self.ticket

    @handles(PromiseLightly, on_cancel="detach")
    def promise_lightly(self, message: PromiseLightly, context: Context) -> Ticket:
        return self.promise(message, context)

    @handles(Keep)
    def keep(self, _message: Keep, _context: Context) -> bool:
        awaited = self.ticket.open
        self.ticket.reply("kept")
        return awaited

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, _context: Context) -> None:
        self.log.append(f"abandoned {signal.message.name}")

    @handles(Names)
    def read(self, _message: Names, _context: Context) -> str:
        return self.names


def a_runtime(log: list[str], store: Callable[[], MemoryStore] = MemoryStore) -> Runtime:
    runtime = Runtime(store, drain_timeout_s=5.0)
    runtime.register("scribe", lambda id: Scribe(id, log), mailbox_count_max=2)
    return runtime


async def left(runtime: Runtime, message: Request[str], way: Way, after_s: float) -> str:
    """Ask, and go in this way after so long: what one is told."""
    scribe = runtime.actor("scribe", "k")
    try:
        if way == "cancelled":
            with anyio.move_on_after(after_s):
                return await scribe.ask(message)
            return "nothing"
        if way == "deadline":
            return await scribe.ask(message, timeout_s=after_s)
        pending = scribe.ask_nowait(message)
        await anyio.sleep(after_s)
        pending.give_up()
        return await pending.wait()
    except CallboardError as error:
        return type(error).__name__


def told(phase: Phase, way: Way) -> str:
    if way == "cancelled":
        return "nothing"
    return "Expired" if way == "deadline" and phase in ("no space", "queued") else "Unknown"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES)
def test_who_goes_is_told_the_truth_and_leaves_what_the_phase_says(run: Run, phase: Phase, way: Way) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            scribe = runtime.actor("scribe", "k")
            busy = phase in ("no space", "queued")
            if busy:
                await scribe.tell(Insist("x", 5.0))
            if phase == "no space":
                await scribe.tell(Names())
                await scribe.tell(Names())
            message: Request[str] = {
                "running": Write("a", 5.0),
                "detached": Insist("a", 5.0),
                "owed": Promise("a"),
                "owed lightly": PromiseLightly("a"),
            }.get(phase, Insist("a"))

            assert await left(runtime, message, way, after_s=1.0) == told(phase, way)
            assert runtime.inspect("scribe", "k").waiting == 0
            assert runtime.inspect("scribe", "k").queued == (2 if phase == "no space" else 0)
            if phase.startswith("owed"):
                assert await scribe.ask(Keep()) is False
            assert await scribe.ask(Names()) == {"no space": "x", "queued": "x", "running": ""}.get(phase, "a")

            assert (
                log
                == {
                    "no space": ["begin x", "end x"],
                    "queued": ["begin x", "end x"],
                    "running": ["begin a", "cut a"],
                    "detached": ["begin a", "end a"],
                    "owed": ["abandoned a"],
                    "owed lightly": [],
                }[phase]
            )
            late = runtime.dead_letters.late_replies
            assert late == (1 if phase in ("detached", "owed", "owed lightly") else 0)
            stored = runtime.store.load("scribe:k")
            assert (stored.head if stored is not None else b"") == (await scribe.ask(Names())).encode()
            assert runtime.inspect("scribe", "k").owed == 0
            assert scribe.passivate(), "nothing is left under way"

    run(body)


@pytest.mark.parametrize("phase", PHASES)
def test_a_caller_that_is_cancelled_natively_by_asyncio_goes_in_the_same_way(phase: Phase) -> None:
    async def main() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            scribe = runtime.actor("scribe", "k")
            if phase in ("no space", "queued"):
                await scribe.tell(Insist("x", 0.05))
            if phase == "no space":
                await scribe.tell(Names())
                await scribe.tell(Names())
            message: Request[str] = {
                "running": Write("a", 5.0),
                "detached": Insist("a", 0.05),
                "owed": Promise("a"),
                "owed lightly": PromiseLightly("a"),
            }.get(phase, Insist("a"))
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(scribe.ask(message))
                await asyncio.sleep(0.01)
                asking.cancel()
            assert asking.cancelled()

            expected = {"no space": "x", "queued": "x", "running": ""}.get(phase, "a")
            assert await scribe.ask(Names()) == expected
            assert ("cut a" in log) is (phase == "running")
            assert ("abandoned a" in log) is (phase == "owed")
            assert runtime.inspect("scribe", "k").queued == 0

    asyncio.run(main())


@pytest.mark.parametrize("way", ["cancelled", "deadline"])
def test_a_tell_that_waits_for_space_goes_without_a_trace_and_one_that_is_queued_stays(run: Run, way: Way) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            scribe = runtime.actor("scribe", "k")
            await scribe.tell(Insist("x", 5.0))
            with anyio.CancelScope() as scope:
                await scribe.tell(Insist("y"))
                scope.cancel()
            await scribe.tell(Names())
            with anyio.move_on_after(1.0 if way == "cancelled" else 100.0):
                try:
                    await scribe.tell(Insist("z"), timeout_s=1.0 if way == "deadline" else 100.0)
                except CallboardError as error:
                    log.append(type(error).__name__)

            assert await scribe.ask(Names()) == "xy"
            assert log == ["begin x", *(["Expired"] if way == "deadline" else []), "end x", "begin y", "end y"]
            assert len(runtime.dead_letters) == 0, "its sender knows that it was not taken"

    run(body)


class HeldStore(MemoryStore):
    """Commits on the committer's thread, like a disk, and only while its door is open."""

    def __init__(self) -> None:
        super().__init__()
        self.door = threading.Event()

    @property
    def inline(self) -> bool:
        return False

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        assert self.door.wait(10), "the test never opened the door"
        return super().commit(batches)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("message", [Write("a"), Insist("a")])
def test_a_commit_is_never_interrupted_by_a_caller_that_goes(
    run_in_real_time: Run, way: Way, message: Request[str]
) -> None:
    async def body() -> None:
        store = HeldStore()
        log: list[str] = []
        async with a_runtime(log, lambda: store) as runtime:
            assert await left(runtime, message, way, after_s=0.05) == told("running", way)
            assert runtime.inspect("scribe", "k").commits_in_flight == 1
            assert not runtime.actor("scribe", "k").passivate()
            store.door.set()

            assert await runtime.actor("scribe", "k").ask(Names()) == "a"
            stored = runtime.store.load("scribe:k")
            assert stored is not None
            assert stored.head == b"a"
            assert log == ["begin a", "end a"]

    run_in_real_time(body)


def test_a_reply_whose_caller_went_while_its_commit_was_in_flight_is_counted_as_late(run_in_real_time: Run) -> None:
    async def body() -> None:
        store = HeldStore()
        async with a_runtime([], lambda: store) as runtime:
            await left(runtime, Insist("a"), "cancelled", after_s=0.05)
            store.door.set()
            await runtime.actor("scribe", "k").ask(Names())

            assert runtime.dead_letters.late_replies == 1

    run_in_real_time(body)


def test_one_that_goes_does_not_take_another_callers_place_or_answer(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            scribe = runtime.actor("scribe", "k")
            await scribe.tell(Insist("x", 5.0))
            outcomes: dict[str, str] = {}

            async def ask(name: str, leave_s: float) -> None:
                with anyio.move_on_after(leave_s):
                    outcomes[name] = await scribe.ask(Write(name, 1.0), timeout_s=1000.0)

            async with anyio.create_task_group() as tasks:
                for number, name in enumerate("abcdefgh"):
                    tasks.start_soon(ask, name, 2.0 if number % 2 else 1000.0)
                    await anyio.wait_all_tasks_blocked()

            assert outcomes == {name: name for name in "aceg"}
            assert await scribe.ask(Names()) == "xaceg", "in the order in which they asked"

    run(body)
