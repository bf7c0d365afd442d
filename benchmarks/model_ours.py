"""callboard in the rows of bench_model_path.py, by its public API.

client    OpenAIChat.complete: what stands where the others' clients stand
turn      Agent.chat and Agent.stream: the same call as a turn in a session, on LMDB with durability "sync"
"""

import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

import msgspec
from chatting import Chatting
from closed_loop import Caller
from model_load import INSTRUCTIONS, QUESTION, TALKS, Measure, Wanted, Way
from model_rows import measures_with
from model_upstream import ANSWER

from callboard import Agent, Delta, Message, ModelRequest, ModelSettings, OpenAIChat, Runtime

__all__ = ["measures"]


def asking(model: OpenAIChat, _number: int, name: str) -> Caller:
    talks = cycle([msgspec.convert(talk, tuple[Message, ...]) for talk in TALKS])
    settings = ModelSettings(model=name)

    async def call() -> None:
        answer = await model.complete(ModelRequest(next(talks), settings=settings))
        assert answer.message.text == ANSWER

    async def call_streamed() -> None:
        pieces: list[str] = []

        def show(delta: Delta) -> None:
            pieces.append(delta.text)

        answer = await model.complete(ModelRequest(next(talks), settings=settings), on_delta=show)
        assert "".join(pieces) == ANSWER == answer.message.text

    return call if name.startswith("whole") else call_streamed


def model_for(wanted: Wanted) -> OpenAIChat:
    if wanted.connections is None:
        return OpenAIChat(base_url=wanted.url, model="none", api_key="none")
    return OpenAIChat(base_url=wanted.url, model="none", api_key="none", connections_max=wanted.connections)


@asynccontextmanager
async def opened_client(wanted: Wanted) -> AsyncGenerator[Way]:
    model = model_for(wanted)
    try:
        yield partial(asking, model)
    finally:
        await model.aclose()


@asynccontextmanager
async def opened_turns(wanted: Wanted) -> AsyncGenerator[Way]:
    """Afterwards the store was read: it holds what was answered."""
    model = model_for(wanted)
    with tempfile.TemporaryDirectory(dir=wanted.folder) as folder:
        store = Path(folder) / "turns.lmdb"
        async with Runtime(store) as runtime:
            chatting = Chatting(runtime, question=QUESTION, answer=ANSWER, turns=len(TALKS))
            agents: dict[str, Agent] = {}

            def chats(_number: int, name: str) -> Caller:
                if name not in agents:
                    settings = ModelSettings(model=name)
                    agents[name] = Agent(
                        "Clerk", instructions=INSTRUCTIONS, runtime=runtime, model=model, settings=settings
                    )
                return chatting.caller(agents[name], streamed=not name.startswith("whole"))

            yield chats
        chatting.check(store)


def measures(variant: str) -> Mapping[str, Measure]:
    """By row."""
    return measures_with(opened_turns if variant == "turn" else opened_client)
