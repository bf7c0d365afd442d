"""Connections that a run leaves idle are closed before the server closes them, without a further request."""

from functools import partial

import anyio
import pytest

from callboard import Agent, OpenAIChat, Runtime, Session
from callboard.actors import host, openai_chat
from callboard.actors.pool import ConnectionPool
from callboard.testing import FakeUpstream


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_runtime_closes_what_its_models_leave_idle(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_chat, "ConnectionPool", partial(ConnectionPool, idle_s=0.05))
    monkeypatch.setattr(host, "EXPIRE_EVERY_S", 0.01)

    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime.in_memory() as runtime:
            model = OpenAIChat(base_url=upstream.url, model="fake")
            agent = Agent("a", model=model, session=Session(runtime, "s"))
            for _ in range(2):  # the second time: whether the clock is set again
                await agent.chat("hello")
                opened = upstream.connections_open
                with anyio.fail_after(5):
                    while upstream.connections_open:  # noqa: ASYNC110 - a server's counter has no event
                        await anyio.sleep(0.005)

                assert opened == 1

            assert upstream.connections_total == 2

    anyio.run(body, backend=backend)
