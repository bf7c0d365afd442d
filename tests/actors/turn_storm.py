"""Turns of agents, cancelled at every moment, over a model's client with few connections: what is left afterwards?

    callers ── agent.chat · agent.stream ── a few slots ── FakeUpstream (paced, hanging, breaking)
       └── cancelled: after so many rounds of the scheduler (asked, queued, granted), by the server when the request is
           there (before the first byte), at some piece (mid-stream), just after the last piece (at the commit), at any
           time, or many at once: who holds a slot together with those to whom it would be handed on

Afterwards must hold: every slot can be used, at the same time; no socket and no task more than before; every run has
ended and every session answers; history is what the completed runs say. `make soak` plays it with 10 000 cancelled
turns; or

    python tests/actors/turn_storm.py [--backend trio] [--way pool] [--turns 10000] [--seed 0]
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import anyio
import anyio.lowlevel
import trio

from callboard import Agent, AttemptFailed, Delta, OpenAIChat, RunFailed, RunPolicy, Runtime, Session
from callboard.actors.pooled_transport import PooledTransport
from callboard.actors.retry import RetryPolicy
from callboard.runtime import Backoff
from callboard.testing import Body, FakeUpstream, UpstreamAnswer, answer, fault, until_quiet

CONNECTIONS = 6
CALLERS = 60
SESSIONS = 40
AGENTS = 3
ANSWER = " ".join(["piece"] * 6)
PIECES = len(ANSWER.split())
PIECE_S = 0.0005
TURN_S = 0.1
"""About what a turn takes here, with its place in the queue: a cancellation at any time comes within it."""
TOGETHER = 10
"""Turns that are cancelled in the same moment."""
SILENCE_S = 0.02
"""After which a caller goes whose answer hangs."""
LATE_S = 0.5
"""Until an answer whose caller has gone: a run that has it went on without its caller."""
PATIENCE_S = 30.0
STORM_S_PER_TURN = 0.03
"""Six times what it takes; a storm that takes longer has turns that do not end."""

Moment = Literal["rounds", "before_first_byte", "mid_stream", "at_commit", "any_time", "together"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)
"""When a turn is to be cancelled."""

Phase = Literal["before_the_request", "before_first_byte", "mid_stream", "at_commit"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""How far it was, as the server and its reader saw it: mid_stream and later are known of streamed turns only."""

Way = Literal["pool", "transport"]
"""Through the client's own connections, or through our pool as an httpx transport, whose slots are its own."""
WAYS: tuple[Way, ...] = get_args(Way)


def tasks_now() -> int:
    if trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


def files_open() -> int:
    """File descriptors of this process, sockets among them."""
    return len(os.listdir("/proc/self/fd"))


@dataclass(slots=True)
class Turn:
    """One turn that is to be cancelled."""

    number: int
    moment: Moment
    scope: anyio.CancelScope
    rounds: int
    after_s: float
    pieces_max: int
    requested: bool = False
    pieces: int = 0

    @property
    def text(self) -> str:
        return f"turn {self.number}"

    @property
    def phase(self) -> Phase:
        if not self.requested:
            return "before_the_request"
        if not self.pieces:
            return "before_first_byte"
        return "mid_stream" if self.pieces < PIECES else "at_commit"


@dataclass(slots=True)
class Storm:
    """The storm; `faults` says what did not hold, `phases` how many were cancelled when, `ends` how runs ended.

    `cancelled` and `answered` hold the texts of those turns, `cut_short` of those that were cancelled before the first
    byte of an answer was sent; a turn without a session is not in `answered`.
    """

    turns: int
    seed: int
    upstream: FakeUpstream
    dice: random.Random = field(init=False)
    running: dict[int, Turn] = field(default_factory=dict[int, Turn])
    begun: int = 0
    cancelled: set[str] = field(default_factory=set[str])
    answered: set[str] = field(default_factory=set[str])
    cut_short: set[str] = field(default_factory=set[str])
    phases: Counter[str] = field(default_factory=Counter[str])
    ends: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def must(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)

    async def blow(self, agents: Sequence[Agent], sessions: Sequence[Session]) -> None:
        """Begin turns until enough of them were cancelled."""

        async def call() -> None:
            while len(self.cancelled) < self.turns:
                session = self.dice.choice(sessions) if self.dice.random() < 0.9 else None
                await self._play(self.dice.choice(agents), session)

        with anyio.move_on_after(PATIENCE_S + self.turns * STORM_S_PER_TURN) as scope:
            async with anyio.create_task_group() as tasks:
                for _ in range(CALLERS):
                    tasks.start_soon(call)
        self.must(not scope.cancelled_caught, f"the storm stood still after {len(self.cancelled)} turns")

    async def _play(self, agent: Agent, session: Session | None) -> None:
        dice = self.dice
        turn = Turn(
            number=self.begun,
            moment=dice.choice(MOMENTS),
            scope=anyio.CancelScope(),
            rounds=dice.randrange(12),
            after_s=dice.random() * TURN_S,
            pieces_max=dice.randrange(1, PIECES),
        )
        self.begun += 1
        self.running[turn.number] = turn
        try:
            with turn.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._cancel, turn)
                    await self._ask(turn, agent, session)
                    tasks.cancel_scope.cancel()
        except* RunFailed:
            self.ends["failed"] += 1
        finally:
            del self.running[turn.number]
        if turn.scope.cancelled_caught:
            self.cancelled.add(turn.text)
            if turn.moment == "before_first_byte" and turn.phase == "before_first_byte":
                self.cut_short.add(turn.text)
            self.phases[turn.phase] += 1

    async def _ask(self, turn: Turn, agent: Agent, session: Session | None) -> None:
        if turn.moment in ("mid_stream", "at_commit") or turn.number % 2:
            async with agent.stream(turn.text, session=session) as stream:
                async for event in stream:
                    if isinstance(event, AttemptFailed):
                        turn.pieces = 0
                    turn.pieces += isinstance(event, Delta)
                    if turn.moment == "mid_stream" and turn.pieces == turn.pieces_max:
                        turn.scope.cancel()
                    if turn.moment == "at_commit" and turn.pieces == PIECES:
                        turn.scope.deadline = anyio.current_time() + self.dice.random() * 0.002
        else:
            await agent.chat(turn.text, session=session)
        if session is not None:
            self.answered.add(turn.text)

    async def _cancel(self, turn: Turn) -> None:
        if turn.moment == "rounds":
            for _ in range(turn.rounds):
                await anyio.lowlevel.checkpoint()
            turn.scope.cancel()
        elif turn.moment == "any_time":
            await anyio.sleep(turn.after_s)
            turn.scope.cancel()
        elif turn.moment == "together":
            company = [each for each in self.running.values() if each.moment == "together"]
            if len(company) >= TOGETHER:
                for each in company:
                    each.scope.cancel()

    def answer(self, body: Body) -> UpstreamAnswer:
        """What the server says; it is called when a request is there, before the first byte of a response."""
        number = int(body["messages"][-1]["content"].split()[-1])
        turn = self.running.get(number)
        if turn is None:
            return answer(ANSWER)
        turn.requested = True
        if turn.moment == "before_first_byte":
            turn.scope.cancel()
            return answer(ANSWER, delay_s=LATE_S)
        dice = self.dice.random()
        if dice < 0.05:
            turn.scope.deadline = anyio.current_time() + SILENCE_S
            return fault("hang" if dice < 0.025 else "hang_mid_stream", ANSWER)
        if dice < 0.1:
            return fault("reset_mid_stream" if dice < 0.075 else "close_after_answer", ANSWER)
        return answer(ANSWER, piece_delay_s=PIECE_S)


@asynccontextmanager
async def upstream_of(storms: list[Storm]) -> AsyncGenerator[FakeUpstream]:
    """A server that says what the last storm orders, and an echo before and after all storms."""

    def script(body: Body) -> UpstreamAnswer:
        return storms[-1].answer(body) if storms else answer("calm")

    async with FakeUpstream(script, keep_requests=False) as upstream:
        yield upstream


async def wait_unconnected(upstream: FakeUpstream, idle: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Close what is idle, and wait until the server has noticed."""
    for close in idle:
        await close()
    with anyio.fail_after(PATIENCE_S):
        while upstream.connections_open:  # noqa: ASYNC110 - a counter has no event
            await anyio.sleep(0.001)


async def play(folder: Path, turns: int, seed: int, way: Way = "pool") -> Storm:
    """Let a storm go over a runtime; returns it with what did not hold."""
    storms: list[Storm] = []
    async with upstream_of(storms) as upstream, Runtime(folder, drain_timeout_s=5.0) as runtime:
        transport = PooledTransport(connections_max=CONNECTIONS) if way == "transport" else None
        slots = CONNECTIONS if transport is None else CALLERS
        quick = RetryPolicy(first_s=0.005, max_s=0.01)
        model = OpenAIChat(
            base_url=upstream.url,
            model="fake",
            connections_max=slots,
            retries=quick,
            transport=transport,
            progress_timeout_s=PATIENCE_S / 3,
        )
        idle = [model.aclose, *([transport.aclose] if transport is not None else [])]
        policy = RunPolicy(attempts_max=2, backoff=Backoff(first_s=0.005, max_s=0.01))
        agents = [Agent(f"Agent{n}", model=model, runtime=runtime, policy=policy) for n in range(AGENTS)]
        sessions = [Session(runtime, f"s{n}") for n in range(SESSIONS)]
        await ask_all(agents[0], sessions)  # Python imports some modules at the first call only
        await wait_unconnected(upstream, idle)
        await until_quiet(runtime)
        tasks_before, files_before = tasks_now(), files_open()

        storm = Storm(turns, seed, upstream)
        storms.append(storm)
        await storm.blow(agents, sessions)
        storms.clear()

        await until_quiet(runtime, timeout_s=PATIENCE_S)
        await wait_unconnected(upstream, idle)
        storm.must(tasks_now() <= tasks_before, f"{tasks_now()} tasks, before the storm {tasks_before}")
        storm.must(files_open() <= files_before, f"{files_open()} open files, before the storm {files_before}")
        storm.must(runtime.statistics().children == 0, "a run is still carried out")
        await check_runs(storm, sessions)
        await check_slots(storm, upstream, agents[0], sessions)
        await wait_unconnected(upstream, idle)
    return storm


async def ask_all(agent: Agent, sessions: Sequence[Session]) -> None:
    """A chat in every session, side by side."""
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            for session in sessions:
                tasks.start_soon(lambda session=session: agent.chat("calm", session=session))


async def check_runs(storm: Storm, sessions: Sequence[Session]) -> None:
    """Every run has ended, and history is what the completed ones have added, in the order of their turns."""
    stored: set[str] = set()
    for session in sessions:
        runs = await session.runs()
        for run in runs:
            storm.ends[f"runs_{run.status}"] += 1
            storm.must(not run.is_open, f"run {run.id} of {session.id} was left {run.status}")
        completed = sorted((run for run in runs if run.status == "completed"), key=lambda run: run.turn)
        asked = [run.input[0].text for run in completed]
        told = [message.text for message in await session.messages()]
        storm.must(told[0::2] == asked and len(told) == 2 * len(asked), f"the history of {session.id} has torn turns")
        stored.update(asked)
    storm.must(storm.answered <= stored, f"{len(storm.answered - stored)} turns were answered and are not stored")
    storm.must(not storm.cut_short & stored, f"{len(storm.cut_short & stored)} turns went on without their callers")
    storm.phases["committed_all_the_same"] = len(storm.cancelled & stored)


async def check_slots(storm: Storm, upstream: FakeUpstream, agent: Agent, sessions: Sequence[Session]) -> None:
    """All sessions answer, and the server sees as many requests at once as there are slots, no fewer and no more."""
    full = [answer("calm", delay_s=0.1)] * (2 * CONNECTIONS)
    upstream.queue(*full)
    upstream.in_flight_max_by.clear()
    try:
        await ask_all(agent, sessions)
    except TimeoutError:
        storm.must(False, f"sessions do not answer within {PATIENCE_S:g} s")
    used = max(upstream.in_flight_max_by.values())
    storm.must(used == CONNECTIONS, f"{used} slots of {CONNECTIONS} can be used at once")


def main() -> int:
    parser = argparse.ArgumentParser(description="Turns of agents, cancelled at every moment.")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--way", choices=WAYS, default="pool")
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder) / "store", options.turns, options.seed, options.way)
        storm = anyio.run(play, *arguments, backend=options.backend)
    line = {
        "soak": "turn storm",
        "backend": options.backend,
        "way": options.way,
        "seconds": round(time.monotonic() - began_s, 1),
    }
    print(json.dumps({**line, "begun": storm.begun, "cancelled": len(storm.cancelled), **storm.phases, **storm.ends}))
    for text in storm.faults[:20]:
        print(f"does not hold: {text}")
    print("the storm passed" if not storm.faults else "the storm left something behind")
    return 1 if storm.faults else 0


if __name__ == "__main__":
    sys.exit(main())
