"""Callers of agents that go on side by side, for tests of what becomes of their inputs."""

from types import TracebackType
from typing import Any, Self

import anyio

from callboard import Agent, CallboardError, Message, Reply
from callboard.testing import ScriptedModel

__all__ = ["Callers", "said", "slow"]


class Callers:
    """Chats that go on side by side; `begin` returns when the call has been made."""

    def __init__(self) -> None:
        self.tasks = anyio.create_task_group()
        self.replies: dict[str, Reply[Any]] = {}
        self.errors: dict[str, BaseException] = {}

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.tasks.__aexit__(kind, error, trace)

    async def begin(self, agent: Agent[Any], text: str, **options: Any) -> None:
        async def call() -> None:
            try:
                self.replies[text] = await agent.chat(text, **options)
            except CallboardError as error:
                self.errors[text] = error

        self.tasks.start_soon(call)
        await anyio.sleep(0.001)


def said(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


def slow(script: Any = (), *, delay_s: float = 1.0) -> ScriptedModel:
    return ScriptedModel(script, delay_s=delay_s)
