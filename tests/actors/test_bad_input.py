"""Bad input at the public face: a typed error that says what is wrong, nothing lost, and the session goes on."""

import math
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias, cast

import anyio
import lmdb
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from callboard import (
    Agent,
    BadResponse,
    CallboardError,
    Message,
    ModelError,
    ModelUnavailable,
    NewerFormat,
    OpenAIChat,
    Run as ByHand,
    RunFailed,
    RunPolicy,
    Runtime,
    Session,
    SessionManager,
    Stopping,
    StoreLocked,
    StoreUnavailable,
    TooLarge,
    UnknownRun,
    UnknownSession,
)
from callboard.actors.retry import RetryPolicy
from callboard.runtime import Backoff
from callboard.store import keys
from callboard.store.lmdb_directory import FORMAT_VERSION
from callboard.testing import FakeUpstream, ScriptedModel, fault

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]
Call: TypeAlias = Callable[[Session], Awaitable[object]]

QUICK = RunPolicy(attempts_max=2, backoff=Backoff(first_s=0.01, max_s=0.02))
itself: list[object] = []
itself.append(itself)
ODD: Any = object()


async def good_work(session: Session) -> None:
    """What must be possible before and after."""
    await session.add_message("user", "good")
    await session.update_metadata({"good": 1})


CALLS: dict[str, tuple[type[Exception], str, Call]] = {
    "unknown role": (ValueError, "role", lambda s: s.add_message(cast("Any", "robot"), "x")),
    "unknown role in a dict": (ValueError, "role", lambda s: s.add_messages([{"role": "robot", "content": "x"}])),
    "no role": (ValueError, "no role", lambda s: s.add_messages([{"content": "x"}])),
    "no content": (ValueError, "content", lambda s: s.add_messages([{"role": "user"}])),
    "content of another type": (TypeError, "content", lambda s: s.add_message("user", ODD)),
    "half a character": (ValueError, "half a character", lambda s: s.add_message("user", "\ud800")),
    "result without its call": (ValueError, "tool_call_id", lambda s: s.add_message("tool", "x")),
    "one message for many": (
        TypeError,
        "list",
        lambda s: s.add_messages(cast("Any", Message(role="user", content="x"))),
    ),
    "no message": (TypeError, r"messages\[1\]", lambda s: s.add_messages([{"role": "user", "content": "x"}, ODD])),
    "message that is too large": (ValueError, "4194304", lambda s: s.add_message("user", "x" * 4_200_000)),
    "author without a name": (ValueError, "author", lambda s: s.add_message("user", "x", author="")),
    "limit of zero": (ValueError, "limit", lambda s: s.messages(limit=0)),
    "limit that is no number": (TypeError, "limit", lambda s: s.messages(limit=ODD)),
    "place that is no number": (TypeError, "before_seq", lambda s: s.messages(before_seq=ODD)),
    "patch that is no dict": (TypeError, "patch", lambda s: s.update_metadata(ODD)),
    "patch that is no JSON": (TypeError, r'patch\["a"\]', lambda s: s.update_metadata({"a": {1, 2}})),
    "patch with NaN": (ValueError, "nan", lambda s: s.update_metadata({"a": math.nan})),
    "patch that contains itself": (ValueError, "itself", lambda s: s.update_metadata({"a": itself})),
    "patch with a key that is no text": (TypeError, "key", lambda s: s.update_metadata({"a": {1: 2}})),
    "patch that is too large": (ValueError, "65536", lambda s: s.update_metadata({"a": "x" * 70_000})),
    "run without an id": (ValueError, "run id", lambda s: s.run("")),
    "run id that is too long": (ValueError, "run id", lambda s: s.run("x" * 1_000)),
    "run id of another type": (TypeError, "run id", lambda s: s.run(ODD)),
    "unknown run": (UnknownRun, "run_0", lambda s: s.run("run_0")),
    "spans of an id that is too long": (ValueError, "run id", lambda s: s.spans("x" * 61)),
    "model that is no text": (TypeError, "model", lambda s: s.create_run(model=ODD)),
    "agent that is no text": (TypeError, "agent", lambda s: s.create_run(agent=ODD)),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_that_is_no_good_changes_nothing_and_the_session_goes_on(run: Run, name: str) -> None:
    kind, words, call = CALLS[name]

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await good_work(session)
            head, history = await session.head(), await session.messages()
            for _ in range(8):  # more often than an actor may crash
                with pytest.raises(kind, match=words):
                    await call(session)

            assert await session.head() == head
            assert await session.messages() == history
            assert runtime.statistics().crashes == 0
            await good_work(session)
            assert await session.message_count() == 2

    run(body)


@pytest.mark.parametrize("name", ["patch that is too large", "unknown role", "unknown run"])
def test_call_that_is_no_good_makes_no_session(run: Run, name: str) -> None:
    kind, words, call = CALLS[name]

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            with pytest.raises(kind, match=words):
                await call(session)

            assert (await SessionManager(runtime).list()).sessions == []
            with pytest.raises(UnknownSession):
                await session.head()

    run(body)


def test_metadata_that_grows_too_large_by_a_patch_stays_as_it_was(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s", metadata={"first": "x" * 40_000})
            with pytest.raises(TooLarge):
                await session.update_metadata({"second": "x" * 40_000})
            assert await SessionManager(runtime).get("s") is None
            await session.update_metadata({"second": "small"})
            with pytest.raises(TooLarge):
                await session.update_metadata({"third": "x" * 40_000})

            assert set(await session.metadata()) == {"first", "second"}

    run(body)


@pytest.mark.parametrize(
    ("id", "kind"),
    [
        ("", ValueError),
        ("x" * 201, ValueError),
        ("ä" * 101, ValueError),
        ("a\x00b", ValueError),
        (5, TypeError),
        (None, TypeError),
    ],
)
def test_session_ids_are_checked_at_every_door(run: Run, id: Any, kind: type[Exception]) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            with pytest.raises(kind, match="session id"):
                Session(runtime, id)
            for door in (manager.get_or_create, manager.get, manager.delete):
                with pytest.raises(kind, match="session id"):
                    await door(id)
            assert (await manager.list()).sessions == []

    run(body)


def test_longest_id_works_and_another_that_begins_like_it_is_another_session(
    run_in_real_time: Run, tmp_path: Path
) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "db") as runtime:
            longest = "ä" * 100
            await Session(runtime, longest, owner="o" * 200, tags=["t" * 100]).add_message("user", "long")
            await Session(runtime, longest[:-1]).add_message("user", "short")

            assert [m.text for m in await Session(runtime, longest).messages()] == ["long"]
            assert len((await SessionManager(runtime).list(owner="o" * 200, tag="t" * 100)).sessions) == 1

    run_in_real_time(body)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metadata": ODD}, "metadata"),
        ({"metadata": {"a": b"bytes"}}, "metadata"),
        ({"owner": ""}, "owner"),
        ({"owner": ODD}, "owner"),
        ({"tags": "billing"}, "tags"),
        ({"tags": [""]}, "tag"),
        ({"tags": [f"{n}" for n in range(65)]}, "64"),
    ],
)
def test_what_a_session_is_made_with_is_checked_before_anything_happens(
    run: Run, arguments: dict[str, Any], words: str
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            with pytest.raises((TypeError, ValueError), match=words):
                Session(runtime, "s", **arguments)
            with pytest.raises((TypeError, ValueError), match=words):
                await SessionManager(runtime).get_or_create("s", **arguments)
            assert await SessionManager(runtime).get("s") is None

    run(body)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": 1_001}, ValueError),
        ({"limit": None}, TypeError),
        ({"cursor": "none of ours"}, ValueError),
        ({"updated_after": datetime(2030, 1, 1)}, ValueError),
        ({"updated_after": "2030"}, TypeError),
        ({"owner": ""}, ValueError),
        ({"tag": ""}, ValueError),
        ({"tag": 5}, TypeError),
        ({"tag": "x" * 101}, ValueError),
    ],
)
def test_list_refuses_filters_that_make_no_sense(run: Run, arguments: dict[str, Any], kind: type[Exception]) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            with pytest.raises(kind):
                await SessionManager(runtime).list(**arguments)

    run(body)


@pytest.mark.parametrize(
    "input", [[], {}, 5, None, [{"role": "robot", "content": "x"}], {"role": "user"}, "x" * 4_200_000]
)
def test_chat_refuses_input_that_is_no_message_and_starts_no_run(run: Run, input: Any) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, model = Session(runtime, "s"), ScriptedModel()
            agent = Agent("Agent", model=model, session=session)
            with pytest.raises((TypeError, ValueError)):
                await agent.chat(input)
            with pytest.raises((TypeError, ValueError)):
                agent.stream(input)

            assert model.requests == []
            assert await session.runs() == []

    run(body)


def test_agent_refuses_what_it_cannot_be_made_with(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, Runtime.in_memory() as other:
            session, model = Session(runtime, "s"), ScriptedModel()
            with pytest.raises(TypeError, match="session="):
                Agent("Agent", model=model)
            with pytest.raises(ValueError, match="another runtime"):
                Agent("Agent", model=model, session=session, runtime=other)
            with pytest.raises(ValueError, match="agent name"):
                Agent("", model=model, session=session)
            with pytest.raises(TypeError, match="instructions"):
                Agent("Agent", model=model, session=session, instructions=ODD)
            with pytest.raises(TypeError, match="tool"):
                Agent("Agent", model=model, session=session, tools=[ODD])
            agent = Agent("Agent", model=model, session=session)
            with pytest.raises(ValueError, match="another runtime"):
                await agent.chat("hello", session=Session(other, "s"))
            with pytest.raises(ValueError, match="overlap"):
                await agent.chat("hello", overlap=ODD)

            assert (await agent.chat("hello")).text == "echo: hello"

    run(body)


MOVES: dict[str, Callable[[ByHand], Awaitable[None]]] = {
    "fewer than no tokens": lambda run: run.complete(tokens_used=-1),
    "half a token": lambda run: run.complete(tokens_used=cast("Any", 1.5)),
    "usage that is none": lambda run: run.complete(usage=ODD),
    "no reason": lambda run: run.fail(""),
    "reason that is no text": lambda run: run.cancel(ODD),
}


@pytest.mark.parametrize("move", MOVES)
def test_run_by_hand_stays_as_it_is_where_its_end_makes_no_sense(run: Run, move: str) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            by_hand = await session.create_run()
            await by_hand.start()
            with pytest.raises((TypeError, ValueError)):
                await MOVES[move](by_hand)

            assert [(each.status, each.usage.total_tokens) for each in await session.runs()] == [("running", 0)]
            await by_hand.fail(RuntimeError("half \ud800 a character " + "x" * 10_000))
            assert (await session.runs())[0].status == "failed"

    run(body)


# The store ----------------------------------------------------------------------------------------------------------


def test_store_without_a_path_is_refused_rather_than_put_where_the_program_stands() -> None:
    with pytest.raises(ValueError, match=r"Runtime\("):
        Runtime("")


def test_store_path_that_is_a_file_is_refused_and_the_file_left_alone(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "notes.txt"
        path.write_text("mine")
        with pytest.raises(StoreUnavailable, match="is a file"):
            async with Runtime(path):
                pytest.fail("the runtime must not open")

        assert path.read_text() == "mine"

    run_in_real_time(body)


def test_store_of_a_newer_format_is_refused_and_left_as_it_is(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "db"
        async with Runtime(path) as runtime:
            await good_work(Session(runtime, "s"))
        set_format(path, 999)
        with pytest.raises(NewerFormat, match="upgrade"):
            async with Runtime(path):
                pytest.fail("the runtime must not open")
        set_format(path, FORMAT_VERSION)
        async with Runtime(path) as runtime:
            assert await Session(runtime, "s").message_count() == 1

    run_in_real_time(body)


def set_format(path: Path, version: int) -> None:
    environment = lmdb.open(str(path))
    with environment.begin(write=True) as txn:
        txn.put(keys.FORMAT, keys.number(version))
    environment.close()


HOLDER = """
import sys, anyio
from callboard import Runtime, Session

async def main():
    async with Runtime(sys.argv[1]) as runtime:
        await Session(runtime, "s").add_message("user", "from the other process")
        print("open", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main)
"""


def test_second_process_is_refused_and_told_who_has_the_store(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "db"
        async with await anyio.open_process([sys.executable, "-c", HOLDER, str(path)]) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            await BufferedByteReceiveStream(holder.stdout).receive_until(b"open\n", 100)
            with pytest.raises(StoreLocked) as caught:
                async with Runtime(path):
                    pytest.fail("the runtime must not open")
            assert caught.value.pid == holder.pid
            await holder.stdin.aclose()
            assert await holder.wait() == 0
        async with Runtime(path) as runtime:
            assert [m.text for m in await Session(runtime, "s").messages()] == ["from the other process"]

    run_in_real_time(body)


def test_runtime_that_is_closed_takes_nothing_more(run: Run) -> None:
    async def body() -> None:
        runtime = Runtime.in_memory()
        with pytest.raises(Stopping):
            Session(runtime, "s")
        async with runtime:
            session = Session(runtime, "s")
            agent = Agent("Agent", model=ScriptedModel(), session=session)
        for call in (lambda: session.add_message("user", "x"), session.messages, lambda: agent.chat("x")):
            with pytest.raises(Stopping):
                await call()
        with pytest.raises(RuntimeError, match="once"):
            async with runtime:
                pass

    run(body)


# The model's server -------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.parametrize(
    ("nonsense", "kind"),
    [("refuses", ModelUnavailable), ("html", ModelError), ("not_http", ModelError), ("malformed_json", BadResponse)],
)
def test_server_that_refuses_or_talks_nonsense_fails_the_run_and_the_session_goes_on(
    run_in_real_time: Run, tmp_path: Path, nonsense: str, kind: type[Exception]
) -> None:
    async def body() -> None:
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(FakeUpstream())
            runtime = await stack.enter_async_context(Runtime(tmp_path / "db"))
            session = Session(runtime, "s")
            await good_work(session)
            history = await session.messages()
            url = upstream.url
            if nonsense == "refuses":
                url = f"http://127.0.0.1:{closed_port()}/v1"
            else:
                upstream.queue(*(fault(cast("Any", nonsense)) for _ in range(2)))
            once = RetryPolicy(retries_max=0)  # the run's own attempts are what is looked at here
            model = OpenAIChat(base_url=url, model="m", api_key="k", retries=once)
            bad = Agent("Bad", model=model, session=session, policy=QUICK)
            with pytest.raises(RunFailed) as caught:
                await bad.chat("hello")

            assert isinstance(caught.value.__cause__, kind)
            assert isinstance(caught.value, CallboardError)
            assert await session.messages() == history
            failed = await session.run(caught.value.run_id)
            assert (failed.status, failed.attempts, failed.input[0].text) == ("failed", 2, "hello")
            good = Agent("Good", model=OpenAIChat(base_url=upstream.url, model="m", api_key="k"), session=session)
            assert (await good.chat("hello")).text == "echo: hello"
            assert await session.message_count() == len(history) + 2

    run_in_real_time(body)
