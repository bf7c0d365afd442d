"""Connections to a Redis server: one that writes, and a pool that reads beside it.

Who may write stands in the key {prefix}:writer: the id that the server gave to the writing connection. A second writer
asks the server whether that connection is still there, and gets a clear error if it is. So the lock ends with the
connection: no lease, no clock, and nothing to clean up after a crash. It is a courtesy; what keeps a late writer out is
the condition in the commit's script (redis_scripts.py).

redis-py would send a command again by itself when its connection fails, which is fine for a cache; ours are sent once.

Foreign errors end here: all that is raised is a StoreError.
"""

import os
import re
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from .errors import StoreError, StoreFull, StoreLocked, StoreUnavailable
from .redis_scripts import Script

try:
    import redis
    from redis import exceptions
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "a store on Redis needs the package `redis`: pip install 'callboard[redis]'", name=missing.name
    ) from missing

__all__ = ["Connections"]

CONNECT_TIMEOUT_S = 3.0
REST_S = 0.25
LOCK_TIMEOUT_S = 1.0
"""How long a new writer waits for the one before: the server may need a moment to see that a process was killed."""
LOCK_POLL_S = 0.02

_NOTHING_WRITTEN = re.compile(
    r"(^|: -)(OOM|LOADING|MISCONF|NOREPLICAS|BUSY|MASTERDOWN|READONLY|NOPERM|NOAUTH|NOSCRIPT|MOVED|CROSSSLOT)\b"
)
"""What a server answers before it runs a script, or instead of its first write; older ones put words before it."""


def _translated(error: redis.RedisError, *, sent: bool) -> StoreError:
    """What the server or the connection reported, as an error of ours; `sent`: a commit was on its way."""
    text = f"Redis: {str(error) or type(error).__name__}"
    refused = _NOTHING_WRITTEN.search(str(error))
    if isinstance(error, exceptions.OutOfMemoryError) or (refused is not None and refused[2] == "OOM"):
        return StoreFull(text)
    # redis-py takes the code off the front of errors for which it has a class of its own.
    known = isinstance(error, (exceptions.BusyLoadingError, exceptions.ReadOnlyError, exceptions.NoPermissionError))
    return StoreUnavailable(text, uncertain=sent and refused is None and not known)


class Connections:
    """See the module's text. Any thread may use it; one at a time writes.

    Args:
        url: as redis-py takes it: "redis://", "rediss://" or "unix://".
        prefix: what the names of all keys begin with.
        timeout_s: how long an answer may take.
    """

    def __init__(self, url: str, *, prefix: str, timeout_s: float) -> None:
        try:
            self._pool: Any = redis.ConnectionPool.from_url(url, protocol=2)  # pyright: ignore[reportUnknownMemberType] -- its **kwargs have no type
        except ValueError:  # whose text may quote a password
            raise ValueError('url must be that of a Redis server, such as "redis://host:6379/0"') from None
        self._pool.connection_kwargs.update(
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=min(CONNECT_TIMEOUT_S, timeout_s),
            socket_keepalive=True,
            client_name=f"callboard-{os.getpid()}@{socket.gethostname()}",
            decode_responses=False,
        )
        parts = urlsplit(url)
        place = parts.netloc.rpartition("@")[2]
        self.location: str = f"{parts.scheme}://{place}{parts.path}?prefix={prefix}"
        # In braces, so that a cluster keeps all of it on one node.
        self.prefix: bytes = b"{" + prefix.encode() + b"}"
        self._writer: Any = None
        self._refused_until = 0.0
        self._last_refusal = ""
        self._open = True

    def check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable(f"the store {self.location} is closed")

    def read(self, *command: object) -> Any:
        """The answer to one command that changes nothing."""
        connection = self._connect()
        try:
            return _ask(connection, *command)
        except redis.RedisError as error:
            raise _translated(error, sent=False) from error
        except BaseException:  # broken off in the middle of an answer
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def read_by(self, script: Script, *arguments: object) -> Any:
        """The answer of a script that changes nothing."""
        connection = self._connect()
        try:
            return _run(connection, script, self.prefix, arguments)
        except redis.RedisError as error:
            raise _translated(error, sent=False) from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def write_by(self, script: Script, *arguments: object) -> Any:
        """The answer of a script that writes, sent once.

        Raises:
            StoreLocked, StoreUnavailable, StoreFull: it did not run, or, with `uncertain` True, perhaps it did.
        """
        connection = self._writing()
        try:
            return _run(connection, script, self.prefix, arguments)
        except redis.RedisError as error:
            raise _translated(error, sent=True) from error
        except BaseException:
            connection.disconnect()
            raise

    def write(self, *command: object) -> Any:
        """The answer to one command that writes, sent once; errors as in `write_by`."""
        connection = self._writing()
        try:
            return _ask(connection, *command)
        except redis.RedisError as error:
            raise _translated(error, sent=True) from error
        except BaseException:
            connection.disconnect()
            raise

    def about_server(self) -> dict[str, str]:
        """What INFO says, and the settings that bear on what survives, as far as the user may see them."""
        lines: bytes = self.read("INFO")
        found = dict(line.split(":", 1) for line in lines.decode().splitlines() if ":" in line)
        try:
            name_and_value: list[bytes] = self.read("CONFIG", "GET", "appendfsync")
        except StoreUnavailable:  # managed servers do not let their users see it
            return found
        return found | ({"appendfsync": name_and_value[1].decode()} if name_and_value else {})

    def close(self) -> None:
        self._open = False
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.disconnect()
        self._pool.disconnect()

    def _connect(self) -> Any:
        """A connection of the pool's, with nothing left to be read in it."""
        self.check_open()
        if time.monotonic() < self._refused_until:
            raise StoreUnavailable(f"{self._last_refusal} (tried a moment ago)")
        try:
            return self._pool.get_connection()
        except redis.RedisError as error:
            refused = _translated(error, sent=False)
            self._last_refusal = str(refused)
            self._refused_until = time.monotonic() + REST_S
            raise refused from error

    def _writing(self) -> Any:
        """The connection that holds the lock. Another is made where the server has ended it in the meantime: found
        before a commit is sent, that leaves nothing uncertain."""
        self.check_open()
        if self._writer is not None and not _is_usable(self._writer):
            self._pool.release(self._writer)
            self._writer = None
        if self._writer is None:
            writer = self._connect()
            try:
                self._take_lock(writer)
            except BaseException as error:
                writer.disconnect()
                self._pool.release(writer)
                if isinstance(error, redis.RedisError):
                    raise _translated(error, sent=False) from error
                raise
            self._writer = writer
        return self._writer

    def _take_lock(self, connection: Any) -> None:
        place = self.prefix + b":writer"
        lines: bytes = _ask(connection, "INFO", "server")
        # Ids are those of one life of the server: a restart ends all connections, and begins to count anew.
        life = next(line for line in lines.splitlines() if line.startswith(b"run_id:")).removeprefix(b"run_id:")
        mine = b"%s %d" % (life, _ask(connection, "CLIENT", "ID"))
        give_up_at = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            _ask(connection, "WATCH", place)
            held: bytes = _ask(connection, "GET", place) or b""
            holder = _client(connection, held.partition(b" ")[2]) if held.startswith(life) else ""
            if not holder or held == mine:
                _ask(connection, "MULTI")
                _ask(connection, "SET", place, mine)
                if _ask(connection, "EXEC") is not None:
                    return
                continue  # another one was quicker
            _ask(connection, "UNWATCH")
            if time.monotonic() > give_up_at:
                raise StoreLocked(self.location, pid=None, server=repr(holder))
            time.sleep(LOCK_POLL_S)


def _client(connection: Any, id: bytes) -> str:
    """The name of the client with this id, "" where there is none, or the user may not ask."""
    try:
        line: bytes = _ask(connection, "CLIENT", "LIST", "ID", id)
    except exceptions.NoPermissionError:
        return ""
    names = [field.removeprefix("name=") for field in line.decode().split() if field.startswith("name=")]
    return (names[0] or "a client without a name") if names else ""


def _is_usable(connection: Any) -> bool:
    try:
        return connection.is_connected and not connection.can_read()
    except redis.RedisError:
        return False


def _run(connection: Any, script: Script, prefix: bytes, arguments: tuple[object, ...]) -> Any:
    try:
        return _ask(connection, "EVALSHA", script.sha, 1, prefix, *arguments)
    except exceptions.NoScriptError:  # a server that was restarted; nothing ran
        return _ask(connection, "EVAL", script.text, 1, prefix, *arguments)


def _ask(connection: Any, *command: object) -> Any:
    connection.send_command(*command, check_health=False)
    return connection.read_response()
