"""Examples that mypy and pyright must accept, with the types that a caller sees. `make check` reads them; none runs."""

from typing import assert_type

from callboard import (
    Agent,
    Message,
    ModelSettings,
    OpenAIChat,
    Reply,
    Runtime,
    Session,
    Template,
    ToolContext,
    Usage,
)
from callboard.actors.errors import ModelError, RunFailed
from callboard.actors.model import Delta, Model


def look_up(order: int) -> str:
    """Say where an order is."""
    return f"order {order} is in Bremen"


async def look_up_slowly(context: ToolContext, order: int, carrier: str = "any") -> dict[str, str]:
    """Ask a carrier where an order is."""
    return {"order": str(order), "carrier": carrier}


def models() -> list[Model]:
    return [OpenAIChat(), OpenAIChat(model="small"), OpenAIChat(base_url="local", api_key="none", model="small")]


def agents(runtime: Runtime, session: Session, model: Model) -> list[Agent]:
    return [
        Agent("Intake", instructions="Be brief.", model=model, session=session),
        Agent("Solution", instructions=Template("Help ${customer}."), model=model, runtime=runtime),
        Agent("Follow-up", instructions=lambda context: f"Help {context.session_id}.", model=model, session=session),
        Agent(
            "Courier",
            instructions="Use your tools.",
            model=model,
            session=session,
            tools=[look_up, look_up_slowly],
            settings=ModelSettings(temperature=0.2, max_tokens=200),
        ),
    ]


async def chat(agent: Agent, session: Session) -> None:
    reply = await agent.chat("Where is order 7?")

    assert_type(reply, Reply)
    assert_type(reply.text, str)
    assert_type(reply.message, Message)
    assert_type(reply.run_id, str)
    assert_type(reply.usage, Usage)
    for message in reply.messages:
        assert_type(message, Message)

    assert_type(await agent.chat(Message(role="user", content="And 8?"), session=session, overlap="reject"), Reply)
    assert_type(await agent.chat([{"role": "user", "content": "9?"}, Message(role="user", content="10?")]), Reply)


async def stream(agent: Agent) -> None:
    async with agent.stream("Where is order 7?") as stream:
        async for event in stream:
            if isinstance(event, Delta):
                assert_type(event.text, str)
        assert_type(stream.reply, Reply)


async def handle_failure(agent: Agent) -> None:
    try:
        await agent.chat("Where is order 7?")
    except RunFailed as failed:
        assert_type(failed.run_id, str)
        if isinstance(failed.__cause__, ModelError):
            assert_type(failed.__cause__.status, int | None)
