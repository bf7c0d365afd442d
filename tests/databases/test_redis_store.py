"""What is Redis' own: the writer's lock, what the server must promise, connections that break, servers that are away.

The promises that all stores share are in tests/contracts.
"""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from database_servers import RedisServer, new_name, own_redis, shared_redis, when_back

from callboard.store import (
    Batch,
    Fenced,
    Head,
    Index,
    IndexRow,
    NewerFormat,
    Row,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    Table,
)
from callboard.store.redis_store import RedisStore


@pytest.fixture
def store() -> Iterator[RedisStore]:
    opened = RedisStore(shared_redis().url, prefix=new_name())
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    own = own_redis()
    yield own
    own.remove()


@pytest.fixture
def server(own_server: RedisServer) -> RedisServer:
    """One whose settings a test may change: they are as they were when the next begins."""
    if own_server.process is None:
        own_server.start()
    settings = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory": "0", "maxmemory-policy": "noeviction"}
    for name, value in settings.items():
        do("CONFIG", "SET", name, value, server=own_server)
    return own_server


def do(*command: object, server: RedisServer | None = None) -> Any:
    client: Any = redis.Redis(port=(server or shared_redis()).port)
    with client:
        return client.execute_command(*command)


def end_all_connections() -> None:
    do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# One writer -----------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_the_first_is_and_let_in_when_that_is_gone(store: RedisStore) -> None:
    with pytest.raises(StoreLocked, match=f"open for writing in 'callboard-{os.getpid()}@.*stop that one"):
        RedisStore(shared_redis().url, prefix=store.prefix)

    store.close()
    RedisStore(shared_redis().url, prefix=store.prefix).close()


def test_stores_of_two_prefixes_know_nothing_of_each_other(store: RedisStore) -> None:
    other = RedisStore(shared_redis().url, prefix=store.prefix + ":s")
    store.commit([Batch("a", 1, 0)])

    assert other.streams() == []
    assert other.claim() == 1
    other.close()


def test_a_writer_that_has_lost_its_lock_to_another_can_read_and_is_fenced(store: RedisStore) -> None:
    store.commit([Batch("a", 1, 0)])
    end_all_connections()
    other = RedisStore(shared_redis().url, prefix=store.prefix)
    other.commit([Batch("a", 2, 1)])

    with pytest.raises(StoreLocked) as locked:
        store.commit([Batch("a", 1, 1)])
    read = store.load("a")
    other.close()
    [late] = store.commit([Batch("a", 1, 1)])

    assert not locked.value.uncertain
    assert read == Head(2, 2, b"")
    assert isinstance(late, Fenced)


# Connections that break -----------------------------------------------------------------------------------------------


def test_connections_that_were_lost_while_idle_are_replaced_before_anything_is_sent(store: RedisStore) -> None:
    store.commit([Batch("a", 1, 0)])
    store.load("a")
    end_all_connections()

    assert store.commit([Batch("a", 1, 1)]) == [None]
    assert store.load("a") == Head(1, 2, b"")


def test_a_commit_without_an_answer_is_uncertain_and_may_well_be_stored(server: RedisServer) -> None:
    assert server.process is not None
    store = RedisStore(server.url, prefix=new_name(), timeout_s=0.3)
    store.commit([Batch("a", 1, 0)])

    os.kill(server.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as raised:
        store.commit([Batch("a", 1, 1)])
    with pytest.raises(StoreUnavailable) as read:
        store.load("a")
    took_s = time.monotonic() - began
    os.kill(server.process.pid, signal.SIGCONT)
    head = when_back(lambda: store.load("a"))
    answers = store.commit([Batch("a", 1, head.version if head is not None else 0)])
    store.close()

    assert raised.value.uncertain
    assert not read.value.uncertain
    assert took_s < 5
    assert head == Head(1, 2, b"")  # it lay in the server's socket
    assert answers == [None]


# A server that is away ------------------------------------------------------------------------------------------------


def test_while_the_server_is_away_calls_fail_at_once_and_go_on_when_it_is_back(server: RedisServer) -> None:
    store = RedisStore(server.url, prefix=new_name())
    store.commit([Batch("a", 1, 0, head=b"kept")])

    server.kill()
    failures: list[StoreUnavailable] = []
    for call in (store.claim, lambda: store.load("a"), lambda: store.commit([Batch("a", 1, 1)]), store.statistics):
        with pytest.raises(StoreUnavailable, match="Redis: ") as raised:
            call()
        failures.append(raised.value)
    server.start()
    back = when_back(lambda: store.load("a"))

    assert not any(failure.uncertain for failure in failures)
    assert back == Head(1, 1, b"kept")  # from its log
    assert store.commit([Batch("a", 1, 1)]) == [None]
    assert store.claim() == 1
    store.close()


def test_a_server_that_was_never_there_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable) as raised:
        RedisStore("redis://ann:geheim@127.0.0.1:1/0")

    assert "127.0.0.1:1" in str(raised.value)
    assert "geheim" not in str(raised.value)


# What the server must promise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("appendonly", "appendfsync", "given"),
    [("no", "always", "none"), ("yes", "no", "async"), ("yes", "everysec", "async"), ("yes", "always", "sync")],
)
def test_durability_is_what_the_server_gives(
    server: RedisServer, appendonly: str, appendfsync: str, given: str
) -> None:
    do("CONFIG", "SET", "appendfsync", appendfsync, server=server)
    do("CONFIG", "SET", "appendonly", appendonly, server=server)

    store = RedisStore(server.url, prefix=new_name(), durability="none")
    store.close()

    assert store.durability == given


@pytest.mark.parametrize(
    ("appendonly", "asked", "mend"),
    [
        ("no", "async", 'gives durability "none", and "async" is asked for: set appendonly yes, or'),
        ("yes", "sync", 'gives durability "async", and "sync" is asked for: set appendonly yes and appendfsync always'),
    ],
)
def test_a_server_that_promises_less_is_refused(server: RedisServer, appendonly: str, asked: Any, mend: str) -> None:
    do("CONFIG", "SET", "appendonly", appendonly, server=server)

    with pytest.raises(StoreUnavailable, match=mend):
        RedisStore(server.url, durability=asked)


def test_a_server_that_forgets_keys_when_it_is_full_is_refused(server: RedisServer) -> None:
    do("CONFIG", "SET", "maxmemory", "100mb", server=server)
    do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", server=server)

    with pytest.raises(StoreUnavailable, match=r"maxmemory-policy allkeys-lru.*set it to noeviction"):
        RedisStore(server.url)


def test_a_full_server_is_a_full_store_and_stores_nothing(server: RedisServer) -> None:
    store = RedisStore(server.url, prefix=new_name())
    batch = Batch("a", 1, 0, rows=(Row(Table.MESSAGE, b"k", b"v"),))
    do("CONFIG", "SET", "maxmemory", "1", server=server)

    with pytest.raises(StoreFull) as raised:
        store.commit([batch])
    found = store.load("a")
    do("CONFIG", "SET", "maxmemory", "0", server=server)
    answers = store.commit([batch])
    store.close()

    assert not raised.value.uncertain
    assert found is None
    assert answers == [None]


def test_keys_of_a_newer_callboard_are_left_alone(store: RedisStore) -> None:
    store.close()
    do("HSET", f"{{{store.prefix}}}:meta", "format", 2)

    with pytest.raises(NewerFormat, match="has format 2, and this callboard reads up to 1"):
        RedisStore(shared_redis().url, prefix=store.prefix)


# The rest -------------------------------------------------------------------------------------------------------------


def test_a_group_commit_is_one_script(store: RedisStore, server: RedisServer) -> None:
    store = RedisStore(server.url, prefix=new_name())
    store.commit([Batch("warm", 1, 0)])
    do("CONFIG", "RESETSTAT", server=server)

    store.commit([Batch(f"s{n}", 1, 0, index_rows=(IndexRow(Index.TAG, b"red"),)) for n in range(50)])
    counted: dict[str, dict[str, int]] = do("INFO", "commandstats", server=server)
    store.close()

    assert counted["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_eval" not in counted
    assert counted["cmdstat_zadd"]["calls"] == 150  # names, index, list of a stream


def test_erase_leaves_no_key_behind(store: RedisStore) -> None:
    row, entry = Row(Table.RUN, b"k", b"v"), IndexRow(Index.TAG, b"a\0b")
    store.commit([Batch("a", 1, 0, head=b"h", rows=(row,), index_rows=(entry,))])
    store.commit([Batch("a", 1, 1, erase=True)])

    left = {bytes(key).rpartition(b"}:")[2] for key in do("KEYS", f"{{{store.prefix}}}:*")}

    assert left == {b"meta", b"writer", b"names", b"numbers", b"s:a"}


def test_the_location_names_server_database_and_prefix_and_no_secret() -> None:
    url = f"redis://default:@127.0.0.1:{shared_redis().port}/0"
    store = RedisStore(url, prefix=new_name())
    store.close()

    assert store.location == f"redis://127.0.0.1:{shared_redis().port}/0?prefix={store.prefix}"


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        ({"url": "http://ann:geheim@host"}, "url must be that of a Redis server"),
        ({"prefix": "a}b"}, "prefix must be text without braces"),
        ({"durability": "always"}, 'durability must be "sync", "async" or "none"'),
        ({"timeout_s": 0}, "timeout_s is a number of seconds above 0"),
    ],
)
def test_nonsense_is_refused_at_the_door_with_the_mend(arguments: dict[str, Any], mend: str) -> None:
    given: dict[str, Any] = {"url": "redis://nowhere.invalid"} | arguments

    with pytest.raises(ValueError, match=mend) as raised:
        RedisStore(**given)

    assert "geheim" not in str(raised.value)
