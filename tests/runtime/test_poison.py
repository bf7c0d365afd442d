"""Messages that crash their actor: tried again or not, then kept aside. The same bodies on trio and asyncio."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Actor,
    ActorFailed,
    Backoff,
    Context,
    Expired,
    Failed,
    Ref,
    Request,
    RestartPolicy,
    Runtime,
    Stopping,
    Ticket,
    Unknown,
    handles,
)
from callboard.runtime.quarantine import Quarantine
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]

BACKOFF_S = 1.0
FORGIVING = RestartPolicy(restarts_max=100, backoff=Backoff(first_s=BACKOFF_S, max_s=BACKOFF_S))


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Broken(Exception):
    """What a handler that has a fault raises."""


class Poison(Request[str], frozen=True):
    """Crashes so many times, then is answered."""

    name: str
    crashes: int = 1000


class SlowPoison(Poison, frozen=True):
    """The same by an async handler."""


class OncePoison(Poison, frozen=True):
    """The same by a handler that may not be repeated."""


class Note(Request[str], frozen=True):
    name: str


class Owe(Request[str], frozen=True):
    name: str


class Pay(Request[None], frozen=True):
    pass


class Eater(Actor):
    log: list[str]

    def __init__(self, id: Any) -> None:
        super().__init__(id)
        self.owed: list[Ticket] = []

    def eat(self, message: Poison, context: Context) -> str:
        self.log.append(message.name)
        context.stage(head=message.name.encode())
        if self.log.count(message.name) <= message.crashes:
            raise Broken(message.name)
        return f"{message.name} after {self.log.count(message.name)}"

    @handles(Poison, retryable=True)
    def poison(self, message: Poison, context: Context) -> str:
        return self.eat(message, context)

    @handles(SlowPoison, retryable=True, on_cancel="cancel")
    async def slow_poison(self, message: SlowPoison, context: Context) -> str:
        await anyio.sleep(0.1)
        return self.eat(message, context)

    @handles(OncePoison)
    def once_poison(self, message: OncePoison, context: Context) -> str:
        return self.eat(message, context)

    @handles(Note)
    def note(self, message: Note, context: Context) -> str:
        self.log.append(message.name)
        context.stage(head=message.name.encode())
        return message.name

    @handles(Owe, retryable=True)
    def owe(self, message: Owe, context: Context) -> Ticket:
        self.log.append(message.name)
        self.owed.append(context.defer())
        return self.owed[-1]

    @handles(Pay)
    def pay(self, _message: Pay, _context: Context) -> None:
        for ticket in self.owed:
            ticket.reply("paid")


class Table:
    def __init__(self, policy: RestartPolicy = FORGIVING) -> None:
        log = self.log = list[str]()

        class Own(Eater):
            pass

        Own.log = log
        self.store = MemoryStore(keep_history=True)
        self.runtime = Runtime(lambda: self.store, drain_timeout_s=1.0)
        self.runtime.register("eater", Own, restart=policy)

    @property
    def eater(self) -> Ref:
        return self.runtime.actor("eater", "k")

    @property
    def stored(self) -> list[bytes | None]:
        return [batch.head for group in self.store.committed for batch in group]


@pytest.mark.parametrize("kind", [Poison, SlowPoison])
def test_a_retryable_message_is_tried_again_before_all_others_and_its_caller_gets_the_last_outcome(
    run: Run, kind: type[Poison]
) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            poison = table.eater.ask_nowait(kind("p", crashes=2))
            notes = [table.eater.ask_nowait(Note(name)) for name in "abc"]

            assert await poison.wait() == "p after 3"
            assert [await note.wait() for note in notes] == ["a", "b", "c"]
            assert table.log == ["p", "p", "p", "a", "b", "c"]
            assert table.stored == [b"p", b"a", b"b", b"c"], "what crashed has stored nothing"
            assert len(table.runtime.quarantine) == 0

    run(body)


@pytest.mark.parametrize("kind", [Poison, SlowPoison])
def test_after_three_attempts_a_message_is_in_quarantine_and_the_queue_goes_on(run: Run, kind: type[Poison]) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            poison = table.eater.ask_nowait(kind("p"))
            note = table.eater.ask_nowait(Note("a"))
            with pytest.raises(Failed, match="after 3 attempts it is in quarantine") as caught:
                await poison.wait()

            assert isinstance(caught.value.__cause__, Broken)
            assert await note.wait() == "a"
            assert table.log == ["p", "p", "p", "a"]
            (kept,) = table.runtime.quarantine.list()
            assert (kept.to, kept.message, kept.attempts) == (table.eater.id, kind("p"), 3)
            assert "Broken" in kept.error
            assert table.runtime.quarantine.inspect(kept.number) == kept
            assert table.runtime.statistics().crashes == 3

    run(body)


def test_a_message_that_may_not_be_repeated_is_not_and_leaves_no_trace_in_quarantine(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            await table.eater.tell(OncePoison("t"))
            with pytest.raises(Failed):
                await table.eater.ask(OncePoison("p"))
            await table.eater.ask(Note("a"))

            assert table.log == ["t", "p", "a"]
            assert len(table.runtime.quarantine) == 0
            assert [(letter.message, letter.cause) for letter in table.runtime.dead_letters] == [
                (OncePoison("t"), "crashed")
            ]

    run(body)


def test_a_tell_is_tried_as_often_and_is_kept_in_quarantine_instead_of_among_the_dead(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            await table.eater.tell(Poison("p"))
            await table.eater.tell(Poison("q", crashes=1))
            await table.eater.ask(Note("a"))

            assert table.log == ["p", "p", "p", "q", "q", "a"]
            assert [kept.message for kept in table.runtime.quarantine.list()] == [Poison("p")]
            assert list(table.runtime.dead_letters) == []

    run(body)


def test_a_message_that_is_released_has_all_its_attempts_again_and_keeps_nobody_waiting(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            await table.eater.tell(Poison("p", crashes=5))
            await table.eater.ask(Note("a"))
            (kept,) = table.runtime.quarantine.list()
            table.runtime.release(kept.number)
            await table.eater.ask(Note("b"))

            assert table.log == ["p", "p", "p", "a", "p", "p", "p", "b"]
            assert len(table.runtime.quarantine) == 0
            with pytest.raises(LookupError, match=r"list\(\)"):
                table.runtime.release(kept.number)

    run(body)


def test_what_is_released_and_crashes_as_before_comes_back_under_a_new_number(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            await table.eater.tell(Poison("p"))
            await table.eater.ask(Note("a"))
            (first,) = table.runtime.quarantine.list()
            table.runtime.release(first.number)
            await table.eater.ask(Note("b"))

            (second,) = table.runtime.quarantine.list(table.eater.id)
            assert second.number != first.number
            assert table.runtime.quarantine.purge(table.eater.id) == 1
            assert table.runtime.quarantine.list() == ()
        with pytest.raises(Stopping):
            table.runtime.release(second.number)

    run(body)


def test_what_newer_poison_pushes_out_of_quarantine_is_a_dead_letter(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.runtime.restarts.Quarantine", lambda: Quarantine(count_max=1))

    async def body() -> None:
        table = Table()
        async with table.runtime:
            await table.eater.tell(Poison("p"))
            await table.eater.tell(Poison("q"))
            await table.eater.ask(Note("a"))

            assert [kept.message for kept in table.runtime.quarantine.list()] == [Poison("q")]
            (letter,) = table.runtime.dead_letters
            assert (letter.message, letter.cause) == (Poison("p"), "crashed")

    run(body)


def test_a_caller_that_goes_between_two_attempts_ends_them(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            poison = table.eater.ask_nowait(Poison("p"))
            note = table.eater.ask_nowait(Note("a"))
            poison.give_up()

            assert await note.wait() == "a"
            assert table.log == ["p", "a"]
            assert len(table.runtime.quarantine) == 0

    run(body)


def test_a_caller_that_goes_while_an_attempt_runs_gets_no_further_one(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            with anyio.move_on_after(0.05):
                await table.eater.ask(SlowPoison("p"))
            await anyio.sleep(5.0)

            assert await table.eater.ask(Note("a")) == "a"
            assert table.log == ["a"]
            assert len(table.runtime.quarantine) == 0

    run(body)


def test_a_deadline_that_passes_between_two_attempts_is_no_expiry_the_message_had_begun(run: Run) -> None:
    async def body() -> None:
        table = Table()
        table.runtime.register("slow", Eater, restart=RestartPolicy(backoff=Backoff(first_s=1e4, max_s=1e4)))
        Eater.log = table.log
        async with table.runtime:
            eater = table.runtime.actor("slow", "k")
            with pytest.raises(Unknown) as caught:
                await eater.ask(Poison("p"), timeout_s=0.5)
            assert not isinstance(caught.value, Expired)
            eater.kill()

            assert table.log == ["p"]

    run(body)


def test_where_the_budget_is_spent_first_the_message_fails_with_its_actor(run: Run) -> None:
    async def body() -> None:
        table = Table(RestartPolicy(restarts_max=1, backoff=Backoff(first_s=0.01, max_s=0.01)))
        async with table.runtime:
            poison = table.eater.ask_nowait(Poison("p"))
            note = table.eater.ask_nowait(Note("a"))

            with pytest.raises(Failed):
                await poison.wait()
            with pytest.raises(ActorFailed):
                await note.wait()
            assert table.log == ["p", "p"]
            assert len(table.runtime.quarantine) == 0

    run(body)


def test_owed_replies_and_the_message_that_crashed_come_again_in_the_order_in_which_they_were_sent(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            first = table.eater.ask_nowait(Owe("1"))
            second = table.eater.ask_nowait(Owe("2"))
            poison = table.eater.ask_nowait(Poison("p", crashes=1))
            third = table.eater.ask_nowait(Owe("3"))
            paid = table.eater.ask_nowait(Pay())

            await paid.wait()
            assert await poison.wait() == "p after 2"
            assert [await owed.wait() for owed in (first, second, third)] == ["paid"] * 3
            assert table.log == ["1", "2", "p", "1", "2", "p", "3"]

    run(body)


def test_a_second_crash_counts_only_for_the_message_that_did_it(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            for name in "abcd":
                assert await table.eater.ask(Poison(name, crashes=2)) == f"{name} after 3"

            assert len(table.runtime.quarantine) == 0
            assert table.runtime.inspect("eater", "k").restarts == 8

    run(body)


def test_a_message_that_was_handled_in_place_and_comes_again_counts_its_wait_from_the_crash(run: Run) -> None:
    async def body() -> None:
        table = Table()
        async with table.runtime:
            await anyio.sleep(1000.0)
            await table.eater.ask(Poison("p", crashes=1))

            assert table.runtime.statistics().queue_times.percentile_s(1.0) <= 4 * BACKOFF_S

    run(body)


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_release_to_an_actor_that_refuses_loses_nothing(run: Run, state: str) -> None:
    async def body() -> None:
        table = Table(RestartPolicy(restarts_max=3, backoff=Backoff(first_s=0.01, max_s=0.01)))
        async with table.runtime:
            await table.eater.tell(Poison("p"))
            await table.eater.ask(Note("a"))
            if state == "stopped":
                await table.eater.stop()
            else:
                with pytest.raises(Failed):
                    await table.eater.ask(OncePoison("q"))
            (kept,) = table.runtime.quarantine.list()
            refused = False
            try:
                table.runtime.release(kept.number)
            except (Stopping, ActorFailed):
                refused = True

            still_kept = table.runtime.quarantine.list() == (kept,)
            dead = [letter.message for letter in table.runtime.dead_letters if letter.message == Poison("p")]
            assert (refused and still_kept) or dead

    run(body)
