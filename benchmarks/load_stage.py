"""The run of `load.py`: a model server, and workers on one store, one after the other, each until it is killed.

    load_upstream.py <── HTTP ── load_worker.py ── commits ──> store
                                  ▲   │                          │
              SIGKILL, "end" ─────┘   └── lines ──> Stage <──────┘ read after each kill, and each minute

A run has two parts: kills and all, then one life without kills, whose memory is judged.
"""

import math
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from load_figures import Latencies, Memory, Sample, Series, judge_memory
from load_ledger import Ledger
from load_plan import AckLine, Backend, MarkLine, Plan, decode_line
from load_process import Child, memory_of, open_child

from callboard import StoreUnavailable
from callboard.actors.archive import Archive

__all__ = ["Course", "Outcome", "Stage", "WorkerFailed"]

_SAMPLE_EVERY_S = 1.0
_END_S = 200.0
"""How long the last worker may take to finish its turns and close the store."""
_CALM_FROM_S = 1.0
_EARLY_KILLS = 0.1
"""How many kills come while the store is being opened and put right."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How a run goes.

    Attributes:
        seconds: of load, while a store is open; opening and checking it again and again come on top.
        kill_every_s: the mean time between kills; 0: none.
        calm_s: the end of the run, without kills.
        check_every_s: how often the store is read while nothing is killed.
        backends: of the workers, in turn.
    """

    seconds: float
    kill_every_s: float
    calm_s: float
    check_every_s: float
    backends: tuple[Backend, ...]


class WorkerFailed(Exception):
    """A process ended by itself."""


@dataclass(slots=True)
class Outcome:
    """What came of it. Times in seconds since the beginning.

    Attributes:
        kills: how many hit a worker; `runs_cut`: runs that were open then.
        unacknowledged: turns that were stored, but whose caller was dead before it was told.
        opened_s: from a start of a worker until its store was open and put right, each.
        checks_s: how long each check took.
    """

    ledger: Ledger
    latencies: Latencies = field(default_factory=Latencies)
    series: Series = field(default_factory=Series)
    memories: list[Memory] = field(default_factory=lambda: list[Memory]())
    kills: int = 0
    runs_cut: int = 0
    unacknowledged: int = 0
    store_faults: int = 0
    requests: int = 0
    model_faults: Counter[str] = field(default_factory=Counter[str])
    opened_s: list[float] = field(default_factory=lambda: list[float]())
    checks_s: list[float] = field(default_factory=lambda: list[float]())
    prefill_s: float = 0.0
    recount_s: float = 0.0
    loaded_s: float = 0.0
    failure: str = ""


class Stage:
    """Plays one run.

    Args:
        outcome: what is found is put there.
        show: called about once a second with a word on what goes on.
    """

    def __init__(
        self, plan: Plan, course: Course, folder: Path, *, outcome: Outcome, show: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._course = course
        self._store = folder / "store.lmdb"
        self._places = folder / "places"
        self._show = show
        self._plan_json = msgspec.json.encode(plan).decode()
        self._chance = random.Random(plan.seed)
        self._backends = cycle(course.backends)
        self._url = ""
        self._life_began_s = 0.0
        self._opened_s = math.inf
        self._open = anyio.Event()
        self._samples: list[Sample] = []
        self.outcome = outcome

    async def play(self) -> None:
        """The whole run.

        Raises:
            WorkerFailed: a process ended by itself.
        """
        if self._plan.stored:
            await self._prefill()
        async with open_child("load_upstream.py", self._plan_json) as upstream, anyio.create_task_group() as tasks:
            await tasks.start(self._listen, upstream)
            while (left_s := self._course.seconds - self.outcome.loaded_s) > 0:
                calm = not self._course.kill_every_s or left_s <= self._course.calm_s + _CALM_FROM_S
                await self._live(left_s, calm=calm)
                await self._check(alive=False)
            await self._recount()
            tasks.cancel_scope.cancel()

    async def _prefill(self) -> None:
        began_s = time.perf_counter()
        async with open_child("load_prefill.py", self._plan_json, str(self._store), self._course.backends[0]) as child:
            async with aclosing(child.lines()) as lines:
                async for line in lines:
                    self._show(f"stores {line.decode()} of {self._plan.stored} sessions")
            if problem := await child.wait():
                raise WorkerFailed(f"load_prefill.py {problem}")
        self.outcome.prefill_s = time.perf_counter() - began_s

    async def _listen(self, upstream: Child, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with aclosing(upstream.lines()) as lines:
            self._url = (await anext(lines)).decode()
            task_status.started()
            async for line in lines:
                counts = msgspec.json.decode(line)
                self.outcome.requests, self.outcome.model_faults = counts["requests"], Counter(counts["faults"])
        raise WorkerFailed(f"load_upstream.py {await upstream.wait()}")

    # One worker -----------------------------------------------------------------------------------------------------

    async def _live(self, seconds: float, *, calm: bool) -> None:
        """One life: to a kill, or, where calm, until so many seconds are over and the worker has ended in order."""
        self._samples = []
        self._places.write_bytes(self.outcome.ledger.places.tobytes())
        arguments = [self._plan_json, str(self._store), self._url, str(self._places), next(self._backends)]
        self._life_began_s, self._opened_s, self._open = time.perf_counter(), math.inf, anyio.Event()
        async with open_child("load_worker.py", *arguments, end_s=_END_S) as worker, anyio.create_task_group() as tasks:
            tasks.start_soon(self._end, worker, seconds, calm)
            tasks.start_soon(self._sample, worker)
            if calm:
                tasks.start_soon(self._check_now_and_then)
            async with aclosing(worker.lines()) as lines:
                async for line in lines:
                    self._take(line)
            tasks.cancel_scope.cancel()
            if problem := await worker.wait():
                raise WorkerFailed(f"load_worker.py {problem}")
        self.outcome.loaded_s += min(seconds, self._open_for_s)
        self.outcome.memories.append(judge_memory(self._samples, warm_s=self.warm_s))

    @property
    def warm_s(self) -> float:
        """When a worker has in memory what it will have: every user has come once, and sessions go once they were idle
        for so long."""
        return 10.0 + self._plan.think_s + 1.5 * self._plan.idle_s

    @property
    def _open_for_s(self) -> float:
        return max(0.0, time.perf_counter() - self._opened_s)

    async def _end(self, worker: Child, seconds: float, calm: bool) -> None:
        if not calm and self._chance.random() < _EARLY_KILLS:
            await anyio.sleep(self._chance.uniform(0.2, 1.0))
        else:
            await self._open.wait()
            await anyio.sleep(seconds if calm else self._chance.uniform(0.3, 1.7) * self._course.kill_every_s)
        if calm:
            self._show("lets turns under way end")
            await worker.end()
            await anyio.sleep(_END_S)
            raise WorkerFailed(f"load_worker.py has not ended within {_END_S:g} s of being told to")
        worker.kill()
        self.outcome.kills += 1
        self.outcome.series.at(self._now_s()).kills += 1

    async def _sample(self, worker: Child) -> None:
        while True:
            await anyio.sleep(_SAMPLE_EVERY_S)
            memory = memory_of(worker.pid)
            if memory is not None:
                age_s = time.perf_counter() - self._life_began_s
                self._samples.append(Sample(age_s, *memory, sessions=self.outcome.ledger.begun))
                self.outcome.series.at(self._now_s()).anonymous_bytes = memory[0]
            self._show("")

    async def _check_now_and_then(self) -> None:
        while True:
            await anyio.sleep(self._course.check_every_s)
            await self._check(alive=True)

    def _now_s(self) -> float:
        return self.outcome.loaded_s + self._open_for_s

    def _take(self, data: bytes) -> None:
        line = decode_line(data)
        outcome = self.outcome
        match line:
            case AckLine():
                outcome.ledger.note(line)
                outcome.latencies.add(line.took_ms)
                outcome.series.at(self._now_s()).latencies.add(line.took_ms)
            case MarkLine():
                if line.store_faults:
                    outcome.store_faults += 1
                elif line.what == "open":
                    self._opened_s = time.perf_counter()
                    outcome.opened_s.append(self._opened_s - self._life_began_s)
                    self._open.set()
            case _:
                outcome.ledger.note(line)
                outcome.series.at(self._now_s()).errors += 1

    # What is stored -------------------------------------------------------------------------------------------------

    async def _check(self, *, alive: bool) -> None:
        if not alive:
            self._show("reads what is stored")
        began_s = time.perf_counter()

        def check(archive: Archive) -> None:
            unacknowledged = self.outcome.ledger.check(archive)
            if not alive:  # else they are about to be told
                self.outcome.unacknowledged += unacknowledged
                self.outcome.runs_cut += len(archive.with_open_runs())

        await anyio.to_thread.run_sync(self._read, check)
        self.outcome.checks_s.append(time.perf_counter() - began_s)

    async def _recount(self) -> None:
        self._show("reads all sessions anew")
        began_s = time.perf_counter()
        await anyio.to_thread.run_sync(self._read, partial(self.outcome.ledger.recount, closed=True))
        self.outcome.recount_s = time.perf_counter() - began_s

    def _read(self, work: Callable[[Archive], None]) -> None:
        try:
            archive = Archive.open(self._store)
        except StoreUnavailable:
            if self.outcome.ledger.acknowledged:
                raise
            return  # killed before there was a store
        with archive:
            work(archive)


assert array("I").itemsize == 4  # as the ledger counts on
