"""The nouns of a team's chat: a turn of one agent, why nobody speaks any more, the reply, the events, the error.

TeamFailed stands beside RunFailed in the tree of errors: what the others did before it is stored and stays.
"""

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from ..store.errors import CallboardError
from .message import Usage
from .reply import Reply, RunEvent

__all__ = [
    "Stop",
    "StoppedBy",
    "TeamEvent",
    "TeamFailed",
    "TeamReply",
    "TeamTurn",
    "TurnCompleted",
    "TurnFailed",
]

StoppedBy: TypeAlias = Literal["done", "until", "approved", "rounds", "turns_max", "budget"]
"""Why nobody speaks any more: the flow has come to its end ("done"), what it waited for is there ("until", "approved"),
or a bound is reached ("rounds" of a review, "turns_max" and "budget" of the team)."""


class TeamTurn(Struct, frozen=True):
    """A turn that one agent of a team had: its reply, or why it gave none."""

    agent: str
    reply: Reply | None = None
    error: CallboardError | None = None


class Stop(Struct, frozen=True):
    """Nobody speaks any more, and why."""

    why: StoppedBy


class TeamReply(Struct, frozen=True):
    """What a team has answered. All of it is durable.

    Attributes:
        reply: the one that counts: of a review the writer's last, else the last one that says something.
        turns: all turns, in the order in which they ended (of `Parallel`, of the list), failed ones that were skipped
            included.
        usage: tokens and cost of all their model calls, failed turns included. With a `spending=` that others spend of
            as well: of the replies.
        stopped_by: why it ended; "turns_max" and "budget" mean that the flow would have gone on.
    """

    reply: Reply
    turns: tuple[TeamTurn, ...]
    usage: Usage
    stopped_by: StoppedBy

    @property
    def text(self) -> str:
        """The text of the reply that counts."""
        return self.reply.text

    @property
    def output(self) -> Any:
        """Its value, where its agent has an `output=`."""
        return self.reply.output

    @property
    def replies(self) -> tuple[Reply, ...]:
        """All replies, in the order of `turns`."""
        return tuple(turn.reply for turn in self.turns if turn.reply is not None)

    @property
    def by_agent(self) -> dict[str, Reply]:
        """The last reply of each agent that gave one."""
        return {turn.agent: turn.reply for turn in self.turns if turn.reply is not None}


class TurnCompleted(Struct, frozen=True):
    """The agent's turn has ended well, and is durable."""

    reply: Reply


class TurnFailed(Struct, frozen=True):
    """The agent's turn has ended without a reply."""

    error: CallboardError


class TeamEvent(Struct, frozen=True):
    """An event of one agent of a team. Those of one run come in order; those of runs side by side between each other.

    Attributes:
        agent: whose run it is.
        run_id: the run.
        event: what happened: an event as of `Agent.stream`, or how the turn ended.
    """

    agent: str
    run_id: str
    event: RunEvent | TurnCompleted | TurnFailed


class TeamFailed(CallboardError):
    """A turn of a team's chat ended without a reply, and so did the chat; `__cause__` is the error.

    What was answered before stands in history, unless it was said aside, in forks.

    Attributes:
        agent: whose turn failed.
        turns: all turns of the chat that have ended.
    """

    def __init__(self, agent: str, error: CallboardError, turns: tuple[TeamTurn, ...]) -> None:
        super().__init__(f"the team stopped at agent {agent!r}: {error}")
        self.agent: str = agent
        self.turns: tuple[TeamTurn, ...] = turns
        self.__cause__ = error
