"""When a restart comes, and when there are no more of them. The same bodies on trio and asyncio."""

import logging
import random
from collections.abc import Awaitable, Callable

import anyio
import pytest

from callboard.runtime import (
    Actor,
    ActorFailed,
    Backoff,
    Context,
    Failed,
    Ref,
    Request,
    RestartPolicy,
    Runtime,
    Stopping,
    handles,
)
from callboard.store import MemoryStore, StoreUnavailable

Run = Callable[[Callable[[], Awaitable[None]]], None]

FIRST_S = 10.0


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.fixture(autouse=True)
def whole_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jitter, that a test can tell which delay it was."""
    monkeypatch.setattr(random, "random", lambda: 1.0)


class Ping(Request[float], frozen=True):
    """Answered with the time of the activation."""


class Crash(Request[None], frozen=True):
    pass


class CrashSlowly(Request[None], frozen=True):
    pass


class Write(Request[None], frozen=True):
    pass


class Patient(Actor):
    def load(self, context: Context) -> None:
        self.loaded_at = context.now()

    @handles(Ping)
    def ping(self, _message: Ping, _context: Context) -> float:
        return self.loaded_at

    @handles(Crash)
    def crash(self, _message: Crash, _context: Context) -> None:
        raise ZeroDivisionError

    @handles(CrashSlowly)
    async def crash_slowly(self, _message: CrashSlowly, _context: Context) -> None:
        await anyio.sleep(0.001)
        raise ZeroDivisionError

    @handles(Write)
    def write(self, _message: Write, context: Context) -> None:
        context.stage(head=b"x")


class Ward:
    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self.store = MemoryStore()
        self.runtime = Runtime(lambda: self.store, drain_timeout_s=1.0)
        backoff = Backoff(first_s=FIRST_S, max_s=4 * FIRST_S)
        self.runtime.register("patient", Patient, restart=policy or RestartPolicy(100, window_s=1e6, backoff=backoff))

    @property
    def patient(self) -> Ref:
        return self.runtime.actor("patient", "p")

    async def crash(self, message: Request[None] | None = None) -> float:
        """When it has crashed."""
        with pytest.raises(Failed):
            await self.patient.ask(message or Crash(), timeout_s=1e6)
        return anyio.current_time()

    async def back_after(self, crashed_at: float) -> float:
        return await self.patient.ask(Ping(), timeout_s=1e6) - crashed_at


def test_delays_double_up_to_their_bound(run: Run) -> None:
    async def body() -> None:
        ward = Ward()
        async with ward.runtime:
            delays = [await ward.back_after(await ward.crash()) for _ in range(4)]

            assert delays == pytest.approx([FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 4 * FIRST_S], abs=0.01)

    run(body)


def test_an_old_restart_does_not_hurry_a_new_one_after_a_kill(run: Run) -> None:
    async def body() -> None:
        ward = Ward()
        async with ward.runtime:
            await ward.crash()
            await anyio.sleep(1.0)
            ward.patient.kill()
            ward.runtime.resume("patient", "p")
            await ward.patient.ask(Ping())

            assert await ward.back_after(await ward.crash()) == pytest.approx(FIRST_S, abs=0.01)

    run(body)


@pytest.mark.parametrize("message", [Crash(), CrashSlowly()], ids=["plain", "async"])
def test_a_restart_that_came_due_after_a_kill_does_not_take_the_place_of_the_next_one(
    run: Run, message: Request[None]
) -> None:
    async def body() -> None:
        ward = Ward()
        async with ward.runtime:
            await ward.crash()
            ward.patient.kill()
            ward.runtime.resume("patient", "p")
            await ward.patient.ask(Ping())
            await anyio.sleep(2 * FIRST_S)

            assert await ward.back_after(await ward.crash(message)) == pytest.approx(FIRST_S, abs=0.01)

    run(body)


def test_after_a_healthy_spell_the_budget_and_the_delays_are_fresh(run: Run) -> None:
    async def body() -> None:
        backoff = Backoff(first_s=1.0, max_s=8.0)
        ward = Ward(RestartPolicy(restarts_max=2, window_s=1e9, backoff=backoff, healthy_s=100.0))
        async with ward.runtime:
            for _ in range(5):
                delays = [await ward.back_after(await ward.crash()) for _ in range(2)]
                assert delays == pytest.approx([1.0, 2.0], abs=0.01)
                await anyio.sleep(101.0)

            for _ in range(2):
                await ward.back_after(await ward.crash())
            await anyio.sleep(90.0)
            await ward.crash()
            with pytest.raises(ActorFailed):
                await ward.patient.ask(Ping())

    run(body)


def test_without_healthy_s_only_the_window_forgets_crashes(run: Run) -> None:
    async def body() -> None:
        ward = Ward(RestartPolicy(restarts_max=2, window_s=60.0, backoff=Backoff(first_s=1.0, max_s=1.0)))
        async with ward.runtime:
            for _ in range(6):
                await ward.back_after(await ward.crash())
                await anyio.sleep(30.0)
            for _ in range(2):
                await ward.crash()

            with pytest.raises(ActorFailed):
                await ward.patient.ask(Ping())

    run(body)


def test_a_budget_outlives_passivation_and_ends_with_resume(run: Run) -> None:
    async def body() -> None:
        ward = Ward(RestartPolicy(restarts_max=1, window_s=1e9, backoff=Backoff(first_s=1.0, max_s=1.0)))
        async with ward.runtime:
            await ward.back_after(await ward.crash())
            assert ward.patient.passivate()
            await ward.crash()
            with pytest.raises(ActorFailed):
                await ward.patient.ask(Ping())

            ward.runtime.resume("patient", "p")
            await ward.back_after(await ward.crash())
            assert ward.runtime.inspect("patient", "p").state == "ready"

    run(body)


def test_commits_that_are_refused_lengthen_the_wait_until_one_is_stored(run: Run) -> None:
    async def body() -> None:
        ward = Ward(RestartPolicy(restarts_max=0))
        async with ward.runtime:
            delays: list[float] = []
            for _ in range(3):
                ward.store.fail_next_commit(StoreUnavailable("the disk is full of sand"))
                delays.append(await ward.back_after(await ward.crash(Write())))
            await ward.patient.ask(Write())
            ward.store.fail_next_commit(StoreUnavailable("the disk is full of sand"))
            delays.append(await ward.back_after(await ward.crash(Write())))

            assert delays == pytest.approx([0.05, 0.1, 0.2, 0.05], abs=0.01)
            assert ward.runtime.statistics().crashes == 0

    run(body)


def test_a_repair_that_its_load_stages_and_the_store_refuses_is_tried_again(run: Run) -> None:
    class Repairing(Patient):
        def load(self, context: Context) -> None:
            super().load(context)
            context.stage(head=b"repaired")

    async def body() -> None:
        ward = Ward()
        ward.runtime.register("repairing", Repairing, restart=RestartPolicy(restarts_max=0))
        async with ward.runtime:
            started = anyio.current_time()
            for _ in range(3):
                ward.store.fail_next_commit(StoreUnavailable("the disk is full of sand"))

            assert await ward.runtime.actor("repairing", "r").ask(Ping()) - started == pytest.approx(0.35, abs=0.01)
            stored = ward.store.load("repairing:r")
            assert stored is not None
            assert stored.head == b"repaired"
            assert ward.runtime.actor("repairing", "r").passivate(), "it was counted once, however often it came"

    run(body)


def test_an_actor_whose_own_load_kills_it_is_stopped_and_its_caller_told(run: Run) -> None:
    class Suicidal(Patient):
        def load(self, context: Context) -> None:
            super().load(context)
            context.actor(*self.id.parts).kill()

    async def body() -> None:
        ward = Ward()
        ward.runtime.register("suicidal", Suicidal)
        async with ward.runtime:
            with pytest.raises(Stopping):
                await ward.runtime.actor("suicidal", "s").ask(Ping())

            assert ward.runtime.inspect("suicidal", "s").state == "stopped"
            assert await ward.patient.ask(Ping()) >= 0.0

    run(body)


def test_the_deadline_of_a_drain_that_ended_in_a_failure_does_not_end_the_next_incarnation(run: Run) -> None:
    attempts: list[int] = []

    class Fragile(Patient):
        def load(self, context: Context) -> None:
            super().load(context)
            attempts.append(1)
            if len(attempts) <= 2:
                raise ZeroDivisionError

    async def body() -> None:
        attempts.clear()
        ward = Ward()
        ward.runtime.register("fragile", Fragile, restart=RestartPolicy(1, backoff=Backoff(first_s=5.0, max_s=5.0)))
        async with ward.runtime:
            fragile = ward.runtime.actor("fragile", "f")
            queued = fragile.ask_nowait(Ping())
            await fragile.drain(timeout_s=20.0)
            with pytest.raises(ActorFailed):
                await queued.wait()
            ward.runtime.resume("fragile", "f")
            loaded_at = await fragile.ask(Ping())
            await anyio.sleep(60.0)

            assert await fragile.ask(Ping()) == loaded_at

    run(body)
