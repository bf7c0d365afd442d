"""Programs of requests through the connection pool over real sockets, made from a seed, with servers that misbehave.

A program is a few clients that send requests one after the other to one server, plain or under TLS, through few slots.
A client reads its answer whole, gives it up half-way, is cancelled at any moment, or has a short read timeout. For each
request that comes the server draws one of `BEHAVIOURS`: every framing, cuts anywhere, closing, resetting, garbage,
silence. What both sides saw is in `requests` and `server.heard` for pool_checks.py.

Time is real, since sockets have no other: a seed gives the same draws, not the same history.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import anyio
import anyio.lowlevel
import httpx
from pool_server import Heard, Peer, Server, chunked, client_context, response, serve, server_context

from callboard.actors.dialing import Route
from callboard.actors.pool import ConnectionPool, PooledResponse
from callboard.actors.pooled_transport import STARTED, PooledTransport

__all__ = ["BEHAVIOURS", "LAST_ONES", "NAME", "Backend", "Program", "Request"]

Backend: TypeAlias = Literal["trio", "asyncio"]

NAME = "127.0.0.1"
SLOW_S = 0.004
"""The longest that a server waits somewhere, and about as long as clients have patience."""
LIMIT_S = 10.0
"""For all clients together, who need some tenths of it; who is not through by then waits for ever."""
TLS_RECORD_BYTES = 16 * 1024

BEHAVIOURS: dict[str, int] = {
    "length": 20,
    "chunked": 20,
    "empty": 3,
    "interim": 4,
    "until_the_end": 4,
    "says_close": 5,
    "http10": 3,
    "left_over": 2,
    "answers_and_closes": 8,
    "answers_and_closes_later": 8,
    "closes": 8,
    "resets": 8,
    "garbles": 3,
    "cuts": 6,
    "cuts_by_reset": 4,
    "hangs": 3,
    "hangs_half_way": 3,
}
"""What a server may do with a request, each a method of `Program`, and how often among how many."""
LAST_ONES = {"says_close", "http10", "left_over"}
"""After these the server listens on, but the client must not come again on that connection."""


@dataclass(slots=True)
class Request:
    """One request of a client, and what became of it.

    Attributes:
        number: also the order in which requests were made.
        ended: "" while it is in progress; "answered", "given up", "cancelled", or the name of httpx's error.
        text: what was read of its body.
        started, leaving: whether it has got its slot, whether it is being cancelled.
        emptied: whether the server answered without a body.
        sent_bytes: of a response, for each time that it came to the server. met: the server's behaviours at these.
    """

    number: int
    body: bytes
    ended: str = ""
    text: bytes = b""
    started: bool = False
    leaving: bool = False
    emptied: bool = False
    sent_bytes: list[int] = field(default_factory=list[int])
    met: list[str] = field(default_factory=list[str])


def waits(request: Request) -> bool:
    return not (request.started or request.leaving or request.ended)


class Program:
    """One seed's program: `await main()` plays it.

    Attributes:
        overtaken: where there is one slot, requests that started while an earlier one waited, and that one.
        in_use_max: the most requests at once by the pool's own count.
        served_at_once: how many requests were answered at the same time at the end, of `slots` that must be.
        left: in use, waiting, idle when all clients had gone; after `aclose` the idle ones must be none.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.tls = self.chance.random() < 0.3
        self.slots = self.chance.choice([1, 2, 3, 6])
        self.idle_s = self.chance.choice([0.002, 0.02, 4.0])
        self.clients = self.chance.randint(2, 8)
        self.requests: list[Request] = []
        self.overtaken: list[tuple[int, int]] = []
        self.in_use_max = 0
        self.served_at_once = 0
        self.left = (-1, -1, -1)
        self.left_after_close = (-1, -1, -1)
        self.server = Server(NAME)
        self._together: anyio.Event | None = None
        self.door: Door = TlsDoor(self) if self.tls else TransportDoor(self)

    async def main(self) -> None:
        tls = server_context(NAME) if self.tls else None
        async with serve(self._talk, tls=tls) as self.server:
            with anyio.move_on_after(LIMIT_S):
                async with anyio.create_task_group() as clients:
                    for client in range(self.clients):
                        clients.start_soon(self._client, random.Random(f"{self.seed} {client}"))
            self.left = self.door.counts()
            await self._all_slots_at_once()
            await self.door.close()
            self.left_after_close = self.door.counts()
            with anyio.move_on_after(3):
                while self.server.connections_open:  # noqa: ASYNC110 - a server's counter has no event
                    await anyio.sleep(0.001)

    # The clients.

    async def _client(self, chance: random.Random) -> None:
        for _ in range(chance.randint(2, 8)):
            number = len(self.requests)
            request = Request(number, b"%d:" % number + b"x" * chance.choice([0, 3, 500, 40_000]))
            self.requests.append(request)
            patience_s = chance.choice([None, None, None, 0.0, SLOW_S * chance.random(), 3 * SLOW_S * chance.random()])
            read_timeout_s = None if patience_s is not None else chance.choice([2 * SLOW_S, 5 * SLOW_S])
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    if patience_s is not None:
                        tasks.start_soon(cancel_after, patience_s, chance.randrange(40), request, scope)
                    await self._ask(request, read_timeout_s, gives_up=chance.random() < 0.1)
                    tasks.cancel_scope.cancel()
            request.ended = request.ended or "cancelled"
            if chance.random() < 0.3:
                await anyio.sleep(SLOW_S * chance.random())

    async def _ask(self, request: Request, read_timeout_s: float | None, *, gives_up: bool) -> None:
        try:
            await self.door.ask(request, partial(self._started, request), read_timeout_s, gives_up=gives_up)
        except httpx.TransportError as error:
            request.ended = type(error).__name__

    def _started(self, request: Request) -> None:
        request.started = True
        self.in_use_max = max(self.in_use_max, self.door.counts()[0])
        if self.slots > 1:
            return  # of several that got their slots in one round of the loop any may be the first to say so
        waiting = [other.number for other in self.requests[: request.number] if waits(other)]
        self.overtaken += [(request.number, number) for number in waiting]

    async def _all_slots_at_once(self) -> None:
        """Requests that are answered when as many have come as there are slots: a slot that was lost is missed."""
        self._together = anyio.Event()
        with anyio.move_on_after(3):
            async with anyio.create_task_group() as tasks:
                for _ in range(self.slots):
                    request = Request(len(self.requests), b"together")
                    tasks.start_soon(partial(self.door.ask, request, lambda: None, None, gives_up=False))

    # The server.

    async def _talk(self, peer: Peer) -> None:
        while heard := await peer.request():
            if heard.body == b"together":
                await self._meet(peer)
                continue
            request = self.requests[int(heard.body.partition(b":")[0])]
            request.sent_bytes.append(0)
            chance = random.Random(f"{self.seed} {request.number} {len(request.sent_bytes)}")
            (behaviour,) = chance.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))
            request.met.append(behaviour)
            act: Callable[[Answering], Awaitable[None]] = getattr(self, f"_{behaviour}")
            await act(Answering(peer, heard, request, chance))

    async def _meet(self, peer: Peer) -> None:
        assert self._together is not None
        self.served_at_once += 1
        if self.served_at_once == self.slots:
            self._together.set()
        await self._together.wait()
        await peer.send(response(b"together"))

    async def _length(self, to: "Answering") -> None:
        await to.send(response(to.heard.body))

    async def _chunked(self, to: "Answering") -> None:
        body, size = to.heard.body, to.chance.choice([1000, 7000, 50_000])
        await to.send(chunked(*(body[at : at + size] for at in range(0, len(body), size))))

    async def _empty(self, to: "Answering") -> None:
        to.request.emptied = True
        await to.send(to.chance.choice([b"HTTP/1.1 204 No Content\r\n\r\n", response(b"")]))

    async def _interim(self, to: "Answering") -> None:
        await to.send(b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" + response(to.heard.body))

    async def _until_the_end(self, to: "Answering") -> None:
        await to.send(b"HTTP/1.1 200 OK\r\n\r\n" + to.heard.body)
        await to.peer.close()

    async def _says_close(self, to: "Answering") -> None:
        await to.send(response(to.heard.body, "Connection: close"))  # and listens on: nothing may follow

    async def _http10(self, to: "Answering") -> None:
        await to.send(response(to.heard.body).replace(b"HTTP/1.1", b"HTTP/1.0"))

    async def _left_over(self, to: "Answering") -> None:
        if len(to.heard.body) > 1000:  # no one segment: what comes later is anybody's
            to.request.met[-1] = "length"
            return await self._length(to)
        to.request.sent_bytes[-1] += 1
        # Under TLS the second response is a record of its own, which has come with the first and is not read with it.
        padding = TLS_RECORD_BYTES - len(response(to.heard.body, "X: ")) if self.tls else 0
        await to.peer.send(response(to.heard.body, "X: " + "x" * padding) + response(b"another's"))

    async def _answers_and_closes(self, to: "Answering") -> None:
        await to.send(response(to.heard.body))
        await to.peer.close()

    async def _answers_and_closes_later(self, to: "Answering") -> None:
        await to.send(response(to.heard.body))
        await to.pause()
        await (to.peer.close() if to.chance.random() < 0.5 else to.peer.reset())

    async def _closes(self, to: "Answering") -> None:
        await to.pause()
        await to.peer.close()

    async def _resets(self, to: "Answering") -> None:
        await to.pause()
        await to.peer.reset()

    async def _garbles(self, to: "Answering") -> None:
        await to.send(
            to.chance.choice([b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200\r\n?\r\n\r\n", chunked(to.heard.body)[:-6] + b"z\r\n"])
        )

    async def _cuts(self, to: "Answering") -> None:
        data = to.chance.choice([response(to.heard.body + b"!"), chunked(to.heard.body + b"!")])
        await to.send(data[: to.chance.randrange(1, len(data) - 1)])
        await to.peer.close()

    async def _cuts_by_reset(self, to: "Answering") -> None:
        data = response(to.heard.body)
        await to.send(data[: to.chance.randrange(1, len(data))])
        await to.peer.reset()

    async def _hangs(self, to: "Answering") -> None:
        await to.peer.wait_closed()

    async def _hangs_half_way(self, to: "Answering") -> None:
        await to.send(response(to.heard.body + b"!")[:-1])
        await to.peer.wait_closed()


@dataclass(frozen=True, slots=True)
class Answering:
    """A request at the server."""

    peer: Peer
    heard: Heard
    request: Request
    chance: random.Random

    async def send(self, data: bytes) -> None:
        """Send it whole or in a few pieces, at once or slowly."""
        cuts = sorted(self.chance.randrange(len(data)) for _ in range(self.chance.choice([0, 0, 1, 5])))
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start == stop:
                continue
            if self.chance.random() < 0.3:
                await self.pause()
            self.request.sent_bytes[-1] += stop - start
            await self.peer.send(data[start:stop])

    async def pause(self) -> None:
        await anyio.sleep(self.chance.choice([0.0, SLOW_S * self.chance.random()]))


async def cancel_after(patience_s: float, ticks: int, request: Request, scope: anyio.CancelScope) -> None:
    """Cancel after a time, or after so many rounds of the loop: no moment between two of its steps is left out."""
    if patience_s:
        await anyio.sleep(patience_s)
    else:
        for _ in range(ticks):
            await anyio.lowlevel.checkpoint()
    request.leaving = True
    scope.cancel()


# The two ways into the pool.


class TransportDoor:
    """Through httpx's interface, which has slots."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._transport = PooledTransport(connections_max=program.slots, idle_s=program.idle_s, trust_env=False)

    async def ask(
        self, request: Request, started: Callable[[], None], read_timeout_s: float | None, *, gives_up: bool
    ) -> None:
        extensions = {STARTED: started, "timeout": {"read": read_timeout_s}}
        url = f"http://{NAME}:{self._program.server.port}/"
        asked = httpx.Request("POST", url, content=request.body, extensions=extensions)
        answer = await self._transport.handle_async_request(asked)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        try:
            async for piece in answer.stream:
                request.text += piece
                if gives_up:
                    request.ended = "given up"
                    return
        finally:
            await answer.stream.aclose()
        request.ended = "answered"

    def counts(self) -> tuple[int, int, int]:
        counted = self._transport.statistics()
        return counted.in_use, counted.waiting, counted.idle

    async def close(self) -> None:
        await self._transport.aclose()


class TlsDoor:
    """Straight to the pool, which has no slots: as many requests at once as there are clients."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._pool = ConnectionPool(idle_s=program.idle_s, ssl_context=client_context(NAME))
        program.slots = max(program.slots, program.clients)

    async def ask(
        self, request: Request, started: Callable[[], None], read_timeout_s: float | None, *, gives_up: bool
    ) -> None:
        started()
        route = Route("https", NAME, self._program.server.port)
        head = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(request.body)
        with anyio.move_on_after(read_timeout_s) as patience:
            got = await self._pool.send(route, head + request.body)
            try:
                await self._read(got, request, gives_up=gives_up)
            finally:
                got.close()
        if patience.cancelled_caught:
            request.ended = "cancelled"

    async def _read(self, got: PooledResponse, request: Request, *, gives_up: bool) -> None:
        while piece := await got.receive():
            request.text += piece
            if gives_up:
                request.ended = "given up"
                return
        request.ended = "answered"

    def counts(self) -> tuple[int, int, int]:
        in_use, idle = self._pool.counts()
        return in_use, 0, idle

    async def close(self) -> None:
        self._pool.close_idle()


Door: TypeAlias = TransportDoor | TlsDoor
