"""What does a durable, supervised turn cost beside the bare model call that it makes?

Each way makes the same calls (same server, same bodies: a conversation that grows to --turns turns and then begins
anew) from the same number of callers, each of which makes one call after another; the ways take turns in rounds.

    shared     httpx.AsyncClient.post, one client for all callers
    bare       httpx.AsyncClient.post, one client per caller
    pooled     httpx.AsyncClient.post, one client over our PooledTransport
    model      OpenAIChat.complete: the pool, and requests and answers as our types
    chat       Agent.chat: all of that, as a turn in a session, on LMDB with durability "sync"

Read off: `chat` against `bare` is what a user pays in all; against `model`, what runtime and store cost. `added_ms` has
both for p50 and p99: the difference of the percentiles, not a percentile of differences. Without a delay of the server
the callers compete for one core, so with many of them a latency is mostly the queue for it: look at `cpu_ms` (of this
process, per call) and at `per_s` there. The last case has a server that takes its time, as models do, and callers that
come evenly: there `added_ms` is what a user would notice.

`shared` is the usual way and stands for itself: httpx 0.28's pool costs 11 ms of CPU a call with 100 connections and
walks over all that wait (FACTS.md), so it gets Limits(max_connections=10) to be able to run at all, and as many as
there are callers where the server has a delay. Past 100 callers, and with a delay, it is too slow for more than one
round. `bare` avoids its pool, and is the stronger baseline.

The first line says what the machine gives: `upstream_per_s`, what the server answers to bare sockets by number of
connections (it must not be the bottleneck), and `fdatasync_ms` of a growing file on the disk of the store. A turn is
two commits, one after the other. The server is asked how many calls it got, and the store is read for how many turns it
holds: a wrong number fails the run.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import httpx
import msgspec
from chatting import Chatting
from closed_loop import (
    Caller,
    Round,
    allow_open_files,
    closed_loop,
    fdatasync_s,
    open_upstream,
    percentile_ms,
    requests_per_s_max,
)

from callboard import Agent, Message, ModelRequest, ModelSettings, OpenAIChat, Runtime
from callboard.actors.pooled_transport import PooledTransport

INSTRUCTIONS = "You are a support agent. Be brief, and ask when something is not clear."
QUESTION = "My invoice of last month lists the same position twice, and the second one is in another currency."
ANSWER = " ".join(["I have looked at your invoice, and you are right about the second position."] * 4)

Way: TypeAlias = Callable[[int], Caller]
"""Makes the caller of this number."""


class Options(msgspec.Struct, frozen=True):
    sessions: list[int]
    turns: int
    rounds: int
    seconds: float
    delay_s: float
    backend: str


def conversations(turns: int) -> list[tuple[Message, ...]]:
    """What the model is sent in turn 1, 2, ... of a conversation."""
    question, answer = Message(role="user", content=QUESTION), Message(role="assistant", content=ANSWER)
    system = Message(role="system", content=INSTRUCTIONS)
    return [(system, *([question, answer] * turn), question) for turn in range(turns)]


def as_body(messages: tuple[Message, ...]) -> bytes:
    wire = [{"role": message.role, "content": message.content} for message in messages]
    return msgspec.json.encode({"model": "fake", "messages": wire})


# The ways -------------------------------------------------------------------------------------------------------------


def posting(url: str, bodies: list[bytes], client_of: Callable[[int], httpx.AsyncClient]) -> Way:
    """A loop of httpx.AsyncClient.post."""

    def make(number: int) -> Caller:
        client, turn = client_of(number), turn_numbers(len(bodies))

        async def call() -> None:
            headers = {"content-type": "application/json"}
            response = await client.post(f"{url}/chat/completions", content=bodies[next(turn)], headers=headers)
            assert response.json()["choices"][0]["message"]["content"] == ANSWER

        return call

    return make


def turn_numbers(turns: int) -> Iterator[int]:
    while True:
        yield from range(turns)


def asking(model: OpenAIChat, conversations: list[tuple[Message, ...]]) -> Way:
    """OpenAIChat without a runtime."""

    def make(_number: int) -> Caller:
        turn = turn_numbers(len(conversations))

        async def call() -> None:
            answer = await model.complete(ModelRequest(conversations[next(turn)], (), ModelSettings()))
            assert answer.message.text == ANSWER

        return call

    return make


@asynccontextmanager
async def open_ways(url: str, store: Path, options: Options, callers: int) -> AsyncGenerator[dict[str, Way]]:
    """All ways by name; afterwards what the chats stored was counted."""
    talks = conversations(options.turns)
    bodies = [as_body(talk) for talk in talks]
    async with AsyncExitStack() as stack:

        async def client(connections: int, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
            limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
            made = httpx.AsyncClient(timeout=None, limits=limits, transport=transport, verify=context)
            return await stack.enter_async_context(made)

        # One for all: to load the certificates takes longer than a hundred calls.
        context = httpx.create_ssl_context()
        shared = await client(callers if options.delay_s else min(callers, 10))
        own = [await client(1) for _ in range(callers)]
        pooled = await client(0, PooledTransport())
        model = OpenAIChat(base_url=url, model="fake", api_key="none")
        stack.push_async_callback(model.aclose)
        runtime = await stack.enter_async_context(Runtime(store, durability="sync"))
        agent = Agent("Clerk", instructions=INSTRUCTIONS, runtime=runtime, model=OpenAIChat(base_url=url, model="fake"))
        chatting = Chatting(runtime, question=QUESTION, answer=ANSWER, turns=options.turns)
        yield {
            "shared": posting(url, bodies, lambda _: shared),
            "bare": posting(url, bodies, own.__getitem__),
            "pooled": posting(url, bodies, lambda _: pooled),
            "model": asking(model, talks),
            "chat": lambda _: chatting.caller(agent),
        }
    chatting.check(store)


# The run --------------------------------------------------------------------------------------------------------------


async def measure(url: str, store: Path, options: Options, callers: int) -> dict[str, list[Round]]:
    """All rounds of each way; the ways take turns, so that what else the machine does hits all of them alike."""
    rounds: dict[str, list[Round]] = {}
    calls = 0
    async with open_ways(url, store, options, callers) as ways:
        for round_number in range(options.rounds):
            for name, way in ways.items():
                if name == "shared" and round_number and (callers > 100 or options.delay_s):
                    continue
                work = [way(number) for number in range(callers)]
                done = await closed_loop(work, seconds=options.seconds, spread_s=options.delay_s)
                calls += len(done.latencies_s) + callers
                rounds.setdefault(name, []).append(done)
    async with httpx.AsyncClient() as client:
        answered = (await client.get(url.replace("/v1", "/statistics"))).json()["requests"]
    assert answered == calls, f"the upstream got {answered} calls, not {calls}"
    return rounds


def results(rounds: dict[str, list[Round]], facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One line per way, and one for what `chat` adds to the others."""
    percentiles: dict[str, dict[str, float]] = {}
    for name, measured in rounds.items():
        latencies_s = [each for done in measured for each in done.latencies_s]
        percentiles[name] = {f"p{percent}": round(percentile_ms(latencies_s, percent), 2) for percent in (50, 99)}
        per_s = [round(done.per_s, 1) for done in measured]
        cpu_ms = statistics.median(done.cpu_s / len(done.latencies_s) * 1000 for done in measured)
        yield {
            **facts,
            "way": name,
            "per_s": {"min": min(per_s), "median": round(statistics.median(per_s), 1), "max": max(per_s)},
            "latency_ms": percentiles[name],
            "cpu_ms": round(cpu_ms, 3),
            "calls": len(latencies_s),
        }
    chat = percentiles["chat"]
    added = {
        f"to_{name}": {percent: round(chat[percent] - percentiles[name][percent], 2) for percent in chat}
        for name in ("bare", "pooled", "model")
    }
    yield {**facts, "way": "chat", "added_ms": added}


def run(options: Options, callers: int) -> None:
    """One case: its upstream, its store, its lines."""
    facts: dict[str, Any] = {
        "benchmark": "turns",
        "backend": options.backend,
        "sessions": callers,
        "server_delay_s": options.delay_s,
    }
    with open_upstream(text=ANSWER, delay_s=options.delay_s) as url, tempfile.TemporaryDirectory() as folder:
        rounds = anyio.run(measure, url, Path(folder) / "turns.lmdb", options, callers, backend=options.backend)
    for result in results(rounds, facts):
        print(msgspec.json.encode(result).decode(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 100, 1000], help="callers at once, a case each")
    parser.add_argument("--turns", type=int, default=10, help="of a session, until its caller takes a new one")
    parser.add_argument("--rounds", type=int, default=3, help="of each way in each case")
    parser.add_argument("--seconds", type=float, default=1.25, help="of a round")
    parser.add_argument("--delay-s", type=float, default=0.5, help="of the server in the last case; 0: no such case")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    chosen = parser.parse_args()
    options = Options(**vars(chosen))
    allow_open_files(8 * max(options.sessions) + 256)
    describe_machine(options)
    for callers in options.sessions:
        run(msgspec.structs.replace(options, delay_s=0.0), callers)
    if options.delay_s:
        # Longer: a round has to hold some answers of each caller.
        run(msgspec.structs.replace(options, seconds=options.seconds * 2), 100)


def describe_machine(options: Options) -> None:
    """The line that says what all other lines stand on."""
    body = as_body(conversations(options.turns)[options.turns // 2])
    with open_upstream(text=ANSWER, delay_s=0.0) as url, tempfile.TemporaryDirectory() as folder:
        limits = [requests_per_s_max(url, body, connections=callers, seconds=1.0) for callers in options.sessions]
        synced_s = fdatasync_s(Path(folder) / "growing", times=200)
    line = {
        "benchmark": "turns",
        "load": round(os.getloadavg()[0], 2),
        "upstream_per_s": {str(callers): round(limit) for callers, limit in zip(options.sessions, limits, strict=True)},
        "fdatasync_ms": {f"p{percent}": round(percentile_ms(synced_s, percent), 2) for percent in (50, 99)},
    }
    print(msgspec.json.encode(line).decode(), flush=True)


if __name__ == "__main__":
    main()
