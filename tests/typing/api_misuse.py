"""What mypy and pyright must refuse. Both run in strict mode, where an ignore that nothing needs is an error itself:
if a mistake below were accepted, `make check` would fail. Each line's reason is that it is the mistake on show.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from callboard import Agent, Message, Runtime, Session


def a_runtime_with_an_unknown_durability() -> None:
    Runtime("support.lmdb", durability="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_message_with_an_unknown_role() -> None:
    Message(role="narrator", content="Once")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_message_without_content(session: Session) -> None:
    await session.add_message("user")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def a_reply_that_is_not_awaited(agent: Agent) -> None:
    reply = agent.chat("Hello")
    reply.attempts  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def an_unknown_overlap(agent: Agent) -> None:
    await agent.chat("Hello", overlap="whatever")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def an_agent_without_a_model(session: Session) -> None:
    Agent("Intake", instructions="Be brief.", session=session)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
