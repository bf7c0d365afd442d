"""Who waits for whom: chains of asks, their cycles, and what is none. The same bodies on trio and asyncio."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard.runtime import Actor, Context, CyclicAsk, MailboxFull, Request, Runtime, handles
from callboard.runtime.cell import ActorKind
from callboard.runtime.identity import ActorId
from callboard.store import MemoryStore

Run = Callable[[Callable[[], Awaitable[None]]], None]


class Echo(Request[Any], frozen=True):
    value: object


class Work(Request[str], frozen=True):
    """Waits until the desk is open."""


class AskOther(Request[Any], frozen=True):
    key: str
    message: Request[Any]


class TellOther(Request[None], frozen=True):
    key: str
    message: Request[Any]


class Desk:
    """What the actors of one test share."""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.log: list[str] = []


class Clerk(Actor):
    def __init__(self, id: ActorId, desk: Desk) -> None:
        super().__init__(id)
        self.desk = desk

    @handles(Echo)
    def echo(self, message: Echo, _context: Context) -> object:
        self.desk.log.append(f"echo {message.value}")
        return message.value

    @handles(Work)
    async def work(self, _message: Work, _context: Context) -> str:
        await self.desk.open.wait()
        return "worked"

    @handles(AskOther)
    async def ask_other(self, message: AskOther, context: Context) -> Any:
        return await context.actor("clerk", message.key).ask(message.message)

    @handles(TellOther)
    async def tell_other(self, message: TellOther, context: Context) -> None:
        await context.actor("clerk", message.key).tell(message.message)
        self.desk.log.append(f"told {message.key}")


def a_runtime(desk: Desk, *, count_max: int = 128) -> Runtime:
    runtime = Runtime(MemoryStore, drain_timeout_s=5.0)
    kind = ActorKind("clerk", lambda id: Clerk(id, desk), durable=False, mailbox_count_max=count_max)
    runtime._registry.add(kind)  # pyright: ignore[reportPrivateUsage] - `register` has no bounds for mailboxes yet
    return runtime


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_asking_oneself_or_an_ancestor_is_refused_at_once_with_the_chain(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            clerk = runtime.actor("clerk", "a")
            with pytest.raises(CyclicAsk, match="clerk:a -> clerk:a"):
                await clerk.ask(AskOther("a", Echo(1)))
            with pytest.raises(CyclicAsk, match="clerk:a -> clerk:b -> clerk:a"):
                await clerk.ask(AskOther("b", AskOther("a", Echo(1))))

            assert await clerk.ask(AskOther("b", AskOther("c", Echo(1)))) == 1

    run(body)


def test_telling_oneself_or_an_ancestor_is_no_cycle(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            await runtime.actor("clerk", "a").ask(TellOther("a", Echo("to myself")))
            await runtime.actor("clerk", "a").ask(AskOther("b", TellOther("a", Echo("back"))))

            assert await runtime.actor("clerk", "a").ask(Echo("last")) == "last"
        assert desk.log == ["told a", "echo to myself", "told a", "echo back", "echo last"]

    run(body)


def test_what_follows_from_a_tell_may_ask_the_teller(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk) as runtime:
            await runtime.actor("clerk", "a").ask(TellOther("b", AskOther("a", Echo("asked back"))))
            await anyio.wait_all_tasks_blocked()

        assert desk.log == ["told b", "echo asked back"]

    run(body)


def test_an_actor_that_tells_itself_does_not_wait_for_its_own_space(run: Run, desk: Desk) -> None:
    async def body() -> None:
        async with a_runtime(desk, count_max=1) as runtime, anyio.create_task_group() as tasks:
            clerk = runtime.actor("clerk", "a")
            tasks.start_soon(clerk.ask, Work())
            await anyio.wait_all_tasks_blocked()
            pending = clerk.ask_nowait(TellOther("a", Echo("to myself")))
            tasks.start_soon(clerk.ask, Echo("fills it"))
            await anyio.wait_all_tasks_blocked()
            desk.open.set()

            with pytest.raises(MailboxFull):
                await pending.wait()

    run(body)


def test_two_runtimes_in_one_loop_do_not_take_each_others_actors_for_their_own(run: Run, desk: Desk) -> None:
    class Bridge(Actor):
        @handles(AskOther)
        async def ask_other(self, message: AskOther, _context: Context) -> Any:
            return await second.actor("clerk", message.key).ask(message.message)

    first, second = Runtime(MemoryStore), a_runtime(desk)
    first.register("clerk", Bridge)

    async def body() -> None:
        async with first, second:
            assert await first.actor("clerk", "same").ask(AskOther("same", Echo(1))) == 1

    run(lambda: body())
