"""What mypy and pyright must refuse. Both run in strict mode, where an ignore that nothing needs is an error itself:
if a mistake below were accepted, `make check` would fail. Each line's reason is that it is the mistake on show.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true, enableTypeIgnoreComments=false

from callboard import Agent, Message, Runtime, Session
from callboard.actors.model import Model


def a_runtime_with_an_unknown_durability() -> None:
    Runtime("support.lmdb", durability="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_message_with_an_unknown_role() -> None:
    Message(role="narrator", content="Once")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_session_asked_without_a_role(session: Session) -> None:
    await session.add_message("It does not work.")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def a_reply_that_is_not_awaited(agent: Agent) -> str:
    return agent.chat("Hello").text  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def an_unknown_overlap(agent: Agent) -> None:
    await agent.chat("Hello", overlap="whatever")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def an_agent_with_options_by_position(model: Model, session: Session) -> None:
    Agent("Intake", "Be brief.", model, session)  # type: ignore[misc]  # pyright: ignore[reportCallIssue]
