"""Sessions on a database server: storages that are opened by a connection string, and used by session id."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from ..store.contract import Durability, Store
from ..store.master_key import MasterKey
from ..store.opening import unlocked
from .host import Runtime
from .message import Message, Part, Role
from .session import Session
from .session_manager import SessionManager

__all__ = ["SessionStorage", "create_postgres_session_storage", "create_redis_session_storage"]


class SessionStorage:
    """Sessions by their ids: `async with create_postgres_session_storage(dsn) as storage: ...`

    It opens a Runtime on the server and closes it with the block. All that sessions and agents can do is there by that:
    `Session(storage.runtime, id)`, `Agent(..., runtime=storage.runtime)`, `SessionManager(storage.runtime)`.

    Attributes:
        runtime: open inside the block.

    Raises (on entering):
        StoreLocked: another process has this storage open.
        StoreUnavailable: the server cannot be reached, or refuses.
        NewerFormat, WrongKey: as Runtime.

    Errors of its calls are those of Session. Where the server is away they raise Failed (nothing was stored) or Unknown
    (perhaps it was), with StoreUnavailable as the cause, and work again when it is back.
    """

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self.runtime: Runtime = Runtime.on(open_store)

    def __repr__(self) -> str:
        return "<SessionStorage>"

    async def __aenter__(self) -> Self:
        await self.runtime.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.runtime.__aexit__(kind, error, trace)

    async def create_session(
        self,
        id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        owner: str | None = None,
        tags: Iterable[str] = (),
    ) -> Session:
        """The session of this id, made with these where there is none; then it is durable."""
        return await SessionManager(self.runtime).get_or_create(id, metadata=metadata, owner=owner, tags=tags)

    async def get_session(self, id: str) -> Session | None:
        """The session of this id, or None where there is none."""
        return await SessionManager(self.runtime).get(id)

    async def get_messages(self, id: str, *, limit: int | None = None, before_seq: int | None = None) -> list[Message]:
        """The session's latest messages, or those before a place; oldest first, at most `limit`."""
        return await Session(self.runtime, id).messages(limit=limit, before_seq=before_seq)

    async def add_message(
        self, id: str, role: Role, content: str | list[Part], *, author: str | None = None
    ) -> Message:
        """Put one message at the end of the session's history; it is durable when this returns."""
        return await Session(self.runtime, id).add_message(role, content, author=author)

    async def add_messages(self, id: str, messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
        """Put messages at the end of the session's history, all or none, with nothing between them."""
        return await Session(self.runtime, id).add_messages(messages)

    async def delete_session(self, id: str) -> bool:
        """Drop the session with all its content; False where there was none."""
        return await SessionManager(self.runtime).delete(id)


def create_postgres_session_storage(
    dsn: str,
    *,
    schema: str = "callboard",
    durability: Literal["sync", "async"] = "sync",
    master_key: bytes | str | MasterKey | None = None,
) -> SessionStorage:
    """Sessions in a PostgreSQL database, whose tables are made where they are missing.

    Args:
        dsn: a connection string or URI, as in "postgresql://user:password@host/database".
        schema: where the tables are. Each schema is a storage of its own, which one process at a time may have open.
        durability, master_key: as of Runtime; the key is of another kind than the server's own.

    Raises:
        ModuleNotFoundError: the driver is missing: pip install 'callboard[postgres]'.

    For a Runtime with options of its own: `Runtime.on(partial(PostgresStore, dsn))`, with PostgresStore from
    callboard.store.postgres_store, which says more of what the server must be.
    """
    from ..store.postgres_store import PostgresStore  # an extra

    return _storage(partial(PostgresStore, dsn, schema=schema, durability=durability), master_key)


def create_redis_session_storage(
    url: str,
    *,
    prefix: str = "callboard",
    durability: Durability = "async",
    master_key: bytes | str | MasterKey | None = None,
) -> SessionStorage:
    """Sessions on a Redis server: fast, and as durable as the server is set to be.

    Args:
        url: as in "redis://user:password@host:6379/0".
        prefix: of all keys' names. Each prefix is a storage of its own, which one process at a time may have open.
        durability: what the server must give at least: "sync" (appendfsync always), "async" (appendonly yes), "none".
        master_key: as of Runtime.

    Raises:
        ModuleNotFoundError: the driver is missing: pip install 'callboard[redis]'.

    For a Runtime with options of its own: `Runtime.on(partial(RedisStore, url))`, with RedisStore from
    callboard.store.redis_store, which says more of what the server must be.
    """
    from ..store.redis_store import RedisStore  # an extra

    return _storage(partial(RedisStore, url, prefix=prefix, durability=durability), master_key)


def _storage(open_store: Callable[[], Store], master_key: bytes | str | MasterKey | None) -> SessionStorage:
    key = MasterKey(master_key) if master_key is not None else None  # refused here, and shown by no repr
    return SessionStorage(lambda: unlocked(open_store(), key))
