"""What is PostgreSQL's own: the writer's lock, connections that break, servers that are away, and what it refuses.

The promises that all stores share are in tests/contracts.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from database_servers import PostgresServer, new_name, own_postgres, shared_postgres, when_back

from callboard.store import (
    Batch,
    Fenced,
    Head,
    Index,
    IndexRow,
    NewerFormat,
    Refusal,
    Row,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    Table,
)
from callboard.store.postgres_store import PostgresStore


@pytest.fixture
def store() -> Iterator[PostgresStore]:
    opened = PostgresStore(shared_postgres().dsn, schema=new_name())
    yield opened
    opened.close()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    own = own_postgres()
    yield own
    own.remove()


def do(statement: str, server: PostgresServer | None = None) -> list[tuple[Any, ...]]:
    with psycopg.connect((server or shared_postgres()).dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def backends(query: str) -> list[int]:
    """The server's processes for those of our connections whose last statement was like this."""
    found = do(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'callboard%' "
        f"AND datname = current_database() AND query LIKE '{query}' ORDER BY query_start DESC"
    )
    return [pid for (pid,) in found]


# One writer -----------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_the_first_is_and_let_in_when_that_is_gone(store: PostgresStore) -> None:
    with pytest.raises(StoreLocked, match=f"open for writing in 'callboard {os.getpid()}@.*stop that one"):
        PostgresStore(shared_postgres().dsn, schema=store.schema)

    store.close()
    PostgresStore(shared_postgres().dsn, schema=store.schema).close()


def test_stores_of_two_schemas_know_nothing_of_each_other(store: PostgresStore) -> None:
    other = PostgresStore(shared_postgres().dsn, schema=new_name())
    store.commit([Batch("a", 1, 0)])

    assert other.streams() == []
    assert other.claim() == 1
    other.close()


def test_a_writer_that_has_lost_its_lock_to_another_can_read_and_is_fenced(store: PostgresStore) -> None:
    store.commit([Batch("a", 1, 0)])
    do("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    other = PostgresStore(shared_postgres().dsn, schema=store.schema)
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


def end_all_connections() -> None:
    do("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'callboard%'")


def test_connections_that_were_lost_while_idle_are_replaced_before_anything_is_sent(store: PostgresStore) -> None:
    store.commit([Batch("a", 1, 0)])
    store.load("a")
    end_all_connections()

    assert store.commit([Batch("a", 1, 1)]) == [None]
    assert store.load("a") == Head(1, 2, b"")


def test_a_connection_that_is_lost_during_a_commit_leaves_it_uncertain_and_the_store_in_order(
    store: PostgresStore,
) -> None:
    store.commit([Batch("a", 1, 0)])
    answers: list[object] = []

    def commit() -> None:
        try:
            answers.append(store.commit([Batch("a", 1, 1)]))
        except StoreUnavailable as error:
            answers.append(error)

    with psycopg.connect(shared_postgres().dsn) as other:  # holds the guard, so that the commit waits for it
        other.execute(f"SELECT FROM {store.schema}.streams FOR UPDATE".encode())
        thread = threading.Thread(target=commit)
        thread.start()
        while not (waiting := backends("%commit_1%")) or not do(
            f"SELECT 1 FROM pg_locks WHERE pid = {waiting[0]} AND NOT granted"
        ):
            assert thread.is_alive()
        do(f"SELECT pg_terminate_backend({waiting[0]})")
        thread.join()
    [error] = answers

    assert isinstance(error, StoreUnavailable)
    assert error.uncertain
    assert store.load("a") == Head(1, 1, b"")
    assert store.commit([Batch("a", 1, 1)]) == [None]


def test_a_lock_that_is_not_to_be_had_in_time_means_that_nothing_was_stored(store: PostgresStore) -> None:
    store.commit([Batch("a", 1, 0)])

    with psycopg.connect(shared_postgres().dsn) as other:
        other.execute(f"SELECT FROM {store.schema}.streams FOR UPDATE".encode())
        with pytest.raises(StoreUnavailable, match="lock timeout") as raised:
            store.commit([Batch("a", 1, 1)])

    assert not raised.value.uncertain
    assert store.commit([Batch("a", 1, 1)]) == [None]


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_was_said() -> None:
    store = PostgresStore(shared_postgres().dsn, schema=new_name(), timeout_s=0.1)
    store.load("a")
    [reader, *_] = backends("%head FROM streams%")

    os.kill(reader, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.load("a")
    took_s = time.monotonic() - began
    os.kill(reader, signal.SIGCONT)

    assert 0.1 < took_s < 5
    assert store.load("a") is None
    store.close()


# A server that is away ------------------------------------------------------------------------------------------------


def test_while_the_server_is_away_calls_fail_at_once_and_go_on_when_it_is_back(server: PostgresServer) -> None:
    store = PostgresStore(server.dsn)
    store.commit([Batch("a", 1, 0, head=b"kept")])

    server.kill()
    failures: list[StoreUnavailable] = []
    for call in (store.claim, lambda: store.load("a"), lambda: store.commit([Batch("a", 1, 1)]), store.statistics):
        with pytest.raises(StoreUnavailable, match="PostgreSQL: ") as raised:
            call()
        failures.append(raised.value)
    server.start()
    back = when_back(lambda: store.load("a"))

    assert not any(failure.uncertain for failure in failures)
    assert back == Head(1, 1, b"kept")
    assert store.commit([Batch("a", 1, 1)]) == [None]
    assert store.claim() == 1
    store.close()


def test_a_server_that_was_never_there_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable) as raised:
        PostgresStore("postgresql://ann:geheim@127.0.0.1:1/chats")

    assert "127.0.0.1" in str(raised.value)
    assert "geheim" not in str(raised.value)


# What the server refuses ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_full_store_and_stores_nothing(store: PostgresStore) -> None:
    full = "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'"
    do(f"CREATE FUNCTION {store.schema}.no_space() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {full}; END $$")
    do(f"CREATE TRIGGER no_space BEFORE INSERT ON {store.schema}.rows EXECUTE FUNCTION {store.schema}.no_space()")
    batch = Batch("a", 1, 0, rows=(Row(Table.MESSAGE, b"k", b"v"),))

    with pytest.raises(StoreFull, match="No space left") as raised:
        store.commit([Batch("b", 1, 0), batch])
    do(f"DROP TRIGGER no_space ON {store.schema}.rows")

    assert not raised.value.uncertain
    assert store.streams() == []
    assert store.commit([batch]) == [None]


def test_a_user_who_may_make_no_schema_needs_one_that_is_there(store: PostgresStore) -> None:
    role, schema = new_name(), new_name()
    do(f"CREATE ROLE {role} LOGIN")
    dsn = shared_postgres().dsn.replace("callboard@", f"{role}@")

    with pytest.raises(StoreUnavailable, match="permission denied"):
        PostgresStore(dsn, schema=schema)
    do(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
    theirs = PostgresStore(dsn, schema=schema)

    assert theirs.claim() == 1
    theirs.close()


def test_tables_of_a_newer_callboard_are_left_alone(store: PostgresStore) -> None:
    store.close()
    do(f"UPDATE {store.schema}.meta SET value = 2 WHERE name = 'format'")

    with pytest.raises(NewerFormat, match="has format 2, and this callboard reads up to 1"):
        PostgresStore(shared_postgres().dsn, schema=store.schema)


# The rest -------------------------------------------------------------------------------------------------------------


def test_the_location_names_server_database_and_schema_and_no_secret() -> None:
    store = PostgresStore(shared_postgres().dsn.replace("callboard@", "callboard:geheim@"), schema=new_name())

    assert store.location == f"postgresql://127.0.0.1:{shared_postgres().port}/postgres?schema={store.schema}"
    store.close()


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        ({"dsn": "postgresql://ann:geheim@[broken"}, "dsn must be a PostgreSQL connection string, such as"),
        ({"schema": 'a"b'}, "schema must be a plain name"),
        ({"durability": "none"}, 'durability must be "sync" or "async"'),
        ({"timeout_s": 0}, "timeout_s is a number of seconds above 0"),
    ],
)
def test_nonsense_is_refused_at_the_door_with_the_mend(arguments: dict[str, Any], mend: str) -> None:
    given: dict[str, Any] = {"dsn": "postgresql://nowhere.invalid"} | arguments

    with pytest.raises(ValueError, match=mend) as raised:
        PostgresStore(**given)

    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(("durability", "setting"), [("sync", "on"), ("async", "off")])
def test_durability_is_the_servers_setting_for_the_commit(durability: Any, setting: str) -> None:
    store = PostgresStore(shared_postgres().dsn, schema=new_name(), durability=durability)
    do(f"CREATE TABLE {store.schema}.seen (setting text)")
    note = f"INSERT INTO {store.schema}.seen VALUES (current_setting('synchronous_commit')); RETURN NULL"
    do(f"CREATE FUNCTION {store.schema}.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {note}; END $$")
    do(f"CREATE TRIGGER note AFTER INSERT ON {store.schema}.streams EXECUTE FUNCTION {store.schema}.note()")
    do(f"CREATE TRIGGER note AFTER UPDATE ON {store.schema}.meta EXECUTE FUNCTION {store.schema}.note()")

    store.claim()
    store.commit([Batch("a", 1, 0)])
    store.close()

    # the claim; the count of streams; the stream
    assert do(f"SELECT setting FROM {store.schema}.seen") == [("on",), (setting,), (setting,)]


def test_a_group_commit_is_one_transaction(store: PostgresStore) -> None:
    entries = (IndexRow(Index.TAG, b"red"),)
    group = [
        Batch(name, 1, n, rows=(Row(Table.RUN, b"k", b"v"),), index_rows=entries) for n in (0, 1) for name in "abc"
    ]

    answers: list[Refusal | None] = store.commit(group)

    assert answers == [None] * 6
    assert do(
        f"SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM {store.schema}.streams UNION "
        f"SELECT xmin FROM {store.schema}.rows UNION SELECT xmin FROM {store.schema}.entries) AS written"
    ) == [(1,)]
