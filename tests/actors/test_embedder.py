"""OpenAIEmbedder against a server on a real socket: what goes out, what comes back, and each fault as its error."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import httpx
import pytest

from callboard import (
    BadRequest,
    BadResponse,
    Memory,
    ModelError,
    ModelUnavailable,
    OpenAIEmbedder,
    RateLimited,
    Refused,
    RetryPolicy,
    Runtime,
)
from callboard.testing import FakeUpstream, UpstreamAnswer, fault, refuse

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

ONCE = RetryPolicy(retries_max=0, rate_limit_patience_s=0)


def embedder_at(upstream: FakeUpstream, **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(model="fake", base_url=upstream.url, api_key="sk-secret", **options)


def said(body: str) -> UpstreamAnswer:
    return UpstreamAnswer(body=body.encode())


def test_texts_go_out_in_batches_and_vectors_come_back_in_their_order(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            embedder = embedder_at(upstream, batch=2, dimensions=8, headers={"x-team": "a"})
            vectors = await embedder.embed(["tea", "milk", "tea"])

            assert vectors[0] == vectors[2] != vectors[1]
            assert {len(vector) for vector in vectors} == {8}
            assert upstream.requests == [
                {"model": "fake", "input": ["tea", "milk"], "dimensions": 8},
                {"model": "fake", "input": ["tea"], "dimensions": 8},
            ]
            assert upstream.request_targets == ["/v1/embeddings"] * 2
            assert upstream.request_headers[0]["authorization"] == "Bearer sk-secret"
            assert upstream.request_headers[0]["x-team"] == "a"
            assert (embedder.name, embedder_at(upstream).name) == ("fake@8", "fake")
            assert upstream.connections_total == 1
            upstream.queue_embeddings(
                said('{"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1.5]}]}')
            )
            assert await embedder.embed(["a", "b"]) == [[1.5], [2.0]]
            assert await embedder.embed([]) == []
            assert embedder.statistics().calls == 3
            await embedder.aclose()

    run_in_real_time(body)


def test_a_client_of_the_users_own_is_the_way_to_the_server(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, httpx.AsyncClient(headers={"x-own": "yes"}) as client:
            embedder = embedder_at(upstream, client=client)

            assert len(await embedder.embed(["tea"])) == 1
            assert upstream.request_headers[0]["x-own"] == "yes"

    run_in_real_time(body)


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        (refuse(401, "no key sk-secret"), Refused, r"answered 401: no key \[…\]"),
        (refuse(400, "cannot embed 'a private text'"), BadRequest, r"answered 400: cannot embed '\[…\]'"),
        (refuse(429, "slow down"), RateLimited, "429"),
        (refuse(503, "later"), ModelUnavailable, "503"),
        (fault("reset"), ModelUnavailable, "connection"),
        (fault("not_http"), ModelUnavailable, "no HTTP server"),
        (fault("html"), BadResponse, "no list of embeddings"),
        (said('{"error": {"message": "overloaded", "code": 503}}'), ModelUnavailable, "overloaded"),
        (said('{"data": []}'), BadResponse, "0 vectors, or not one for each of 1 texts"),
        (said('{"data": [{"index": 7, "embedding": [1]}]}'), BadResponse, "1 vectors, or not one"),
        (said('{"data": [{"embedding": []}]}'), BadResponse, "empty or not finite"),
        (said('{"data": [{"embedding": [1e999]}]}'), BadResponse, "empty or not finite|no list of embeddings"),
        (said('{"data": [{"embedding": ["1"]}]}'), BadResponse, "no list of embeddings"),
    ],
)
def test_what_goes_wrong_is_a_typed_error_without_key_or_text(
    run_in_real_time: Run, step: UpstreamAnswer, error: type[ModelError], text: str
) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream, Runtime.in_memory() as runtime:
            memory = Memory(runtime, embedder=embedder_at(upstream, retries=ONCE))
            upstream.queue_embeddings(step)
            with pytest.raises(error, match=text) as caught:
                await memory.add("a private text")

            assert "secret" not in str(caught.value)
            assert "private" not in str(caught.value)
            assert await memory.count() == 0
            await memory.add("a private text")
            assert await memory.count() == 1

    run_in_real_time(body)


def test_what_may_pass_is_repeated_and_a_silent_server_is_given_up(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            upstream.queue_embeddings(refuse(500, "oops", headers={"retry-after-ms": "1"}), fault("hang"))
            embedder = embedder_at(upstream, retries=RetryPolicy(retries_max=1), timeout_s=0.2)

            with pytest.raises(ModelUnavailable, match=r"no answer within 0.2 s") as caught:
                await embedder.embed(["tea"])
            assert caught.value.tries == 2
            assert await embedder.embed(["tea"]) != []
            await embedder.aclose()

    run_in_real_time(body)


def test_vectors_of_different_lengths_are_no_answer(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            upstream.queue_embeddings(said('{"data": [{"embedding": [1]}, {"embedding": [1, 2]}]}'))
            embedder = embedder_at(upstream, retries=ONCE)
            with pytest.raises(BadResponse, match="different lengths"):
                await embedder.embed(["a", "b"])
            await embedder.aclose()

    run_in_real_time(body)


def test_a_runtime_closes_the_connections_that_an_embedder_leaves_idle(run_in_real_time: Run) -> None:
    async def body() -> None:
        async with FakeUpstream() as upstream:
            async with Runtime.in_memory() as runtime:
                await Memory(runtime, embedder=embedder_at(upstream)).add("tea")
                assert upstream.connections_open == 1
            with anyio.fail_after(2):
                while upstream.connections_open:
                    await anyio.lowlevel.checkpoint()

    run_in_real_time(body)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": ""}, "which model"),
        ({"dimensions": 0}, "dimensions must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"timeout_s": 0}, "timeout_s must be positive"),
        ({"base_url": "no url"}, "must look like"),
        ({"api_key": "a b\n"}, "api_key"),
    ],
)
def test_mistakes_are_refused_at_the_door(options: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {"model": "fake", "base_url": "http://127.0.0.1:1/v1", **options}
    with pytest.raises(ValueError, match=text):
        OpenAIEmbedder(**given)


def test_an_azure_resource_and_a_server_with_a_query_have_their_own_addresses(run_in_real_time: Run) -> None:
    seen: list[str] = []

    def answered(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json={"data": [{"embedding": [1.0]}]})

    async def body() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as client:
            for url in ("https://x.openai.azure.com", "http://h/v1/?v=1"):
                await OpenAIEmbedder(model="m", base_url=url, api_key="k", client=client).embed(["a"])

        assert seen == ["https://x.openai.azure.com/openai/v1/embeddings", "http://h/v1/embeddings?v=1"]

    run_in_real_time(body)
