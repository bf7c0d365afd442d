"""Who of a team speaks next: a function of who has spoken. Pure.

    Sequence()                     each once, in the order of the list
    Parallel(on=...)               all at once: each on a fork of the session, or in one row on the session itself
    RoundRobin(rounds, until)      again and again in the order of the list
    Router(choose)                 those that are chosen for this input
    Handoff(start)                 who has the conversation, until it hands it over by a tool call
    Review(writer, reviewer)       one writes and the other one looks at it, until it approves

A flow holds no state. `next` gets the turns of this chat that have ended and says who is next, or why nobody is. So
what a flow does can be told from them alone, and be tested over all of them. A flow of your own derives from Flow.

Source: what AutoGen (GroupChat, Swarm), the OpenAI Agents SDK (handoffs) and Google ADK (workflow agents) have in
common.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence as Row
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from .limits import check_agent_name
from .message import Message
from .reply import Reply
from .team_tools import approve_tool, approved_by_tool, handed_over, transfer_names, transfer_tool
from .team_turns import Stop, TeamTurn
from .tools import Tool

if TYPE_CHECKING:
    from .agent import Agent

__all__ = [
    "Choice",
    "Chooser",
    "Chosen",
    "Flow",
    "Handoff",
    "Member",
    "OnFailure",
    "Parallel",
    "Review",
    "RoundRobin",
    "Router",
    "Sequence",
    "name_of",
]

Member: TypeAlias = "str | Agent[Any]"
"""One of a team: its agent, or the agent's name."""

OnFailure: TypeAlias = Literal["stop", "skip"]
"""What a failed run means to its team: the end of the chat, or that this one did not speak."""

Until: TypeAlias = Callable[[Reply], bool]

Choice: TypeAlias = "Member | Iterable[Member]"

Chooser: TypeAlias = "Callable[[Row[Message]], Choice | Awaitable[Choice]] | Agent[Any]"
"""A function of the latest messages, the input last, that names one agent or several; or an agent without a session."""


class Flow:
    """What all flows are. A failed run ends the chat where a flow does not say otherwise."""

    on_failure: OnFailure = "stop"

    def check(self, names: Row[str]) -> None:
        """Raises TypeError or ValueError where the flow does not fit a team of agents of these names."""

    def tools(self, name: str, names: Row[str]) -> tuple[Tool, ...]:
        """What this agent of the team gets beside its own tools."""
        return ()

    def opening(self, history: Row[Message], names: Row[str]) -> "Flow":
        """The flow of a chat that begins behind this history, of which these are the latest messages."""
        return self

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        """Who is next behind these turns, or that nobody is."""
        raise NotImplementedError(f"{type(self).__name__} does not say who is next")

    def result(self, turns: Row[TeamTurn]) -> Reply | None:
        """The reply that counts: the last one that says something. None where there is no reply at all."""
        replies = [turn.reply for turn in reversed(turns) if turn.reply is not None]
        return next((reply for reply in replies if reply.text), replies[0] if replies else None)


@dataclass(frozen=True, kw_only=True)
class Sequence(Flow):
    """Each agent once, in the order of the list. The first one gets the input, the others go on from there.

    Attributes:
        on_failure: "stop": a failed run ends the chat. "skip": the next one goes on as if the failed one had not been.
    """

    on_failure: OnFailure = "stop"

    def check(self, names: Row[str]) -> None:
        _check_on_failure(self.on_failure)

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        return names[len(turns)] if len(turns) < len(names) else Stop("done")


@dataclass(frozen=True, kw_only=True)
class Parallel(Flow):
    """All agents at once, on the same input.

    Attributes:
        on: "fork": each works in a fork of the session, side by side, and sees nothing of the others. Their answers
            become history together, behind the input and in the order of the list, or not at all. "shared": all ask for
            a turn of the session itself at once, so that they answer one after the other, each seeing those before, and
            nobody who asks later comes between.
        on_failure: "stop": a failed run stops the others. Of forks nothing becomes history; on the shared session what
            was answered before stays. "skip": what the others answer counts.
        keep_forks: whether the forks stay, with their runs and tool calls, as sessions that are tagged "team-fork".
    """

    on: Literal["fork", "shared"] = "fork"
    on_failure: OnFailure = "stop"
    keep_forks: bool = False

    def check(self, names: Row[str]) -> None:
        _check_on_failure(self.on_failure)
        if self.on not in ("fork", "shared"):
            raise ValueError(f'Parallel(on=...) is "fork" or "shared", not {self.on!r}')

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        """One by one; a team does not ask, and lets all go."""
        return names[len(turns)] if len(turns) < len(names) else Stop("done")


@dataclass(frozen=True, kw_only=True)
class RoundRobin(Flow):
    """Again and again in the order of the list.

    Attributes:
        rounds: how often each speaks at most.
        until: looked at after each turn: where it says True of the reply, nobody speaks any more.
        on_failure: as with Sequence.
    """

    rounds: int = 1
    until: Until | None = None
    on_failure: OnFailure = "stop"

    def check(self, names: Row[str]) -> None:
        _check_on_failure(self.on_failure)
        _check_count("rounds", self.rounds)

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        last = turns[-1].reply if turns else None
        if last is not None and self.until is not None and self.until(last):
            return Stop("until")
        return names[len(turns) % len(names)] if len(turns) < self.rounds * len(names) else Stop("done")


@dataclass(frozen=True)
class Router(Flow):
    """Those that are chosen for this input, in the order in which they are named.

    Attributes:
        choose: a function, async or not, of the latest messages with the input last; or an agent that was made without
            a session, which is asked for one of the names. What that one says is not stored.
        latest: how many messages of history it gets.
    """

    choose: Chooser
    latest: int = field(default=20, kw_only=True)

    @property
    def agent(self) -> "Agent[Any] | None":
        """The agent that chooses; None where a function does."""
        return None if callable(self.choose) else self.choose

    def ask(self, messages: Row[Message]) -> object:
        """What the function says, or something to await for it."""
        assert callable(self.choose), "an agent is asked by the team"
        return self.choose(messages)

    def check(self, names: Row[str]) -> None:
        _check_count("latest", self.latest)
        if not callable(self.choose) and not hasattr(self.choose, "chat"):
            raise TypeError(f"Router(choose) is a function of messages, or an Agent, not {self.choose!r}")

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        raise AssertionError("a team asks a router once, and goes by Chosen then")

    def chosen(self, choice: object, names: Row[str]) -> "Chosen":
        """What follows from the choice.

        Raises:
            TypeError, ValueError: it names nobody, or somebody who is not there.
        """
        named = [choice] if isinstance(choice, str) or hasattr(choice, "chat") else choice
        if not isinstance(named, Iterable):
            raise TypeError(f"the router is to name an agent, or several, not {choice!r}")
        chosen = tuple(name_of(each) for each in named)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] -- checked by name_of
        if not chosen:
            raise ValueError("the router has named nobody")
        _check_members(chosen, names)
        return Chosen(chosen)


@dataclass(frozen=True)
class Chosen(Flow):
    """Those that a router has named."""

    chosen: tuple[str, ...]

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        return self.chosen[len(turns)] if len(turns) < len(self.chosen) else Stop("done")


@dataclass(frozen=True)
class Handoff(Flow):
    """One agent has the conversation, and may hand it over by a tool call, `transfer_to_<name>`; if not, it is done.

    The turn ends with the call. The next agent goes on from there: it reads in history what it was told with the call.

    Attributes:
        start: who has the conversation at first; None: the first of the list.
        to: to whom each may hand over; those who are not in it, to everybody.
        about: what the others are told of an agent, by name, so that they know when to hand over to it.
        sticky: a chat begins with who had the conversation last, as history shows; else with `start`.
    """

    start: "Member | None" = None
    to: "Mapping[Member, Iterable[Member]]" = field(default_factory=dict["Member", "Iterable[Member]"], kw_only=True)
    about: Mapping[str, str] = field(default_factory=dict[str, str], kw_only=True)
    sticky: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        # Iterables are read once.
        routes = {name_of(source): tuple(map(name_of, targets)) for source, targets in self.to.items()}
        object.__setattr__(self, "to", routes)

    def check(self, names: Row[str]) -> None:
        start = [] if self.start is None else [self.start]
        _check_members([*start, *self.to, *(each for targets in self.to.values() for each in targets)], names)
        _check_members(self.about, names)
        transfer_names(names)

    def tools(self, name: str, names: Row[str]) -> tuple[Tool, ...]:
        targets = (name_of(each) for each in self.to.get(name, names))
        return tuple(transfer_tool(target, self.about.get(target, "")) for target in targets if target != name)

    def opening(self, history: Row[Message], names: Row[str]) -> Flow:
        holder = _holder(history, names) if self.sticky else None
        return self if holder is None else replace(self, start=holder)

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        if not turns:
            return names[0] if self.start is None else name_of(self.start)
        last = turns[-1].reply
        return (None if last is None else handed_over(last.messages, names)) or Stop("done")


@dataclass(frozen=True)
class Review(Flow):
    """One agent writes and another one looks at it, until that one approves or the rounds are spent.

    Attributes:
        writer, reviewer: two of the team.
        rounds_max: how often there is something to look at.
        approved: tells from the reviewer's reply whether it approves. None: the reviewer gets a tool, `approve`.
    """

    writer: "Member"
    reviewer: "Member"
    rounds_max: int = field(default=3, kw_only=True)
    approved: Until | None = field(default=None, kw_only=True)

    def check(self, names: Row[str]) -> None:
        _check_members([self.writer, self.reviewer], names)
        _check_count("rounds_max", self.rounds_max)
        if name_of(self.writer) == name_of(self.reviewer):
            raise ValueError(f"{name_of(self.writer)!r} cannot review what it wrote itself: name two agents")

    def tools(self, name: str, names: Row[str]) -> tuple[Tool, ...]:
        return (approve_tool(),) if name == name_of(self.reviewer) and self.approved is None else ()

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        if len(turns) % 2:
            return name_of(self.reviewer)
        last = turns[-1].reply if turns else None
        if last is not None and (self.approved or approved_by_tool)(last):
            return Stop("approved")
        return name_of(self.writer) if len(turns) < 2 * self.rounds_max else Stop("rounds")

    def result(self, turns: Row[TeamTurn]) -> Reply | None:
        """The writer's last."""
        writer = name_of(self.writer)
        return next((turn.reply for turn in reversed(turns) if turn.agent == writer and turn.reply is not None), None)


def name_of(member: object) -> str:
    """The name of an agent, or the name itself.

    Raises:
        TypeError, ValueError: it is neither.
    """
    return check_agent_name(member if isinstance(member, str) else getattr(member, "name", member))


def _holder(history: Row[Message], names: Row[str]) -> str | None:
    """Who has the conversation behind this history: the last of these agents that spoke, or to whom it handed over."""
    for place in range(len(history) - 1, -1, -1):
        message = history[place]
        if message.role == "assistant" and message.author in names:
            results = takewhile(lambda each: each.role == "tool", history[place + 1 :])
            return handed_over([message, *results], names) or message.author
    return None


def _check_members(members: Iterable[object], names: Row[str]) -> None:
    for name in map(name_of, members):
        if name not in names:
            raise ValueError(f"there is no agent {name!r} in the team: {', '.join(map(repr, names))}")


def _check_on_failure(value: object) -> None:
    if value not in get_args(OnFailure):
        raise ValueError(f'on_failure is "stop" or "skip", not {value!r}')


def _check_count(name: str, value: object) -> None:
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}")
