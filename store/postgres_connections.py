"""Connections to one schema of a PostgreSQL database: one that writes, and a few that read beside it.

The writing one holds an advisory lock for as long as it lives, so that a second writer gets a clear error. The lock is
the server's and ends with the connection: no lease, no clock, and nothing to clean up after a crash. It is a courtesy;
what keeps a late writer out is the condition in the commit's statement (postgres_schema.py).

A server that does not answer costs its caller a bounded time, as reads are made on the event loop: `timeout_s` for an
answer, CONNECT_TIMEOUT_S for a new connection, and after one that failed nothing for REST_S.

Foreign errors end here: all that is raised is a StoreError.
"""

import hashlib
import os
import select
import socket
import time
from collections.abc import Sequence
from threading import Lock
from typing import Any, LiteralString, TypeVar

from .errors import Corrupt, NewerFormat, StoreError, StoreFull, StoreLocked, StoreUnavailable
from .postgres_schema import CREATE, FORMAT, SETTINGS

try:
    import psycopg
    from psycopg import conninfo, errors, sql
    from psycopg.abc import PQGen
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "a store on PostgreSQL needs the package `psycopg`: pip install 'callboard[postgres]'", name=missing.name
    ) from missing

__all__ = ["Connections"]

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3
REST_S = 0.25
LOCK_TIMEOUT_S = 1.0
"""How long a new writer waits for the one before: the server may need a moment to see that a process was killed."""
DEAD_PEER_S = 20
"""After so long without a word from this machine the server gives up the connection, and with it the lock."""
IDLE_MAX = 4
"""Connections that are kept for the next reads."""
GRACE_S = 1.0
"""The server breaks off a statement by itself after `timeout_s`; this much later it is taken for gone."""

_UNCERTAIN_CLASSES = ("08", "57P")
"""The connection failed, or the server ended it: it may have done so after the commit."""


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """One that waits for an answer no longer than `answer_timeout_s`."""

    answer_timeout_s: float = CONNECT_TIMEOUT_S

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's own, with a timeout where it has none."""
        return super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)


def _translated(error: psycopg.Error, *, sent: bool) -> StoreError:
    """What the server or the connection reported, as an error of ours; `sent`: a commit was on its way."""
    state = error.sqlstate
    text = f"PostgreSQL: {str(error).strip() or type(error).__name__}"
    if state is None or state.startswith(_UNCERTAIN_CLASSES):
        return StoreUnavailable(text, uncertain=sent)
    if isinstance(error, errors.DiskFull):
        return StoreFull(text)
    if isinstance(error, (errors.DataCorrupted, errors.IndexCorrupted)):
        return Corrupt("in PostgreSQL", str(error).strip())
    return StoreUnavailable(text)


class Connections:
    """See the module's text. Any thread may use it; one at a time writes.

    Args:
        dsn: a connection string or URI as libpq takes it; what it leaves out comes from PGHOST and the like.
        schema: where the tables are, made by the first that opens it.
        synchronous_commit: the server's setting for these connections.
        timeout_s: how long an answer may take.
    """

    def __init__(self, dsn: str, *, schema: str, synchronous_commit: str, timeout_s: float) -> None:
        try:
            given = conninfo.conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:  # whose text may quote a password
            raise ValueError(
                'dsn must be a PostgreSQL connection string, such as "postgresql://user@host/database"'
            ) from None
        self._schema = schema
        self._settings = SETTINGS | {
            "search_path": f'"{schema}"',
            "synchronous_commit": synchronous_commit,
            "lock_timeout": f"{LOCK_TIMEOUT_S}s",
            "statement_timeout": f"{timeout_s}s",
            "tcp_keepalives_idle": f"{DEAD_PEER_S // 2}",
            "tcp_keepalives_interval": f"{DEAD_PEER_S // 4}",
            "tcp_keepalives_count": "2",
        }
        self._answer_timeout_s = timeout_s + GRACE_S
        ours: dict[str, Any] = {
            "application_name": f"callboard {os.getpid()}@{socket.gethostname()}"[:63],
            "connect_timeout": CONNECT_TIMEOUT_S,
            "tcp_user_timeout": int(self._answer_timeout_s * 1000),
        }
        self._conninfo = conninfo.make_conninfo("", **ours | given)
        host, port, name = given.get("host", "local"), given.get("port", 5432), given.get("dbname", given.get("user"))
        self.location: str = f"postgresql://{host}:{port}/{name or ''}?schema={schema}"
        self._lock = Lock()
        self._idle: list[_Connection] = []
        self._writer: _Connection | None = None
        self._refused_until = 0.0
        self._last_refusal = ""
        self._open = True

    def check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable(f"the store {self.location} is closed")

    def read(self, query: LiteralString, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of one statement that changes nothing. Sent again where a connection turns out to be an old one."""
        while True:
            self.check_open()
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            was_idle = connection is not None
            if connection is None:
                connection = self._connect()
            try:
                found = connection.execute(query, values, prepare=True, binary=True).fetchall()
            except psycopg.Error as error:
                if connection.closed and was_idle:  # each such try uses one of them up
                    continue
                if _is_lost(connection, error):  # also where it was waited for in vain, which once is enough
                    connection.close()
                else:
                    self._give_back(connection)
                raise _translated(error, sent=False) from error
            except BaseException:  # broken off in the middle of an answer
                connection.close()
                raise
            self._give_back(connection)
            return found

    def write(self, query: LiteralString, values: Sequence[object]) -> list[tuple[Any, ...]] | None:
        """The rows of one statement that writes, sent once. None: another writer came between, and nothing is stored.

        Raises:
            StoreLocked, StoreUnavailable, StoreFull: nothing is stored, or, with `uncertain` True, perhaps it is.
        """
        writer = self._writing()
        try:
            return writer.execute(query, values, prepare=True, binary=True).fetchall()
        except (errors.UniqueViolation, errors.DeadlockDetected):
            return None
        except psycopg.Error as error:
            if _is_lost(writer, error):
                self._drop_writer()
            raise _translated(error, sent=True) from error
        except BaseException:  # broken off in the middle of an answer
            self._drop_writer()
            raise

    def increment(self, name: str) -> int:
        """Count a number in `meta` up, and return it once it is on the disk, whatever the settings."""
        writer = self._writing()
        try:
            with writer.transaction():
                writer.execute("SET LOCAL synchronous_commit = on")
                found = writer.execute("UPDATE meta SET value = value + 1 WHERE name = %s RETURNING value", [name])
                number: int = found.fetchall()[0][0]
        except psycopg.Error as error:
            self._drop_writer()
            raise _translated(error, sent=False) from error  # a number that nobody heard of is no number given
        return number

    def _writing(self) -> _Connection:
        """The connection that holds the lock, with no statement under way.

        Raises:
            StoreLocked: another one holds it.
            StoreUnavailable: there is no connection to be had. In both cases nothing was sent.
        """
        self.check_open()
        writer = self._writer
        if writer is not None and not _has_news(writer):
            return writer
        self._drop_writer()
        self._writer = self._connect()
        try:
            self._take_lock(self._writer)
        except BaseException:
            self._drop_writer()
            raise
        return self._writer

    def _drop_writer(self) -> None:
        """Give up the writing connection, as after an error that leaves it in doubt; the next use makes another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def prepare_schema(self) -> None:
        """Make the schema and what is in it, where they are missing; of several that try at once one does it.

        Raises:
            NewerFormat: a newer callboard has made it.
            StoreUnavailable: no connection, or not the right to make a schema.
        """
        connection = self._writing()
        try:
            if not connection.execute("SELECT to_regclass('meta') IS NOT NULL").fetchall()[0][0]:
                with connection.transaction():
                    made = connection.execute("SELECT to_regnamespace(%s) IS NOT NULL", [f'"{self._schema}"'])
                    if not made.fetchall()[0][0]:
                        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schema)))
                    connection.execute(CREATE)
            [(stored,)] = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchall()
        except psycopg.Error as error:
            self._drop_writer()
            raise _translated(error, sent=False) from error
        if stored > FORMAT:
            raise NewerFormat(
                f"the store {self.location} has format {stored}, and this callboard reads up to {FORMAT}: upgrade it"
            )

    def close(self) -> None:
        """Close all that are idle; one that reads is closed when it is given back."""
        with self._lock:
            self._open = False
            idle, self._idle = self._idle, []
        self._drop_writer()
        for connection in idle:
            connection.close()

    def _connect(self) -> _Connection:
        if time.monotonic() < self._refused_until:
            raise StoreUnavailable(f"{self._last_refusal} (tried a moment ago)")
        try:
            connection = _Connection.connect(self._conninfo, autocommit=True)
            connection.answer_timeout_s = self._answer_timeout_s
            settings = sql.SQL(", ").join(
                sql.SQL("set_config({}, {}, false)").format(name, value) for name, value in self._settings.items()
            )
            connection.execute(sql.SQL("SELECT {}").format(settings))
        except psycopg.Error as error:
            refused = _translated(error, sent=False)
            self._last_refusal = str(refused)
            self._refused_until = time.monotonic() + REST_S
            raise refused from error
        return connection

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if self._open and len(self._idle) < IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def _take_lock(self, connection: _Connection) -> None:
        digest = hashlib.blake2b(f"callboard {self._schema}".encode(), digest_size=4).digest()
        number = int.from_bytes(digest, "big", signed=True)
        try:
            connection.execute("SELECT pg_advisory_lock(%s, %s)", [_LOCKS_OF_CALLBOARD, number])
        except errors.LockNotAvailable as error:
            held = connection.execute(_HOLDER, [_LOCKS_OF_CALLBOARD, number & 0xFFFFFFFF]).fetchall()
            holder = held[0][0] if held else "another connection"
            raise StoreLocked(self.location, pid=None, server=f"{holder!r}") from error
        except psycopg.Error as error:
            raise _translated(error, sent=False) from error


_LOCKS_OF_CALLBOARD = 0x63616C6C
_HOLDER: LiteralString = """
SELECT activity.application_name FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
WHERE held.locktype = 'advisory' AND held.granted AND activity.datname = current_database()
    AND held.classid::bigint = %s AND held.objid::bigint = %s
"""


def _is_lost(connection: _Connection, error: psycopg.Error) -> bool:
    return connection.closed or error.sqlstate is None or error.sqlstate.startswith(_UNCERTAIN_CLASSES)


def _has_news(connection: _Connection) -> bool:
    """True where something arrived while nothing was asked: nearly always the server's end of the connection.

    Found before a commit is sent, a server that was restarted in the meantime leaves nothing uncertain.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))
