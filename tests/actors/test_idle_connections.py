"""Connections that a run leaves idle are closed before the server closes them, without a further request."""

import gc
import weakref
from functools import partial
from typing import Any

import anyio
import pytest

from callboard import Agent, OpenAIChat, Runtime, Session
from callboard.actors import host, openai_chat
from callboard.actors.pool import ConnectionPool
from callboard.testing import FakeUpstream, ScriptedModel


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


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_model_that_cannot_close_what_is_idle_costs_nobody_his_session(
    backend: str, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(host, "EXPIRE_EVERY_S", 0.01)

    class Broken(ScriptedModel):
        def close_expired(self) -> bool:
            raise ValueError("out of order")

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            agent = Agent("a", model=Broken(["one", "two"]), session=Session(runtime, "s"))
            await agent.chat("hello")
            await anyio.sleep(0.1)

            assert (await agent.chat("hello")).text == "two"

    anyio.run(body, backend=backend)
    assert "out of order" in caplog.text


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_models_that_nobody_has_any_more_leave_memory_and_close_their_sockets(backend: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(openai_chat, "ConnectionPool", partial(ConnectionPool, idle_s=0.05))
    monkeypatch.setattr(host, "EXPIRE_EVERY_S", 0.01)
    monkeypatch.setattr(host, "AGENT_IDLE_S", 0.01)

    async def chat_once(upstream: FakeUpstream, session: Session) -> "weakref.ref[OpenAIChat]":
        model = OpenAIChat(base_url=upstream.url, model="fake")
        await Agent("a", model=model, session=session).chat("hello")
        return weakref.ref(model)

    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            known = [await chat_once(upstream, session) for _ in range(20)]
            with anyio.fail_after(10):
                while upstream.connections_open or any(ref() is not None for ref in known):
                    await anyio.sleep(0.01)
                    gc.collect()

    anyio.run(body, backend=backend)
