"""Conversations in a sealed store: nothing of them can be read in its files, and all of them with the master key.

The same conversations in a plain store show that the scan would find what it looks for.
"""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from callboard import Agent, ModelSettings, RunFailed, RunPolicy, Runtime, Session, SessionManager, ToolCall, WrongKey
from callboard.actors.archive import Archive
from callboard.runtime import Actor, Context, Reminder, Request, handles
from callboard.store import Index, LmdbStore, Row, SealedStore, Table
from callboard.testing import ScriptedModel, model_answer

KEY, NEXT_KEY = bytes(range(32)), "5e" * 32
QUICK = RunPolicy(attempts_max=1)
STORED = (
    b"secret-session", b"secret-owner", b"secret-tag", b"secret-metadata", b"secret-agent", b"secret-question",
    b"secret-author", b"secret-answer", b"secret-tool", b"secret-argument", b"secret-result", b"secret-model",
    b"secret-failure", b"secret-long", b"secret-import", b"secret-open-run", b"secret-kind", b"secret-key",
    b"secret-state", b"secret-outcome", b"secret-request", b"secret-reminder", b"secret-deleted",
)  # fmt: skip
"""All that lies readable in the files of a plain store."""

Go = Callable[[Callable[[], Awaitable[None]]], None]


class Note(Request[None], frozen=True):
    pass


class Keeper(Actor):
    @handles(Note)
    def note(self, message: Note, context: Context) -> None:
        context.stage(head=b"secret-state", rows=(Row(Table.OUTCOME, b"secret-request", b"secret-outcome"),))
        context.remind("secret-reminder", every_s=3600.0)

    @handles(Reminder)
    def remind(self, message: Reminder, context: Context) -> None:
        """Nothing but its acknowledgement."""


async def converse(runtime: Runtime) -> None:
    """Traffic that writes every table and every index."""

    def lookup(word: str) -> str:
        return f"secret-result for {word}"

    lookup.__name__ = "secret-tool".replace("-", "_")
    session = Session(
        runtime, "secret-session", owner="secret-owner", tags=("secret-tag", "b"), metadata={"plan": "secret-metadata"}
    )
    call = ToolCall("c1", "secret_tool", '{"word": "secret-argument"}')
    model = ScriptedModel(
        ["secret-answer", model_answer(tool_calls=[call]), "done", RuntimeError("secret-failure")], name="secret-model"
    )
    agent = Agent("secret-agent", model=model, session=session, tools=[lookup], policy=QUICK, settings=ModelSettings())
    await session.add_message("user", "secret-question", author="secret-author")
    await agent.chat("secret-question once more")
    await agent.chat("use the tool: secret-tool")
    with pytest.raises(RunFailed):
        await agent.chat("secret-question that fails")
    await Session(runtime, "b", tags=("secret-tag",)).add_message("user", "secret-long " * 3000)
    await session.add_messages([{"role": "user", "content": f"secret-import {number}"} for number in range(50)])
    await (await session.create_run(agent="secret-open-run")).start()
    await SessionManager(runtime).get_or_create("secret-deleted", owner="secret-owner")
    await SessionManager(runtime).delete("secret-deleted")
    runtime.register("secret-kind", Keeper)
    await runtime.actor("secret-kind", "secret-key").ask(Note())


def readable(path: Path) -> set[bytes]:
    """Which of the secrets stand in the files of the directory, as they lie there just now."""
    files = [file for file in path.rglob("*") if file.is_file()]
    assert any(file.stat().st_size > 4096 for file in files)
    contents = [file.read_bytes() for file in files]
    found = {secret for secret in STORED for content in contents if secret in content}
    return found | {b"secret" for content in contents if b"secret" in content.lower()}


def test_no_file_of_a_sealed_store_has_a_word_of_it(tmp_path: Path, run_in_real_time: Go) -> None:
    path = tmp_path / "sealed"
    seen: list[set[bytes]] = []

    async def body() -> None:
        async with Runtime(path, master_key=KEY) as runtime:
            await converse(runtime)
            seen.append(readable(path))
        seen.append(readable(path))
        async with Runtime(path, master_key=KEY) as runtime:
            await Session(runtime, "secret-session").add_message("user", "secret-question again")
            seen.append(readable(path))

    run_in_real_time(body)

    assert [*seen, readable(path)] == [set()] * 4


def test_the_same_conversations_lie_readable_in_a_plain_store(tmp_path: Path, run_in_real_time: Go) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "plain") as runtime:
            await converse(runtime)

    run_in_real_time(body)

    assert readable(tmp_path / "plain") - {b"secret"} == set(STORED)


def test_a_sealed_store_gives_all_of_it_back(tmp_path: Path, run_in_real_time: Go) -> None:
    path = tmp_path / "sealed"

    async def body() -> None:
        async with Runtime(path, master_key=KEY) as runtime:
            await converse(runtime)
        async with Runtime(path, master_key=KEY) as runtime:
            session = Session(runtime, "secret-session")
            messages = await session.messages()
            assert messages[0].text == "secret-question"
            assert messages[-1].text == "secret-import 49"
            page = await SessionManager(runtime).list(owner="secret-owner")
            assert [head.id for head in page.sessions] == ["secret-session"]
            tagged = await SessionManager(runtime).list(tag="secret-tag")
            assert [head.id for head in tagged.sessions] == ["secret-session", "b"]
            [due] = runtime.store.scan_index(Index.REMINDER_DUE)
            assert (due.stream, due.value[8:]) == ("secret-kind:secret-key", b"secret-reminder")

    run_in_real_time(body)

    with Archive.open(path, master_key=KEY.hex()) as archive:
        assert [run.status for run in archive.runs("secret-session")][-2:] == ["failed", "interrupted"]
        assert archive.head("secret-deleted") is None


def test_a_runtime_without_the_right_key_does_not_begin(tmp_path: Path, run_in_real_time: Go) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "sealed", master_key=KEY) as runtime:
            await Session(runtime, "a").add_message("user", "hello")
        async with Runtime(tmp_path / "plain") as runtime:
            await Session(runtime, "a").add_message("user", "hello")
        for path, key, told in (
            ("sealed", NEXT_KEY, "sealed with the master key"),
            ("sealed", None, "is sealed: give the master key"),
            ("plain", KEY, "holds content that is not sealed"),
        ):
            with pytest.raises(WrongKey, match=told):
                async with Runtime(tmp_path / path, master_key=key):
                    pass
        async with Runtime(tmp_path / "sealed", master_key=KEY) as runtime:
            assert await Session(runtime, "a").message_count() == 1
        async with Runtime(tmp_path / "plain") as runtime:
            assert await Session(runtime, "a").message_count() == 1

    run_in_real_time(body)


def test_a_master_key_that_cannot_be_one_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a master key as text is 64 hex digits"):
        Runtime(tmp_path / "store", master_key="sesame")
    with pytest.raises(ValueError, match="a master key has 32 bytes"):
        Runtime(tmp_path / "store", master_key=b"sesame")

    assert not (tmp_path / "store").exists()


def test_a_sealed_store_can_have_its_writer_in_a_process_of_its_own(tmp_path: Path, run_in_real_time: Go) -> None:
    path = tmp_path / "sealed"

    async def body() -> None:
        async with Runtime(path, master_key=KEY, writer="process") as runtime:
            await converse(runtime)
            assert await Session(runtime, "secret-session").message_count() > 50

    run_in_real_time(body)

    assert readable(path) == set()


def test_after_rotate_a_runtime_needs_the_new_key(tmp_path: Path, run_in_real_time: Go) -> None:
    path = tmp_path / "sealed"

    async def body() -> None:
        async with Runtime(path, master_key=KEY) as runtime:
            await converse(runtime)
        with contextlib.closing(SealedStore(LmdbStore(path), KEY)) as store:
            store.rotate(NEXT_KEY)
            store.renew()
            assert store.rewrite() >= 4
        with pytest.raises(WrongKey):
            Archive.open(path, master_key=KEY)
        async with Runtime(path, master_key=NEXT_KEY) as runtime:
            assert (await Session(runtime, "secret-session").messages())[0].text == "secret-question"
            assert runtime.store.damage.list() == []

    run_in_real_time(body)

    assert readable(path) == set()
