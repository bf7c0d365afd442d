"""Examples of teams that mypy and pyright must accept, with the types that a caller sees. None runs."""

from collections.abc import Sequence as Row
from typing import assert_type

from msgspec import Struct

from callboard import (
    GO_ON,
    Agent,
    Agents,
    Budget,
    Flow,
    Handoff,
    Message,
    Parallel,
    Reply,
    Review,
    RoundRobin,
    Router,
    RunEvent,
    Sequence,
    Session,
    Spending,
    Stop,
    Team,
    TeamEvent,
    TeamFailed,
    TeamReply,
    TeamStream,
    TeamTurn,
    TurnCompleted,
    TurnFailed,
    Usage,
)


class Ticket(Struct):
    """What a desk writes."""

    subject: str


async def chat(desk: Agent[Ticket], helper: Agent, session: Session) -> None:
    team = Team([desk, helper], session=session, turns_max=5, budget=Budget(tokens=1_000))
    reply = await team.chat("It does not work.", spending=Spending(Budget(model_calls=3)))
    assert_type(reply, TeamReply)
    assert_type(reply.reply, Reply)
    assert_type(reply.usage, Usage)
    assert_type(reply.turns, tuple[TeamTurn, ...])
    await team.chat(GO_ON, session=session)
    await Agents([helper]).chat([{"role": "user", "content": "a"}, Message(role="user", content="b")], session=session)


async def read(team: Team) -> None:
    async with team.stream("Hello") as stream:
        assert_type(stream, TeamStream)
        async for event in stream:
            assert_type(event, TeamEvent)
            assert_type(event.event, RunEvent | TurnCompleted | TurnFailed)
    assert_type(stream.reply, TeamReply)


def flows(desk: Agent[Ticket], helper: Agent) -> list[Flow]:
    def choose(messages: Row[Message]) -> str:
        return "desk" if messages[-1].text else "helper"

    async def choose_several(messages: Row[Message]) -> list[Agent]:
        return [helper] if messages else []

    return [
        Sequence(on_failure="skip"),
        Parallel(on="shared", on_failure="skip", keep_forks=True),
        RoundRobin(rounds=2, until=lambda reply: "done" in reply.text),
        Router(choose),
        Router(choose_several, latest=5),
        Router(helper),
        Handoff(),
        Handoff(desk, to={desk: [helper], "helper": ["desk"]}, about={"desk": "For tickets."}, sticky=False),
        Review(desk, "helper", rounds_max=2, approved=lambda reply: reply.text == "fine"),
    ]


class Twice(Flow):
    """A flow of one's own: the first agent speaks two times."""

    def next(self, names: Row[str], turns: Row[TeamTurn]) -> str | Stop:
        return names[0] if len(turns) < 2 else Stop("done")


def what_failed(failed: TeamFailed) -> None:
    assert_type(failed.agent, str)
    assert_type(failed.turns, tuple[TeamTurn, ...])
