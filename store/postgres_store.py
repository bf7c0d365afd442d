"""The store in PostgreSQL: a directory's promises on a database server, for programs that are to keep no state."""

import re
from collections.abc import Sequence
from threading import Lock
from typing import Any, Literal, LiteralString

from . import keys
from .batch import check_batches, check_name
from .contract import Batch, Durability, Head, Index, IndexHit, IndexRow, Refusal, StoreStatistics, Table
from .damage import DamageLog
from .errors import StoreUnavailable
from .folding import Guard, StreamChange, fold, refusals
from .postgres_connections import Connections
from .postgres_schema import COMMIT

__all__ = ["PostgresStore"]

_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
ATTEMPTS_MAX = 10
"""Each is needed only where another writer has changed a guard since the last look at it."""


class PostgresStore:
    """See contract.py for the guarantees; they hold against any number of writers, of which one at a time is let in.

    Args:
        dsn: a connection string or URI, as in "postgresql://user:password@host/database"; what it leaves out comes
            from PGHOST, PGPASSWORD and the like. It must lead to the server itself, or to a pooler that pools whole
            sessions.
        schema: where its tables are, made when it is first opened. Each schema is a store.
        durability: "sync": commits wait for the server's disk (and for its synchronous replicas, where it has some);
            "async": they survive a crash of this process, and the server may lose the last moments in its own.
        timeout_s: how long the server may take for an answer until it is taken to be away.

    Raises:
        TypeError, ValueError: the dsn is no connection string, or the schema no plain name.
        StoreLocked: another process writes to this schema.
        StoreUnavailable: the server cannot be reached, refuses the user, or does not let it make its tables.
        NewerFormat: a newer callboard has made them.

    A connection that is lost while a commit is on its way leaves that commit uncertain; one that was lost before is
    replaced first. PostgreSQL looks after damage itself (checksums); what it reports is raised as Corrupt.

    Cost: one round trip a call; a group commit is one statement. Reads block the event loop for that time: 0.15 ms on
    the same machine, 0.5 ms in one data centre. One connection writes, up to four are kept for reading.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "callboard",
        durability: Literal["sync", "async"] = "sync",
        timeout_s: float = 10.0,
    ) -> None:
        if not isinstance(dsn, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"dsn must be a PostgreSQL connection string, not {type(dsn).__name__}")
        if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise ValueError(
                f"schema must be a plain name of at most 63 letters, digits and underscores, not {schema!r}"
            )
        if durability not in ("sync", "async"):
            raise ValueError(f'durability must be "sync" or "async", not {durability!r}')
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is a number of seconds above 0, not {timeout_s}")
        self.schema = schema
        self.durability: Durability = durability
        self.damage = DamageLog()
        self._writing = Lock()
        self._commits = self._batches = self._refused = 0
        self._connections = Connections(
            dsn, schema=schema, synchronous_commit="on" if durability == "sync" else "off", timeout_s=timeout_s
        )
        try:
            self._connections.prepare_schema()
        except BaseException:
            self._connections.close()
            raise

    @property
    def inline(self) -> bool:
        return False

    @property
    def location(self) -> str:
        """Server, database and schema; without user and password."""
        return self._connections.location

    def claim(self) -> int:
        with self._writing:
            return self._connections.increment("owner")

    def load(self, stream: str) -> Head | None:
        check_name(stream)
        found = self._connections.read("SELECT epoch, version, head FROM streams WHERE name = %s", [stream.encode()])
        return Head(*found[0]) if found else None

    def scan(
        self,
        stream: str,
        table: Table,
        *,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        check_name(stream)
        keys.check_limit(limit)
        keys.check_bounds(start, stop)
        query: LiteralString = """
            SELECT key, value FROM rows
            WHERE stream = (SELECT number FROM streams WHERE name = %s) AND part = %s::smallint AND key >= %s
        """
        values: list[object] = [stream.encode(), int(table), start]
        if stop is not None:
            query += " AND key < %s"
            values.append(stop)
        query += " ORDER BY key DESC LIMIT %s" if newest_first else " ORDER BY key LIMIT %s"
        return [(key, value) for key, value in self._connections.read(query, [*values, limit])]

    def scan_index(
        self,
        index: Index,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[IndexHit]:
        keys.check_limit(limit)
        keys.check_index_prefix(prefix)
        query: LiteralString = """
            SELECT entries.value, entries.stream, streams.name
            FROM entries JOIN streams ON streams.number = entries.stream WHERE which = %s::smallint AND value >= %s
        """
        values: list[object] = [int(index), prefix]
        if prefix.rstrip(b"\xff"):
            query += " AND value < %s"
            values.append(keys.successor(prefix))
        if after is not None:
            keys.check_position(after, index)
            query += " AND (value, stream) < (%s, %s)" if newest_first else " AND (value, stream) > (%s, %s)"
            values += [keys.entry_value(after), int.from_bytes(after[-8:], "big")]
        query += " ORDER BY value DESC, stream DESC" if newest_first else " ORDER BY value, stream"
        found = self._connections.read(query + " LIMIT %s", [*values, limit])
        return [IndexHit(keys.entry_key(index, value, number), value, name.decode()) for value, number, name in found]

    def streams(self, *, after: str = "", limit: int | None = None) -> list[str]:
        keys.check_limit(limit)
        query: LiteralString = "SELECT name FROM streams WHERE name > %s ORDER BY name LIMIT %s"
        return [name.decode() for (name,) in self._connections.read(query, [after.encode(), limit])]

    def entries(self, stream: str) -> list[IndexRow]:
        check_name(stream)
        query: LiteralString = """
            SELECT which, value FROM entries WHERE stream = (SELECT number FROM streams WHERE name = %s)
            ORDER BY which, value
        """
        return [IndexRow(Index(which), value) for which, value in self._connections.read(query, [stream.encode()])]

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        check_batches(batches)
        self._connections.check_open()
        with self._writing:
            folded = fold(batches)
            for _ in range(ATTEMPTS_MAX):
                if not folded.changes or self._write(folded.changes):
                    break
                folded = fold(batches, self._guards({batch.stream for batch in batches}))
            else:
                raise StoreUnavailable(f"others keep writing to the streams of this commit at {self.location}")
            self._commits += 1
            self._batches += len(batches)
            self._refused += refusals(folded.answers)
            return folded.answers

    def statistics(self) -> StoreStatistics:
        query: LiteralString = """
            SELECT value, pg_total_relation_size('streams') + pg_total_relation_size('rows')
                + pg_total_relation_size('entries')
            FROM meta WHERE name = 'streams'
        """
        [(streams, size_bytes)] = self._connections.read(query)
        return StoreStatistics(
            commits=self._commits,
            batches=self._batches,
            refused=self._refused,
            streams=streams,
            size_bytes=int(size_bytes),
            damaged=self.damage.count,
        )

    def close(self) -> None:
        with self._writing:  # not in the middle of a commit
            self._connections.close()

    def _write(self, changes: dict[str, StreamChange]) -> bool:
        """Store the changes, all or none; False where a guard is another one."""
        answer = self._connections.write(COMMIT, _arguments(changes))
        return answer == [(True,)]

    def _guards(self, names: set[str]) -> dict[str, Guard]:
        query: LiteralString = "SELECT name, epoch, version FROM streams WHERE name = ANY (%s::bytea[])"
        found = self._connections.read(query, [[name.encode() for name in names]])
        return {name.decode(): Guard(epoch, version) for name, epoch, version in found}


def _arguments(changes: dict[str, StreamChange]) -> list[list[Any]]:
    """What commit_1 takes: a list for each column, of streams, of their rows and of their index entries."""
    parts = list(changes.values())
    rows = [(of, *row, value) for of, part in enumerate(parts, 1) for row, value in part.rows.items()]
    entries = [(of, *entry, there) for of, part in enumerate(parts, 1) for entry, there in part.entries.items()]
    return [
        [name.encode() for name in changes],
        [part.built_on for part in parts],
        [part.epoch_max for part in parts],
        [part.epoch for part in parts],
        [part.version for part in parts],
        [part.head for part in parts],
        [part.erase for part in parts],
        [of for of, _, _, _ in rows],
        [int(table) for _, table, _, _ in rows],
        [key for _, _, key, _ in rows],
        [value for _, _, _, value in rows],
        [of for of, _, _, _ in entries],
        [int(index) for _, index, _, _ in entries],
        [value for _, _, value, _ in entries],
        [there for _, _, _, there in entries],
    ]
