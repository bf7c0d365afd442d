"""Programs of operations against the kernel, made from a seed, in virtual time and with faults.

A program is one to three lives of a runtime on one store. In each, a few senders do what `OPERATIONS` lists to a few
actors, in an order and with arguments that the seed draws: they ask and tell, go away, crash handlers, fail the store
before or after the write, passivate, stop, drain, kill, resume and watch. In two of three lives commits take a while,
see slow_disk.py. A life ends by draining or by being cancelled; the next one begins after it, or takes the store over
while the old one still believes to own it.

Source: FoundationDB's simulation testing; TigerBeetle's VOPR.
"""

import contextlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import anyio
from anyio.abc import TaskGroup
from kernel_actors import (
    NESTED,
    Ask,
    Do,
    DoAgain,
    DoAsk,
    DoAsync,
    DoAsyncDetached,
    DoInTwo,
    DoLater,
    DoPlain,
    DoSupervise,
    DoTimer,
    DoWatch,
    Player,
    Refused,
    Seen,
    number_of,
)
from slow_disk import RuntimeOnSlowDisk

from callboard.runtime import Backoff, Context, Failed, Rejected, RestartPolicy, Runtime, Unknown
from callboard.runtime.cell import Cell
from callboard.runtime.identity import ActorId
from callboard.runtime.lifecycle import State
from callboard.runtime.ref import Ref
from callboard.store import CallboardError, MemoryStore, StoreFull, StoreUnavailable
from callboard.testing import run_in_virtual_time

__all__ = ["OPERATIONS", "Backend", "Life", "Program", "played"]

Backend: TypeAlias = Literal["trio", "asyncio"]

ACTORS = ("a", "b", "c")
SENDERS = 4
STEPS_MAX = 30
MAILBOX_COUNT_MAX = 4
DISK_SLOWEST_S = 0.3
"""Of each of a write's two halves: longer than the shortest drain, and than most restarts are waited for."""
LIMIT_S = 2000.0
"""Virtual seconds for a whole program, which takes some hundred: one that needs more of them hangs."""

OPERATIONS: dict[str, int] = {
    "wait": 25,
    "ask": 24,
    "ask_and_wait_later": 14,
    "tell": 18,
    "fail_the_store": 8,
    "passivate": 4,
    "resume": 8,
    "watch": 3,
    "stop": 2,
    "drain": 2,
    "kill": 2,
    "release": 2,
    "purge": 1,
}
"""What a sender may do, each a method of Life, and how often among how many."""

KINDS: dict[type[Do], int] = {
    DoPlain: 8,
    DoAsync: 4,
    DoAsyncDetached: 4,
    DoLater: 3,
    DoInTwo: 4,
    DoAgain: 4,
    DoAsk: 3,
    DoTimer: 2,
    DoWatch: 3,
    DoSupervise: 1,
}


class Program:
    """One seed's program. `lives`, `asked`, `outcomes` and `store` hold what kernel_checks.py judges.

    Attributes:
        asked: the messages whose senders wait for an answer, and who was asked. outcomes: how each of them ended.
    """

    def __init__(self, seed: int, backend: Backend = "trio") -> None:
        self.seed = seed
        self.backend = backend
        self.random = random.Random(seed)
        self.store = MemoryStore(keep_history=True)
        self.asked: dict[int, tuple[str, Do]] = {}
        self.outcomes: dict[int, list[str]] = defaultdict(list)
        self.families = self.random.random() < 0.2
        self.lives: list[Life] = []
        self._numbers = 0

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def main(self) -> None:
        async with anyio.create_task_group() as lives:
            for _ in range(self.random.choice([1, 1, 2, 3])):
                life = Life(self, self.store)
                self.lives.append(life)
                ended = anyio.Event()
                lives.start_soon(life.run, ended)
                if self.random.random() < 0.5:
                    await ended.wait()
                else:
                    await anyio.sleep(self.random.uniform(0.0, 2.0))
                if self.random.random() < 0.7:
                    self.store = twin_of(self.store)
                else:
                    self.store = self.store.reopened()
                    life.leave.cancel()  # its store is closed, so those who have for ever would wait for ever


class Life:
    """One runtime on the program's store, and those who use it."""

    def __init__(self, program: Program, store: MemoryStore) -> None:
        self.program = program
        self.random = program.random
        self.store = store
        self.seen = Seen()
        self.closing_took_s = 0.0
        self.leave = anyio.CancelScope()
        self.endings: Counter[str] = Counter()
        self.drain_timeout_s = self.random.choice([0.0, 0.5, 3.0])
        self.disk_slowest_s = self.random.choice([0.0, 0.02, DISK_SLOWEST_S])
        # A disk that takes no time is the kernel's own way in memory: commits in place.
        build = Runtime if self.disk_slowest_s == 0.0 else partial(RuntimeOnSlowDisk, draw_times=self.disk_times_s)
        self.runtime = build(
            lambda: store, drain_timeout_s=self.drain_timeout_s, actors_max=self.random.choice([1, 100])
        )
        self.policy = RestartPolicy(
            restarts_max=self.random.choice([0, 2, 2, 50, 50, 50]),
            window_s=self.random.choice([0.3, 1.0, 60.0]),
            backoff=Backoff(first_s=0.1, max_s=2.0),
            strategy=self.random.choice(["one_for_one", "one_for_all", "rest_for_one"]),
        )
        self._loads_slowly = self.random.random() < 0.2
        self._crashes_in_load = self.random.choice([0.0, 0.0, 0.05])

        class Own(Player):
            witness = self

        self.runtime.register(
            "player",
            Own,
            restart=self.policy,
            idle_s=self.random.choice([0.8, 300.0]),
            mailbox_count_max=MAILBOX_COUNT_MAX,
        )

    async def run(self, ended: anyio.Event) -> None:
        """Play this life; everybody who waits for an answer has it afterwards."""
        async with anyio.create_task_group() as later:
            left_s = 0.0
            async with self.runtime:
                with self.leave:
                    await self._play(later)
                left_s = anyio.current_time()
            self.closing_took_s = anyio.current_time() - left_s
        ended.set()

    async def _play(self, later: TaskGroup) -> None:
        async with anyio.create_task_group() as senders:
            for sender in range(SENDERS):
                senders.start_soon(self._send, sender, later)
            senders.start_soon(self._look)
            if self.random.random() < 0.5:
                await anyio.sleep(self.random.uniform(0.0, 4.0))
                self.leave.cancel()

    async def _send(self, sender: int, later: TaskGroup) -> None:
        orders: Counter[str] = Counter()
        for _ in range(self.random.randrange(STEPS_MAX)):
            (operation,) = self.random.choices(list(OPERATIONS), list(OPERATIONS.values()))
            key = self.random.choice(ACTORS)
            ref = self.runtime.actor("player", key)
            orders[key] += 1
            await getattr(self, f"_{operation}")(ref, later, lambda o=orders[key]: self._draw(sender, o))

    # Operations -----------------------------------------------------------------------------------------------------

    async def _wait(self, _ref: Ref, _later: TaskGroup, _draw: Callable[[], Do]) -> None:
        await anyio.sleep(self.random.choice([0.0, 0.01, 0.3, 2.0]))

    async def _ask(self, ref: Ref, _later: TaskGroup, draw: Callable[[], Do]) -> None:
        message = self._noted(ref, draw())
        overflow: Any = self.random.choice(["wait", "reject"])
        ask = partial(ref.ask, message, timeout_s=self._timeout_s(), overflow=overflow)
        await self._until_answered(message.number, ask, self._patience_s())

    async def _ask_and_wait_later(self, ref: Ref, later: TaskGroup, draw: Callable[[], Do]) -> None:
        message = self._noted(ref, draw())
        overflow: Any = self.random.choice(["wait", "reject"])
        pending = ref.ask_nowait(message, timeout_s=self._timeout_s(), overflow=overflow)
        later.start_soon(self._until_answered, message.number, pending.wait, self._patience_s())

    async def _tell(self, ref: Ref, _later: TaskGroup, draw: Callable[[], Do]) -> None:
        message = draw()
        overflow: Any = self.random.choice(["wait", "reject", "drop_oldest"])
        with contextlib.suppress(Rejected):
            await ref.tell(message, timeout_s=self._timeout_s(), overflow=overflow)
            self.seen.accepted.add(message.number)

    async def _fail_the_store(self, _ref: Ref, _later: TaskGroup, _draw: Callable[[], Do]) -> None:
        fault = self.random.choice(["before", "before", "after", "uncertain", "read"])
        if fault == "read":
            self.store.fail_next_read(StoreUnavailable("asleep"))
        elif fault == "before":
            self.store.fail_next_commit(StoreFull("full"))
        else:
            self.store.fail_next_commit(StoreUnavailable("lost", uncertain=True), after_write=fault == "after")

    async def _passivate(self, ref: Ref, _later: TaskGroup, _draw: Callable[[], Do]) -> None:
        ref.passivate()

    async def _resume(self, ref: Ref, _later: TaskGroup, _draw: Callable[[], Do]) -> None:
        cell = self.cell(ref.id)
        if cell is not None and cell.state in (State.FAILED, State.STOPPED):
            self.seen.crashes[ref.id.key].clear()
        self.runtime.resume(*ref.id.parts)

    async def _watch(self, ref: Ref, later: TaskGroup, _draw: Callable[[], Do]) -> None:
        async def watch() -> None:
            ended = await ref.wait_ended()
            self.endings[ended.reason] += 1

        later.start_soon(watch)

    async def _stop(self, ref: Ref, later: TaskGroup, _draw: Callable[[], Do]) -> None:
        await self._in_time(ref.stop, later, math.inf)

    async def _drain(self, ref: Ref, later: TaskGroup, _draw: Callable[[], Do]) -> None:
        timeout_s = self.random.choice([0.0, 0.2, 5.0])
        await self._in_time(partial(ref.drain, timeout_s=timeout_s), later, timeout_s)

    async def _kill(self, ref: Ref, _later: TaskGroup, _draw: Callable[[], Do]) -> None:
        ref.kill()

    async def _release(self, _ref: Ref, _later: TaskGroup, _draw: Callable[[], Do]) -> None:
        for poison in self.runtime.quarantine.list()[:1]:
            number = number_of(poison.message)
            self.seen.released[number] += 1  # before it runs, which may be at once
            with contextlib.suppress(Rejected):
                self.runtime.release(poison.number)
                self.seen.accepted.add(number)

    async def _purge(self, ref: Ref, _later: TaskGroup, _draw: Callable[[], Do]) -> None:
        self.seen.purged.update(number_of(poison.message) for poison in self.runtime.quarantine.list(ref.id))
        self.runtime.quarantine.purge(ref.id)

    # Parts of operations --------------------------------------------------------------------------------------------

    def _noted(self, ref: Ref, message: Do) -> Do:
        self.program.asked[message.number] = (ref.id.key, message)
        return message

    def _timeout_s(self) -> float:
        return self.random.choice([0.05, 1.0, 30.0, math.inf])

    def _patience_s(self) -> float:
        return self.random.choice([0.0, 0.2, 100.0, math.inf])

    async def _until_answered(self, number: int, ask: Callable[[], Any], patience_s: float) -> None:
        outcome = "cancelled"
        try:
            with anyio.move_on_after(patience_s):
                assert await ask() == number
                outcome = "reply"
        except CallboardError as error:
            outcome = type(error).__name__
            if not isinstance(error, Rejected | Failed | Unknown | Refused):
                raise
        finally:
            self.outcome(number, outcome)

    async def _in_time(self, end: Callable[[], Any], later: TaskGroup, timeout_s: float) -> None:
        async def in_time() -> None:
            began_s = anyio.current_time()
            await end()
            took_s = anyio.current_time() - began_s
            if took_s > timeout_s + 0.001:
                self.seen.faults.append(f"a drain of {timeout_s} s took {took_s} s")

        later.start_soon(in_time)

    def _draw(self, sender: int, order: int, *, depth: int = 0) -> Do:
        chance, choice = self.random.random, self.random.choice
        (kind,) = self.random.choices(list(KINDS), list(KINDS.values()))
        if (kind is DoAsk and depth > 2) or (kind is DoSupervise and not self.program.families):
            kind = DoPlain
        work: dict[str, Any] = {
            "number": self.program.number(),
            "sender": sender,
            "order": order,
            "writes": chance() < 0.5,
            "sleeps_s": choice([0.0, 0.02, 0.5, 20.0]),
            "cleanup_s": choice([0.0, 0.0, 0.05]),
            "crashes": choice([1, 2, 9, 9]) if chance() < (0.5 if kind is DoAgain else 0.1) else 0,
            "refuses": chance() < 0.1,
            "forward": (self.program.number(), choice(ACTORS)) if chance() < 0.15 else None,
            "told": (self.program.number(), choice(ACTORS)) if chance() < 0.1 else None,
        }
        if kind is DoAsk:
            within = [
                Ask(choice(ACTORS), self._draw(NESTED, 0, depth=depth + 1), choice([0.05, 5.0, math.inf]))
                for _ in range(choice([1, 1, 2]))
            ]
            return DoAsk(**work, asks=tuple(within))
        if kind is DoInTwo:
            return DoInTwo(**work, second=self.program.number() if chance() < 0.8 else 0)
        if kind is DoTimer:
            times: dict[str, Any] = {
                "tag": choice([1, 2]),
                "delay_s": choice([0.0, 0.5]),
                "period_s": choice([0.0, 0.4, 0.4, 4.0]),
            }
            return DoTimer(**work, **times, cancels=chance() < 0.3)
        if kind is DoWatch or kind is DoSupervise:
            return kind(**work, target=choice(ACTORS))
        return kind(**work)

    async def _look(self) -> None:
        """Whenever nothing moves, nobody who could work has work, and nobody waits in a circle."""
        for turn in range(60):
            # A moment at which nothing else is due: time has only come this far because nobody had anything to do.
            await anyio.sleep(0.1 + 1e-5 * math.sqrt(2) if turn else 1e-5)
            for cell in self.runtime._registry:  # pyright: ignore[reportPrivateUsage] - must not show in the API
                self._look_at(cell)
            for key in self.seen.asking:
                path = [key]
                while (after := self.seen.asking.get(path[-1])) is not None and after not in path:
                    path.append(after)
                if after == key:
                    self.seen.faults.append(f"{path} ask each other in a circle")

    def _look_at(self, cell: Cell) -> None:
        queued = sum(1 for _ in cell.box) if cell.box is not None else 0
        could_work = cell.state in (State.READY, State.STOPPING) or (cell.state is State.ABSENT and not cell.gate)
        if cell.running is None and queued and could_work:
            self.seen.faults.append(f"{cell.id} is {cell.state.name}, idle and has {queued} messages in its mailbox")
        if cell.state is State.FAILED and not self.program.families:
            crashes = self.seen.crashes[cell.id.key]
            if len(crashes_in(crashes, self.policy.window_s)) <= self.policy.restarts_max:
                self.seen.faults.append(f"{cell.id} has failed after {crashes}: within its budget")

    def disk_times_s(self) -> tuple[float, float]:
        return self.random.uniform(0.0, self.disk_slowest_s), self.random.uniform(0.0, self.disk_slowest_s)

    # For actors -----------------------------------------------------------------------------------------------------

    def loading(self, actor: Player) -> None:
        key = actor.id.key
        crashes = crashes_in(self.seen.crashes[key], self.policy.window_s)
        if len(crashes) > self.policy.restarts_max and not self.program.families:
            self.seen.faults.append(f"{actor.id} was restarted after crashes at {crashes}: beyond its budget")
        if self.random.random() < self._crashes_in_load:
            self.seen.crashes[key].append(anyio.current_time())
            raise ZeroDivisionError

    def load_delay_s(self) -> float | None:
        return self.random.choice([0.0, 0.3]) if self._loads_slowly else None

    def cell(self, id: ActorId) -> Cell | None:
        return self.runtime._registry.find(id)  # pyright: ignore[reportPrivateUsage] - see _look

    def is_current(self, context: Context) -> bool:
        cell = self.cell(context.id)
        return cell is not None and cell.context is context

    async def ask_within(self, context: Context, ask: Ask, outer: DoAsk) -> None:
        number, outcome, now = ask.message.number, "cancelled", context.now
        self.program.asked[number] = (ask.key, ask.message)
        assert context.delivery is not None
        waiting = (*context.delivery.chain, context.id) if context.delivery.awaited else (context.id,)
        until = min(context.deadline, now() + ask.timeout_s)
        try:
            await context.actor("player", ask.key).ask(ask.message, timeout_s=ask.timeout_s)
            outcome = "reply"
        except CallboardError as error:
            outcome = type(error).__name__
        finally:
            self.outcome(number, outcome)
            if now() > until + 0.001:
                self.seen.faults.append(f"{number}, asked within {outer.number}, ended {now() - until} s late")
            if ActorId("player", ask.key) in waiting and outcome not in ("CyclicAsk", "Stopping"):
                self.seen.faults.append(f"{number} was asked of one that waits for it, and ended with {outcome}")

    def outcome(self, number: int, outcome: str) -> None:
        self.program.outcomes[number].append(outcome)


def crashes_in(crashes: list[float], window_s: float) -> list[float]:
    """Those of the crashes that the budget counted at the last one."""
    return [crash for crash in crashes if crash > crashes[-1] - window_s]


def twin_of(store: MemoryStore) -> MemoryStore:
    """A second handle on what the store holds, while the first one stays open: as another host would have."""
    twin = MemoryStore(keep_history=True)
    twin._contents = store._contents  # pyright: ignore[reportPrivateUsage] - the fake has no hosts to share it with
    twin.committed = store.committed
    return twin


def played(seed: int, backend: Backend = "trio") -> Program:
    """Run one program to its end; `kernel_checks.check` says what did not hold."""
    program = Program(seed, backend)
    random.seed(seed)  # the supervisor's jitter
    run_in_virtual_time(program.main, backend=backend, seed=seed, limit_s=LIMIT_S)
    return program
