"""Sessions expire by class: what is old goes, what runs or changes stays, whenever that happens."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

import anyio
import pytest

from callboard import Agent, Expiry, Retention, Runtime, Session, SessionManager, UnknownSession
from callboard.actors.session_messages import ExpireSession
from callboard.testing import ScriptedModel, fail_commit, run_in_virtual_time

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

DAY_S = 86_400.0


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Weeks pass here, so that both event loops need a clock that jumps."""
    backend: Literal["trio", "asyncio"] = request.param
    return lambda body: run_in_virtual_time(body, backend=backend, limit_s=1e7)


async def made(runtime: Runtime, id: str, *tags: str) -> Session:
    session = Session(runtime, id, owner="ann", tags=tags)
    await session.add_message("user", f"in {id}")
    return session


async def ids(runtime: Runtime) -> list[str]:
    return sorted(head.id for head in (await SessionManager(runtime).list()).sessions)


def test_each_class_is_kept_as_long_as_its_policy_says_and_others_for_ever(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            for id, *tags in (("t", "trial"), ("v", "vip"), ("tv", "trial", "vip"), ("o", "other"), ("n",)):
                await made(runtime, id, *tags)
            policies = [Retention("trial", 10), Retention("vip", 30)]

            await anyio.sleep(9 * DAY_S)
            assert (await manager.expire(policies)).deleted == 0
            await anyio.sleep(2 * DAY_S)
            assert (await manager.expire(policies)).deleted == 1
            assert await ids(runtime) == ["n", "o", "tv", "v"]
            await anyio.sleep(20 * DAY_S)
            assert (await manager.expire(policies)).deleted == 2
            assert await ids(runtime) == ["n", "o"]
            assert await manager.expire([*policies, Retention(None, 32)]) == Expiry()
            assert (await manager.expire([*policies, Retention(None, 30.5)])).deleted == 2
            assert await ids(runtime) == []

    run(body)


def test_the_policy_without_a_tag_is_not_for_sessions_that_have_one_of_their_own(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            for number in range(100):
                await made(runtime, f"v{number:03}", "vip")
            for number in range(100):
                await made(runtime, f"o{number:03}", "other")
            await anyio.sleep(5 * DAY_S)

            expiry = await SessionManager(runtime).expire([Retention(None, 1), Retention("vip", 10)])

            assert expiry.deleted == 100
            assert len((await SessionManager(runtime).list(tag="vip", limit=200)).sessions) == 100
            assert (await SessionManager(runtime).list(tag="other")).sessions == []

    run(body)


def test_a_change_of_whatever_kind_begins_the_time_anew(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            sessions = [await made(runtime, id, "trial") for id in "abcd"]
            await anyio.sleep(2 * DAY_S)
            await sessions[0].update_metadata({"n": 1})
            await sessions[1].add_message("user", "x")
            await Agent("A", model=ScriptedModel(), session=sessions[2]).chat("x")

            await SessionManager(runtime).expire([Retention("trial", 1)])

            assert await ids(runtime) == ["a", "b", "c"]

    run(body)


def test_a_session_that_changes_between_the_look_and_the_delete_is_spared(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = await made(runtime, "s")
            before_ms = runtime.wall_ms() + 1000
            await anyio.sleep(DAY_S)
            await session.add_message("user", "just now")

            assert await runtime.session_actor("s").ask(ExpireSession(before_ms)) == "changed"
            assert await runtime.session_actor("nobody").ask(ExpireSession(before_ms)) == "gone"
            assert await session.message_count() == 2

    run(body)


def test_a_turn_or_a_run_that_is_under_way_spares_its_session_unless_told_otherwise(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager, policies = SessionManager(runtime), [Retention(None, 1e-4)]
            agent = Agent("A", model=ScriptedModel(delay_s=40), session=await made(runtime, "turn"))
            await (await (await made(runtime, "run")).create_run()).start()
            failures: list[UnknownSession] = []

            async def chat() -> None:
                with pytest.raises(UnknownSession) as caught:
                    await agent.chat("a long question")
                failures.append(caught.value)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chat)
                await anyio.sleep(20)
                spared = await manager.expire(policies)

                assert (spared.deleted, sorted(spared.running)) == (0, ["run", "turn"])
                assert await ids(runtime) == ["run", "turn"]
                assert await manager.expire(policies, even_running=True) == Expiry(deleted=2)
            assert len(failures) == 1
            assert await ids(runtime) == []

    run(body)


def test_what_cannot_be_deleted_is_told_and_the_rest_goes(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            for id in "abc":
                await made(runtime, id)
            await anyio.sleep(DAY_S)
            fail_commit(runtime)

            expiry = await SessionManager(runtime).expire([Retention(None, 0.5)])

            assert (expiry.deleted, len(expiry.failed)) == (2, 1)
            assert await ids(runtime) == list(expiry.failed)

    run(body)


def test_sweeps_come_again_and_again_until_they_are_ended(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await made(runtime, "old")
            await anyio.sleep(2 * DAY_S)
            await made(runtime, "young")
            await manager.expire_every([Retention(None, 1)], period_s=3600)
            await anyio.sleep(60)
            assert await ids(runtime) == ["young"]
            await anyio.sleep(DAY_S + 3600)
            assert await ids(runtime) == []
            await manager.expire_every([])
            await made(runtime, "kept")
            await anyio.sleep(3 * DAY_S)

            assert await ids(runtime) == ["kept"]

    run(body)


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda: Retention("", 1), ValueError, "tag must not be empty"),
        (lambda: Retention(3, 1), TypeError, "tag"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] the test
        (lambda: Retention("t", "1"), TypeError, "number of days"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] the test
        (lambda: Retention("t", True), TypeError, "number of days"),
        (lambda: Retention("t", -1), ValueError, "from 0"),
        (lambda: Retention("t", float("nan")), ValueError, "from 0"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(make: Callable[[], Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        make()


def test_two_policies_for_one_class_are_refused_and_nothing_expires(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            await made(runtime, "s")
            await anyio.sleep(DAY_S)

            with pytest.raises(ValueError, match="two for None"):
                await SessionManager(runtime).expire([Retention(None, 0), Retention(None, 9)])
            for period_s in (0, -1, float("inf"), float("nan")):
                with pytest.raises(ValueError, match="period_s"):
                    await SessionManager(runtime).expire_every([Retention(None, 0)], period_s=period_s)

            assert await ids(runtime) == ["s"]

    run(body)
