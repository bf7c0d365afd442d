"""Generated programs over teams: chats that come together, models and a store that fail, callers that give up, and a
process that ends in the middle and starts again on what was stored. In virtual time, repeatable by its seed.

    CALLBOARD_SEEDS=1000:2000 pytest tests/simulation/test_team_programs.py      other programs than those of CI

Programs with forks run in real time, as a thread reads what is forked: what must hold, holds whatever comes first. They
do not crash, since turns that cannot be stored are tried again for seconds.
"""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    ApprovalRequired,
    BadRequest,
    Budget,
    CallboardError,
    Flow,
    Handoff,
    Message,
    ModelAnswer,
    ModelRequest,
    ModelUnavailable,
    Parallel,
    Review,
    RoundRobin,
    Router,
    RunPolicy,
    Runtime,
    Sequence,
    Session,
    SessionManager,
    Stop,
    Team,
    TeamFailed,
    TeamTurn,
    ToolCall,
    Unknown,
)
from callboard.actors.conversation import units
from callboard.actors.team_chat import FORK_TAG
from callboard.runtime import Backoff
from callboard.store import Index, MemoryStore
from callboard.testing import ScriptedModel, fail_commit, model_answer, run_in_virtual_time, until_quiet

_first, _last = (int(number) for number in os.environ.get("CALLBOARD_SEEDS", "0:15").split(":"))
SEEDS = range(_first, _last)
BACKENDS: tuple[Literal["trio", "asyncio"], ...] = ("trio", "asyncio")

NAMES = ("Ann", "Bob", "Cid")
SESSIONS = ("a", "b")
POLICY = RunPolicy(attempts_max=2, backoff=Backoff(first_s=0.001, max_s=0.002), model_calls_max=4)
CALLS = 12


class Crash(Exception):
    """The process ends here."""


MakeFlow: TypeAlias = Callable[[random.Random], Flow]

ON_THE_SESSION: tuple[MakeFlow, ...] = (
    lambda chance: Sequence(on_failure=chance.choice(("stop", "skip"))),
    lambda chance: RoundRobin(rounds=2, until=lambda reply: reply.text.endswith("0")),
    lambda chance: Router(lambda messages: chance.sample(NAMES, chance.randint(1, 3))),
    lambda chance: Handoff(chance.choice(NAMES)),
    lambda chance: Review(*chance.sample(NAMES, 2), rounds_max=2),
    lambda chance: Parallel(on="shared", on_failure=chance.choice(("stop", "skip"))),
)
ON_FORKS: tuple[MakeFlow, ...] = (lambda chance: Parallel(on_failure=chance.choice(("stop", "skip"))),)


@dataclass(slots=True)
class Chat:
    """One chat of a team: what it was asked, and what it was told of its turns. `outcome` is None while it goes on."""

    session: str
    text: str
    flow: Flow
    outcome: Literal["answered", "failed", "unknown", "given up"] | None = None
    turns: tuple[TeamTurn, ...] = ()

    @property
    def is_forked(self) -> bool:
        return isinstance(self.flow, Parallel) and self.flow.on == "fork"

    @property
    def told(self) -> list[Message]:
        """The messages that it was told to be history."""
        replies = [] if self.is_forked else [turn.reply for turn in self.turns if turn.reply is not None]
        return [message for reply in replies for message in reply.messages]


class Program:
    """Two lives of one store. In the first one faults are ordered, and it may crash; the second one is calm."""

    def __init__(self, seed: int, flows: tuple[MakeFlow, ...], *, may_crash: bool = True) -> None:
        self.chance = random.Random(seed)
        self.flows = flows
        self.may_crash = may_crash
        self.store = MemoryStore()
        self.chats: list[Chat] = []
        self.models: list[ScriptedModel] = []
        self.unfit: list[str] = []
        self._numbers = iter(range(1, 100_000))

    async def run(self) -> None:
        crashed = await self._first_life()
        async with Runtime.on(lambda: self.store, drain_timeout_s=5.0) as runtime:
            await self._check_stored(runtime)
            forks = set(await self._forks(runtime))
            assert crashed or not forks
            await self._play(runtime, faults=False)
            await self._check_rest(runtime)
            await self._check_stored(runtime)
            assert set(await self._forks(runtime)) == forks
        assert all(model.in_flight == 0 for model in self.models)
        assert self.unfit == []

    async def _first_life(self) -> bool:
        """Whether it has ended in the middle."""
        store, length_s = self.store, self.chance.choice((0.005, 0.01, 0.02, 1e5)) if self.may_crash else 1e5
        try:
            async with Runtime.on(lambda: store, drain_timeout_s=0.2) as runtime:  # of which a crash takes all
                with anyio.move_on_after(length_s) as life:
                    await self._play(runtime, faults=True)
                    await self._check_rest(runtime)
                self.store = store.reopened()  # from here on nothing of this life is stored
                for chat in self.chats:
                    chat.outcome = chat.outcome or "given up"
                if life.cancelled_caught:
                    raise Crash
        except Crash:
            return True
        return False

    async def _play(self, runtime: Runtime, *, faults: bool) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLS):
                action = self.chance.choice((self._chat, self._chat, self._stream, self._chat_alone))
                tasks.start_soon(self._later, partial(action, runtime, faults))
            if faults:
                for _ in range(4):
                    tasks.start_soon(self._later, partial(self._fail_commit, runtime))

    async def _later(self, action: Callable[[], Any]) -> None:
        await anyio.sleep(self.chance.random() * 0.02)
        await action()

    async def _fail_commit(self, runtime: Runtime) -> None:
        fail_commit(runtime, after_write=self.chance.random() < 0.5)

    # Calls ----------------------------------------------------------------------------------------------------------

    def _agent(self, runtime: Runtime, name: str, faults: bool) -> Agent:
        model = ScriptedModel(partial(self._say, name, faults), delay_s=self.chance.choice((0.0, 0.001, 0.004)))
        self.models.append(model)
        return Agent(name, model=model, runtime=runtime, tools=[_look], policy=POLICY)

    def _say(self, name: str, faults: bool, request: ModelRequest) -> ModelAnswer | str | BaseException:
        try:
            units(request.messages)
            assert request.messages[-1].role in ("user", "tool"), "nobody has asked"
        except (ValueError, AssertionError) as error:  # which would only fail the run
            self.unfit.append(f"{name} was sent what no server takes: {error}")
        lot, number = self.chance.random(), next(self._numbers)
        if faults and lot < 0.08:
            return BadRequest("no")
        if faults and lot < 0.2:
            return ModelUnavailable("for now")
        if lot < 0.5 and request.tools:
            wish = self.chance.choice([tool.name for tool in request.tools])
            return model_answer(tool_calls=[ToolCall(f"c{number}", wish)])
        return f"{name} says {number}"

    def _begin(self, runtime: Runtime, faults: bool) -> tuple[Team, Chat]:
        chat = Chat(
            self.chance.choice(SESSIONS), f"question {next(self._numbers)}", self.chance.choice(self.flows)(self.chance)
        )
        self.chats.append(chat)
        agents = [self._agent(runtime, name, faults) for name in NAMES]
        budget = Budget(model_calls=5) if self.chance.random() < 0.2 else None
        session = Session(runtime, chat.session)
        return Team(agents, session=session, flow=chat.flow, turns_max=6, budget=budget), chat

    async def _chat(self, runtime: Runtime, faults: bool) -> None:
        team, chat = self._begin(runtime, faults)
        await self._witnessed(chat, lambda: team.chat(chat.text))

    async def _stream(self, runtime: Runtime, faults: bool) -> None:
        team, chat = self._begin(runtime, faults)
        agents: list[str] = []

        async def read() -> Any:
            async with team.stream(chat.text) as stream:
                async for event in stream:
                    assert event.agent in NAMES
                    agents.append(event.agent)
            return stream.reply

        await self._witnessed(chat, read)
        assert {turn.agent for turn in chat.turns} <= set(agents)

    async def _chat_alone(self, runtime: Runtime, faults: bool) -> None:
        agent = self._agent(runtime, "Dot", faults)
        with suppress(CallboardError):
            await agent.chat(f"alone {next(self._numbers)}", session=Session(runtime, self.chance.choice(SESSIONS)))

    async def _witnessed(self, chat: Chat, call: Callable[[], Any]) -> None:
        patience_s = 0.005 if self.chance.random() < 0.15 else 1e4
        with anyio.move_on_after(patience_s):
            try:
                reply = await call()
            except TeamFailed as failed:
                chat.outcome, chat.turns = "failed", failed.turns
                if isinstance(failed.__cause__, Unknown):
                    chat.outcome = "unknown"
            except ApprovalRequired as error:
                raise AssertionError("nothing here must be approved") from error
            except CallboardError as error:
                chat.outcome = "unknown" if isinstance(error, Unknown) or chat.is_forked else "failed"
            else:
                chat.outcome, chat.turns = "answered", reply.turns
        if chat.outcome is None:
            chat.outcome = "given up"

    # What must hold -------------------------------------------------------------------------------------------------

    async def _check_rest(self, runtime: Runtime) -> None:
        """Nothing goes on that nobody waits for."""
        await until_quiet(runtime)
        assert runtime.waits() == []
        assert all(chat.outcome is not None for chat in self.chats), "a chat never ended"

    async def _forks(self, runtime: Runtime) -> list[str]:
        return [head.id for head in (await SessionManager(runtime).list(tag=FORK_TAG, limit=1000)).sessions]

    async def _check_stored(self, runtime: Runtime) -> None:
        assert self.store.scan_index(Index.OPEN_RUN) == [], "a run stays open"
        for id in SESSIONS:
            history = await Session(runtime, id).messages()
            chats = [chat for chat in self.chats if chat.session == id]
            units(history)  # raises where a call and its result are parted
            assert [message.seq for message in history] == list(range(1, len(history) + 1))
            for chat in chats:
                _check_chat(chat, history)
            _check_apart(chats)


def _check_chat(chat: Chat, history: list[Message]) -> None:
    """What it was told is stored, once and in order, and its question once where somebody has answered it."""
    for message in chat.told:
        assert history[message.seq - 1] == message, f"{chat.text} is not stored as it was told"
    asked = [message.seq for message in history if message.text == chat.text]
    assert len(asked) <= 1, f"{chat.text} is stored {len(asked)} times"
    answered = any(turn.reply is not None for turn in chat.turns)
    if chat.outcome == "answered":
        assert asked
    elif chat.outcome == "failed" and chat.is_forked:
        assert not asked, "a half of what was said aside became history"
    elif chat.outcome == "failed" and chat.flow.on_failure == "stop":
        assert bool(asked) == answered
    if chat.outcome == "answered" and chat.is_forked:
        texts = [turn.reply.text for turn in chat.turns if turn.reply is not None]
        behind = [message.text for message in history[asked[0] :] if message.role == "assistant"]
        assert behind[: len(texts)] == texts, "answers are missing, or out of order"
    if isinstance(chat.flow, Sequence | RoundRobin | Review):
        for place, turn in enumerate(chat.turns):
            assert chat.flow.next(NAMES, chat.turns[:place]) == turn.agent
        if chat.outcome == "answered" and len(chat.turns) < 6 and not any(turn.error for turn in chat.turns):
            assert isinstance(chat.flow.next(NAMES, chat.turns), Stop) or chat.turns


def _check_apart(chats: list[Chat]) -> None:
    """No chat of a team stands in the middle of another one."""
    spans = sorted((chat.told[0].seq, chat.told[-1].seq, chat.text) for chat in chats if chat.told)
    for (_, last, earlier), (first, _, later) in pairwise(spans):
        assert last < first, f"{later} stands in the middle of {earlier}"


async def _look() -> str:
    """Look around."""
    return "seen"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_chats_of_teams_end_and_what_they_were_told_is_stored(seed: int, backend: Literal["trio", "asyncio"]) -> None:
    run_in_virtual_time(Program(seed, ON_THE_SESSION).run, backend=backend, seed=seed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", SEEDS[:6])
def test_of_chats_on_forks_all_or_nothing_becomes_history(seed: int, backend: Literal["trio", "asyncio"]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(30):
            await Program(seed, (*ON_THE_SESSION[:2], *ON_FORKS * 4), may_crash=False).run()

    anyio.run(bounded, backend=backend)
