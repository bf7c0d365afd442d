"""The public handle on a team: several agents that answer together, on one session."""

import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import anyio

from .agent import Agent
from .budgets import Budget, Spending
from .chat_input import ChatInput, as_input
from .session import Session
from .team_chat import Emit, TeamChat
from .team_flows import Flow, Router, Sequence
from .team_turns import TeamEvent, TeamReply

__all__ = ["TURNS_MAX", "Agents", "Team", "TeamStream"]

TURNS_MAX = 20
"""Turns of one chat, where nothing else is said: more than a good hand-over needs, and few enough for two agents that
send a customer back and forth."""


class Team:
    """Several agents on one session: what each of them writes is seen by all, under its name.

    Each agent speaks in a turn of its own, with a run of its own. Chats of teams on one session come one after the
    other, in the order in which they were called; chats of single agents may come between their turns.

    Args:
        agents: those that take part, each of another name.
        session: where they chat, unless `chat` names another.
        flow: who speaks next: Sequence() if left out, Parallel(), RoundRobin(), Router(...), Handoff(...), Review(...),
            or a Flow of your own.
        turns_max: turns of one chat at most. `Parallel` has as many as there are agents.
        budget: what one chat may spend, all agents together. It is looked at before each model call.

    Raises:
        TypeError, ValueError: an argument is no good; the message says what would be.
    """

    def __init__(
        self,
        agents: Iterable[Agent[Any]],
        *,
        session: Session | None = None,
        flow: Flow | None = None,
        turns_max: int = TURNS_MAX,
        budget: Budget | None = None,
    ) -> None:
        given = _checked_agents(agents)
        self._flow: Flow = _checked_flow(Sequence() if flow is None else flow, tuple(given))
        if type(turns_max) is not int or turns_max < 1:
            raise ValueError(f"turns_max must be a whole number from 1, not {turns_max!r}")
        if budget is not None and not isinstance(budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"budget= must be a Budget, as in Budget(tokens=50_000), not {budget!r}")
        self._turns_max = turns_max
        self._budget = budget
        self._members: dict[str, Agent[Any]] = {}
        for name, agent in given.items():
            tools = self._flow.tools(name, tuple(given))
            self._members[name] = agent.with_tools(*tools) if tools else agent
        self._session = session
        if session is not None:
            self._checked_session(session)

    def __repr__(self) -> str:
        return f"<Team {', '.join(map(repr, self._members))}>"

    @property
    def agents(self) -> tuple[Agent[Any], ...]:
        """The agents as the team has them, with the tools that its flow gives them: to resume runs of theirs."""
        return tuple(self._members.values())

    def agent(self, name: str) -> Agent[Any]:
        """The one of this name, as the team has it.

        Raises:
            KeyError: there is none.
        """
        return self._members[name]

    async def chat(
        self, messages: ChatInput, *, session: Session | None = None, spending: Spending | None = None
    ) -> TeamReply:
        """Answer together, as the flow says.

        Args:
            messages: a user's text, a message, or several; or GO_ON: the team answers what history ends with.
            session: instead of the team's own.
            spending: a budget that this chat shares with others, in place of the team's own.

        Returns: the reply; all of it is durable.

        Raises:
            TeamFailed: an agent's turn ended without a reply, and the flow does not skip it. What was answered before
                stands, unless the flow keeps it aside (Parallel on forks); `failed.turns` has it.
            ApprovalRequired: a tool call of an agent waits for a verdict, stored. `team.agent(name).resume(...)` goes
                on with its run, and `team.chat(GO_ON)` or another chat with the team.
            RunFailed: a router that is an agent has failed; nobody has spoken.
            Failed, Unknown: what came of forks could not be stored, or nobody can tell whether it was.
            CyclicAsk: called by a tool that works in a turn of the very session, directly or around.
            Rejected: it did not run.
            TypeError, ValueError: an argument is no good. And what `until`, `choose` or `approved` raise.

        Cancellation: as `Agent.chat` for each run that is under way; turns that have ended stand.
        """
        return await self._chat(messages, session, spending)(None)

    def stream(
        self, messages: ChatInput, *, session: Session | None = None, spending: Spending | None = None
    ) -> "TeamStream":
        """Like `chat`, with the events of all agents as they come.

        async with team.stream("...") as stream:
            async for event in stream:
                print(event.agent, event.event)
        print(stream.reply.text)
        """
        return TeamStream(self._chat(messages, session, spending))

    def _chat(
        self, messages: ChatInput, session: Session | None, spending: Spending | None
    ) -> Callable[[Emit | None], Awaitable[TeamReply]]:
        session = self._session if session is None else self._checked_session(session)
        if session is None:
            raise TypeError("a team answers in a session: give the Team one, or pass session=")
        if spending is not None and not isinstance(spending, Spending):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"spending= must be a Spending, as in Spending(Budget(tokens=50_000)), not {spending!r}")
        where, given = session, tuple(as_input(messages, in_session=True))

        def run(emit: Emit | None) -> Awaitable[TeamReply]:
            chat = TeamChat(
                members=self._members,
                session=where,
                flow=self._flow,
                input=given,
                turns_max=self._turns_max,
                spending=Spending(self._budget or Budget()) if spending is None else spending,
                shares=spending is not None,
                emit=emit,
            )
            return chat.run()

        return run

    def _checked_session(self, session: Session) -> Session:
        if not isinstance(session, Session):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"session= must be a Session, not {session!r}")
        for agent in self._members.values():
            if agent.runtime is not session.runtime:
                raise ValueError(f"session {session.id!r} belongs to another runtime than agent {agent.name!r}")
        return session


Agents = Team
"""Another name for Team."""


class TeamStream:
    """The events of one chat of a team, as they come; see `Team.stream`. For one task.

    A reader that is slow does not hold up the agents; what it has not read is kept. Leaving the block before the end
    cancels the runs that are under way.
    """

    def __init__(self, run: Callable[[Emit | None], Awaitable[TeamReply]]) -> None:
        self._run = run
        self._entered = False
        self._reply: TeamReply | None = None
        self._error: Exception | None = None

    @property
    def reply(self) -> TeamReply:
        """The team's reply. Only after the events have come to their end."""
        if self._reply is None:
            raise RuntimeError("the reply is there when `async for` has ended by itself")
        return self._reply

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a stream is one chat and is entered once: call team.stream() again for another")
        self._entered = True
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._send, self._receive = anyio.create_memory_object_stream[TeamEvent](math.inf)
        self._tasks.start_soon(self._carry_out)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receive.close()
        self._tasks.cancel_scope.cancel()
        # Not with the block's own error, which would come out of the task group in a group.
        await self._tasks.__aexit__(None, None, None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TeamEvent:
        """The next event; at the end the reply is there, or what `chat` would raise is raised."""
        if not self._entered:
            raise RuntimeError(
                "enter the stream first: async with team.stream(...) as stream: async for event in stream"
            )
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self._error is not None:
                raise self._error from self._error.__cause__
            raise StopAsyncIteration from None

    async def _carry_out(self) -> None:
        with self._send:
            try:
                self._reply = await self._run(self._put)
            except Exception as error:  # noqa: BLE001 -- it comes out where the events are read, functions of the user included
                self._error = error

    def _put(self, event: TeamEvent) -> None:
        with suppress(anyio.BrokenResourceError):  # the reader has left, and the chat is about to be cancelled
            self._send.send_nowait(event)


def _checked_agents(agents: object) -> dict[str, Agent[Any]]:
    if isinstance(agents, Agent) or not isinstance(agents, Iterable):
        raise TypeError(f"a Team is made of a list of agents, as in Team([a, b], session=session), not {agents!r}")
    given: dict[str, Agent[Any]] = {}
    for agent in agents:  # pyright: ignore[reportUnknownVariableType] -- what it is, is looked at here
        if not isinstance(agent, Agent):
            raise TypeError(f"a Team is made of agents, not {agent!r}")
        if agent.name in given:
            raise ValueError(f"two agents of the team are called {agent.name!r}: authors are told apart by their names")
        given[agent.name] = agent
    if not given:
        raise ValueError("a Team needs at least one agent")
    return given


def _checked_flow(flow: object, names: tuple[str, ...]) -> Flow:
    if not isinstance(flow, Flow):
        raise TypeError(f"flow= must be a Flow, as in Sequence() or Handoff(), not {flow!r}")
    flow.check(names)
    chooser: Agent[Any] | None = flow.agent if isinstance(flow, Router) else None
    if chooser is not None and chooser.session is not None:
        raise ValueError(f"the router {chooser.name!r} has a session, which would keep what it says: give it runtime=")
    return flow
