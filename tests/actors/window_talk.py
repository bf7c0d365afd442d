"""Conversations that count: what test_session_window.py and test_compaction.py share."""

from typing import Any

from callboard import Agent, ModelAnswer, ModelRequest
from callboard.testing import ScriptedModel


class Words:
    """Each word is a token."""

    name = "words"
    exact = False

    def count(self, text: str) -> int:
        return len(text.split())


def summaries(request: ModelRequest) -> bool:
    return request.messages[0].text.startswith("You condense")


def as_chat(request: ModelRequest) -> str | ModelAnswer:
    """What a model says: "a7" to "q7", and a summary where one is wanted."""
    if summaries(request):
        return "they counted"
    return "a" + request.messages[-1].text[1:]


def prompts_of(model: ScriptedModel) -> list[list[str]]:
    return [[message.text for message in request.messages] for request in model.requests if not summaries(request)]


async def talk(agent: Agent[Any], turns: int, *, first: int = 1) -> None:
    for number in range(first, first + turns):
        await agent.chat(f"q{number}")


def numbered(count: int, *, first: int = 1) -> list[dict[str, Any]]:
    return [{"role": ("assistant", "user")[n % 2], "content": f"m{n}"} for n in range(first, first + count)]
