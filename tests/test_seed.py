"""SEED.md row by row: each test is the row's own code, by `import callboard` and nothing else, on both event loops.

What goes wrong, and all else around these rows, is tested beside the code that does it: tests/actors/test_seed_rows.py
over HTTP, tests/databases/test_session_storage.py on database servers.
"""

import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from callboard import (
    Agent,
    Agents,
    Delta,
    InstructionContext,
    InvalidTransition,
    Memory,
    Message,
    Runtime,
    Session,
    SessionManager,
    Team,
    Template,
    ToolCall,
    ToolContext,
    create_postgres_session_storage,
    create_redis_session_storage,
)
from callboard.testing import ModelScript, ScriptedModel, model_answer

Program: TypeAlias = Callable[[Runtime], Awaitable[None]]
Play: TypeAlias = Callable[[Program], None]

PROGRAM_S_MAX = 45.0


@pytest.fixture(params=["trio", "asyncio"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Plays a program on a store on disk."""

    async def opened(program: Program) -> None:
        with anyio.fail_after(PROGRAM_S_MAX):
            async with Runtime(tmp_path / "support.lmdb") as runtime:
                await program(runtime)

    return lambda program: anyio.run(opened, program, backend=request.param)


def support_agent(session: Session, script: ModelScript = (), **options: Any) -> tuple[Agent, ScriptedModel]:
    model = ScriptedModel(script)
    return Agent("Support Agent", instructions="Be kind.", model=model, session=session, **options), model


def test_s1_agent_with_session_memory(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "user-123")
        agent, model = support_agent(session, ["Hello John.", "Billing."])
        await agent.chat("My name is John and I need help with billing")
        reply = await agent.chat("What was my issue again?")

        assert reply.text == "Billing."
        assert [(message.role, message.text) for message in model.requests[1].messages] == [
            ("system", "Be kind."),
            ("user", "My name is John and I need help with billing"),
            ("assistant", "Hello John."),
            ("user", "What was my issue again?"),
        ]
        assert [message.role for message in await session.messages()] == ["user", "assistant"] * 2

    play(program)


def test_s2_session_manager(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        manager = SessionManager(runtime)
        made: list[Session] = []

        async def first_call() -> None:
            made.append(await manager.get_or_create("a", owner="ann", tags=["x"], metadata={"plan": "pro"}))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(first_call)
        await manager.get_or_create("b", owner="ann")
        first = await manager.list(owner="ann", limit=1)
        second = await manager.list(owner="ann", limit=1, cursor=first.cursor)

        assert {session.id for session in made} == {"a"}
        assert [head.id for head in (*first.sessions, *second.sessions)] == ["b", "a"]
        assert [head.id for head in (await manager.list(tag="x")).sessions] == ["a"]
        assert (await manager.list(updated_after=2**45)).sessions == []
        found = await manager.get("a")
        assert found is not None
        assert await found.metadata() == {"plan": "pro"}
        assert await manager.delete("a")
        assert await manager.get("a") is None

    play(program)


def test_s3_explicit_history(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "user-123")
        await session.add_message("user", "one")
        await session.add_messages([Message(role="assistant", content="two"), {"role": "user", "content": "three"}])
        model = ScriptedModel(["fine"])
        agent = Agent("Alone", model=model, runtime=runtime)
        reply = await agent.chat([{"role": "user", "content": "a"}, Message(role="user", content="b")])

        assert [message.text for message in await session.messages(limit=2)] == ["two", "three"]
        assert await session.messages_for_llm() == [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ]
        assert reply.text == "fine"
        assert [message.text for message in model.requests[0].messages] == ["a", "b"]

    play(program)


KILLED = """
import os, signal, sys, anyio
from callboard import Agent, Runtime, Session
from callboard.testing import ScriptedModel

async def main():
    async with Runtime(sys.argv[1]) as runtime:
        agent = Agent("Support Agent", model=ScriptedModel(["Hello John."]), session=Session(runtime, "user-123"))
        await agent.chat("My name is John")
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_s4_persistence(backend: str, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), backend], timeout=60)

    async def after() -> list[tuple[str, str, str | None]]:
        async with Runtime(tmp_path) as runtime:
            session = Session(runtime, "user-123")
            assert [run.status for run in await session.runs()] == ["completed"]
            return [(message.role, message.text, message.author) for message in await session.messages()]

    assert killed.returncode == -signal.SIGKILL
    assert anyio.run(after, backend=backend) == [
        ("user", "My name is John", None),
        ("assistant", "Hello John.", "Support Agent"),
    ]


def test_s4_storage_adapters_have_the_methods_that_were_asked_for() -> None:
    """What they do is tested on servers, in tests/databases."""
    asked = {"create_session", "get_session", "get_messages", "add_message", "add_messages", "delete_session"}

    storages = [
        create_postgres_session_storage("postgresql://nobody@localhost/none"),
        create_redis_session_storage("redis://localhost"),
    ]

    for storage in storages:
        assert asked <= set(dir(storage))


def test_s5_multi_agent_shared_session(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "user-123")
        models = [ScriptedModel(), ScriptedModel()]
        ann, bob = (
            Agent(name, model=model, session=session) for name, model in zip(("Ann", "Bob"), models, strict=True)
        )
        await ann.chat("first")
        await bob.chat("second")
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(ann.chat, f"at once {number}")
        reply = await Team([ann, bob], session=session).chat("together")

        assert [message.text for message in models[1].requests[0].messages][:2] == ["first", "echo: first"]
        history = await session.messages()
        assert [message.author for message in history[:4]] == [None, "Ann", None, "Bob"]
        assert [message.role for message in history[4:24]] == ["user", "assistant"] * 10
        for question, answer in zip(history[4:24:2], history[5:24:2], strict=True):
            assert answer.text == f"echo: {question.text}"
        assert [each.message.author for each in reply.replies] == ["Ann", "Bob"]
        assert Agents is Team

    play(program)


def test_s6_run_tracking(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "user-123")
        agent, _ = support_agent(session)
        reply = await agent.chat("hello")
        run = await session.create_run()
        await run.start()
        await run.complete(tokens_used=150)
        failed = await session.create_run()
        await failed.start()
        await failed.fail("no luck")
        with pytest.raises(InvalidTransition):
            await failed.complete()

        records = await session.runs()
        assert [record.id for record in records] == [reply.run_id, run.id, failed.id]
        assert [record.status for record in records] == ["completed", "completed", "failed"]
        assert (run.status, records[1].usage.total_tokens, records[2].error) == ("completed", 150, "no luck")
        assert run.duration_ms is not None
        assert await session.message_count() == 2

    play(program)


def test_s7_traces(play: Play) -> None:
    async def look(topic: str) -> str:
        """Look something up."""
        await anyio.lowlevel.checkpoint()
        return f"facts on {topic}"

    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "user-123")
        call = model_answer(tool_calls=[ToolCall("c1", "look", '{"topic": "tides"}')])
        agent, _ = support_agent(session, [call, "They rise."], tools=[look])
        reply = await agent.chat("Tides?")
        run = await session.create_run()
        await run.start()
        async with run.trace("outer") as outer:
            outer.set(pages=2)
            async with run.trace("inner"):
                pass
        await run.complete()

        spans = await session.spans(reply.run_id)
        assert [(span.kind, span.name, span.parent, span.status) for span in spans] == [
            ("model", "scripted", 0, "ok"),
            ("tool", "look", 1, "ok"),
            ("model", "scripted", 0, "ok"),
        ]
        assert spans[2].usage.total_tokens > 0
        assert all(span.started_at_ms and span.duration_ms is not None for span in spans)
        traced = await session.spans(run.id)
        assert [(span.name, span.parent, span.attributes) for span in traced] == [
            ("outer", 0, {"pages": 2}),
            ("inner", 1, {}),
        ]

    play(program)


def test_s8_context_window(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "user-123", max_messages=4)
        await session.add_messages(
            [
                {"role": "user", "content": "old " * 200},
                Message(role="assistant", tool_calls=(ToolCall("c1", "look", "{}"),)),
                Message(role="tool", tool_call_id="c1", content="found"),
                {"role": "assistant", "content": "It is there."},
                {"role": "user", "content": "Thanks"},
            ]
        )
        agent, model = support_agent(session)
        await agent.chat("And now?")
        in_tokens = await session.messages_for_llm(max_tokens=60, strategy="recent")

        seen = [message.role for message in model.requests[0].messages[1:]]
        assert len(seen) <= 4
        assert "tool" not in seen or seen[seen.index("tool") - 1] == "assistant"
        assert in_tokens[0]["role"] != "tool"
        assert "old" not in str(in_tokens)
        assert in_tokens[-1]["content"] == "echo: And now?"
        assert await session.message_count() == 7

    play(program)


def test_s9_metadata(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        seen: list[Any] = []

        async def note(context: ToolContext) -> str:
            """Note who it is."""
            await anyio.lowlevel.checkpoint()
            seen.append(context.metadata["customer"])
            return "noted"

        def instruct(context: InstructionContext) -> str:
            return f"You serve {context.metadata['customer']}."

        metadata = {"customer": "John", "age": 7, "tags": ["a", "b"], "nested": {"deep": [1.5, None]}}
        session = Session(runtime, "user-123", metadata=metadata)
        call = model_answer(tool_calls=[ToolCall("c1", "note", "{}")])
        model = ScriptedModel([call, "one", "two"])
        await Agent("A", instructions=instruct, model=model, runtime=runtime, tools=[note]).chat("x", session=session)
        await session.update_metadata({"age": None, "plan": "pro"})
        template = Template("Serve ${customer} on ${plan}.")
        await Agent("B", instructions=template, model=model, runtime=runtime).chat("y", session=session)

        assert [request.messages[0].text for request in model.requests] == [
            "You serve John.",
            "You serve John.",
            "Serve John on pro.",
        ]
        assert seen == ["John"]
        assert await session.metadata() == {key: metadata[key] for key in ("customer", "tags", "nested")} | {
            "plan": "pro"
        }

    play(program)


def test_s10_session_per_call(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        own, other = Session(runtime, "own"), Session(runtime, "other")
        agent, _ = support_agent(own)
        reply = await agent.chat("hello", session=other)

        assert reply.session_id == "other"
        assert (await own.message_count(), await other.message_count()) == (0, 2)

    play(program)


class ByTopic:
    """Means two things: brakes, by whatever word, and all else."""

    name = "by-topic"

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        await anyio.lowlevel.checkpoint()
        brakes = [any(word in text for word in ("brake", "stop")) for text in texts]
        return [[1.0, 0.0] if each else [0.0, 1.0] for each in brakes]


def test_s11_memory(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "monday", owner="ann")
        await session.add_messages(
            [{"role": "user", "content": "My brake squeaks"}, {"role": "assistant", "content": "Invoice 88 is paid"}]
        )
        memory = Memory(runtime, embedder=ByTopic())
        remembered = await memory.remember(session)
        by_meaning = await memory.search("it does not stop", limit=1, mode="semantic")
        by_text = await Memory(runtime).search("invoice", limit=1, mode="text")
        context = await memory.context("it does not stop", owner="ann", max_tokens=200)

        assert remembered == 2
        assert [hit.text for hit in by_meaning] == ["My brake squeaks"]
        assert [hit.text for hit in by_text] == ["Invoice 88 is paid"]
        assert "My brake squeaks" in context

    play(program)


def test_s12_streaming(play: Play) -> None:
    async def program(runtime: Runtime) -> None:
        session = Session(runtime, "user-123")
        agent, _ = support_agent(session, ["one two three", "one two three"])
        pieces: list[str] = []
        async with agent.stream("streamed") as stream:
            async for event in stream:
                if isinstance(event, Delta) and event.kind == "text":
                    pieces.append(event.text)
        whole = await agent.chat("streamed")

        assert len(pieces) == 3
        assert "".join(pieces) == stream.reply.text == whole.text
        first, second = await session.runs()
        assert first.status == second.status == "completed"
        history = await session.messages()
        assert [message.text for message in history[:2]] == [message.text for message in history[2:]]

    play(program)
