"""SEED.md, row S4: sessions on a database server, through the public functions, on both event loops."""

import builtins
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import anyio
import pytest
from database_servers import (
    PostgresServer,
    RedisServer,
    new_name,
    own_postgres,
    own_redis,
    shared_postgres,
    shared_redis,
)

from callboard import (
    Agent,
    Failed,
    Session,
    SessionManager,
    SessionStorage,
    StoreLocked,
    StoreUnavailable,
    WrongKey,
    create_postgres_session_storage,
    create_redis_session_storage,
)
from callboard.testing import ScriptedModel

Open: TypeAlias = Callable[[], SessionStorage]
Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

BODY_S_MAX = 45.0
MASTER_KEY = bytes(range(32))


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    async def bounded(body: Callable[[], Awaitable[None]]) -> None:
        with anyio.fail_after(BODY_S_MAX):
            await body()

    return lambda body: anyio.run(bounded, body, backend=request.param)


@pytest.fixture(params=["postgres", "redis"])
def open_storage(request: pytest.FixtureRequest) -> Open:
    """Opens the same storage each time."""
    name = new_name()
    if request.param == "postgres":
        return lambda: create_postgres_session_storage(shared_postgres().dsn, schema=name)
    return lambda: create_redis_session_storage(shared_redis().url, prefix=name)


def test_s4_a_storage_keeps_sessions_and_messages_for_the_next_process(run: Run, open_storage: Open) -> None:
    async def body() -> None:
        async with open_storage() as storage:
            await storage.create_session("user-123", metadata={"plan": "pro"}, owner="ann", tags=["trial"])
            await storage.add_message("user-123", "user", "My name is John")
            await storage.add_messages(
                "user-123",
                [{"role": "assistant", "content": "Hello John"}, {"role": "user", "content": "What is my name?"}],
            )
        async with open_storage() as storage:
            session = await storage.get_session("user-123")
            messages = await storage.get_messages("user-123")
            latest = await storage.get_messages("user-123", limit=1)
            page = await SessionManager(storage.runtime).list(owner="ann")

            assert session is not None
            assert await session.metadata() == {"plan": "pro"}
            assert [(each.role, each.text) for each in messages] == [
                ("user", "My name is John"),
                ("assistant", "Hello John"),
                ("user", "What is my name?"),
            ]
            assert [each.text for each in latest] == ["What is my name?"]
            assert [head.id for head in page.sessions] == ["user-123"]
            assert await storage.delete_session("user-123")
            assert not await storage.delete_session("user-123")
            assert await storage.get_session("user-123") is None
            assert await storage.get_messages("user-123") == []

    run(body)


def test_s4_agents_work_on_a_storage_as_on_a_directory(run: Run, open_storage: Open) -> None:
    async def body() -> None:
        async with open_storage() as storage:
            agent = Agent("Clerk", model=ScriptedModel(["one", "two"]), session=Session(storage.runtime, "s"))
            await agent.chat("first")
            await agent.chat("second")
        async with open_storage() as storage:
            session = Session(storage.runtime, "s")

            assert [each.text for each in await session.messages()] == ["first", "one", "second", "two"]
            assert [run.status for run in await session.runs()] == ["completed", "completed"]

    run(body)


def test_s4_first_calls_at_once_make_one_session(run: Run, open_storage: Open) -> None:
    async def body() -> None:
        async with open_storage() as storage:
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(storage.add_message, "s", "user", f"{number}")
            texts = [each.text for each in await storage.get_messages("s")]

            assert sorted(texts, key=int) == [f"{number}" for number in range(20)]

    run(body)


def test_a_storage_is_open_in_one_place_at_a_time(open_storage: Open) -> None:
    async def body() -> None:
        async with open_storage():
            with pytest.raises(StoreLocked, match="stop that one"):
                await open_storage().__aenter__()

    anyio.run(body, backend="trio")  # it waits for a second, and the event loop has no part in it


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_sealed_storage_opens_with_its_master_key_alone(run: Run, kind: str) -> None:
    name = new_name()

    def opened(key: bytes | None) -> SessionStorage:
        if kind == "postgres":
            return create_postgres_session_storage(shared_postgres().dsn, schema=name, master_key=key)
        return create_redis_session_storage(shared_redis().url, prefix=name, master_key=key)

    async def body() -> None:
        async with opened(MASTER_KEY) as storage:
            await storage.add_message("s", "user", "secret")
        for wrong in (None, bytes(32)):
            with pytest.raises(WrongKey):
                await opened(wrong).__aenter__()
        async with opened(MASTER_KEY) as storage:
            assert [each.text for each in await storage.get_messages("s")] == ["secret"]

    run(body)


# A server that is away ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer | RedisServer]:
    own = own_postgres() if request.param == "postgres" else own_redis()
    yield own
    own.remove()


def test_while_the_server_is_away_calls_say_so_and_the_runtime_goes_on_when_it_is_back(
    run: Run, server: PostgresServer | RedisServer
) -> None:
    def opened() -> SessionStorage:
        if isinstance(server, PostgresServer):
            return create_postgres_session_storage(server.dsn)
        return create_redis_session_storage(server.url)

    async def body() -> None:
        async with opened() as storage:
            before = len(await storage.get_messages("s"))
            await storage.add_message("s", "user", "before")
            server.kill()
            with pytest.raises(Failed) as failed:
                await storage.add_message("s", "user", "lost")
            server.start()
            while True:
                try:
                    with anyio.fail_after(10):
                        await storage.add_message("s", "user", "after")
                    break
                except Failed:
                    await anyio.sleep(0.1)
            texts = [each.text for each in await storage.get_messages("s")]

            assert isinstance(failed.value.__cause__, StoreUnavailable)
            assert texts[before:] == ["before", "after"]

    run(body)


# Without the extra ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("create", "package", "extra"),
    [
        (create_postgres_session_storage, "psycopg", "postgres"),
        (create_redis_session_storage, "redis", "redis"),
    ],
)
def test_without_the_driver_the_call_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, create: Callable[[str], SessionStorage], package: str, extra: str
) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *arguments)

    for name in [name for name in sys.modules if name.startswith(f"callboard.store.{extra}_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'callboard\[{extra}\]'") as raised:
        create("somewhere")

    assert raised.value.name == package
