"""Going on with many interrupted runs at once: after a crash, or when a program was closed in the middle of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from ..store.errors import CallboardError
from .agent import Agent
from .errors import InvalidTransition
from .host import Runtime
from .reply import Reply
from .run_record import RunRecord
from .session import Session

__all__ = ["ResumedRuns", "agents_by_name", "resume_runs"]

SESSIONS_AT_ONCE = 64
"""As many as are put right side by side at start-up."""


@dataclass(slots=True)
class ResumedRuns:
    """What became of runs that were to go on.

    Attributes:
        replies: of those that were completed.
        errors: what the others raised, by run id. One that raised ApprovalRequired waits.
    """

    replies: list[Reply[Any]] = field(default_factory=list[Reply[Any]])
    errors: dict[str, CallboardError] = field(default_factory=dict[str, CallboardError])


def agents_by_name(agents: Iterable[Agent[Any]], runtime: Runtime) -> dict[str, Agent[Any]]:
    """The agents by their names.

    Raises:
        TypeError, ValueError: one is none, belongs to another runtime, or has the name of another.
    """
    by_name: dict[str, Agent[Any]] = {}
    for agent in agents:
        if not isinstance(agent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"agents are a list of Agent, and {agent!r} is none")
        if agent.runtime is not runtime:
            raise ValueError(f"agent {agent.name!r} belongs to another runtime")
        if agent.name in by_name:
            raise ValueError(f"two agents have the name {agent.name!r}: whose runs are to be resumed by which?")
        by_name[agent.name] = agent
    return by_name


async def resume_runs(runs: Iterable[RunRecord], agents: Mapping[str, Agent[Any]], runtime: Runtime) -> ResumedRuns:
    """Resume these runs, each by the agent of its name: those of one session in the order of their making."""
    by_session: dict[str, list[RunRecord]] = {}
    for record in sorted(runs, key=lambda record: record.id):
        by_session.setdefault(record.session_id, []).append(record)
    limiter, resumed = anyio.CapacityLimiter(SESSIONS_AT_ONCE), ResumedRuns()

    async def resume_all(session_id: str) -> None:
        async with limiter:
            session = Session(runtime, session_id)
            for record in by_session[session_id]:
                try:
                    resumed.replies.append(await agents[record.agent].resume(record.id, session=session))
                except InvalidTransition:
                    pass  # somebody was faster
                except CallboardError as error:
                    resumed.errors[record.id] = error

    async with anyio.create_task_group() as tasks:
        for session_id in by_session:
            tasks.start_soon(resume_all, session_id)
    return resumed
