"""Each fault between us and a model's server, over real sockets: a typed error or a good answer, nothing else."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, get_args

import anyio
import pytest
from fault_table import ANSWER, BODY, ELSEWHERE, FACTS, JSON, NEXT, TABLE, Cell, Row, next_take
from raw_upstream import RawUpstream, Take, head

from callboard import (
    Agent,
    AttemptFailed,
    Delta,
    Message,
    ModelError,
    ModelRequest,
    OpenAIChat,
    RunPolicy,
    Runtime,
    Session,
)
from callboard.actors.retry import RetryPolicy
from callboard.runtime import Backoff
from callboard.testing import FakeUpstream, FaultKind, answer

KEY = "sk-a-very-secret-key"
SECRET = "my PIN is 0000"
REQUEST = ModelRequest((Message(role="user", content=SECRET),))
FACTS_FILE = Path(__file__).resolve().parents[3] / "shared" / "FACTS.md"
ONE_REQUEST = RetryPolicy(retries_max=0, rate_limit_patience_s=0)

Upstream: TypeAlias = FakeUpstream | RawUpstream
Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

CELLS = [
    pytest.param(cell, streamed, id=f"{row.name}, {form}")
    for row in TABLE
    for form, streamed, cell in (("streamed", True, row.streamed), ("whole", False, row.whole))
    if cell is not None
]
by_cell = pytest.mark.parametrize(("cell", "streamed"), CELLS)


def upstream_of(cell: Cell, *, streamed: bool) -> Upstream:
    """A server that sends the cell's response, and a good one behind it."""
    if isinstance(cell.sent, Take):
        return RawUpstream([cell.sent, next_take(streamed=streamed)])
    return FakeUpstream([cell.sent, answer(NEXT)])


@dataclass(slots=True)
class Calls:
    """Calls of one client, each with what it ended with and the pieces that it handed out."""

    chat: OpenAIChat
    pieces: list[str] = field(default_factory=list[str])

    async def make(self, *, streamed: bool) -> str | ModelError:
        self.pieces.clear()
        try:
            got = await self.chat.complete(REQUEST, on_delta=self._take if streamed else None)
        except ModelError as error:
            return error
        return got.message.text

    def _take(self, delta: Delta) -> None:
        self.pieces.append(delta.text)


async def wait_for(holds: Callable[[], bool]) -> bool:
    with anyio.move_on_after(5.0):
        while not holds():  # noqa: ASYNC110 - a counter has no event
            await anyio.sleep(0.001)
    return holds()


@by_cell
def test_a_fault_is_a_typed_error_or_no_fault_and_costs_at_most_its_own_connection(
    run_in_real_time: Run, cell: Cell, streamed: bool
) -> None:
    async def body() -> None:
        async with AsyncExitStack() as closing:
            upstream = await closing.enter_async_context(upstream_of(cell, streamed=streamed))
            calls = Calls(client_of(upstream, patience_s=cell.patience_s, streamed=streamed))
            closing.push_async_callback(calls.chat.aclose)
            outcome = await calls.make(streamed=streamed)

            check_outcome(outcome, cell)
            shown = "".join(calls.pieces)
            assert ANSWER.startswith(shown)
            assert bool(shown) is (streamed and cell.pieces)
            if cell.kept is not None:
                assert await wait_for(lambda: upstream.connections_open == int(cell.kept is True)), "what is left open"
            assert upstream.request_count == 1
            assert await calls.make(streamed=streamed) == NEXT
            assert upstream.connections_total in {True: (1,), False: (2,), None: (1, 2)}[cell.kept]
            await calls.chat.aclose()
            assert await wait_for(lambda: upstream.connections_open == 0), "a socket was lost"

    run_in_real_time(body)


def check_outcome(outcome: str | ModelError, cell: Cell) -> None:
    if isinstance(outcome, str):
        assert cell.outcome == "answer"
        assert outcome == ANSWER
    else:
        assert type(outcome) is cell.outcome, repr(outcome)
        assert outcome.transient
        told = f"{outcome} {outcome!r} {outcome.__cause__!r}"
        assert KEY not in told
        assert SECRET not in told
        assert "127.0.0.1" in str(outcome), "an error names its server"


def client_of(upstream: Upstream, *, patience_s: float, streamed: bool) -> OpenAIChat:
    """A client that makes one request of each call. A stream has only its progress to fear."""
    return OpenAIChat(
        base_url=upstream.url,
        api_key=KEY,
        model="fake",
        progress_timeout_s=patience_s,
        timeout_s=60.0 if streamed else patience_s,
        retries=ONE_REQUEST,
    )


@by_cell
def test_a_run_gets_its_answer_in_spite_of_the_fault(run_in_real_time: Run, cell: Cell, streamed: bool) -> None:
    async def body() -> None:
        async with upstream_of(cell, streamed=streamed) as upstream, Runtime.in_memory() as runtime:
            model = client_of(upstream, patience_s=cell.patience_s, streamed=streamed)
            policy = RunPolicy(attempts_max=2, backoff=Backoff(first_s=0.001, max_s=0.001))
            agent = Agent("A", model=model, session=Session(runtime, "s"), policy=policy)
            failed, shown = 0, ""
            if streamed:
                async with agent.stream("hello") as stream:
                    async for event in stream:
                        if isinstance(event, AttemptFailed):
                            failed, shown = failed + 1, ""  # what was shown is void
                        elif isinstance(event, Delta):
                            shown += event.text
                reply = stream.reply
            else:
                reply = await agent.chat("hello")

            expected = ANSWER if cell.outcome == "answer" else NEXT
            assert reply.text == expected
            assert reply.attempts == (1 if cell.outcome == "answer" else 2)
            if streamed:
                assert (shown, failed) == (expected, reply.attempts - 1)
            assert [record.status for record in await Session(runtime, "s").runs()] == ["completed"]

    run_in_real_time(body)


REUSES = 100


@pytest.mark.parametrize("linger_s", [0.0, 0.001])
def test_a_keep_alive_that_ends_right_after_the_answer_costs_no_request(run_in_real_time: Run, linger_s: float) -> None:
    """Row "keep-alive closed by server 1 ms after the answer": 28 to 41 of 100 such requests fail with httpx."""
    good = head(JSON, f"content-length: {len(BODY)}") + BODY

    async def body() -> None:
        takes = [Take((good,), "close", linger_s=linger_s) for _ in range(REUSES)]
        async with RawUpstream(takes) as upstream:
            calls = Calls(client_of(upstream, patience_s=10.0, streamed=False))
            outcomes = [await calls.make(streamed=False) for _ in range(REUSES)]
            await calls.chat.aclose()

            assert outcomes == [ANSWER] * REUSES
            assert upstream.request_count == REUSES

    run_in_real_time(body)


def test_a_server_that_is_not_there_is_unavailable(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            pass
        calls = Calls(client_of(upstream, patience_s=10.0, streamed=False))
        for streamed in (True, False):
            outcome = await calls.make(streamed=streamed)

            assert type(outcome).__name__ == "ModelUnavailable"
            assert not calls.pieces

    run_in_real_time(body)


# The table itself.


def test_the_table_has_every_row_of_the_facts_and_every_fault_of_the_fake_server() -> None:
    assert {row.fact for row in TABLE if row.fact} | set(ELSEWHERE) == set(FACTS)
    assert {row.kind for row in TABLE if row.kind} == set(get_args(FaultKind))
    assert len({row.name for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_cell_is_empty_only_for_a_reason(row: Row) -> None:
    assert (row.streamed is None or row.whole is None) is bool(row.why_not)
    assert row.streamed is not None or row.whole is not None


@pytest.mark.skipif(not FACTS_FILE.is_file(), reason="the facts lie beside the checkout; not here")
def test_the_facts_have_no_further_row() -> None:
    section = FACTS_FILE.read_text("utf-8").partition("## Faults")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = {line.split("|")[1].strip().strip("*") for line in lines} - {"fault"}

    assert rows == set(FACTS)
