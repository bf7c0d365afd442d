"""The worker of `load.py`: a program with callboard in it, as a user would write it. It is killed at any moment.

    load_worker.py PLAN_JSON STORE UPSTREAM_URL PLACES trio|asyncio

PLACES is a file with the session that each user was last heard in; how far the talk there has come is read from the
session itself. It prints a line of `load_plan` for each answer at once. When its standard input ends it begins no
further turn, finishes those under way, closes the runtime, and says "done".
"""

import os
import random
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
from closed_loop import allow_open_files
from load_plan import (
    AckLine,
    ErrorLine,
    Line,
    MarkLine,
    Plan,
    agent_of,
    answer_to,
    encode_line,
    is_streamed,
    question,
    session_name,
    turn_of,
)

from callboard import Agent, CallboardError, OpenAIChat, Reply, RunPolicy, Runtime, Session, Unknown
from callboard.runtime.budget import Backoff
from callboard.store import LmdbStore
from callboard.testing import fail_commit

HUNG_S = 120.0
"""A chat must have ended by then, whatever went wrong: a run of ours may take a minute."""
STOP_S = HUNG_S + 10.0
"""Who hangs is told of before the worker ends."""
_TURN_MESSAGES_MAX = 8


def say(line: Line) -> None:
    # One write straight to the pipe: what stood in a buffer at the kill would be an acknowledgement never given.
    os.write(1, encode_line(line))


async def lookup(topic: str) -> str:
    """Look a topic up."""
    await anyio.lowlevel.checkpoint()
    return f"facts on {topic}"


@dataclass(slots=True)
class Visit:
    """A user's talk in one session; `take` gives the number of the next turn."""

    number: int
    session: Session
    turn: int
    last: int

    def take(self) -> int:
        self.turn += 1
        return self.turn

    @property
    def left(self) -> int:
        return self.last - self.turn


class Users:
    """All users. Once `stopping` is True no further turn is begun."""

    def __init__(self, plan: Plan, runtime: Runtime, url: str) -> None:
        self._plan = plan
        self._runtime = runtime
        self._chance = random.Random()
        # Where answers hang, patience is short: a 429 leaves few slots, and what hangs would hold them all.
        impatient = plan.fault_share > 0
        model = OpenAIChat(
            base_url=url,
            model="fake",
            progress_timeout_s=2.0 if impatient else 60.0,
            timeout_s=5.0 + 2 * plan.server_s if impatient else 60.0 + 2 * plan.server_s,
        )
        policy = RunPolicy(attempts_max=5, backoff=Backoff(first_s=0.05, max_s=1.0), timeout_s=60.0)
        self._agents = [
            Agent(
                f"Clerk {number}", instructions="Be brief.", model=model, runtime=runtime, tools=[lookup], policy=policy
            )
            for number in range(plan.agents)
        ]
        self.stopping = False
        self._talking = 0
        self._silent = anyio.Event()

    async def stop(self) -> None:
        """Begin no turn any more; afterwards those under way have ended, or have been told of as hung."""
        self.stopping = True
        if self._talking:
            with anyio.move_on_after(STOP_S):
                await self._silent.wait()

    async def live(self, user: int, number: int) -> None:
        """Talk in this session and then in others, until stopped."""
        await anyio.sleep(self._chance.random() * self._plan.think_s)
        while not self.stopping:
            visit = await self._begin(user, number)
            while visit.left > 0 and not self.stopping:
                await self._talk(visit)
                await anyio.sleep(self._chance.expovariate(1 / self._plan.think_s) if self._plan.think_s else 0)
            number += self._plan.sessions

    async def _begin(self, user: int, number: int) -> Visit:
        session = Session(self._runtime, session_name(number), owner=f"user-{user}", metadata={"number": number})
        while True:
            try:
                latest = await session.messages(limit=_TURN_MESSAGES_MAX)
            except CallboardError:  # the store fails as ordered; the session is loaded anew
                await anyio.sleep(0.1)
                continue
            asked = [turn_of(message.text) for message in latest if message.role == "user"]
            turn = asked[-1][1] if asked and asked[-1] is not None else 0
            return Visit(number, session, turn, self._plan.last_turn(number))

    async def _talk(self, visit: Visit) -> None:
        burst = self._plan.burst
        if burst < 2 or visit.turn % 4 != 1 or visit.left < burst:
            await self._turn(visit)
            return
        async with anyio.create_task_group() as tasks:
            for _ in range(burst):
                tasks.start_soon(self._turn, visit)

    async def _turn(self, visit: Visit) -> None:
        number, turn = visit.number, visit.take()  # no await from here to the call: the order of numbers is its order
        began_s = time.perf_counter()
        self._talking += 1
        try:
            with anyio.fail_after(HUNG_S):
                reply = await self._chat(visit.session, number, turn)
        except TimeoutError:
            say(ErrorLine("hung", number, turn, f"no answer for {HUNG_S:g} s"))
        except Unknown as error:
            say(ErrorLine("unknown", number, turn, _named(error)))
        except CallboardError as error:
            say(ErrorLine("failed", number, turn, _named(error)))
        else:
            if reply.text != answer_to(number, turn):
                say(ErrorLine("wrong", number, turn, reply.text[:100]))
            say(AckLine(number, turn, reply.run_id, round((time.perf_counter() - began_s) * 1000, 3)))
        finally:
            self._talking -= 1
            if self.stopping and not self._talking:
                self._silent.set()

    async def _chat(self, session: Session, number: int, turn: int) -> Reply:
        agent = self._agents[agent_of(number, turn, agents=self._plan.agents)]
        if not is_streamed(turn):
            return await agent.chat(question(number, turn), session=session)
        async with agent.stream(question(number, turn), session=session) as events:
            async for _ in events:
                pass
            return events.reply


def _named(error: CallboardError) -> str:
    cause = error.__cause__
    return f"{type(error).__name__}{f' ({type(cause).__name__})' if cause is not None else ''}"


async def fail_commits(plan: Plan, runtime: Runtime) -> None:
    chance = random.Random()
    count = 0
    while True:
        await anyio.sleep(chance.expovariate(1 / plan.store_fault_every_s))
        fail_commit(runtime, after_write=chance.random() < 0.5)
        count += 1
        say(MarkLine("open", store_faults=count))


async def stop(users: Users, scope: anyio.CancelScope) -> None:
    """Once standard input ends: let turns under way end, then stop all users."""
    await anyio.wait_readable(sys.stdin)
    await users.stop()
    scope.cancel()


async def work(plan: Plan, store: Path, url: str, places: Sequence[int]) -> None:
    say(MarkLine("opening"))
    opener = partial(LmdbStore, store, durability=plan.durability, log_bytes_max=plan.log_mb << 20)
    async with Runtime.on(opener, idle_s=plan.idle_s) as runtime:
        say(MarkLine("open"))
        users = Users(plan, runtime, url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop, users, tasks.cancel_scope)
            if plan.store_fault_every_s:
                tasks.start_soon(fail_commits, plan, runtime)
            for user, number in enumerate(places):
                tasks.start_soon(users.live, user, number)
    say(MarkLine("done"))


def main() -> None:
    plan_json, store, url, places, backend = sys.argv[1:]
    plan = msgspec.json.decode(plan_json, type=Plan)
    allow_open_files(2 * plan.sessions + 1_024)
    anyio.run(work, plan, Path(store), url, array("I", Path(places).read_bytes()), backend=backend)


if __name__ == "__main__":
    main()
