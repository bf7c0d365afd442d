"""A process under load is killed, or its database server is: what was acknowledged is there, whole, once, in order.

The first is done as in tests/kill, on a server instead of a directory; see kill_rounds.py.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle

import anyio
import pytest
from database_servers import PostgresServer, RedisServer, own_postgres, own_redis
from kill_nursery import Nursery, open_nursery
from kill_rounds import SESSIONS, Line, Moment, Witness, check_runs, model, run_until

from callboard import (
    Failed,
    Session,
    SessionStorage,
    Unknown,
    create_postgres_session_storage,
    create_redis_session_storage,
)
from callboard.actors.archive import Archive
from callboard.testing import FakeUpstream

pytestmark = pytest.mark.kill

KILLS = 3
TURNS = 5
WRITERS = 8
MESSAGES = 40

AnyServer = PostgresServer | RedisServer


@pytest.fixture(scope="module", params=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[AnyServer]:
    own = own_postgres() if request.param == "postgres" else own_redis(fsync="always")
    yield own
    own.remove()


def address(server: AnyServer) -> str:
    return server.dsn if isinstance(server, PostgresServer) else server.url


def open_storage(server: AnyServer) -> SessionStorage:
    if isinstance(server, PostgresServer):
        return create_postgres_session_storage(server.dsn)
    return create_redis_session_storage(server.url)


# The process is killed ------------------------------------------------------------------------------------------------


async def run_child(nursery: Nursery, arguments: list[object], moment: Moment) -> tuple[list[Line], bool]:
    with nursery.open_worker("worker", *arguments) as child:
        return await run_until(moment, child)


async def check_sessions(server: AnyServer, witness: Witness) -> int:
    """Open it as the next process would, and check all sessions; how many runs the kill had cut."""
    cut = 0
    async with open_storage(server) as storage:
        for id in SESSIONS:
            messages = await storage.get_messages(id)
            witness.check_history(id, messages)
            runs = await Session(storage.runtime, id).runs()
            check_runs(runs, messages, open_before=set())
            cut += sum(run.status == "interrupted" for run in runs)
        assert Archive(storage.runtime.store).with_open_runs() == []
    return cut


def test_a_killed_process_loses_no_acknowledged_turn_and_leaves_no_half_turn(server: AnyServer) -> None:
    witness, chance, backends = Witness(), random.Random(1), cycle(["trio", "asyncio"])
    cut: list[int] = []

    async def rounds() -> None:
        with open_nursery() as nursery:
            async with FakeUpstream(model, keep_requests=False) as upstream:
                options = ["--sessions", len(SESSIONS), "--turns", TURNS, "--log", 0]
                for kill in range(KILLS + 1):
                    last = kill == KILLS
                    moment = Moment(-1, 0.0) if last else Moment(chance.randint(5, 15), chance.uniform(0, 0.01))
                    arguments: list[object] = [address(server), upstream.url, "--backend", next(backends), *options]
                    lines, killed = await run_child(nursery, arguments, moment)
                    witness.note(lines)
                    assert killed is not last
                    cut.append(await check_sessions(server, witness))

    anyio.run(rounds, backend="trio")

    assert witness.turns == dict.fromkeys(SESSIONS, TURNS)
    assert cut[-1] > KILLS, "the kills hit next to no running turn: they prove nothing"


# The server is killed -------------------------------------------------------------------------------------------------


class Ledger:
    """What each writer was told about each of its texts."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[str]] = defaultdict(list[str])
        self.unknown: dict[str, set[str]] = defaultdict(set[str])
        self.count = 0
        self.under_way = anyio.Event()
        self.hit = anyio.Event()


async def write(storage: SessionStorage, id: str, ledger: Ledger) -> None:
    """Messages one after the other; one that failed is sent again under the same text, an unknown one is not."""
    for number in range(MESSAGES):
        text = f"{number}"
        while True:
            try:
                await storage.add_message(id, "user", text)
            except Failed:
                ledger.hit.set()
            except Unknown:
                ledger.hit.set()
                ledger.unknown[id].add(text)
                break
            else:
                ledger.acknowledged[id].append(text)
                break
        ledger.count += 1
        if ledger.count == WRITERS * MESSAGES // 3:
            ledger.under_way.set()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_server_that_is_killed_under_load_and_started_again_has_all_that_it_acknowledged(
    server: AnyServer, backend: str
) -> None:
    ids = [f"{backend}-{number}" for number in range(WRITERS)]

    async def under_load() -> None:
        ledger = Ledger()
        async with open_storage(server) as storage, anyio.create_task_group() as tasks:
            for id in ids:
                tasks.start_soon(write, storage, id, ledger)
            await ledger.under_way.wait()
            server.kill()
            await ledger.hit.wait()
            server.start()

        assert ledger.count == WRITERS * MESSAGES
        async with open_storage(server) as storage:
            for id in ids:
                texts = [each.text for each in await storage.get_messages(id)]
                assert [text for text in texts if text not in ledger.unknown[id]] == ledger.acknowledged[id]
                assert texts == sorted(set(texts), key=int)

    anyio.run(under_load, backend=backend)
