"""One chat of a team, carried out: lets the agents take their turns as the flow says, until it stops.

    one by one   flow.next(turns) ──► a turn of the session ──► flow.next(turns) ...
    at once      a turn of each at the same time, in a fork each or in one row on the session

What is decided is decided in team_flows.py. Whatever ends the chat, no run of it goes on, and no fork is left that was
not to be kept.
"""

import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import anyio

from ..runtime.budget import Backoff
from ..runtime.errors import Failed, Rejected
from ..store.errors import CallboardError
from .agent import Agent
from .budgets import Spending
from .errors import ApprovalRequired, BudgetExceeded, RunFailed, UnknownSession
from .ids import new_id
from .message import Message, Usage
from .persistence import persist
from .perspective import GO_ON, NoInput
from .reply import Reply
from .session import Session
from .team_flows import Flow, Parallel, Router
from .team_line import in_line
from .team_turns import Stop, StoppedBy, TeamEvent, TeamFailed, TeamReply, TeamTurn, TurnCompleted, TurnFailed

__all__ = ["FORK_TAG", "Emit", "TeamChat"]

Emit: TypeAlias = Callable[[TeamEvent], None]

FORK_TAG = "team-fork"
"""The tag of forks that a team has made: what a crash has left of them is found by it, see Retention."""

OPENING_MESSAGES_MAX = 50
"""Messages of history that a flow gets to see before the first turn: where the last agent has spoken."""

WRITE_TRIES_MAX = 6
"""Tries to make a fork, or to store what came of forks: three seconds of a store that fails."""

DROP_TIMEOUT_S = 30.0
"""How long a chat waits until its forks are deleted. What then is left has the tag."""


@dataclass(slots=True)
class TeamChat:
    """One chat. `emit` gets the events; without it nothing is streamed. `shares` says whether others spend of the
    same budget. For one task."""

    members: Mapping[str, Agent[Any]]
    session: Session
    flow: Flow
    input: tuple[Message, ...]
    turns_max: int
    spending: Spending
    shares: bool = False
    emit: Emit | None = None
    turns: list[TeamTurn] = field(default_factory=list[TeamTurn])

    async def run(self) -> TeamReply:
        """Carry it out.

        Raises:
            TeamFailed, ApprovalRequired, Rejected: see Team.chat.

        Cancellation: the runs that are under way are cancelled, each as of `Agent.chat`.
        """
        async with in_line(self.session):
            if isinstance(self.flow, Parallel):
                why = await (self._on_forks if self.flow.on == "fork" else self._in_one_row)(self.flow)
            else:
                why = await self._one_by_one(await self._opened())
        reply = self.flow.result(self.turns)
        if reply is not None:
            return TeamReply(reply, tuple(self.turns), self._usage, why)
        failed = next((turn for turn in reversed(self.turns) if turn.error is not None), None)
        if failed is None:
            raise RuntimeError(f"the flow {self.flow!r} has stopped ({why}) without a reply: somebody must speak")
        raise self._failure(failed)

    # One by one -----------------------------------------------------------------------------------------------------

    async def _opened(self) -> Flow:
        names = tuple(self.members)
        if isinstance(self.flow, Router):
            history = await self.session.messages(limit=self.flow.latest)
            return self.flow.chosen(await self._choice(self.flow, [*history, *self.input]), names)
        if type(self.flow).opening is Flow.opening:
            return self.flow
        return self.flow.opening(await self.session.messages(limit=OPENING_MESSAGES_MAX), names)

    async def _choice(self, router: Router, messages: list[Message]) -> object:
        if router.agent is not None:
            form = cast("Any", Literal)[tuple(self.members)]
            reply: Reply[Any] = await router.agent.chat(messages, output=form, spending=self.spending)
            return reply.output
        choice: object = router.ask(messages)
        return await choice if inspect.isawaitable(choice) else choice

    async def _one_by_one(self, flow: Flow) -> StoppedBy:
        while True:
            following = flow.next(tuple(self.members), tuple(self.turns))
            if isinstance(following, Stop):
                return following.why
            if len(self.turns) >= self.turns_max:
                return "turns_max"
            if self._answered and self.spending.exceeded is not None:
                return "budget"
            turn = await self._turn(following, self.session, GO_ON if self._answered else self.input)
            self.turns.append(turn)
            if turn.error is None:
                continue
            if self._answered and self._is_spent(turn.error):
                return "budget"
            if not self._skips(turn.error):
                raise self._failure(turn)

    # At once --------------------------------------------------------------------------------------------------------

    async def _in_one_row(self, flow: Parallel) -> StoppedBy:
        first, *others = self.members
        asked: dict[str, tuple[Session, tuple[Message, ...] | NoInput]] = {first: (self.session, self.input)}
        asked |= {name: (self.session, GO_ON) for name in others}
        # Where the others go on without the first one, they are to see what was asked.
        return await self._at_once(asked, keep_input=first if flow.on_failure == "skip" else None)

    async def _on_forks(self, flow: Parallel) -> StoppedBy:
        forks: dict[str, Session] = {}
        try:
            for number, name in enumerate(self.members):
                # It is known before it is there: cancelled in between, it is dropped all the same.
                forks[name] = self._new_session(f"{new_id('fork', time.time_ns() // 1_000_000)}-{number}")
                await self._fork_to(forks[name])
            why = await self._at_once({name: (fork, self.input) for name, fork in forks.items()})
            answers = [message for turn in self.turns if turn.reply is not None for message in _last_unit(turn.reply)]
            if answers:
                await _stored(lambda: self.session.add_messages([*self.input, *answers]))
        finally:
            if not flow.keep_forks:
                with anyio.move_on_after(DROP_TIMEOUT_S, shield=True):
                    for fork in forks.values():
                        await _drop(fork)
        return why

    async def _at_once(
        self, asked: "dict[str, tuple[Session, tuple[Message, ...] | NoInput]]", *, keep_input: str | None = None
    ) -> StoppedBy:
        ended: dict[str, TeamTurn] = {}
        fatal: list[TeamTurn] = []

        async def take(name: str, begun: anyio.Event) -> None:
            begun.set()  # no await between this and the request for the turn: that is the order of the list
            session, messages = asked[name]
            turn = ended[name] = await self._turn(name, session, messages, keep_input=name == keep_input)
            if turn.error is not None and not self._skips(turn.error):
                fatal.append(turn)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for name in asked:
                begun = anyio.Event()
                tasks.start_soon(take, name, begun)
                await begun.wait()
        self.turns.extend(ended[name] for name in asked if name in ended)
        if fatal:
            raise self._failure(fatal[0])
        spent = any(self._is_spent(turn.error) for turn in self.turns if turn.error is not None)
        return "budget" if spent else "done"

    def _new_session(self, id: str) -> Session:
        defaults = self.session.defaults
        return Session(
            self.session.runtime,
            id,
            metadata=defaults.metadata,
            owner=defaults.owner,
            tags=[*defaults.tags, FORK_TAG],
        )

    async def _fork_to(self, fork: Session) -> None:
        with suppress(UnknownSession):  # nothing was written to it yet: then the first turn makes the fork
            await _stored(lambda: self.session.fork(fork.id, tags=[FORK_TAG]))

    # One turn -------------------------------------------------------------------------------------------------------

    async def _turn(
        self, name: str, session: Session, messages: tuple[Message, ...] | NoInput, *, keep_input: bool = False
    ) -> TeamTurn:
        agent = self.members.get(name)
        if agent is None:
            raise ValueError(f"there is no agent {name!r} in the team: {', '.join(map(repr, self.members))}")
        messages = messages or GO_ON
        try:
            if self.emit is None:
                reply = await agent.chat(
                    messages, session=session, overlap="queue", spending=self.spending, keep_input=keep_input
                )
            else:
                reply = await self._streamed(agent, session, messages, keep_input=keep_input)
        except CallboardError as error:
            turn = TeamTurn(name, error=error)
            self._tell(name, getattr(error, "run_id", ""), TurnFailed(error))
        else:
            turn = TeamTurn(name, reply)
            self._tell(name, reply.run_id, TurnCompleted(reply))
        return turn

    async def _streamed(
        self, agent: Agent[Any], session: Session, messages: tuple[Message, ...] | NoInput, *, keep_input: bool
    ) -> Reply[Any]:
        stream = agent.stream(messages, session=session, overlap="queue", spending=self.spending, keep_input=keep_input)
        async with stream:
            async for event in stream:
                self._tell(agent.name, stream.run_id, event)
        return stream.reply

    def _tell(self, name: str, run_id: str, event: Any) -> None:
        if self.emit is not None:
            self.emit(TeamEvent(name, run_id, event))

    @property
    def _usage(self) -> Usage:
        if not self.shares:
            return self.spending.usage
        return sum((turn.reply.usage for turn in self.turns if turn.reply is not None), Usage())

    # Failures -------------------------------------------------------------------------------------------------------

    @property
    def _answered(self) -> bool:
        """Whether the input is in history."""
        return any(turn.reply is not None for turn in self.turns)

    def _is_spent(self, error: CallboardError) -> bool:
        """Whether it is the team's budget that has ended the run, and not one of its own."""
        return isinstance(error, BudgetExceeded) and self.spending.exceeded is not None

    def _skips(self, error: CallboardError) -> bool:
        if self.flow.on_failure == "stop":
            return False
        return isinstance(error, RunFailed) or (isinstance(error, ApprovalRequired) and self._is_forked)

    @property
    def _is_forked(self) -> bool:
        return isinstance(self.flow, Parallel) and self.flow.on == "fork"

    def _failure(self, failed: TeamTurn) -> CallboardError:
        """What the chat raises because of this turn."""
        error = failed.error
        assert error is not None
        # A run that waits in a fork cannot be resumed into the session: that is a failure.
        pauses = isinstance(error, ApprovalRequired) and not self._is_forked
        if pauses or (isinstance(error, Rejected) and not self._answered):
            return error
        return TeamFailed(failed.agent, error, tuple(self.turns))


def _last_unit(reply: Reply[Any]) -> tuple[Message, ...]:
    """The answer, with the results of its calls where it ended with one."""
    return reply.messages[reply.messages.index(reply.message) :]


async def _drop(fork: Session) -> None:
    with suppress(CallboardError):  # what is left is found by its tag
        await persist(fork.delete)


async def _stored(write: Callable[[], Awaitable[object]]) -> None:
    """Write, and again where nothing was stored: what several runs have answered is not lost for one failed commit.

    Raises:
        Failed: nothing was stored, after so many tries.
        Unknown: it may be stored, and a further try might store it twice.
    """
    backoff = Backoff(first_s=0.05, max_s=2.0)
    for number in range(1, WRITE_TRIES_MAX):
        try:
            await write()
            return
        except Failed:
            await anyio.sleep(backoff.delay_s(number, 1.0))
    await write()
