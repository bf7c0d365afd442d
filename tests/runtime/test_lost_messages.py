"""What was accepted and came to nothing is a dead letter with its cause, and nothing else is. On trio and asyncio."""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Actor,
    ActorFailed,
    ActorId,
    Backoff,
    Context,
    Expired,
    MailboxFull,
    Request,
    RestartPolicy,
    Runtime,
    Stopping,
    handles,
)
from callboard.store import CallboardError, MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Note(Request[str], frozen=True):
    name: str
    big: int = 64

    def size_bytes(self) -> int:
        return self.big


class Hold(Request[None], frozen=True):
    seconds: float


class Crash(Request[None], frozen=True):
    pass


class Refuse(Request[None], frozen=True):
    pass


class Unheard(Request[None], frozen=True):
    pass


class PassOn(Request[None], frozen=True):
    to: ActorId
    message: Request[Any]


class Pupil(Actor):
    def __init__(self, id: ActorId, log: list[str]) -> None:
        super().__init__(id)
        self.log = log

    @handles(Note)
    def note(self, message: Note, _context: Context) -> str:
        self.log.append(message.name)
        return message.name

    @handles(Hold)
    async def hold(self, message: Hold, _context: Context) -> None:
        await anyio.sleep(message.seconds)

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise RuntimeError("ordered")

    @handles(Refuse)
    def refuse(self, _message: Refuse, _context: Context) -> None:
        raise CallboardError("not today")

    @handles(PassOn)
    def pass_on(self, message: PassOn, context: Context) -> None:
        context.tell(message.to, message.message)


QUICK = RestartPolicy(backoff=Backoff(first_s=0.001, max_s=0.001))


def a_runtime(log: list[str], *, restart: RestartPolicy = QUICK, **bounds: int) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    runtime.register("pupil", lambda id: Pupil(id, log), durable=False, restart=restart, **bounds)
    return runtime


def letters(runtime: Runtime) -> list[tuple[str, str]]:
    """(message, cause) of each dead letter, oldest first."""
    return [(getattr(it.message, "name", type(it.message).__name__), it.cause) for it in runtime.dead_letters]


def test_what_is_handled_is_no_dead_letter(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Note("idle"))
            await pupil.tell(Hold(1.0))
            await pupil.tell(Note("queued"))
            await pupil.ask(PassOn(ActorId("pupil", "q"), Note("passed on")))

            assert log == ["idle", "queued", "passed on"]
            assert letters(runtime) == []
            assert runtime.dead_letters.late_replies == 0

    run(body)


def test_a_tell_whose_handler_crashes_refuses_or_is_missing_is_a_dead_letter_on_either_path(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([]) as runtime:
            pupil = runtime.actor("pupil", "p")
            for message, cause in ((Crash(), "crashed"), (Refuse(), "refused"), (Unheard(), "refused")):
                await pupil.tell(message)  # handled in place
                await anyio.sleep(1)
                await pupil.tell(Hold(1.0))
                await pupil.tell(message)  # by the mailbox
                await anyio.sleep(2)
                name = type(message).__name__
                assert letters(runtime)[-2:] == [(name, cause), (name, cause)]

            assert runtime.dead_letters.counts == {"crashed": 2, "refused": 4}

    run(body)


def test_a_letter_says_to_whom_from_whom_when_and_why(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([]) as runtime:
            await anyio.sleep(3)
            began = anyio.current_time()
            await runtime.actor("pupil", "p").ask(PassOn(ActorId("pupil", "q"), Crash()))

            (letter,) = runtime.dead_letters
            assert (letter.to, letter.sender) == (ActorId("pupil", "q"), ActorId("pupil", "p"))
            assert isinstance(letter.message, Crash)
            assert "ordered" in letter.error
            assert letter.at == pytest.approx(began, abs=0.5)

    run(body)


def test_a_tell_that_expires_in_the_queue_is_a_dead_letter(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Hold(5.0))
            await pupil.tell(Note("late"), timeout_s=1.0)
            await pupil.tell(Note("in time"), timeout_s=10.0)
            await anyio.sleep(6)

            assert log == ["in time"]
            assert letters(runtime) == [("late", "expired")]

    run(body)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_tells_that_are_queued_when_their_actor_ends_are_dead_letters(run: Run, end: str) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log) as runtime:
            pupil = runtime.actor("pupil", "p")
            pending = pupil.ask_nowait(Hold(5.0))
            for name in ("a", "b"):
                await pupil.tell(Note(name))
            if end == "kill":
                pupil.kill()
            else:
                await pupil.stop()
            with pytest.raises(Stopping):
                await pupil.tell(Note("c"))

            assert log == []
            assert letters(runtime) == [("a", "stopped"), ("b", "stopped")], "of c its sender knows"
            pending.give_up()

    run(body)


def test_tells_that_are_queued_when_the_budget_is_spent_are_dead_letters(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([], restart=RestartPolicy(restarts_max=0)) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Hold(1.0))
            await pupil.tell(Crash())
            await pupil.tell(Note("a"))
            await anyio.sleep(2)
            with pytest.raises(ActorFailed):
                await pupil.tell(Note("b"))

            assert letters(runtime) == [("Crash", "crashed"), ("a", "failed")]

    run(body)


def test_what_an_actor_tells_one_that_takes_no_message_is_a_dead_letter(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([], restart=RestartPolicy(restarts_max=0)) as runtime:
            await runtime.actor("pupil", "stopped").stop()
            await runtime.actor("pupil", "failed").tell(Crash())
            for key in ("stopped", "failed"):
                await runtime.actor("pupil", "p").ask(PassOn(ActorId("pupil", key), Note(key)))

            assert letters(runtime)[1:] == [("stopped", "stopped"), ("failed", "failed")], "nobody else knows of them"

    run(body)


def test_what_an_actor_tells_a_full_one_waits_and_dies_with_it(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([], mailbox_count_max=1) as runtime:
            full = runtime.actor("pupil", "full")
            await full.tell(Hold(5.0))
            for name in ("in", "waits"):
                await runtime.actor("pupil", "p").ask(PassOn(full.id, Note(name)))
            assert runtime.inspect("pupil", "full").waiting == 1
            full.kill()
            await anyio.sleep(1)

            assert sorted(letters(runtime)) == [("Hold", "crashed"), ("in", "stopped"), ("waits", "stopped")]

    run(body)


def test_an_ask_is_never_a_dead_letter_since_its_caller_has_the_answer(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([]) as runtime:
            pupil = runtime.actor("pupil", "p")
            outcomes: list[str] = []
            for message in (Crash(), Refuse(), Unheard()):
                with pytest.raises((CallboardError, TypeError)) as raised:
                    await pupil.ask(message)
                outcomes.append(raised.typename)
            await pupil.tell(Hold(5.0))
            with pytest.raises(Expired):
                await pupil.ask(Note("late"), timeout_s=1.0)
            pending = pupil.ask_nowait(Note("cut"))
            pupil.kill()
            with pytest.raises(Stopping):
                await pending.wait()

            assert outcomes == ["Failed", "CallboardError", "TypeError"]
            assert [name for name, _ in letters(runtime)] == ["Hold"]

    run(body)


# drop_oldest ------------------------------------------------------------------------------------------------------


def test_drop_oldest_takes_the_oldest_message_that_nobody_awaits_and_no_other(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log, mailbox_count_max=4) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Hold(5.0))
            first = pupil.ask_nowait(Note("ask 1"))
            for name in ("a", "b"):
                await pupil.tell(Note(name))
            second = pupil.ask_nowait(Note("ask 2"))
            for name in ("c", "d", "e"):
                await pupil.tell(Note(name), overflow="drop_oldest")
                assert runtime.inspect("pupil", "p").queued == 4

            assert [await first.wait(), await second.wait()] == ["ask 1", "ask 2"]
            await pupil.ask(Note("last"))
            assert log == ["ask 1", "ask 2", "d", "e", "last"]
            assert letters(runtime) == [("a", "dropped"), ("b", "dropped"), ("c", "dropped")]

    run(body)


def test_where_only_asks_are_queued_drop_oldest_drops_nothing_and_is_refused(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log, mailbox_count_max=2) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Hold(5.0))
            asks = [pupil.ask_nowait(Note(name)) for name in ("a", "b")]
            with pytest.raises(MailboxFull):
                await pupil.tell(Note("c"), overflow="drop_oldest")

            assert [await pending.wait() for pending in asks] == ["a", "b"]
            assert letters(runtime) == []

    run(body)


def test_those_who_wait_for_space_come_before_one_that_drops_the_oldest_and_all_are_handled(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log, mailbox_count_max=2) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Hold(5.0))
            for name in ("a", "b"):
                await pupil.tell(Note(name))
            waiting = pupil.ask_nowait(Note("waits"), timeout_s=math.inf)
            assert runtime.inspect("pupil", "p").waiting == 1
            await pupil.tell(Note("pushes"), overflow="drop_oldest")
            assert runtime.inspect("pupil", "p").waiting == 0

            assert await waiting.wait() == "waits"
            await pupil.ask(Note("last"))
            assert log == ["waits", "pushes", "last"]
            assert letters(runtime) == [("a", "dropped"), ("b", "dropped")]

    run(body)


def test_space_that_was_dropped_in_vain_is_given_to_who_waits_for_it(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log, mailbox_count_max=2) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Hold(5.0))
            await pupil.tell(Note("a"))
            asks = [pupil.ask_nowait(Note(name)) for name in ("ask 1", "ask 2", "ask 3")]
            with pytest.raises(MailboxFull):
                await pupil.tell(Note("pushes"), overflow="drop_oldest")
            assert runtime.inspect("pupil", "p").waiting == 1

            assert [await pending.wait() for pending in asks] == ["ask 1", "ask 2", "ask 3"]
            assert letters(runtime) == [("a", "dropped")]

    run(body)


def test_drop_oldest_makes_room_by_bytes_too(run: Run) -> None:
    async def body() -> None:
        log: list[str] = []
        async with a_runtime(log, mailbox_bytes_max=100) as runtime:
            pupil = runtime.actor("pupil", "p")
            await pupil.tell(Hold(5.0))
            for name in ("a", "b", "c"):
                await pupil.tell(Note(name, big=30))
            await pupil.tell(Note("big", big=60), overflow="drop_oldest")
            assert runtime.inspect("pupil", "p").queued_bytes == 90

            await pupil.ask(Note("last", big=1))
            assert log == ["c", "big", "last"]

    run(body)


# Late replies -----------------------------------------------------------------------------------------------------


def test_replies_to_callers_that_have_gone_are_counted(run: Run) -> None:
    async def body() -> None:
        async with a_runtime([]) as runtime:
            pupil = runtime.actor("pupil", "p")
            for expected in (1, 2, 3):
                with anyio.move_on_after(1.0):
                    await pupil.ask(Hold(2.0))
                await pupil.ask(Note("next"))
                assert runtime.dead_letters.late_replies == expected

            assert letters(runtime) == []

    run(body)
