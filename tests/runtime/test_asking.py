"""What becomes of a request: replies, refusals, deadlines, callers that go. The same bodies on trio and asyncio."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import (
    Abandoned,
    Actor,
    Context,
    Expired,
    MailboxFull,
    Request,
    Runtime,
    Stopping,
    Ticket,
    Unknown,
    UnknownActor,
    handles,
)
from callboard.runtime.cell import ActorKind, Cell
from callboard.runtime.identity import ActorId
from callboard.runtime.ref import ASKS_PER_CHECKPOINT
from callboard.store import CallboardError, MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


class Echo(Request[Any], frozen=True):
    value: object


class Work(Request[str], frozen=True):
    """Waits for its gate, which is named, to open."""

    name: str
    big: int = 64

    def size_bytes(self) -> int:
        return self.big


class Stubborn(Request[str], frozen=True):
    name: str


class Owe(Request[str], frozen=True):
    name: str


class OweLightly(Request[str], frozen=True):
    name: str


class Pay(Request[None], frozen=True):
    name: str


class Refuse(Request[None], frozen=True):
    pass


class Stranger(Request[None], frozen=True):
    pass


class TooMuch(CallboardError):
    pass


class Desk:
    """What the actors of one test share: gates to wait at, and a log of what happened."""

    def __init__(self) -> None:
        self.gates: dict[str, anyio.Event] = {}
        self.log: list[str] = []

    def gate(self, name: str) -> anyio.Event:
        return self.gates.setdefault(name, anyio.Event())


class Clerk(Actor):
    def __init__(self, id: ActorId, desk: Desk) -> None:
        super().__init__(id)
        self.desk = desk
        self.owed: dict[str, Ticket] = {}

    @handles(Echo)
    def echo(self, message: Echo, _context: Context) -> object:
        self.desk.log.append(f"echo {message.value}")
        return message.value

    @handles(Refuse)
    def refuse(self, _message: Refuse, _context: Context) -> None:
        raise TooMuch("not today")

    @handles(Work, on_cancel="cancel")
    async def work(self, message: Work, _context: Context) -> str:
        return await self._work(message.name)

    @handles(Stubborn, on_cancel="detach")
    async def stubborn(self, message: Stubborn, _context: Context) -> str:
        return await self._work(message.name)

    async def _work(self, name: str) -> str:
        self.desk.log.append(f"begin {name}")
        try:
            await self.desk.gate(name).wait()
        except anyio.get_cancelled_exc_class():
            self.desk.log.append(f"cancelled {name}")
            raise
        self.desk.log.append(f"end {name}")
        return name

    @handles(Owe, on_cancel="cancel")
    def owe(self, message: Owe, context: Context) -> Ticket:
        self.owed[message.name] = context.defer()
        return self.owed[message.name]

    @handles(OweLightly, on_cancel="detach")
    def owe_lightly(self, message: OweLightly, context: Context) -> Ticket:
        self.owed[message.name] = context.defer()
        return self.owed[message.name]

    @handles(Pay)
    def pay(self, message: Pay, _context: Context) -> None:
        ticket = self.owed.pop(message.name)
        self.desk.log.append(f"pay {message.name} {'open' if ticket.open else 'late'}")
        ticket.reply(message.name)

    @handles(Abandoned)
    def abandoned(self, signal: Abandoned, _context: Context) -> None:
        ticket = self.owed.pop(signal.message.name)
        self.desk.log.append(f"abandoned {signal.message.name} {'open' if ticket.open else 'closed'}")
        ticket.reply("too late")


def a_runtime(desk: Desk, *, count_max: int = 128, bytes_max: int = 8 << 20) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    kind = ActorKind(
        "clerk", lambda id: Clerk(id, desk), durable=False, mailbox_count_max=count_max, mailbox_bytes_max=bytes_max
    )
    runtime._registry.add(kind)  # pyright: ignore[reportPrivateUsage] - `register` has no bounds for mailboxes yet
    return runtime


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_an_ask_is_answered_and_a_tell_only_queued(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            clerk = runtime.actor("clerk", "k")
            await clerk.tell(Echo("told"))

            assert await clerk.ask(Echo("asked")) == "asked"
            assert desk.log == ["echo told", "echo asked"]

    run(body)


def test_an_error_of_callboards_tree_is_the_answer_and_no_crash(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            clerk = runtime.actor("clerk", "k")
            with pytest.raises(TooMuch):
                await clerk.ask(Refuse())

            assert await clerk.ask(Echo(1)) == 1
            assert runtime.statistics().crashes == 0
            assert runtime.inspect("clerk", "k").restarts == 0

    run(body)


def test_a_message_without_a_handler_is_the_askers_mistake(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            with pytest.raises(TypeError, match="no handler for Stranger"):
                await runtime.actor("clerk", "k").ask(Stranger())

    run(body)


def test_bad_addresses_are_refused_at_the_door(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            with pytest.raises(UnknownActor, match="registered: clerk"):
                runtime.actor("clark", "k")
            for key in ("", "x" * 301):
                with pytest.raises(ValueError, match="1 to 300 bytes"):
                    runtime.actor("clerk", key)
            with pytest.raises(ValueError, match="timeout_s"):
                await runtime.actor("clerk", "k").ask(Echo(1), timeout_s=0)

    run(body)


def test_one_handler_runs_at_a_time_across_its_awaits_and_actors_run_side_by_side(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime, anyio.create_task_group() as tasks:
            for name in ("a", "b"):
                tasks.start_soon(runtime.actor("clerk", "one").ask, Work(name))
                await anyio.wait_all_tasks_blocked()
            tasks.start_soon(runtime.actor("clerk", "two").ask, Work("c"))
            await anyio.wait_all_tasks_blocked()
            assert desk.log == ["begin a", "begin c"]

            desk.gate("a").set()
            await anyio.wait_all_tasks_blocked()
            assert desk.log == ["begin a", "begin c", "end a", "begin b"]
            desk.gate("b").set()
            desk.gate("c").set()

    run(body)


def test_messages_of_one_sender_are_handled_in_their_order(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk, count_max=3) as runtime:
            clerk = runtime.actor("clerk", "k")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(clerk.ask, Work("a"))
                await anyio.wait_all_tasks_blocked()

                async def send() -> None:
                    for number in range(20):
                        await clerk.tell(Echo(number))

                tasks.start_soon(send)
                await anyio.wait_all_tasks_blocked()
                assert runtime.inspect("clerk", "k").waiting == 1
                desk.gate("a").set()

            assert await clerk.ask(Echo("last")) == "last"
            assert desk.log[2:] == [f"echo {number}" for number in [*range(20), "last"]]

    run(body)


def test_a_deadline_that_passes_in_the_queue_means_it_never_runs(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime, anyio.create_task_group() as tasks:
            clerk = runtime.actor("clerk", "k")
            tasks.start_soon(clerk.ask, Work("a"))
            await anyio.wait_all_tasks_blocked()
            await clerk.tell(Echo("nobody waits for this"), timeout_s=0.01)

            with pytest.raises(Expired):
                await clerk.ask(Echo("late"), timeout_s=0.02)
            assert runtime.inspect("clerk", "k").queued == 1
            desk.gate("a").set()

        assert desk.log == ["begin a", "end a"]

    run(body)


def test_a_deadline_that_passes_while_it_runs_leaves_the_outcome_unknown(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            with pytest.raises(Unknown):
                await runtime.actor("clerk", "k").ask(Work("a"), timeout_s=0.01)
            with pytest.raises(Unknown):
                await runtime.actor("clerk", "k").ask(Stubborn("b"), timeout_s=0.01)
            desk.gate("b").set()

        assert desk.log == ["begin a", "cancelled a", "begin b", "end b"]

    run(body)


async def _cancelled_ask(runtime: Runtime, message: Request[Any]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.actor("clerk", "k").ask, message)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


def test_a_caller_that_goes_while_it_is_queued_takes_its_message_along(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime, anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.actor("clerk", "k").ask, Work("a"))
            await anyio.wait_all_tasks_blocked()
            await _cancelled_ask(runtime, Echo("gone"))

            assert runtime.inspect("clerk", "k").queued == 0
            desk.gate("a").set()

        assert desk.log == ["begin a", "end a"]

    run(body)


def test_a_caller_that_goes_while_its_handler_runs_cancels_it_or_lets_it_go_on(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            await _cancelled_ask(runtime, Work("a"))
            await _cancelled_ask(runtime, Stubborn("b"))
            desk.gate("b").set()

            assert await runtime.actor("clerk", "k").ask(Echo("next")) == "next"
        assert desk.log == ["begin a", "cancelled a", "begin b", "end b", "echo next"]

    run(body)


def test_a_caller_that_goes_before_its_handlers_first_step_still_cancels_it(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            pending = runtime.actor("clerk", "k").ask_nowait(Work("a"))
            assert runtime.inspect("clerk", "k").running == "Work"
            pending.give_up()

            assert await runtime.actor("clerk", "k").ask(Echo("next")) == "next"
        assert desk.log == ["echo next"], "the handler never began"

    run(body)


def test_a_caller_that_goes_while_its_reply_is_owed_is_announced_or_not(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            clerk = runtime.actor("clerk", "k")
            await _cancelled_ask(runtime, Owe("a"))
            assert desk.log == ["abandoned a closed"]

            await _cancelled_ask(runtime, OweLightly("b"))
            await clerk.ask(Pay("b"))
            assert desk.log == ["abandoned a closed", "pay b late"]

    run(body)


def test_an_owed_reply_whose_deadline_passes_is_unknown_whatever_the_actor_says_to_that(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            with pytest.raises(Unknown):
                await runtime.actor("clerk", "k").ask(Owe("a"), timeout_s=0.01)

            assert desk.log == ["abandoned a closed"]

    run(body)


def test_an_owed_reply_is_given_by_a_later_handler(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            clerk = runtime.actor("clerk", "k")
            pending = clerk.ask_nowait(Owe("a"))
            assert runtime.inspect("clerk", "k").owed == 1

            await clerk.ask(Pay("a"))

            assert await pending.wait() == "a"
            assert runtime.inspect("clerk", "k").owed == 0

    run(body)


@pytest.mark.parametrize("bounds", [{"count_max": 2}, {"bytes_max": 128}])
def test_a_full_mailbox_rejects_without_running(run: Run, desk: Desk, bounds: dict[str, int]) -> None:
    async def body() -> None:
        async with a_runtime(desk, **bounds) as runtime, anyio.create_task_group() as tasks:
            clerk = runtime.actor("clerk", "k")
            for name in ("a", "b", "c"):
                tasks.start_soon(clerk.ask, Work(name))
                await anyio.wait_all_tasks_blocked()

            with pytest.raises(MailboxFull):
                await clerk.ask(Echo("d"), overflow="reject")
            with pytest.raises(MailboxFull):
                await clerk.tell(Echo("e"), overflow="reject")
            for name in ("a", "b", "c"):
                desk.gate(name).set()

        assert not any("echo" in entry for entry in desk.log)

    run(body)


def test_who_waits_for_space_gets_it_in_order_or_goes_without_a_trace(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk, count_max=1) as runtime, anyio.create_task_group() as tasks:
            clerk = runtime.actor("clerk", "k")
            tasks.start_soon(clerk.ask, Work("a"))
            await anyio.wait_all_tasks_blocked()
            await clerk.tell(Echo("fills it"))

            with pytest.raises(Expired):
                await clerk.tell(Echo("waits"), timeout_s=0.01)
            with anyio.move_on_after(0.01):
                await clerk.tell(Echo("cancelled"))
            tasks.start_soon(clerk.tell, Echo("first"))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(clerk.ask, Echo("second"))
            await anyio.wait_all_tasks_blocked()
            assert runtime.inspect("clerk", "k").waiting == 2
            desk.gate("a").set()

        assert desk.log == ["begin a", "end a", "echo fills it", "echo first", "echo second"]

    run(body)


def test_a_closed_runtime_refuses_and_is_not_opened_again(run: Run, desk: Desk) -> None:
    async def body() -> None:
        runtime = a_runtime(desk)
        with pytest.raises(Stopping):
            runtime.actor("clerk", "k")
        async with runtime:
            clerk = runtime.actor("clerk", "k")

        with pytest.raises(Stopping):
            await clerk.ask(Echo(1))
        with pytest.raises(Stopping):
            runtime.actor("clerk", "k")
        with pytest.raises(RuntimeError, match="opened once"):
            await runtime.__aenter__()

    run(body)


def test_many_asks_in_place_let_other_tasks_run_and_can_be_cancelled(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            asked = 0
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep, 0)
                    scope.cancel()
                    for asked in range(1, 10 * ASKS_PER_CHECKPOINT):
                        await runtime.actor("clerk", "k").ask(Echo(asked), timeout_s=math.inf)

            assert 0 < asked <= ASKS_PER_CHECKPOINT

    run(body)


def test_a_keyboard_interrupt_in_a_handler_strands_neither_its_actor_nor_the_others(run: Run) -> None:
    class Interrupted(Actor):
        @handles(Echo)
        def echo(self, message: Echo, _context: Context) -> object:
            if message.value == "interrupt":
                raise KeyboardInterrupt
            return message.value

    async def body() -> None:
        async with Runtime(MemoryStore) as runtime:
            runtime.register("clerk", Interrupted, durable=False)
            with pytest.raises(KeyboardInterrupt):
                await runtime.actor("clerk", "k").ask(Echo("interrupt"))

            assert runtime.inspect("clerk", "k").state == "backing_off"
            assert await runtime.actor("clerk", "other").ask(Echo("next")) == "next"

    run(body)


def test_a_cells_name_is_its_ids(desk: Desk) -> None:
    cell = Cell(ActorId("clerk", "k"), ActorKind("clerk", lambda id: Clerk(id, desk)))

    assert str(cell.id) == "clerk:k"
    assert cell.quiet
