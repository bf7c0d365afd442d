"""OpenAIChat over real sockets, on both backends: which requests are made again, and what a run makes of the rest."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from callboard import (
    Agent,
    Delta,
    Message,
    ModelAnswer,
    ModelError,
    ModelRequest,
    OpenAIChat,
    RateLimited,
    RunFailed,
    Runtime,
)
from callboard.actors.agent_spec import RunPolicy
from callboard.actors.errors import ModelUnavailable, Refused, Truncated
from callboard.actors.retry import RetryPolicy
from callboard.runtime.budget import Backoff
from callboard.testing import FakeUpstream, ScriptStep, answer, fault, refuse

BACKENDS = ["trio", "asyncio"]
REQUEST = ModelRequest((Message(role="user", content="hello"),))
QUICK = RetryPolicy(first_s=0.001, max_s=0.001, rate_limit_patience_s=2.0)
QUICK_RUN = RunPolicy(backoff=Backoff(first_s=0.001, max_s=0.001))


def run(body: Callable[[], Awaitable[None]], backend: str) -> None:
    async def guarded() -> None:
        with anyio.fail_after(20):
            await body()

    anyio.run(guarded, backend=backend)


def on_both_backends(body: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: str) -> None:
        run(body, backend)

    return test


def client_of(upstream: FakeUpstream, **options: Any) -> OpenAIChat:
    chosen: dict[str, Any] = {"base_url": upstream.url, "model": "fake", "retries": QUICK, **options}
    return OpenAIChat(**chosen)


async def ask(upstream: FakeUpstream, *, seen: list[str] | None = None, **options: Any) -> ModelAnswer:
    """One call; streamed where what is `seen` is wanted."""
    chat = client_of(upstream, **options)

    def note(delta: Delta) -> None:
        assert seen is not None
        seen.append(delta.text)

    try:
        return await chat.complete(REQUEST, on_delta=None if seen is None else note)
    finally:
        statistics = chat.statistics()
        assert (statistics.in_use, statistics.waiting) == (0, 0)
        await chat.aclose()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "step",
    [
        refuse(408),
        refuse(409),
        refuse(429),
        refuse(429, headers={"retry-after-ms": "5"}),
        refuse(500),
        refuse(503, retry_after=0.005),
        refuse(400, headers={"x-should-retry": "true"}),
        refuse(200, code=502),
        fault("reset"),
        fault("close"),
        fault("not_http"),
    ],
    ids=lambda step: step.fault or f"{step.status}-{len(step.headers)}",
)
def test_what_may_pass_is_made_again_and_nothing_of_it_shows(step: ScriptStep, backend: str, streamed: bool) -> None:
    async def body() -> None:
        async with FakeUpstream([step, step, "fine at last"]) as upstream:
            seen: list[str] = []
            got = await ask(upstream, seen=seen if streamed else None)

            assert got.message.text == "fine at last"
            assert "".join(seen) == ("fine at last" if streamed else "")
            assert upstream.request_count == 3

    run(body, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (refuse(429, code="insufficient_quota"), Refused),
        (refuse(401), Refused),
        (refuse(400), ModelError),
        (refuse(404), ModelError),
        (refuse(500, headers={"x-should-retry": "false"}), ModelUnavailable),
        (refuse(429, headers={"x-should-retry": "false"}), RateLimited),
        (refuse(429, retry_after=121), RateLimited),
        (refuse(503, retry_after=121), ModelUnavailable),
        (fault("html"), ModelError),
        (fault("malformed_json"), ModelError),
    ],
)
def test_what_another_try_does_not_help_is_asked_once(step: ScriptStep, kind: type[ModelError], backend: str) -> None:
    async def body() -> None:
        async with FakeUpstream([step]) as upstream:
            with pytest.raises(kind) as raised:
                await ask(upstream)

            assert raised.value.tries == 1
            assert upstream.request_count == 1

    run(body, backend)


@on_both_backends
async def test_two_retries_and_then_the_error_with_all_tries_counted() -> None:
    async with FakeUpstream([refuse(500)] * 5) as upstream:
        with pytest.raises(ModelUnavailable) as raised:
            await ask(upstream)

        assert raised.value.tries == 3
        assert upstream.request_count == 3


@on_both_backends
async def test_a_stream_that_breaks_after_its_first_piece_is_never_made_again() -> None:
    for kind in ("reset_mid_stream", "close_mid_stream", "close_mid_unframed_stream", "error_in_stream"):
        async with FakeUpstream([fault(kind)]) as upstream:
            seen: list[str] = []
            with pytest.raises((ModelUnavailable, Truncated)):
                await ask(upstream, seen=seen)

            assert seen
            assert upstream.request_count == 1


@on_both_backends
async def test_a_429_keeps_the_other_calls_of_the_client_away() -> None:
    async with FakeUpstream([refuse(429, retry_after=0.3)]) as upstream:
        chat, began = client_of(upstream), anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(chat.complete, REQUEST)
            await anyio.sleep(0.1)
            tasks.start_soon(chat.complete, REQUEST)
            await anyio.sleep(0.1)

            assert upstream.request_count == 1
        took_s = anyio.current_time() - began
        await chat.aclose()

        assert upstream.request_count == 3
        assert took_s >= 0.3
        assert chat.statistics().rate_limited == 1


@on_both_backends
async def test_a_rate_limit_that_outlasts_patience_goes_up() -> None:
    async with FakeUpstream(lambda _: refuse(429, retry_after=0.04)) as upstream:
        with pytest.raises(RateLimited) as raised:
            await ask(upstream, retries=RetryPolicy(rate_limit_patience_s=0.1))

        assert raised.value.tries == upstream.request_count == 3
        assert raised.value.retry_after_s == 0.04


@on_both_backends
async def test_a_call_cancelled_between_two_tries_is_gone() -> None:
    async with FakeUpstream([refuse(503, retry_after=5)]) as upstream:
        chat = client_of(upstream, connections_max=1)
        with anyio.move_on_after(0.1) as scope:
            await chat.complete(REQUEST)
        got = await chat.complete(REQUEST)
        await chat.aclose()

        assert scope.cancelled_caught
        assert got.message.text == "echo: hello"
        assert upstream.request_count == 2


# What the run makes of it ---------------------------------------------------------------------------------------------


@on_both_backends
async def test_a_run_whose_client_was_refused_twice_needs_one_attempt() -> None:
    async with FakeUpstream([refuse(500), refuse(429), "fine"]) as upstream, Runtime.in_memory() as runtime:
        model = client_of(upstream)
        reply = await Agent("A", model=model, runtime=runtime, policy=QUICK_RUN).chat("hello")

        assert (reply.text, reply.attempts) == ("fine", 1)


@on_both_backends
async def test_the_tries_of_client_and_run_do_not_multiply() -> None:
    async with FakeUpstream(lambda _: refuse(500)) as upstream, Runtime.in_memory() as runtime:
        model = client_of(upstream)
        with pytest.raises(RunFailed, match="answered 500"):
            await Agent("A", model=model, runtime=runtime, policy=QUICK_RUN).chat("hello")

        assert upstream.request_count == 6  # attempts of 3 requests each, until 4 are spent


@on_both_backends
async def test_a_stream_that_breaks_is_begun_anew_by_the_run() -> None:
    async with FakeUpstream([fault("reset_mid_stream"), answer("one two")]) as upstream, Runtime.in_memory() as runtime:
        model = client_of(upstream)
        async with Agent("A", model=model, runtime=runtime, policy=QUICK_RUN).stream("hello") as stream:
            async for _ in stream:
                pass

        assert (stream.reply.text, stream.reply.attempts) == ("one two", 2)
