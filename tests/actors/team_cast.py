"""Agents of a team whose models say what a script does, and what is to be seen of them."""

from typing import Any

from callboard import Agent, RunPolicy, Session, ToolCall
from callboard.testing import ModelScript, ScriptedModel

__all__ = ["ONCE", "agent", "model_of", "said", "statuses", "transfer"]

ONCE = RunPolicy(attempts_max=1)


def agent(session: Session, name: str, script: ModelScript = (), *, delay_s: float = 0.0, **options: Any) -> Agent:
    """One that says what the script does; without one "<name> 1", "<name> 2", ..."""
    counted = iter(f"{name} {number}" for number in range(1, 1000))
    model = ScriptedModel(script or (lambda request: next(counted)), delay_s=delay_s)
    return Agent(name, model=model, runtime=session.runtime, policy=ONCE, **options)


def model_of(agent: Agent) -> ScriptedModel:
    model = agent._spec.model  # pyright: ignore[reportPrivateUsage] -- to look at what it was sent
    assert isinstance(model, ScriptedModel)
    return model


def transfer(to: str, **arguments: str) -> ToolCall:
    told = ", ".join(f'"{key}": "{value}"' for key, value in arguments.items())
    return ToolCall(f"to-{to}", f"transfer_to_{to}", f"{{{told}}}")


async def said(session: Session) -> list[tuple[str | None, str]]:
    return [(message.author, message.text) for message in await session.messages()]


async def statuses(session: Session) -> list[tuple[str, str]]:
    return [(record.agent, record.status) for record in await session.runs()]
