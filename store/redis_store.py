"""The store in Redis: a directory's promises on a server that keeps its data in memory, and what it is told on disk."""

from collections.abc import Sequence
from threading import Lock

from . import keys
from .batch import check_batches, check_name
from .contract import Batch, Durability, Head, Index, IndexHit, IndexRow, Refusal, StoreStatistics, Table
from .damage import DamageLog
from .errors import NewerFormat, StoreUnavailable
from .folding import Guard, StreamChange, fold, refusals
from .redis_connections import Connections
from .redis_scripts import COMMIT, ENTRIES, FORMAT, SCAN, SCAN_INDEX

__all__ = ["RedisStore"]

ATTEMPTS_MAX = 10
"""Each is needed only where another writer has changed a guard since the last look at it."""
_STRENGTH = {"none": 0, "async": 1, "sync": 2}


class RedisStore:
    """See contract.py for the guarantees; they hold against any number of writers, of which one at a time is let in.

    Args:
        url: as redis-py takes it, as in "redis://user:password@host:6379/0" ("rediss://" for TLS).
        prefix: what the names of all its keys begin with. Each prefix is a store.
        durability: what is asked of the server at least. "sync": appendonly yes and appendfsync always; "async":
            appendonly yes, so that it survives a crash of the server's process; "none": it may forget everything.
        timeout_s: how long the server may take for an answer until it is taken to be away.

    Attributes:
        durability: what the server gives, as far as it says. A failover to a replica may lose more: Redis replicates
            after it has answered.

    Raises:
        TypeError, ValueError: the url is none, or another argument is no good.
        StoreLocked: another process writes under this prefix.
        StoreUnavailable: the server cannot be reached, promises less than `durability`, or is set to evict keys.
        NewerFormat: a newer callboard has written there.

    A connection that is lost while a commit is on its way leaves that commit uncertain; one that was lost before is
    replaced first. Needs Redis 6.2 or newer, and not a cluster: all keys of a store belong together.

    Cost: one round trip a call, 0.1 ms on the same machine; a group commit is one script. Reads block the event loop
    for that time.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "callboard",
        durability: Durability = "async",
        timeout_s: float = 10.0,
    ) -> None:
        if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"url must be the text of a Redis server's URL, not {type(url).__name__}")
        if not isinstance(prefix, str) or not prefix or set("{}") & set(prefix):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise ValueError(f"prefix must be text without braces, not {prefix!r}")
        if durability not in _STRENGTH:
            raise ValueError(f'durability must be "sync", "async" or "none", not {durability!r}')
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is a number of seconds above 0, not {timeout_s}")
        self.prefix = prefix
        self.damage = DamageLog()
        self._writing = Lock()
        self._commits = self._batches = self._refused = 0
        self._connections = Connections(url, prefix=prefix, timeout_s=timeout_s)
        self._meta = self._key(b"meta")
        try:
            self.durability: Durability = self._checked_durability(durability)
            self._check_format()
        except BaseException:
            self._connections.close()
            raise

    @property
    def inline(self) -> bool:
        return False

    @property
    def location(self) -> str:
        """Server, database and prefix; without user and password."""
        return self._connections.location

    def claim(self) -> int:
        with self._writing:
            owner: int = self._connections.write("HINCRBY", self._meta, "owner", 1)
            return owner

    def load(self, stream: str) -> Head | None:
        check_name(stream)
        epoch, version, head = self._connections.read("HMGET", self._key(b"s:" + stream.encode()), "e", "v", "h")
        return Head(_number(epoch), _number(version), head) if epoch is not None else None

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
        bounds = _bounds(b"[" + start, b"+" if stop is None else b"(" + stop, limit, newest_first=newest_first)
        found, values = self._connections.read_by(SCAN, stream.encode(), bytes((table,)), *bounds)
        return list(zip(found, values, strict=True))

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
        lowest = _member(keys.entry_prefix(index, prefix))
        highest = keys.successor(lowest) if lowest.rstrip(b"\xff") else None
        first, last = b"[" + lowest, b"+" if highest is None else b"(" + highest
        if after is not None:
            keys.check_position(after, index)
            behind = _member(after)
            if newest_first and (highest is None or behind < highest):
                last = b"(" + behind
            elif not newest_first and behind >= lowest:
                first = b"(" + behind
        bounds = _bounds(first, last, limit, newest_first=newest_first)
        found, names = self._connections.read_by(SCAN_INDEX, bytes((index,)), *bounds)
        positions = [keys.index_prefix(index) + member for member in found]
        return [
            IndexHit(position, keys.entry_value(position), name.decode())
            for position, name in zip(positions, names, strict=True)
        ]

    def streams(self, *, after: str = "", limit: int | None = None) -> list[str]:
        keys.check_limit(limit)
        _, first, last, count = _bounds(b"(" + after.encode(), b"+", limit, newest_first=False)
        found = self._connections.read("ZRANGEBYLEX", self._key(b"names"), first, last, "LIMIT", 0, count)
        return [name.decode() for name in found]

    def entries(self, stream: str) -> list[IndexRow]:
        check_name(stream)
        found = self._connections.read_by(ENTRIES, stream.encode())
        return [IndexRow(Index(member[0]), member[1:]) for member in found]

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        check_batches(batches)
        self._connections.check_open()
        with self._writing:
            folded = fold(batches)
            guards: dict[str, Guard] = {}
            for _ in range(ATTEMPTS_MAX):
                others = self._connections.write_by(COMMIT, *_arguments(folded.changes)) if folded.changes else ()
                if not others:
                    break
                guards |= {name.decode(): Guard(_number(epoch), _number(version)) for name, epoch, version in others}
                folded = fold(batches, guards)
            else:
                raise StoreUnavailable(f"others keep writing to the streams of this commit at {self.location}")
            self._commits += 1
            self._batches += len(batches)
            self._refused += refusals(folded.answers)
            return folded.answers

    def statistics(self) -> StoreStatistics:
        """See StoreStatistics. `size_bytes` is the memory that the server uses for all of its data, not ours alone."""
        streams = self._connections.read("HGET", self._meta, "streams")
        server = self._connections.about_server()
        return StoreStatistics(
            commits=self._commits,
            batches=self._batches,
            refused=self._refused,
            streams=int(streams or 0),
            size_bytes=int(server["used_memory"]),
            damaged=self.damage.count,
        )

    def close(self) -> None:
        with self._writing:  # not in the middle of a commit
            self._connections.close()

    def _key(self, rest: bytes) -> bytes:
        return self._connections.prefix + b":" + rest

    def _check_format(self) -> None:
        with self._writing:
            self._connections.write("HSETNX", self._meta, "format", FORMAT)
        stored = int(self._connections.read("HGET", self._meta, "format"))
        if stored > FORMAT:
            raise NewerFormat(
                f"the store {self.location} has format {stored}, and this callboard reads up to {FORMAT}: upgrade it"
            )

    def _checked_durability(self, asked: Durability) -> Durability:
        server = self._connections.about_server()
        if int(server.get("maxmemory", 0)) and server.get("maxmemory_policy") != "noeviction":
            raise StoreUnavailable(
                f"Redis at {self.location} forgets keys when its memory is full (maxmemory-policy "
                f"{server.get('maxmemory_policy')}): set it to noeviction"
            )
        given: Durability = "none"
        if server.get("aof_enabled") == "1":
            given = "sync" if server.get("appendfsync") == "always" else "async"
        if _STRENGTH[given] < _STRENGTH[asked]:
            raise StoreUnavailable(
                f'Redis at {self.location} gives durability "{given}", and "{asked}" is asked for: set appendonly yes'
                + (" and appendfsync always" if asked == "sync" else "")
                + f', or open the store with durability="{given}"'
            )
        return given


def _arguments(changes: dict[str, StreamChange]) -> list[bytes | int]:
    """What COMMIT takes."""
    arguments: list[bytes | int] = []
    for name, change in changes.items():
        arguments += (
            name.encode(),
            *map(keys.number, (change.built_on, change.epoch_max, change.epoch, change.version)),
        )
        arguments.append(int(change.erase))
        for values in _lists(change):
            arguments.append(len(values))
            arguments += values
    return arguments


def _lists(change: StreamChange) -> tuple[list[bytes], ...]:
    puts: list[bytes] = []
    deletes: list[bytes] = []
    for (table, key), value in change.rows.items():
        if value is None:
            deletes += (bytes((table,)), key)
        else:
            puts += (bytes((table,)), key, value)
    adds: list[bytes] = []
    removes: list[bytes] = []
    for (index, value), present in change.entries.items():
        (adds if present else removes).extend((bytes((index,)), value, _member(keys.entry_prefix(index, value))))
    return [change.head] if change.head is not None else [], puts, deletes, adds, removes


def _bounds(first: bytes, last: bytes, limit: int | None, *, newest_first: bool) -> tuple[str, bytes, bytes, int]:
    """The command that gives the members between these two, and its arguments."""
    count = -1 if limit is None else limit
    return ("ZREVRANGEBYLEX", last, first, count) if newest_first else ("ZRANGEBYLEX", first, last, count)


def _member(key: bytes) -> bytes:
    """Where an index entry of this key stands in its sorted set: the key without its kind and its index."""
    return key[2:]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
