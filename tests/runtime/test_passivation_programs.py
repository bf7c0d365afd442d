"""Generated programs over a few actors of which hardly any may stay: nothing is lost, doubled or reordered."""

import logging
from dataclasses import dataclass, field
from typing import Literal

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from callboard.runtime import Actor, ActorId, Backoff, Context, Request, RestartPolicy, Runtime, handles
from callboard.runtime.ref import PendingReply
from callboard.store import CallboardError, MemoryStore
from callboard.testing import run_in_virtual_time

KEYS = "abcd"
IDLE_S = 8.0


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


class Add(Request[int], frozen=True):
    amount: int
    seconds: float = 0.0


class AddSlowly(Add, frozen=True):
    """The same, from an async handler."""


class Crash(Request[None], frozen=True):
    pass


@dataclass(slots=True)
class Book:
    """What each actor has really handled, in order, over all of its activations."""

    handled: dict[str, list[int]] = field(default_factory=lambda: {key: list[int]() for key in KEYS})
    sent: dict[str, list[int]] = field(default_factory=lambda: {key: list[int]() for key in KEYS})
    pending: list[tuple[str, int, PendingReply[int]]] = field(
        default_factory=lambda: list[tuple[str, int, PendingReply[int]]]()
    )


class Adder(Actor):
    def __init__(self, id: ActorId, book: Book) -> None:
        super().__init__(id)
        self.book = book

    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0

    def put(self, amount: int, context: Context) -> int:
        self.total += amount
        self.book.handled[context.id.key].append(amount)
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        return self.put(message.amount, context)

    @handles(AddSlowly)
    async def add_slowly(self, message: AddSlowly, context: Context) -> int:
        await anyio.sleep(message.seconds)
        return self.put(message.amount, context)

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise RuntimeError("ordered")


Operation = tuple[Literal["add", "slowly", "tell", "crash", "passivate", "sleep", "give up"], str, float]
operations = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "slowly", "slowly", "tell", "crash", "passivate", "sleep", "give up"]),
        st.sampled_from(KEYS),
        st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    ),
    max_size=60,
)


async def perform(runtime: Runtime, book: Book, operation: Operation, amount: int) -> None:
    what, key, seconds = operation
    ref = runtime.actor("adder", key)
    if what in ("add", "slowly"):
        book.sent[key].append(amount)
        message = Add(amount) if what == "add" else AddSlowly(amount, min(seconds, 3.0))
        book.pending.append((key, amount, ref.ask_nowait(message, timeout_s=1e6)))
    elif what == "tell":
        book.sent[key].append(amount)
        await ref.tell(Add(amount))
    elif what == "crash":
        await ref.tell(Crash())
    elif what == "passivate":
        ref.passivate()
    elif what == "sleep":
        await anyio.sleep(seconds)
    elif book.pending:
        book.pending.pop()[2].give_up()


async def check(runtime: Runtime, book: Book) -> None:
    for key, amount, pending in book.pending:
        try:
            answer = await pending.wait()
        except CallboardError:  # its actor crashed while it ran
            continue
        handled = book.handled[key]
        place = handled.index(amount) + 1
        assert answer == sum(handled[:place])
    await anyio.sleep(20 * IDLE_S)
    assert runtime.statistics().actors == 0, "nobody is kept in memory"
    for key in KEYS:
        handled, sent = book.handled[key], book.sent[key]
        assert handled == [amount for amount in sent if amount in handled], "in order, each once"
        stored = runtime.store.load(f"adder:{key}")
        assert (int(stored.head) if stored is not None else 0) == sum(handled)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@given(program=operations, actors_max=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_a_program_ends_with_what_was_handled_stored_and_nobody_in_memory(
    backend: Literal["trio", "asyncio"], program: list[Operation], actors_max: int
) -> None:
    quick = RestartPolicy(restarts_max=1000, window_s=1.0, backoff=Backoff(first_s=0.001, max_s=0.001))

    async def body() -> None:
        book = Book()
        async with Runtime(MemoryStore, actors_max=actors_max) as runtime:
            runtime.register("adder", lambda id: Adder(id, book), idle_s=IDLE_S, restart=quick)
            for number, operation in enumerate(program):
                await perform(runtime, book, operation, number + 1)
            await check(runtime, book)

    run_in_virtual_time(body, backend=backend)
