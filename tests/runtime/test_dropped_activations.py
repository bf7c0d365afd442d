"""What goes on in a handler whose activation is no more changes nothing, and nobody waits for itself. Both loops."""

import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Actor,
    Backoff,
    ChildEnded,
    Context,
    CyclicAsk,
    Failed,
    Ref,
    Request,
    RestartPolicy,
    Runtime,
    Ticket,
    handles,
)
from callboard.runtime.identity import ActorId
from callboard.runtime.signals import ActorEnded, Answered, Tick
from callboard.runtime.ticks import Ticks
from callboard.store import CallboardError, MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]

DEAF_S = 10.0
OTHER = ActorId("ghost", "other")


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Ping(Request[int], frozen=True):
    pass


class Note(Request[None], frozen=True):
    word: str


class Haunt(Request[str], frozen=True):
    """Sleeps, deaf to cancellation, then does this."""

    deed: str


class Owe(Request[str], frozen=True):
    pass


class Ghost(Actor):
    log: list[str]

    def __init__(self, id: ActorId) -> None:
        super().__init__(id)
        self.owed: Ticket | None = None

    def load(self, context: Context) -> None:
        self.loaded = int(context.stored.head) if context.stored is not None else 0

    @handles(Ping)
    def ping(self, _message: Ping, _context: Context) -> int:
        return self.loaded

    @handles(Note)
    def note(self, message: Note, _context: Context) -> None:
        self.log.append(message.word)

    @handles(Owe)
    def owe(self, _message: Owe, context: Context) -> Ticket:
        self.owed = context.defer()
        return self.owed

    @handles(Haunt)
    async def haunt(self, message: Haunt, context: Context) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(DEAF_S)
        self.do(message.deed, context)
        return "done"

    def do(self, deed: str, context: Context) -> None:
        match deed:
            case "stage":
                context.stage(head=b"666")
            case "tell":
                context.tell(OTHER, Note("told"))
            case "request":
                context.request(OTHER, Note("asked"), tag="t")
            case "after_commit":
                context.after_commit(lambda: self.log.append("went out"))
            case "reply":
                assert self.owed is not None
                self.owed.reply("too late")
            case "spawn":
                context.spawn(self.haunt_as_a_child, tag="child")
            case "watch":
                context.watch(OTHER, tag="t")
            case "every":
                context.every(1.0, "tick")
            case "supervise":
                context.supervise(OTHER)
            case _:
                raise ZeroDivisionError

    async def haunt_as_a_child(self) -> None:
        self.log.append("child")

    @handles(ChildEnded)
    def child_ended(self, signal: ChildEnded, _context: Context) -> None:
        self.log.append(f"child {signal.tag}")

    @handles(ActorEnded)
    def actor_ended(self, signal: ActorEnded, _context: Context) -> None:
        self.log.append(f"end of {signal.id}")

    @handles(Answered)
    def answered(self, signal: Answered, _context: Context) -> None:
        self.log.append(f"answer to {signal.tag}")

    @handles(Tick)
    def tick(self, signal: Tick, _context: Context) -> None:
        self.log.append(f"tick {signal.tag}")


class House:
    def __init__(self) -> None:
        log = self.log = list[str]()
        self.store = MemoryStore()
        self.runtime = Runtime(lambda: self.store, drain_timeout_s=1.0)
        policy = RestartPolicy(backoff=Backoff(first_s=0.01, max_s=0.01), strategy="one_for_all")
        self.runtime.register("ghost", type("Own", (Ghost,), {"log": log}), restart=policy)

    @property
    def ghost(self) -> Ref:
        return self.runtime.actor("ghost", "g")

    async def haunt(self, deed: str, *, resumed: bool) -> None:
        """Let a handler go on after its activation has ended, then do the deed."""
        if deed == "reply":
            self.ghost.ask_nowait(Owe())
        running = self.ghost.ask_nowait(Haunt(deed))
        await anyio.wait_all_tasks_blocked()
        self.ghost.kill()
        if resumed:
            self.runtime.resume("ghost", "g")
        with pytest.raises(Failed):
            await running.wait()
        await anyio.sleep(DEAF_S + 1.0)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    "deed",
    [
        *("stage", "tell", "request", "after_commit", "reply", "crash"),
        *("spawn", "watch", "every", "supervise"),
    ],
)
def test_a_handler_that_outlives_its_activation_changes_nothing(run: Run, deed: str, resumed: bool) -> None:
    async def body() -> None:
        house = House()
        async with house.runtime:
            await house.haunt(deed, resumed=resumed)
            if resumed:
                assert await house.ghost.ask(Ping()) == 0
            other = house.runtime.actor(*OTHER.parts)
            await other.ask(Ping())
            actors = house.runtime.statistics().actors
            assert other.passivate()

            assert actors - house.runtime.statistics().actors == 1, "nobody watches or supervises it"
            assert house.runtime.statistics().children == 0
            if deed == "every":
                gc.collect()  # those of earlier tests
                assert not any(isinstance(thing, Ticks) for thing in gc.get_objects()), "no timer is left"
            other.kill()
            await anyio.wait_all_tasks_blocked()
            assert house.log == []
            assert house.store.load("ghost:g") is None

    run(body)


class EndOf(Request[Any], frozen=True):
    """Ends the actor with this key, and waits for that."""

    verb: str
    key: str


class Executioner(Actor):
    @handles(EndOf)
    async def end_of(self, message: EndOf, context: Context) -> Any:
        ref = context.actor("executioner", message.key)
        if message.verb == "drain":
            await ref.drain(timeout_s=1e5)
        elif message.verb == "stop":
            await ref.stop()
        else:
            await ref.wait_ended()
        return "ended"

    @handles(Ping)
    async def ping(self, _message: Ping, context: Context) -> Any:
        return await context.actor("executioner", "judge").ask(EndOf("stop", self.id.key), timeout_s=1e5)


async def outcome(ask: Awaitable[Any]) -> str:
    try:
        return str(await ask)
    except CallboardError as error:
        return type(error).__name__


@pytest.mark.parametrize("verb", ["stop", "drain", "wait"])
def test_an_actor_that_waits_for_its_own_end_is_told_instead_of_waiting_for_ever(run: Run, verb: str) -> None:
    async def body() -> None:
        runtime = Runtime(MemoryStore, drain_timeout_s=0.1)
        runtime.register("executioner", Executioner)
        async with runtime:
            own = runtime.actor("executioner", "own")

            with anyio.fail_after(1000.0):
                assert await outcome(own.ask(EndOf(verb, "own"), timeout_s=1e5)) == CyclicAsk.__name__

    run(body)


def test_an_actor_that_stops_who_waits_for_it_is_told_instead_of_waiting_for_ever(run: Run) -> None:
    async def body() -> None:
        runtime = Runtime(MemoryStore, drain_timeout_s=0.1)
        runtime.register("executioner", Executioner)
        async with runtime:
            with anyio.fail_after(1000.0):
                assert await outcome(runtime.actor("executioner", "asker").ask(Ping(), timeout_s=1e5)) == "CyclicAsk"

    run(body)


def test_an_actor_may_stop_another_and_go_on(run: Run) -> None:
    async def body() -> None:
        runtime = Runtime(MemoryStore)
        runtime.register("executioner", Executioner)
        async with runtime:
            assert await runtime.actor("executioner", "judge").ask(EndOf("stop", "other")) == "ended"

            assert runtime.inspect("executioner", "other").state == "stopped"

    run(body)


class KillYourself(Request[int], frozen=True):
    then_crash: bool = False


class Martyr(Actor):
    def load(self, context: Context) -> None:
        self.kills = int(context.stored.head) if context.stored is not None else 0

    @handles(KillYourself)
    def kill_yourself(self, message: KillYourself, context: Context) -> int:
        context.actor(*self.id.parts).kill()
        if message.then_crash:
            raise ZeroDivisionError
        self.kills += 1
        context.stage(head=b"%d" % self.kills)
        return self.kills

    @handles(Ping)
    async def ping(self, _message: Ping, _context: Context) -> int:
        await anyio.sleep(1.0)
        return self.kills


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("then_crash", [False, True])
def test_a_plain_handler_that_kills_its_own_actor_is_its_last_one(run: Run, then_crash: bool, queued: bool) -> None:
    async def body() -> None:
        runtime = Runtime(MemoryStore)
        runtime.register("martyr", Martyr)
        async with runtime:
            martyr = runtime.actor("martyr", "m")
            before = [martyr.ask_nowait(Ping())] if queued else []
            killing = martyr.ask_nowait(KillYourself(then_crash=then_crash))
            behind = [martyr.ask_nowait(Ping())] if queued else []

            assert [await outcome(one.wait()) for one in before] == ["0"] * queued
            assert await outcome(killing.wait()) == ("Failed" if then_crash else "1")
            assert [await outcome(one.wait()) for one in behind] == ["Stopping"] * queued
            assert runtime.inspect("martyr", "m").state == "stopped"
            runtime.resume("martyr", "m")
            assert await martyr.ask(KillYourself()) == (1 if then_crash else 2)

    run(body)
