"""OpenAIChat over real sockets, on both backends: every fault is a typed error, and a whole answer is never lost."""

import gzip
import os
import resource
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest

from callboard import (
    BadRequest,
    BadResponse,
    ContextOverflow,
    Delta,
    Message,
    ModelAnswer,
    ModelError,
    ModelRequest,
    ModelSettings,
    ModelUnavailable,
    OpenAIChat,
    RateLimited,
    Refused,
    Stalled,
    ToolCall,
    Truncated,
    Usage,
)
from callboard.actors.retry import RetryPolicy
from callboard.testing import FakeUpstream, FaultKind, UpstreamAnswer, answer, fault, refuse

BACKENDS = ["trio", "asyncio"]
KEY = "sk-a-very-secret-key"
SECRET = "my PIN is 0000"
REQUEST = ModelRequest((Message(role="user", content=SECRET),))
ONE_TRY = RetryPolicy(retries_max=0, rate_limit_patience_s=0.0)
"""Each fault by itself; test_repeated_requests.py has what follows from it."""


def on_both_backends(body: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: str) -> None:
        run(body, backend)

    return test


def run(body: Callable[[], Awaitable[None]], backend: str) -> None:
    async def guarded() -> None:
        with anyio.fail_after(20):
            await body()

    anyio.run(guarded, backend=backend)


def client_of(upstream: FakeUpstream, **options: Any) -> OpenAIChat:
    chosen: dict[str, Any] = {"base_url": upstream.url, "api_key": KEY, "model": "fake", "retries": ONE_TRY, **options}
    return OpenAIChat(**chosen)


def ignore(_: Delta) -> None:
    pass


async def ask(
    upstream: FakeUpstream, *, streamed: bool, request: ModelRequest = REQUEST, **options: Any
) -> ModelAnswer:
    """One call by a client of its own, which must leave nothing open."""
    chat = client_of(upstream, **options)
    try:
        return await chat.complete(request, on_delta=ignore if streamed else None)
    finally:
        await chat.aclose()
        while upstream.connections_open:  # noqa: ASYNC110 - a counter has no event
            await anyio.sleep(0.001)


# --- answers ---


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_has_text_usage_and_names(streamed: bool, backend: str) -> None:
    async def body() -> None:
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        script = [answer("Hello, you", usage=usage, headers={"x-request-id": "req_1"}, reasoning="hm")]
        async with FakeUpstream(script) as upstream:
            got = await ask(upstream, streamed=streamed)

            assert got == ModelAnswer(
                Message(role="assistant", content="Hello, you", extra={"reasoning_content": "hm"}),
                "stop",
                Usage(prompt_tokens=7, completion_tokens=2, total_tokens=9, requests=1),
                "fake",
                "req_1",
            )
            assert upstream.requests[0]["messages"] == [{"role": "user", "content": SECRET}]
            assert upstream.request_headers[0]["authorization"] == f"Bearer {KEY}"

    run(body, backend)


@on_both_backends
async def test_pieces_come_in_order_and_joined_they_are_the_text() -> None:
    pieces: list[Delta] = []
    async with FakeUpstream([answer("one two three", reasoning="hm", piece_delay_s=0.001)]) as upstream:
        chat = client_of(upstream)
        got = await chat.complete(REQUEST, on_delta=pieces.append)
        await chat.aclose()

    assert pieces == [Delta("reasoning", "hm"), Delta("text", "one"), Delta("text", " two"), Delta("text", " three")]
    assert got.message.text == "one two three"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_parallel_tool_calls_come_whole(streamed: bool, backend: str) -> None:
    async def body() -> None:
        calls = [("weather", '{"city":"Rome"}'), ("now", "{}")]
        async with FakeUpstream([answer(tool_calls=calls)]) as upstream:
            got = await ask(upstream, streamed=streamed)

            assert got.finish_reason == "tool_calls"
            assert got.message.content is None
            assert got.message.tool_calls == (
                ToolCall("call_1", "weather", '{"city":"Rome"}'),
                ToolCall("call_2", "now", "{}"),
            )

    run(body, backend)


@on_both_backends
async def test_line_separators_inside_a_text_are_text() -> None:
    text = "a\u2028b\u0085c\r\nd\ne 😀"
    async with FakeUpstream([answer(pieces=[text, text])]) as upstream:
        got = await ask(upstream, streamed=True)

        assert got.message.text == text * 2


@on_both_backends
async def test_a_server_that_ignores_the_wish_to_stream_is_understood() -> None:
    body = b'{"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}'
    pieces: list[Delta] = []
    async with FakeUpstream([UpstreamAnswer(body=b"\n\n \n" + body)]) as upstream:
        chat = client_of(upstream)
        got = await chat.complete(REQUEST, on_delta=pieces.append)
        await chat.aclose()

    assert (got.message.text, pieces) == ("hello", [Delta("text", "hello")])


@on_both_backends
async def test_a_compressed_body_is_read() -> None:
    body = gzip.compress(b'{"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}')
    async with FakeUpstream([UpstreamAnswer(body=body, headers={"content-encoding": "gzip"})]) as upstream:
        got = await ask(upstream, streamed=False)

        assert got.message.text == "hello"


@on_both_backends
async def test_settings_of_the_request_go_before_those_of_the_client() -> None:
    mine = ModelSettings(temperature=0.1, seed=1, extra_body={"top_k": 1, "min_p": 0})
    theirs = ModelSettings(model="other", temperature=0.0, extra_body={"top_k": 2})
    async with FakeUpstream() as upstream:
        await ask(upstream, streamed=False, settings=mine, request=ModelRequest(REQUEST.messages, settings=theirs))

        sent = upstream.requests[0]
        assert (sent["model"], sent["temperature"], sent["seed"]) == ("other", 0.0, 1)
        assert (sent["top_k"], sent["min_p"]) == (2, 0)


# --- faults: each row of the table in FACTS.md ---

ANSWER = "an answer"


@pytest.mark.parametrize(
    ("kind", "whole", "streamed"),
    [
        ("reset", ModelUnavailable, ModelUnavailable),
        ("close", ModelUnavailable, ModelUnavailable),
        ("reset_mid_stream", ModelUnavailable, ModelUnavailable),
        ("close_mid_stream", ModelUnavailable, ModelUnavailable),
        ("close_mid_unframed_stream", ModelUnavailable, Truncated),
        ("error_in_stream", ModelUnavailable, ModelUnavailable),
        ("malformed_json", BadResponse, BadResponse),
        ("invalid_utf8", BadResponse, BadResponse),
        ("no_done", ANSWER, ANSWER),
        ("no_finish_reason", ANSWER, Truncated),
        ("hang", ModelUnavailable, Stalled),
        ("hang_mid_stream", ModelUnavailable, Stalled),
        ("slow_loris", Stalled, Stalled),
        ("comments_only", Stalled, Stalled),
        ("close_after_answer", ANSWER, ANSWER),
        ("html", BadResponse, BadResponse),
        ("not_http", ModelUnavailable, ModelUnavailable),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fault_is_a_typed_error_that_may_be_retried_or_no_fault_at_all(
    kind: FaultKind, whole: type[ModelError] | str, streamed: type[ModelError] | str, backend: str
) -> None:
    async def body() -> None:
        async with FakeUpstream(lambda _: fault(kind, text=ANSWER)) as upstream:
            for stream, expected in ((False, whole), (True, streamed)):
                outcome: str | ModelError
                try:
                    got = await ask(upstream, streamed=stream, progress_timeout_s=0.15, timeout_s=0.15)
                    outcome = got.message.text
                except ModelError as error:
                    outcome = error

                if isinstance(outcome, str):
                    assert outcome == expected
                else:
                    assert type(outcome) is expected
                    assert outcome.transient
                    assert KEY not in repr(outcome)
                    assert SECRET not in repr(outcome)
            assert upstream.request_count == 2

    run(body, backend)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (refuse(400, "no such field"), BadRequest),
        (refuse(400, "too long", code="context_length_exceeded"), ContextOverflow),
        (refuse(400, "too long", kind="exceed_context_size_error", code=400), ContextOverflow),
        (refuse(401, f"Incorrect API key provided: {KEY}"), Refused),
        (refuse(404, body=b"404 page not found"), BadRequest),
        (refuse(422, body=b'{"detail": [{"loc": ["body"], "msg": "bad", "input": "my PIN is 0000"}]}'), BadRequest),
        (refuse(429, "slow down"), RateLimited),
        (refuse(429, "pay", code="insufficient_quota"), Refused),
        (refuse(500, body=b"Internal Server Error"), ModelUnavailable),
        (refuse(503, f"cannot say: {SECRET}"), ModelUnavailable),
        (refuse(200, "an error in a good response", code=500), ModelUnavailable),
        (refuse(302, headers={"location": "http://127.0.0.1:1/"}), BadResponse),
        (UpstreamAnswer(body=b'{"choices": []}'), BadResponse),
        (UpstreamAnswer(body=b""), BadResponse),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_refusal_is_a_typed_error_without_key_or_content(
    refusal: UpstreamAnswer, kind: type[ModelError], backend: str
) -> None:
    async def body() -> None:
        async with FakeUpstream([refusal, refusal]) as upstream:
            for streamed in (False, True):
                with pytest.raises(ModelError) as caught:
                    await ask(upstream, streamed=streamed)

                assert type(caught.value) is kind
                assert KEY not in repr(caught.value)
                assert SECRET not in repr(caught.value)

    run(body, backend)


@on_both_backends
async def test_a_rate_limit_says_when_to_come_back() -> None:
    async with FakeUpstream([refuse(429, retry_after=2.5, headers={"x-request-id": "req_9"})]) as upstream:
        with pytest.raises(RateLimited) as caught:
            await ask(upstream, streamed=True)

    assert (caught.value.retry_after_s, caught.value.status, caught.value.request_id) == (2.5, 429, "req_9")


@on_both_backends
async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with FakeUpstream() as upstream:
        pass

    with pytest.raises(ModelUnavailable, match="no connection"):
        await ask(upstream, streamed=False)


@contextmanager
def no_file_descriptor_left() -> Generator[None, None, None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@on_both_backends
async def test_want_of_file_descriptors_is_named_and_passes() -> None:
    async with FakeUpstream() as upstream:
        chat = client_of(upstream)
        await chat.complete(REQUEST)  # Python imports some modules at the first call only
        await chat.aclose()
        with no_file_descriptor_left(), pytest.raises(ModelUnavailable, match="process has no file descriptors left"):
            await chat.complete(REQUEST)
        answered = await chat.complete(REQUEST)
        await chat.aclose()

        assert answered.message.text


@pytest.mark.parametrize("key", [b"message", b"error", b"unknown"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_nested_without_end_is_a_bad_response(key: bytes, backend: str) -> None:
    deep = b'{"' + key + b'":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

    async def body() -> None:
        async with FakeUpstream([UpstreamAnswer(body=deep), answer(events=[deep, b"[DONE]"])]) as upstream:
            for streamed in (False, True):
                with pytest.raises(BadResponse, match="nested too deeply"):
                    await ask(upstream, streamed=streamed)

    run(body, backend)


@on_both_backends
async def test_a_refusal_nested_without_end_is_its_status() -> None:
    deep = b'{"error":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    async with FakeUpstream([UpstreamAnswer(status=400, body=deep)]) as upstream:
        with pytest.raises(BadRequest):
            await ask(upstream, streamed=False)


@on_both_backends
async def test_a_request_nested_without_end_is_refused_at_the_door() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    request = ModelRequest(REQUEST.messages, settings=ModelSettings(extra_body={"deep": deep}))
    async with FakeUpstream() as upstream:
        with pytest.raises(BadRequest, match="cannot be written as JSON"):
            await ask(upstream, streamed=False, request=request)

    assert not upstream.requests


def delta_event(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


@on_both_backends
async def test_a_stream_that_ends_with_finish_reason_error_is_no_answer() -> None:
    events = [delta_event({"content": "Hel"}), delta_event({}, "error"), b"[DONE]"]
    async with FakeUpstream([answer(events=events)]) as upstream:
        with pytest.raises(ModelUnavailable, match="finish_reason 'error'"):
            await ask(upstream, streamed=True)


@on_both_backends
async def test_an_empty_finish_reason_in_every_chunk_proves_nothing() -> None:
    events = [delta_event({"content": "Hel"}, ""), b"[DONE]"]
    async with FakeUpstream([answer(events=events)]) as upstream:
        with pytest.raises(Truncated):
            await ask(upstream, streamed=True)


@on_both_backends
async def test_what_a_script_raises_is_said_by_the_server() -> None:
    def script(body: dict[str, Any]) -> str:
        raise KeyError("a mistake in a test")

    async with FakeUpstream(script) as upstream:
        with pytest.raises(ModelUnavailable, match="a mistake in a test"):
            await ask(upstream, streamed=False)


@on_both_backends
async def test_slow_but_steady_is_not_stalled() -> None:
    async with FakeUpstream([answer("one two three four five", piece_delay_s=0.06)]) as upstream:
        got = await ask(upstream, streamed=True, progress_timeout_s=0.25)

        assert got.message.text == "one two three four five"


@on_both_backends
async def test_a_queue_of_our_own_is_not_a_stalled_server() -> None:
    async with FakeUpstream(lambda _: answer("done", delay_s=0.12)) as upstream:
        chat = client_of(upstream, connections_max=1, timeout_s=0.3, progress_timeout_s=0.3)
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(chat.complete, REQUEST)
        await chat.aclose()

        assert (upstream.request_count, upstream.in_flight_max) == (4, 1)


@on_both_backends
async def test_a_cancelled_call_closes_its_connection_at_once() -> None:
    async with FakeUpstream([fault("hang_mid_stream")]) as upstream:
        chat = client_of(upstream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: chat.complete(REQUEST, on_delta=lambda _: tasks.cancel_scope.cancel()))
        while upstream.connections_open:  # noqa: ASYNC110 - a counter has no event
            await anyio.sleep(0.001)

        assert upstream.in_flight == 0


@on_both_backends
async def test_what_on_delta_raises_comes_out_and_the_connection_is_closed() -> None:
    def burst(_: Delta) -> None:
        raise RuntimeError("the screen is gone")

    async with FakeUpstream([fault("hang_mid_stream")]) as upstream:
        chat = client_of(upstream)
        with pytest.raises(RuntimeError, match="the screen is gone"):
            await chat.complete(REQUEST, on_delta=burst)
        while upstream.connections_open:  # noqa: ASYNC110 - a counter has no event
            await anyio.sleep(0.001)


@on_both_backends
async def test_calls_run_side_by_side_and_reuse_connections() -> None:
    async with FakeUpstream(lambda _: answer("done", delay_s=0.02)) as upstream:
        chat = client_of(upstream)
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(chat.complete, REQUEST)
        await chat.aclose()

        assert upstream.in_flight_max == 20
        assert upstream.connections_total == 20


@on_both_backends
async def test_a_request_that_is_no_json_is_refused_at_the_door() -> None:
    request = ModelRequest((Message(role="user", content="\ud800"),))
    async with FakeUpstream() as upstream:
        with pytest.raises(BadRequest, match="cannot be written as JSON"):
            await ask(upstream, streamed=False, request=request)

        assert upstream.request_count == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_client_or_a_transport_of_the_callers_is_used_and_left_open(streamed: bool, backend: str) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, httpx.AsyncClient(headers={"x-mine": "1"}) as client:
            chat = client_of(upstream, client=client)
            got = await chat.complete(REQUEST, on_delta=ignore if streamed else None)
            await chat.aclose()

            assert got.message.text == f"echo: {SECRET}"
            assert upstream.request_headers[0]["x-mine"] == "1"
            assert not client.is_closed

    run(body, backend)


@on_both_backends
async def test_a_mock_transport_is_a_transport() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})

    chat = OpenAIChat(base_url="http://host/v1?api-version=1", model="m", transport=httpx.MockTransport(handle))

    assert (await chat.complete(REQUEST)).message.text == "hi"
