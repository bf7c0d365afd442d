"""The fake model server, asked by a plain HTTP client and by bare sockets: it is what others' tests stand on."""

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest

from callboard.testing import FakeUpstream, answer, fault, refuse


def on_both_backends(body: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    async def guarded() -> None:
        with anyio.fail_after(20):
            await body()

    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    def test(backend: str) -> None:
        anyio.run(guarded, backend=backend)

    return test


def body_of(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


async def post(upstream: FakeUpstream, body: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"{upstream.url}/chat/completions", json=body)


@on_both_backends
async def test_without_a_script_it_echoes_the_last_user_message() -> None:
    messages = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": [{"type": "text", "text": "last"}]},
        {"role": "assistant", "content": "then"},
    ]
    async with FakeUpstream() as upstream:
        response = await post(upstream, {"model": "m", "messages": messages})

        said = response.json()
        assert said["choices"][0]["message"] == {"role": "assistant", "content": "echo: last"}
        assert said["choices"][0]["finish_reason"] == "stop"
        assert said["usage"]["total_tokens"] > 0
        assert upstream.requests == [{"model": "m", "messages": messages}]


@on_both_backends
async def test_a_stream_ends_with_usage_if_asked_for_and_done() -> None:
    body = body_of("hello", stream=True, stream_options={"include_usage": True})
    async with FakeUpstream() as upstream:
        asked = (await post(upstream, body)).text
        not_asked = (await post(upstream, body_of("hello", stream=True))).text

    assert asked.endswith("data: [DONE]\n\n")
    assert '"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}' in asked
    assert "usage" not in not_asked


@on_both_backends
async def test_a_list_is_used_up_in_order_and_then_comes_the_echo() -> None:
    async with FakeUpstream(["one", refuse(503), answer("two")]) as upstream:
        upstream.queue("three")
        responses = [await post(upstream, body_of("hello")) for _ in range(5)]

    assert [response.status_code for response in responses] == [200, 503, 200, 200, 200]
    said = [response.json()["choices"][0]["message"]["content"] for response in responses if response.is_success]
    assert said == ["one", "two", "three", "echo: hello"]


@on_both_backends
async def test_a_function_of_the_request_answers_after_what_is_queued() -> None:
    async with FakeUpstream(lambda body: f"for {body['model']}") as upstream:
        upstream.queue("first")
        said = [(await post(upstream, body_of("hello"))).json() for _ in range(2)]

    assert [one["choices"][0]["message"]["content"] for one in said] == ["first", "for m"]


@on_both_backends
async def test_it_counts_what_runs_at_once_in_all_and_by_user() -> None:
    async with FakeUpstream(lambda _: answer("a", delay_s=0.05)) as upstream:
        async with anyio.create_task_group() as tasks:
            for user in ("ada", "ada", "bob"):
                tasks.start_soon(post, upstream, body_of("hello", user=user))

        assert upstream.in_flight == 0
        assert upstream.in_flight_max == 3
        assert upstream.in_flight_max_by == {"ada": 2, "bob": 1}


@on_both_backends
async def test_headers_and_retry_after_go_out_as_scripted() -> None:
    async with FakeUpstream([refuse(429, "slow down", retry_after=3, headers={"x-request-id": "r"})]) as upstream:
        response = await post(upstream, body_of("hello"))

    assert (response.headers["retry-after"], response.headers["x-request-id"]) == ("3", "r")
    assert response.json()["error"]["message"] == "slow down"


@on_both_backends
async def test_what_is_no_request_gets_an_error_and_not_an_end_of_the_server() -> None:
    async with FakeUpstream() as upstream, httpx.AsyncClient(trust_env=False) as client:
        no_json = await client.post(f"{upstream.url}/chat/completions", content=b"[1, 2")
        no_length = await client.post(f"{upstream.url}/chat/completions", content=_pieces())
        no_path = await client.get(f"{upstream.url}/nothing")
        models = await client.get(f"{upstream.url}/models")
        stream = await anyio.connect_tcp("127.0.0.1", int(upstream.url.split(":")[2].removesuffix("/v1")))
        async with stream:
            await stream.send(b"nonsense\r\n\r\n")
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

        assert [one.status_code for one in (no_json, no_length, no_path, models)] == [400, 411, 404, 200]
        assert (await post(upstream, body_of("still there"))).is_success


async def _pieces() -> AsyncIterator[bytes]:
    yield b"{}"


@on_both_backends
async def test_a_large_request_in_many_segments_arrives_whole() -> None:
    text = "x" * 3_000_000
    async with FakeUpstream() as upstream:
        response = await post(upstream, body_of(text))

    assert response.json()["choices"][0]["message"]["content"] == f"echo: {text}"


@on_both_backends
async def test_leaving_the_block_ends_what_hangs() -> None:
    async with anyio.create_task_group() as tasks:
        async with FakeUpstream([fault("hang")]) as upstream:
            tasks.start_soon(_post_in_vain, upstream)
            while not upstream.in_flight:  # noqa: ASYNC110 - a counter has no event
                await anyio.sleep(0.001)

        assert upstream.connections_open == 0


async def _post_in_vain(upstream: FakeUpstream) -> None:
    with pytest.raises(httpx.TransportError):
        await post(upstream, body_of("hello"))


@on_both_backends
async def test_two_servers_cannot_have_one_port() -> None:
    async with FakeUpstream() as upstream:
        port = int(upstream.url.split(":")[2].removesuffix("/v1"))
        with pytest.raises(OSError, match="in use"):
            await FakeUpstream(port=port).__aenter__()


def test_an_unknown_fault_is_refused_with_the_list_of_those_there_are() -> None:
    unknown: Any = "rest"

    with pytest.raises(ValueError, match="no fault 'rest': there are reset, close,"):
        fault(unknown)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_as_a_process_it_prints_its_address_and_ends_with_its_parents_pipe(backend: str) -> None:
    command = [sys.executable, "-m", "callboard.fake_upstream", "--backend", backend, "--until-stdin-ends"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        response = httpx.post(f"{url}/chat/completions", json=body_of("hello"), trust_env=False)
        counts = httpx.get(url.removesuffix("/v1") + "/statistics", trust_env=False).json()
        process.stdin.close()
        code = process.wait(timeout=10)

    assert response.json()["choices"][0]["message"]["content"] == "echo: hello"
    assert (counts["requests"], counts["in_flight_max"]) == (1, 1)
    assert code == 0
