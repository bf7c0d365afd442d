"""One request and its answer: which clock holds when, what comes behind an answer, what no error shows."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from both_backends import on_both_backends
from pool_server import Peer, client_context, response, serve, server_context

from callboard import (
    BadRequest,
    Delta,
    Message,
    ModelRequest,
    ModelUnavailable,
    OpenAIChat,
    RetryPolicy,
    Stalled,
    ToolCall,
)
from callboard.testing import FakeUpstream, UpstreamAnswer, refuse

ONCE = RetryPolicy(retries_max=0, rate_limit_patience_s=0)
REQUEST = ModelRequest((Message(role="user", content="hello"),))


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


def piece(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


class EventServer:
    """Answers each request with these bytes, each after its pause in seconds, and then keeps the line open."""

    def __init__(self, *pieces: tuple[float, bytes]) -> None:
        self._pieces = pieces

    async def answer(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await stream.receive()
                await stream.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                for pause_s, data in self._pieces:
                    await anyio.sleep(pause_s)
                    await stream.send(data)
                await anyio.sleep(math.inf)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass  # the client has had enough

    async def talk(self, client: Callable[[str], Awaitable[None]]) -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            tasks.start_soon(listener.serve, self.answer)
            await client(f"http://127.0.0.1:{port}/v1")
            tasks.cancel_scope.cancel()


@on_both_backends
async def test_a_stream_that_has_begun_is_not_cut_off_by_the_deadline_of_its_first_piece() -> None:
    async def client(url: str) -> None:
        chat = OpenAIChat(base_url=url, model="m", retries=ONCE, first_byte_timeout_s=0.3, progress_timeout_s=20)
        shown: list[Delta] = []
        answer = await chat.complete(REQUEST, on_delta=shown.append)

        assert answer.message.text == "12345678"
        assert len(shown) == 8

    steady = [(0.08, piece(str(number))) for number in range(1, 8)]
    await EventServer(*steady, (0.08, piece("8", "stop")), (0, event(b"[DONE]"))).talk(client)


@on_both_backends
async def test_a_stream_that_stops_after_a_quick_first_piece_has_stalled_by_its_progress_deadline() -> None:
    async def client(url: str) -> None:
        chat = OpenAIChat(base_url=url, model="m", retries=ONCE, first_byte_timeout_s=20, progress_timeout_s=0.2)
        with anyio.fail_after(5), pytest.raises(Stalled, match=r"0\.2 s"):
            await chat.complete(REQUEST, on_delta=lambda _: None)

    await EventServer((0, piece("one"))).talk(client)


@on_both_backends
async def test_a_stream_that_never_begins_has_stalled_by_the_deadline_of_its_first_piece() -> None:
    async def client(url: str) -> None:
        chat = OpenAIChat(base_url=url, model="m", retries=ONCE, first_byte_timeout_s=0.2, progress_timeout_s=20)
        with anyio.fail_after(5), pytest.raises(Stalled, match=r"within 0\.2 s"):
            await chat.complete(REQUEST, on_delta=lambda _: None)

    await EventServer((0, b": comments are no progress\n\n")).talk(client)


@on_both_backends
async def test_a_stream_that_flows_without_end_is_cut_off_by_the_deadline_of_the_whole() -> None:
    async def client(url: str) -> None:
        chat = OpenAIChat(base_url=url, model="m", retries=ONCE, timeout_s=0.3)
        with anyio.fail_after(5), pytest.raises(Stalled, match=r"to its end within 0\.3 s"):
            await chat.complete(REQUEST, on_delta=lambda _: None)

    await EventServer(*((0.05, piece("on and on")) for _ in range(100))).talk(client)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize(
    "behind",
    [
        event({"error": {"message": "boom", "code": 500}}),
        event(b'{"choices":['),
        event(b"\xff"),
        b"data: " + b"x" * (9 * 1024 * 1024),
    ],
    ids=["an error", "half an event", "no text", "an endless line"],
)
def test_what_is_wrong_behind_a_whole_answer_costs_the_connection_only(behind: bytes, backend: str) -> None:
    async def client(url: str) -> None:
        chat = OpenAIChat(base_url=url, model="m", retries=ONCE)
        with anyio.fail_after(20):
            answer = await chat.complete(REQUEST, on_delta=lambda _: None)

        assert (answer.message.text, answer.finish_reason) == ("whole", "stop")

    anyio.run(EventServer((0, piece("whole", "stop")), (0.02, behind)).talk, client, backend=backend)


@on_both_backends
async def test_an_error_in_the_middle_of_an_answer_is_one() -> None:
    async def client(url: str) -> None:
        chat = OpenAIChat(base_url=url, model="m", retries=ONCE)
        with pytest.raises(ModelUnavailable, match="boom"):
            await chat.complete(REQUEST, on_delta=lambda _: None)

    await EventServer((0, piece("half")), (0, event({"error": {"message": "boom", "code": 500}}))).talk(client)


@on_both_backends
async def test_an_answer_that_ended_with_an_error_has_the_words_that_follow() -> None:
    async def client(url: str) -> None:
        chat = OpenAIChat(base_url=url, model="m", retries=ONCE)
        with pytest.raises(ModelUnavailable, match="out of memory"):
            await chat.complete(REQUEST, on_delta=lambda _: None)

    behind = event({"error": {"message": "the provider is out of memory", "code": 502}})
    await EventServer((0, piece("half")), (0, piece("", "error")), (0.02, behind)).talk(client)


@on_both_backends
async def test_what_on_delta_raises_is_the_callers_own_whatever_it_is() -> None:
    async def client(url: str) -> None:
        def listener(_: Delta) -> None:
            raise httpx.ReadError("of another connection")

        chat = OpenAIChat(base_url=url, model="m", retries=ONCE)
        with pytest.raises(httpx.ReadError, match="of another connection"):
            await chat.complete(REQUEST, on_delta=listener)

    await EventServer((0, piece("half"))).talk(client)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_hook_that_raises_for_the_status_leaves_a_typed_error(backend: str) -> None:
    async def raise_for_status(response: httpx.Response) -> None:
        response.raise_for_status()

    async def body() -> None:
        hooks = {"response": [raise_for_status]}
        async with FakeUpstream([refuse(500), "at last"]) as upstream, httpx.AsyncClient(event_hooks=hooks) as client:
            patient = RetryPolicy(retries_max=1, first_s=0.001, max_s=0.001)
            chat = OpenAIChat(base_url=upstream.url, model="m", client=client, retries=patient)

            assert (await chat.complete(REQUEST)).message.text == "at last"

    anyio.run(body, backend=backend)


SECRET = 'My "card" is 4111-1111'
SAID = ModelRequest(
    (
        Message(role="user", content=[{"type": "text", "text": SECRET}, {"type": "text", "text": "and more"}]),
        Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments='{"pin": "9999"}'),)),
        Message(role="tool", content="balance 77", tool_call_id="c"),
    )
)


@pytest.mark.parametrize(
    ("echo", "secret"),
    [
        (refuse(401, "Incorrect API key provided: sk-1234"), "sk-1234"),
        (refuse(401, "Bad header 'Bearer sk-1234'"), "sk-1234"),
        (refuse(400, f"cannot read: {SECRET}"), "4111"),
        (refuse(400, f"cannot read: {msgspec.json.encode(SECRET).decode()}"), "4111"),
        (refuse(400, 'arguments {"pin": "9999"} do not fit'), "9999"),
        (refuse(400, "content 'balance 77' is no JSON"), "balance 77"),
    ],
)
def test_no_error_repeats_a_key_or_what_messages_say(echo: UpstreamAnswer, secret: str) -> None:
    async def body() -> None:
        async with FakeUpstream([echo]) as upstream:
            keyed = {"Authorization": "Bearer sk-1234"}
            chat = OpenAIChat(base_url=upstream.url, model="m", retries=ONCE, headers=keyed)
            with pytest.raises(Exception, match=r"\[…\]") as caught:
                await chat.complete(SAID)
            await chat.aclose()

            assert secret not in str(caught.value)

    anyio.run(body, backend="trio")


def test_a_proxy_of_a_kind_that_is_not_known_is_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://user:pa55word@127.0.0.1:1")

    async def body() -> None:
        chat = OpenAIChat(base_url="http://far.example/v1", model="m")
        with pytest.raises(BadRequest, match="transport=") as caught:
            await chat.complete(REQUEST)

        assert caught.value.tries == 1
        assert "pa55word" not in str(caught.value)

    anyio.run(body, backend="trio")


@on_both_backends
async def test_a_proxy_that_is_given_is_asked_for_the_whole_address() -> None:
    async with FakeUpstream() as upstream:
        proxy = upstream.url.removesuffix("/v1")
        chat = OpenAIChat(base_url="http://far.example/v1", model="m", retries=ONCE, proxy=proxy)
        await chat.complete(REQUEST)
        await chat.aclose()

        assert upstream.request_targets == ["http://far.example/v1/chat/completions"]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_context_for_tls_that_is_given_is_used(backend: str) -> None:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.send(response(b'{"choices":[{"message":{"content":"sealed"},"finish_reason":"stop"}]}'))

    async def body() -> None:
        async with serve(talk, tls=server_context("localhost")) as server:
            trusting, strange = (
                OpenAIChat(base_url=f"https://localhost:{server.port}/v1", model="m", retries=ONCE, ssl_context=context)
                for context in (client_context("localhost"), None)
            )
            answer = await trusting.complete(REQUEST)
            with pytest.raises(ModelUnavailable, match=r"(?i)certificate"):
                await strange.complete(REQUEST)
            await trusting.aclose()

            assert answer.message.text == "sealed"

    anyio.run(body, backend=backend)


def test_a_proxy_beside_a_transport_of_the_callers_is_refused() -> None:
    with pytest.raises(ValueError, match="give them to your transport"):
        OpenAIChat(base_url="http://host/v1", model="m", transport=httpx.AsyncHTTPTransport(), proxy="http://p:1")


@pytest.mark.parametrize("proxy", ["socks5://me:pa55word@host:1", "http://me:pa55word@[bad", "host:3128", "http://"])
def test_a_proxy_that_is_none_is_refused_at_the_door_and_its_password_not_shown(proxy: str) -> None:
    with pytest.raises(ValueError, match=r"prox") as caught:
        OpenAIChat(base_url="http://host/v1", model="m", proxy=proxy)

    assert "pa55word" not in str(caught.value)


def test_no_proxy_may_name_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
            monkeypatch.setenv("NO_PROXY", upstream.url.removeprefix("http://").removesuffix("/v1"))
            chat = OpenAIChat(base_url=upstream.url, model="m", retries=ONCE)

            answer = await chat.complete(REQUEST)
            await chat.aclose()

            assert answer.message.text == "echo: hello"

    anyio.run(body, backend="trio")
