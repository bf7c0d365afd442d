"""Who stages what no store takes fails alone; and whatever happens to the committer's thread, everybody is answered."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import anyio
import msgspec
import pytest

from callboard.runtime import Actor, Backoff, Context, Failed, Request, RestartPolicy, Runtime, Unknown, handles
from callboard.runtime.committer import Committer
from callboard.runtime.metrics import Metrics
from callboard.runtime.waking import current_backend
from callboard.store import (
    Batch,
    Head,
    Index,
    IndexRow,
    LmdbStore,
    MemoryStore,
    Row,
    Store,
    StoreError,
    StoreUnavailable,
    Table,
)
from callboard.store.contract import Refusal

Run = Callable[[Callable[[], Awaitable[None]]], None]
QUICK = RestartPolicy(restarts_max=100, backoff=Backoff(first_s=0.001, max_s=0.002))


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="callboard.committer")


class ThreadedStore(MemoryStore):
    """A memory store that commits on the committer's thread. `acts` are done there, one a commit, instead of it."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: list[Callable[[], Any]] = []

    @property
    def inline(self) -> bool:
        return False

    def commit(self, batches: Sequence[Batch]) -> list[Refusal | None]:
        return self.acts.pop(0)() if self.acts else super().commit(batches)


Kind = Literal["memory", "threaded", "lmdb"]


@pytest.fixture(params=["memory", "threaded", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Not closed here: the runtime does it."""
    kind = cast("Kind", request.param)
    if kind == "lmdb":
        return LmdbStore(tmp_path / "store")
    return MemoryStore() if kind == "memory" else ThreadedStore()


class Add(Request[int], frozen=True):
    amount: int


class Misstage(Request[int], frozen=True):
    staged: dict[str, Any]


class Counter(Actor):
    load_stages: dict[str, Any]
    """What the next load stages; emptied by it."""

    def load(self, context: Context) -> None:
        self.total = int(context.stored.head) if context.stored is not None else 0
        if context.id.key == "bad" and self.load_stages:
            staged = dict(self.load_stages)
            self.load_stages.clear()
            context.stage(**staged)

    @handles(Add)
    def add(self, message: Add, context: Context) -> int:
        self.total += message.amount
        context.stage(head=b"%d" % self.total)
        return self.total

    @handles(Misstage)
    def misstage(self, message: Misstage, context: Context) -> int:
        self.total += 1000
        context.stage(**message.staged)
        return self.total


def a_runtime(store: Store, *, load_stages: dict[str, Any] | None = None) -> Runtime:
    class Own(Counter):
        pass

    Own.load_stages = load_stages if load_stages is not None else {}
    runtime = Runtime(lambda: store, drain_timeout_s=2.0)
    runtime.register("counter", Own, restart=QUICK)
    return runtime


def stored(store: Store, key: str) -> tuple[int, bytes]:
    """Version and head of a counter's stream."""
    head = store.load(f"counter:{key}")
    assert head is not None
    return head.version, head.head


MISTAKES: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"head": "text"}, TypeError),
    ({"head": 5}, TypeError),
    ({"rows": (Row(Table.MESSAGE, b"k", cast("Any", "text")),)}, TypeError),
    ({"rows": (Row(Table.MESSAGE, cast("Any", "k"), b"v"),)}, TypeError),
    ({"rows": (Row(cast("Any", 77), b"k", b"v"),)}, TypeError),
    ({"rows": ("row",)}, TypeError),
    ({"rows": (Row(Table.MESSAGE, b"k" * 65, b"v"),)}, ValueError),
    ({"index_rows": (IndexRow(Index.TAG, cast("Any", "tag")),)}, TypeError),
    ({"index_rows": (IndexRow(cast("Any", 77), b"tag"),)}, TypeError),
    ({"index_rows": ("entry",)}, TypeError),
]


@pytest.mark.parametrize(("staged", "mistake"), MISTAKES)
def test_a_handler_that_stages_what_no_store_takes_fails_alone(
    run_in_real_time: Run, store: Store, staged: dict[str, Any], mistake: type[Exception]
) -> None:
    async def body() -> None:
        async with a_runtime(store) as runtime:
            bad = runtime.actor("counter", "bad")
            others = [runtime.actor("counter", f"other{number}") for number in range(4)]
            assert await bad.ask(Add(1)) == 1

            before = [other.ask_nowait(Add(1)) for other in others[:2]]
            refused = bad.ask_nowait(Misstage(staged))
            behind = [other.ask_nowait(Add(1)) for other in others[2:]]

            with pytest.raises(Failed) as failed:
                await refused.wait()
            assert type(failed.value.__cause__) is mistake
            assert [await reply.wait() for reply in before + behind] == [1, 1, 1, 1]
            assert await bad.ask(Add(1)) == 2  # what it held in memory went with the crash
            assert [stored(store, f"other{number}") for number in range(4)] == [(1, b"1")] * 4
            assert stored(store, "bad") == (2, b"2")
            assert runtime.statistics().commits_in_flight == 0

    run_in_real_time(body)


def test_a_load_that_stages_what_no_store_takes_is_begun_again_and_harms_nobody(
    run_in_real_time: Run, store: Store
) -> None:
    async def body() -> None:
        load_stages: dict[str, Any] = {"head": 5}
        async with a_runtime(store, load_stages=load_stages) as runtime:
            bad = runtime.actor("counter", "bad").ask_nowait(Add(1))

            assert await runtime.actor("counter", "other").ask(Add(1)) == 1
            assert await bad.wait() == 1
            assert not load_stages
            assert runtime.statistics().crashes == 1

    run_in_real_time(body)


def leave_thread() -> None:
    raise SystemExit("the store's library ends the thread")


def break_contract() -> None:
    raise RuntimeError("nobody expects this")


ACTS: list[Callable[[], Any]] = [leave_thread, break_contract, lambda: [], lambda: None, lambda: [None] * 9]


@pytest.mark.parametrize("act", ACTS)
def test_a_store_that_breaks_its_contract_leaves_nobody_waiting_and_the_next_commits_go_on(
    run_in_real_time: Run, caplog: pytest.LogCaptureFixture, act: Callable[[], Any]
) -> None:
    async def body() -> None:
        store = ThreadedStore()
        async with a_runtime(store) as runtime:
            counter = runtime.actor("counter", "k")
            assert await counter.ask(Add(1)) == 1
            store.acts.append(act)

            with pytest.raises(Unknown):
                await counter.ask(Add(1))
            assert await counter.ask(Add(1)) == 2
            assert runtime.statistics().commits_in_flight == 0

    run_in_real_time(body)
    assert "the store raised" in caplog.text or "the committer failed with 1 batches" in caplog.text


# The committer on its own, with batches that came past take_batch.

Answers = dict[str, StoreError | None]


def submit(committer: Committer, batch: Batch, answers: Answers) -> None:
    committer.submit(batch, partial(answers.__setitem__, batch.stream))


async def all_answered(committer: Committer) -> None:
    while committer.in_flight:  # noqa: ASYNC110 - what the thread does wakes no event of ours
        await anyio.sleep(0.001)


def with_committer(store: Store, use: Callable[[Committer], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A body that runs `use` while the committer serves, and closes it then."""

    async def body() -> None:
        committer = Committer(store, current_backend(), Metrics(), run=lambda function: function())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(committer.serve)
            await use(committer)
            await committer.aclose()
            tasks.cancel_scope.cancel()
        store.close()

    return body


def test_a_batch_that_cannot_even_be_measured_is_answered_and_the_thread_goes_on(
    run_in_real_time: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store = LmdbStore(tmp_path / "store")
    answers: Answers = {}

    async def use(committer: Committer) -> None:
        for number in range(3):
            submit(committer, Batch(f"before{number}", 1, 0), answers)
        bad = Batch("bad", 1, 0)
        msgspec.structs.force_setattr(bad, "head", 5)
        submit(committer, bad, answers)
        submit(committer, Batch("behind", 1, 0), answers)
        await all_answered(committer)
        submit(committer, Batch("later", 1, 0), answers)
        await all_answered(committer)

        assert store.load("later") == Head(1, 1, b"")
        assert store.load("bad") is None

    run_in_real_time(with_committer(store, use))
    assert len(answers) == 6
    assert isinstance(answers["bad"], StoreUnavailable)
    assert answers["bad"].uncertain
    assert answers["later"] is None
    assert "the committer failed with" in caplog.text


def test_closing_behind_a_batch_that_cannot_be_measured_answers_everybody(
    run_in_real_time: Run, tmp_path: Path
) -> None:
    answers: Answers = {}

    async def use(committer: Committer) -> None:
        bad = Batch("bad", 1, 0)
        msgspec.structs.force_setattr(bad, "head", 5)
        submit(committer, bad, answers)
        for number in range(3):
            submit(committer, Batch(f"behind{number}", 1, 0), answers)

    run_in_real_time(with_committer(LmdbStore(tmp_path / "store"), use))
    assert set(answers) == {"bad", "behind0", "behind1", "behind2"}
