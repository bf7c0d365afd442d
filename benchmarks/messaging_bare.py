"""The event loops without any library in the rows of bench_messaging.py: what a message costs if written by hand.

ping-pong   two tasks wake each other and carry nothing: the loop's own limit for an ask that switches tasks
channel     an actor is a task that reads from trio's memory channel (asyncio: a queue) of 128 messages, and sets an
            event (a future) when it has the reply; no deadline, no supervision, no errors
parked      the same without the loop's own queues: a deque, and tasks that are woken by hand
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import anyio
import trio
import trio.testing
from messaging_load import Figures, Load, Measure, alternating_us, repeated, together_us

__all__ = ["measures"]

MAILBOX_COUNT_MAX = 128
"""As many as a mailbox of ours holds. Askers wait for their replies, so there are never that many asks."""


class Bare(Protocol):
    """An actor by hand. Its behaviour, plain or async, is run by the one of its two loops that was started."""

    async def ask(self, message: Any) -> Any: ...

    async def tell(self, message: Any) -> None: ...

    async def serve(self) -> None: ...

    async def serve_async(self) -> None: ...


# trio -----------------------------------------------------------------------------------------------------------------


class TrioReply:
    __slots__ = ("ready", "value")

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.value: Any = None


class TrioChannel:
    def __init__(self, behaviour: Callable[[Any], Any]) -> None:
        self._behaviour = behaviour
        self._send, self._receive = trio.open_memory_channel[tuple[Any, TrioReply | None]](MAILBOX_COUNT_MAX)

    async def ask(self, message: Any) -> Any:
        reply = TrioReply()
        self._send.send_nowait((message, reply))  # 2 us faster than `send`, which is a checkpoint of its own
        await reply.ready.wait()
        return reply.value

    async def tell(self, message: Any) -> None:
        await self._send.send((message, None))

    async def serve(self) -> None:
        behaviour = self._behaviour
        async for message, reply in self._receive:
            value = behaviour(message)
            if reply is not None:
                reply.value = value
                reply.ready.set()

    async def serve_async(self) -> None:
        behaviour = self._behaviour
        async for message, reply in self._receive:
            value = await behaviour(message)
            if reply is not None:
                reply.value = value
                reply.ready.set()


def gone(_raise_cancel: Any) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


class TrioAsk:
    __slots__ = ("message", "task", "value")

    def __init__(self, message: Any, task: trio.lowlevel.Task | None) -> None:
        self.message = message
        self.task = task
        self.value: Any = None


class TrioParked:
    def __init__(self, behaviour: Callable[[Any], Any]) -> None:
        self._behaviour = behaviour
        self._queue: deque[TrioAsk] = deque()
        self._parked: trio.lowlevel.Task | None = None

    def _put(self, ask: TrioAsk) -> None:
        self._queue.append(ask)
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    async def ask(self, message: Any) -> Any:
        ask = TrioAsk(message, trio.lowlevel.current_task())
        self._put(ask)
        await trio.lowlevel.wait_task_rescheduled(gone)
        return ask.value

    async def tell(self, message: Any) -> None:
        self._put(TrioAsk(message, None))

    async def serve(self) -> None:
        queue, behaviour, me = self._queue, self._behaviour, trio.lowlevel.current_task()
        while True:
            while queue:
                ask = queue.popleft()
                ask.value = behaviour(ask.message)
                if ask.task is not None:
                    trio.lowlevel.reschedule(ask.task)
            self._parked = me
            await trio.lowlevel.wait_task_rescheduled(gone)

    async def serve_async(self) -> None:
        queue, behaviour, me = self._queue, self._behaviour, trio.lowlevel.current_task()
        while True:
            while queue:
                ask = queue.popleft()
                ask.value = await behaviour(ask.message)
                if ask.task is not None:
                    trio.lowlevel.reschedule(ask.task)
            self._parked = me
            await trio.lowlevel.wait_task_rescheduled(gone)


@asynccontextmanager
async def trio_ping_pong() -> AsyncGenerator[Callable[[int], Awaitable[None]]]:
    caller = trio.lowlevel.current_task()
    partners: list[trio.lowlevel.Task] = []

    async def partner() -> None:
        partners.append(trio.lowlevel.current_task())
        while True:
            await trio.lowlevel.wait_task_rescheduled(gone)
            trio.lowlevel.reschedule(caller)

    async def ping(times: int) -> None:
        other = partners[0]
        for _ in range(times):
            trio.lowlevel.reschedule(other)
            await trio.lowlevel.wait_task_rescheduled(gone)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partner)
        await trio.testing.wait_all_tasks_blocked()
        yield ping
        nursery.cancel_scope.cancel()


# asyncio --------------------------------------------------------------------------------------------------------------


class AsyncioQueue:
    def __init__(self, behaviour: Callable[[Any], Any]) -> None:
        self._behaviour = behaviour
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any] | None]] = asyncio.Queue(MAILBOX_COUNT_MAX)

    async def ask(self, message: Any) -> Any:
        reply = self._loop.create_future()
        self._queue.put_nowait((message, reply))
        return await reply

    async def tell(self, message: Any) -> None:
        await self._queue.put((message, None))

    async def serve(self) -> None:
        get, behaviour = self._queue.get, self._behaviour
        while True:
            message, reply = await get()
            value = behaviour(message)
            if reply is not None:
                reply.set_result(value)

    async def serve_async(self) -> None:
        get, behaviour = self._queue.get, self._behaviour
        while True:
            message, reply = await get()
            value = await behaviour(message)
            if reply is not None:
                reply.set_result(value)


class AsyncioParked:
    def __init__(self, behaviour: Callable[[Any], Any]) -> None:
        self._behaviour = behaviour
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Any, asyncio.Future[Any] | None]] = deque()
        self._parked: asyncio.Future[None] | None = None

    def _put(self, message: Any, reply: asyncio.Future[Any] | None) -> None:
        self._queue.append((message, reply))
        if self._parked is not None:
            self._parked.set_result(None)
            self._parked = None

    async def ask(self, message: Any) -> Any:
        reply = self._loop.create_future()
        self._put(message, reply)
        return await reply

    async def tell(self, message: Any) -> None:
        self._put(message, None)

    async def serve(self) -> None:
        queue, behaviour = self._queue, self._behaviour
        while True:
            while queue:
                message, reply = queue.popleft()
                value = behaviour(message)
                if reply is not None:
                    reply.set_result(value)
            self._parked = self._loop.create_future()
            await self._parked

    async def serve_async(self) -> None:
        queue, behaviour = self._queue, self._behaviour
        while True:
            while queue:
                message, reply = queue.popleft()
                value = await behaviour(message)
                if reply is not None:
                    reply.set_result(value)
            self._parked = self._loop.create_future()
            await self._parked


@asynccontextmanager
async def asyncio_ping_pong() -> AsyncGenerator[Callable[[int], Awaitable[None]]]:
    loop = asyncio.get_running_loop()
    to_partner = loop.create_future()
    to_caller = loop.create_future()

    async def partner() -> None:
        nonlocal to_partner
        while True:
            await to_partner
            to_partner = loop.create_future()
            to_caller.set_result(None)

    async def ping(times: int) -> None:
        nonlocal to_caller
        for _ in range(times):
            to_caller = loop.create_future()
            to_partner.set_result(None)
            await to_caller

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partner)
        await asyncio.sleep(0)
        yield ping
        tasks.cancel_scope.cancel()


# The rows -------------------------------------------------------------------------------------------------------------


class Board:
    """What many agents append to and read from."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def handle(self, message: str | int) -> int | list[str]:
        if isinstance(message, str):
            self._texts.append(message)
            return len(self._texts)
        return self._texts[-message:]


class Counting:
    """Says when so many messages were handled."""

    def begin(self, count: int) -> None:
        self._left = count
        self.done = anyio.Event()

    def handle(self, _message: int) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()


def same(message: Any) -> Any:
    return message


async def same_async(message: Any) -> Any:
    return message


async def same_after_waiting_on_trio(message: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return message


async def same_after_waiting_on_asyncio(message: Any) -> Any:
    await asyncio.sleep(0)
    return message


@asynccontextmanager
async def served(actors: Sequence[Bare], *, by_async: bool = False) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as tasks:
        for actor in actors:
            tasks.start_soon(actor.serve_async if by_async else actor.serve)
        yield
        tasks.cancel_scope.cancel()


def asking(actor: Bare) -> Callable[[int], Awaitable[None]]:
    async def ask(times: int) -> None:
        for _ in range(times):
            await actor.ask(1)

    return ask


class Rows:
    """The same rows on either loop."""

    def __init__(self, backend: str) -> None:
        on_trio = backend == "trio"
        self._kinds: Mapping[str, Callable[[Callable[[Any], Any]], Bare]] = {
            "channel": TrioChannel if on_trio else AsyncioQueue,
            "parked": TrioParked if on_trio else AsyncioParked,
        }
        self._waiting = same_after_waiting_on_trio if on_trio else same_after_waiting_on_asyncio
        self._ping_pong = trio_ping_pong if on_trio else asyncio_ping_pong

    def _each(self, behaviour: Callable[[Any], Any]) -> dict[str, Bare]:
        return {name: kind(behaviour) for name, kind in self._kinds.items()}

    async def ask(self, load: Load) -> Figures:
        actors = self._each(same)
        async with served(list(actors.values())), self._ping_pong() as ping:
            ways = {f"{name}_ask_us": asking(actor) for name, actor in actors.items()}
            return await alternating_us(load.seconds, {"ping_pong_us": ping, **ways})

    async def ask_async(self, load: Load) -> Figures:
        actors = self._each(same_async)
        async with served(list(actors.values()), by_async=True):
            ways = {f"{name}_async_us": asking(actor) for name, actor in actors.items()}
            return await alternating_us(load.seconds, ways)

    async def ask_waiting(self, load: Load) -> Figures:
        actors = self._each(self._waiting)
        async with served(list(actors.values()), by_async=True):
            ways = {f"{name}_waits_us": asking(actor) for name, actor in actors.items()}
            figures = await alternating_us(load.seconds, ways)
            for name, actor in actors.items():
                crowd = partial(together_us, [partial(asking(actor), 5)] * 50, operations=50 * 5)
                figures[f"{name}_waits_50_callers_us"] = await repeated(load.seconds, crowd)
            return figures

    async def many(self, load: Load) -> Figures:
        figures: Figures = {}
        for name, kind in self._kinds.items():
            actors = [kind(same) for _ in range(1000)]

            async def caller(first: int, actors: list[Bare]) -> None:
                for number in range(first, first + 50):
                    await actors[number % 1000].ask(first)

            async with served(actors):
                callers = [partial(caller, number, actors) for number in range(1000)]
                crowd = partial(together_us, callers, operations=1000 * 50)
                figures[f"{name}_many_us"] = await repeated(load.seconds, crowd)
        return figures

    async def tells(self, load: Load) -> Figures:
        figures: Figures = {}
        for name, kind in self._kinds.items():
            counting = Counting()
            actor = kind(counting.handle)

            async def send(actor: Bare) -> None:
                for _ in range(100):
                    await actor.tell(1)

            async def once(counting: Counting, senders: list[Callable[[], Awaitable[None]]]) -> float:
                counting.begin(100 * 100)
                return await together_us([counting.done.wait, *senders], operations=100 * 100)

            async with served([actor]):
                crowd = partial(once, counting, [partial(send, actor)] * 100)
                figures[f"{name}_tell_us"] = await repeated(load.seconds, crowd)
        return figures

    async def create(self, load: Load) -> Figures:
        figures: Figures = {}
        for name, kind in self._kinds.items():
            actors: dict[str, Bare] = {}
            async with anyio.create_task_group() as tasks:

                async def first_messages(
                    kind: Callable[[Callable[[Any], Any]], Bare], actors: dict[str, Bare], start: Callable[..., object]
                ) -> None:
                    for number in range(load.created):
                        actor = actors[f"actor-{number}"] = kind(same)
                        start(actor.serve)
                        await actor.ask(1)

                work = partial(first_messages, kind, actors, tasks.start_soon)
                figures[f"{name}_create_us"] = await together_us([work], operations=load.created)
                tasks.cancel_scope.cancel()
        return figures

    async def hot(self, load: Load) -> Figures:
        figures: Figures = {}
        for name, kind in self._kinds.items():
            board = kind(Board().handle)

            async def agent(board: Bare) -> None:
                for _ in range(50):
                    await board.ask("a line of text")
                    await board.ask(10)

            async with served([board]):
                crowd = partial(together_us, [partial(agent, board)] * 50, operations=50 * 100)
                figures[f"{name}_hot_us"] = await repeated(load.seconds, crowd)
        return figures


def measures(variant: str) -> Mapping[str, Measure]:
    """By row; `variant` is the backend."""
    rows = Rows(variant)
    return {
        "ask": rows.ask,
        "async": rows.ask_async,
        "waits": rows.ask_waiting,
        "many": rows.many,
        "tells": rows.tells,
        "create": rows.create,
        "hot": rows.hot,
    }
